"""Property: the demo, on a few of its photographs: every file it names is there, and every count adds up."""

from __future__ import annotations

import csv
import json

import pytest

from deepcait.cli import demo
from deepcait.cli.main import main
from deepcait.data import open_source
from deepcait.training import recipe as recipes

FEW = ["epochs=1", "data.limit=64", "data.val_limit=20"]


def test_the_groups_are_another_grouping_of_the_same_photographs(tmp_path):
    path = tmp_path / "a, folder" / "groups.csv"
    demo._write_groups(path)
    train, val, test = (open_source(f"csv:{path}", split) for split in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (900, 100, 500)
    assert test.classes == ["animal", "vehicle"]
    assert [test.labels.count(label) for label in (0, 1)] == [300, 200]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows if "/truck/" in row["path"]} == {"vehicle"}
    assert {row["label"] for row in rows if "/frog/" in row["path"]} == {"animal"}
    assert len({row["path"] for row in rows}) == 1500  # no photograph in two parts


@pytest.mark.slow
def test_the_demo_runs_through(tmp_path, monkeypatch, capsys):
    real = recipes.load_recipe
    monkeypatch.setattr(recipes, "load_recipe", lambda name, texts=(): real(name, [*texts, *FEW]))
    assert main(["demo", "--out", str(tmp_path / "demo"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    run = ("run/best/model.safetensors", "run/report.html", "scratch/best/model.safetensors")
    for part in (*run, "explanation/index.html", "model.pt2", "model.pt2.json"):
        assert (tmp_path / "demo" / part).is_file(), part
    assert facts["proof"]["agreed"] == facts["proof"]["num_images"] > 0
    assert facts["before"]["num_images"] == facts["after"]["num_images"] == 500
    for measured in (facts["before"], facts["after"], facts["scratch"], facts["nano"]):
        assert measured["top1"] == measured["correct1"] / measured["num_images"]
    assert facts["before"]["top1"] > 0.8  # of two groups, from ten answers
    assert len(facts["pictures"]) == 6


def test_a_folder_that_holds_something_is_refused_at_once(tmp_path, capsys):
    (tmp_path / "letter.txt").write_text("x")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "contains other files" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
