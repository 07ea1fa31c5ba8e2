"""Golden: the model in the package is the one that its card and docs/results describe."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import deepcait
from deepcait.weights.registry import BUILTIN_NANO

RESULTS = Path(__file__).parent.parent / "docs" / "results"


def found() -> dict:
    return json.loads((RESULTS / "nano.json").read_text(encoding="utf-8"))


def test_it_is_small():
    model = deepcait.load("builtin:nano").model
    assert model.config.num_params() == sum(p.numel() for p in model.parameters()) <= 2_000_000
    assert (BUILTIN_NANO / "model.safetensors").stat().st_size <= 8_000_000


def test_the_card_says_what_was_measured():
    card, result = (BUILTIN_NANO / "README.md").read_text(encoding="utf-8"), found()["result"]
    assert result["num_images"] == 10_000
    assert f"Top-1 {result['top1']:.2%} ({result['correct1']:,} of the 10,000 test images" in card
    assert f"{deepcait.load('builtin:nano').model.config.num_params():,} parameters" in card


def test_the_model_remembers_the_same_accuracy_and_no_path():
    config = json.loads((BUILTIN_NANO / "config.json").read_text(encoding="utf-8"))
    assert config["deepcait"]["metrics"]["correct1"] == found()["result"]["correct1"]
    # A place on somebody's machine says nothing to anybody else.
    assert not any(part in json.dumps(config["deepcait"]) for part in ('"/', "/work", "/home", "/tmp", "runs/"))


def test_the_curve_ends_where_the_card_says():
    training = found()["training"]
    with (RESULTS / "nano.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == "eval"]
    evaluated = {row["epoch"]: float(row["top1"]) for row in rows}
    assert evaluated == {epoch: top1 for epoch, (top1, _) in training["val_top1_after_epoch"].items()}
    assert training["best"]["top1"] == max(evaluated.values())


def test_what_chose_the_epoch_is_not_what_was_measured():
    training, result = found()["training"], found()["result"]
    chosen = training["best"]["num_images"]
    assert chosen + 47_500 == 50_000
    assert training["images_of_an_epoch"] <= 47_500
    assert (result["split"], result["num_images"]) == ("test", 10_000)
    card = (BUILTIN_NANO / "README.md").read_text(encoding="utf-8")
    assert f"the epoch was chosen by {chosen:,} other training images ({training['best']['top1']:.2%})" in card
    assert f"`{training['command']}`" in card
