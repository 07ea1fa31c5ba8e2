"""Columns of a table on the command line, in a recipe and in Python; a run knows its own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deepcait
from deepcait.cli.main import main
from deepcait.data.columns import HOW_IMAGE, HOW_LABEL
from deepcait.training.keys import recipe_keys
from tests.cli.test_images import options

SETTINGS = ["data.image_column=id", "data.label_column=breed", "data.image_suffix=.png", "data.image_root=images"]
OPTIONS = ["--image-column", "id", "--label-column", "breed", "--image-suffix", ".png", "--image-root", "images"]


@pytest.fixture
def table(tmp_path, monkeypatch) -> str:
    """A CSV whose labels are the brightness of its images, in other columns than usual."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    rows = ["id,label,breed"]
    for number in range(12):
        pixels = np.full((32, 32, 3), 40 + 160 * (number % 2) + number, np.uint8)
        Image.fromarray(pixels).save(f"images/{number}.png")
        rows.append(f"{number},7,{['dark', 'light'][number % 2]}")
    Path("x.csv").write_text("\n".join(rows) + "\n")
    return "x.csv"


def run(capsys, *argv: str) -> tuple[int, dict, str]:
    code = main([*argv, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out.strip() else {}, err


def test_a_table_of_other_columns_from_doctor_to_eval(capsys, table):
    code, printed, _ = run(capsys, "doctor", "--data", table, *OPTIONS)
    assert (code, printed["num_classes"]) == (0, 2)
    small = ["epochs=1", "global_batch_size=4", "replicas=1", "data.num_workers=0", "head_warmup_epochs=0"]
    train = ["train", "--data", table, "--out", "run", "--model", "builtin:nano", "--set", *SETTINGS, *small]
    assert main(train) == 0
    capsys.readouterr()
    # The run's own columns for the run's own data, in Python too; others are given.
    _, own, _ = run(capsys, "eval", "run", "--data", table, "--split", "all")
    _, given, _ = run(capsys, "eval", "run", "--data", table, "--split", "all", *OPTIONS)
    assert (own["num_images"], own["loss"]) == (12, given["loss"])
    columns = deepcait.data.Columns(image="id", label="breed", suffix=".png", root="images")
    for given in ({}, {"columns": columns}):
        metrics = deepcait.evaluate(deepcait.load("run", device="cpu"), table, split="all", **given)
        assert (metrics.num_images, metrics.correct1) == (12, own["correct1"])
    Path("y.csv").write_text(Path(table).read_text())
    code, printed, _ = run(capsys, "eval", "run", "--data", "y.csv")
    assert code == 2
    assert "id, label, breed" in printed["error"]


def test_a_column_that_is_not_there_ends_with_a_sentence(capsys, table):
    code, printed, _ = run(capsys, "doctor", "--data", table, "--image-column", "id", "--label-column", "bred")
    assert (code, printed["remedy"]) == (2, "Did you mean 'breed'?")
    code, printed, _ = run(capsys, "eval", "builtin:nano", "--data", "builtin:demo", "--label-column", "x")
    assert code == 2
    assert "label_column: expected a table" in printed["error"]


def test_remedies_name_what_there_is():
    for text in (HOW_LABEL, HOW_IMAGE):
        assert set(re.findall(r"--[a-z-]+", text)) <= options() | {"--set"}
        assert set(re.findall(r"data\.[a-z_]+", text)) <= {row.key for row in recipe_keys()}
