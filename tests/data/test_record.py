"""`split.json`: read back as it was written, refused when damaged; 0.1's and 0.2's first form is read too."""

from __future__ import annotations

import json

import pytest

from deepcait.data import Columns, Subset, open_source
from deepcait.data.holding import Holding, open_parts
from deepcait.data.record import (
    columns_for,
    digest_of,
    find_record,
    part_of_run,
    read_record,
    record_text,
    run_around,
)
from deepcait.errors import DataError
from tests.data.test_labels_missing import png


def test_round_trip(tmp_path):
    source = open_source("builtin:demo", "train")
    assert len(source) > 64
    used = Subset(source, range(10), split="train")
    parts = {"train": part_of_run(source, used), "val": part_of_run(Subset(source, [], split="val"))}
    parts["test"] = part_of_run(Subset(source, [], split="test"))
    path = tmp_path / "split.json"
    path.write_text(record_text(parts, seed=3))
    record = read_record(path)
    assert record.parts == parts
    train = record.parts["train"]
    assert (train.split, train.names, len(train.probes)) == ("train", list(source.names), 64)
    assert (train.labels[0], source.names[0].split("/")[0]) == ("airplane", "airplane")
    assert len(train.unused) == len(source) - 10
    index = source.names.index(next(iter(train.probes)))
    assert train.probes[source.names[index]] == digest_of(source.read(index).data)
    backwards = list(source.names)[::-1]
    assert [backwards[index] for index in record.indices(backwards)["train"]] == backwards
    for other in (backwards[1:], [*backwards, "cat/new.png"]):
        with pytest.raises(DataError, match="not those of the recorded split"):
            record.indices(other)


def test_a_part_beside_a_split_of_the_data_is_drawn_again(tmp_path):
    for split, num in (("train", 10), ("val", 4)):
        for name in ("cat", "dog"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(num):
                (tmp_path / "data" / split / name / f"{number}.png").write_bytes(png(number))
    how = Holding(test_fraction=0.2)
    first = open_parts(tmp_path / "data", how)
    found = {"train": part_of_run(first.train), "val": part_of_run(first.val), "test": part_of_run(first.test)}
    (tmp_path / "split.json").write_text(record_text(found))
    again = open_parts(tmp_path / "data", how, record=read_record(tmp_path / "split.json"))
    assert [list(part.names) for part in (again.train, again.val, again.test)] == [
        list(part.names) for part in (first.train, first.val, first.test)
    ]
    assert (len(again.train), len(again.val), len(again.test)) == (16, 8, 4)


def test_the_form_before_is_read(tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"format": "deepcait-split-1", "train": ["a/1.png", "a/2.png"], "val": ["a/3.png"]}))
    assert read_record(path).indices(["a/3.png", "a/1.png", "a/2.png"]) == {"train": [1, 2], "val": [0]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "x", "train": [], "val": []}',
        '{"format": "deepcait-split-1", "train": 3}',
        '{"format": "deepcait-split-1", "train": [["a/1.png"]], "val": []}',
        '{"format": "deepcait-split-2", "train": [], "val": [], "test": []}',
        '{"format": "deepcait-split-2", "train": ["a"], "val": [], "test": [], "classes": ["a"], "splits": {}, '
        '"labels": {"train": [7]}, "unused": {}, "probes": {}}',
    ],
)
def test_damaged_files_are_refused(tmp_path, text):
    path = tmp_path / "split.json"
    path.write_text(text)
    with pytest.raises(DataError, match="not a readable record of a split"):
        read_record(path)
    with pytest.raises(DataError, match="not a readable record of a split"):
        read_record(tmp_path / "gone.json")


def test_the_run_that_a_model_is_from(tmp_path, monkeypatch):
    run = tmp_path / "run"
    (run / "best").mkdir(parents=True)
    (run / "config.yaml").write_text("data: {source: t.csv, label_column: breed}\n")
    assert run_around(str(run / "best")) is None  # another program's
    (run / "data.json").write_text("{}")
    (run / "best" / "model.safetensors").write_bytes(b"")
    (run / "best" / "ema").mkdir()
    (run / "best" / "ema" / "model.safetensors").write_bytes(b"")
    for inner in (".", "best", "best/model.safetensors", "best/ema/model.safetensors"):
        assert run_around(str(run / inner)) == run
        assert run_around(f"python:nets:Small(depth=2),weights={run / inner}") == run
    assert run_around(str(tmp_path)) is None
    monkeypatch.chdir(run)  # a name is no path
    assert (run_around("best"), run_around("builtin:nano"), find_record("builtin:nano")) == (run, None, None)
    assert columns_for("best", "t.csv") == Columns(label="breed")
    assert columns_for("best", "other.csv") == columns_for("builtin:nano", "t.csv") == Columns()
    assert columns_for("best", "t.csv", Columns(label="dog")) == Columns(label="dog")
    (run / "config.yaml").write_text("data: [")
    with pytest.raises(DataError, match="can't be read"):
        columns_for("best", "t.csv")
