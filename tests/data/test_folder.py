"""Class folders, data SPECs and roles."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from deepcait.data import describe, find_splits, list_splits, open_folder, open_source, open_split
from deepcait.data.labels import sort_classes
from deepcait.data.source import Sample, Source
from deepcait.errors import ConfigError, DataError, ImageError


def plant(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())
    return root


def pairs(source: Source) -> list[tuple[str, str]]:
    return [(name, source.classes[label]) for name, label in zip(source.names, source.labels, strict=True)]


# ---- folders


def test_classes_files_and_reading_order(tmp_path):
    plant(tmp_path, "dog/2.png", "dog/10.png", "cat/x/1.jpg", "cat/a.JPEG", "cat/notes.txt", "dog/Thumbs.db")
    source = open_folder(tmp_path, None)
    assert isinstance(source, Source)
    assert source.classes == ["cat", "dog"]
    assert source.split == "all"
    assert len(source) == 4
    assert source.names == ["cat/a.JPEG", "cat/x/1.jpg", "dog/2.png", "dog/10.png"]
    assert source.labels == [0, 0, 1, 1]
    assert source.read(2) == Sample(b"dog/2.png", 1, "dog/2.png")
    assert source.locate(2) == str(tmp_path / "dog" / "2.png")
    assert describe(source) == "folder, split all: 4 images, 2 classes; left out: 2 files (.txt 1, .db 1)"


def test_hidden_folders_are_no_class(tmp_path):
    plant(tmp_path, ".ipynb_checkpoints/1.png", "cat/1.png", "cat/.ipynb_checkpoints/1.png", "cat/._1.png", "dog/1.png")
    source = open_folder(tmp_path, None)
    assert source.classes == ["cat", "dog"]
    assert source.names == ["cat/1.png", "dog/1.png"]


def test_integer_folders_sort_by_number(tmp_path):
    plant(tmp_path, *(f"{number}/1.png" for number in range(12)))
    source = open_folder(tmp_path, None)
    assert source.classes == [str(number) for number in range(12)]
    assert all(name.startswith(f"{label}/") for name, label in zip(source.names, source.labels, strict=True))
    assert sort_classes(["10", "9", "x"]) == ["10", "9", "x"], "one name that is no number: all are text"
    assert sort_classes(["n02", "n010", "N1"]) == ["N1", "n010", "n02"]


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", "train"), ("training", "train"), ("val", "val"), ("Valid", "val"), ("validation", "val")]
    + [("test", "test"), ("testing", "test"), ("Test", "test")],
)
def test_split_names(tmp_path, name, split):
    plant(tmp_path, f"{name}/cat/1.png", "notes/readme.md")
    assert find_splits(tmp_path) == {split: tmp_path / name}
    assert open_folder(tmp_path, split).names == ["cat/1.png"]


def test_train_fixes_the_classes_of_every_split(tmp_path):
    plant(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png", "test/b/9.png", "test/a/")
    test = open_folder(tmp_path, "test")
    assert test.classes == ["a", "b", "c"]
    assert test.labels == [1]
    everything = open_folder(tmp_path, None)
    assert everything.names == ["train/a/1.png", "train/b/1.png", "train/c/1.png", "test/b/9.png"]
    assert everything.read(3).data == b"test/b/9.png"


def test_given_classes_map_by_name(tmp_path):
    plant(tmp_path, "dog/1.png", "cat/1.png")
    source = open_folder(tmp_path, None, classes=["dog", "bird", "cat"])
    assert source.classes == ["dog", "bird", "cat"]
    assert pairs(source) == [("cat/1.png", "cat"), ("dog/1.png", "dog")]
    with pytest.raises(DataError, match="'dog'"):
        open_folder(tmp_path, None, classes=["cat", "bird"])


def test_unknown_class_in_validation_is_named(tmp_path):
    plant(tmp_path, "train/cat/1.png", "val/cat/1.png", "val/cow/1.png")
    with pytest.raises(DataError, match=r"unknown class 'cow'"):
        open_folder(tmp_path, "val")


def test_empty_class_folders(tmp_path):
    plant(tmp_path, "train/cat/1.png", "train/dog/readme.txt", "val/cat/1.png", "val/dog/")
    with pytest.raises(DataError, match="dog"):
        open_folder(tmp_path, "train")
    assert open_folder(tmp_path, "train", classes=["cat"]).labels == [0]
    assert open_folder(tmp_path, "val").labels == [0]
    plain = plant(tmp_path / "plain", "cat/1.png", "dog/")
    with pytest.raises(DataError, match="dog"):
        open_folder(plain, None)


def test_a_class_called_train_is_a_class(tmp_path):
    plant(tmp_path, "car/1.png", "plane/1.png", "train/1.png")
    assert find_splits(tmp_path) == {}
    assert open_folder(tmp_path, None).classes == ["car", "plane", "train"]


def test_a_split_that_lies_flat_beside_others_is_reported(tmp_path):
    """ImageNet as its archives unpack: training images would be measured in place of the flat val."""
    root = plant(tmp_path / "a", "train/cat/1.png", "train/dog/1.png", "train/cat/2.png", "train/dog/2.png")
    assert len(open_split(root, "eval")) == 4
    plant(root, "val/1.png", "val/2.png")
    for role in ("train", "val", "eval"):
        with pytest.raises(DataError, match="val: the images are not in class folders"):
            open_split(root, role)
    with pytest.raises(DataError, match="not in class folders"):
        open_source(root, "all")
    assert len(open_source(root, "train")) == 4  # asked for by name
    with pytest.raises(DataError, match="not in class folders"):
        open_source(plant(tmp_path / "alone", "val/1.png"))
    # A test set without labels hinders no training; but what is measured then is not the training set.
    other = plant(tmp_path / "b", "train/cat/1.png", "train/cat/2.png", "Test/1.png", "extra/1.png")
    assert [len(open_split(other, role)) for role in ("train", "val")] == [1, 1]
    with pytest.raises(DataError, match="Test: the images are not in class folders"):
        open_split(other, "eval")
    plant(other, "val/cat/3.png")
    assert open_split(other, "eval").split == "val"


def test_folders_that_do_not_fit(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        open_folder(tmp_path / "gone", None)
    with pytest.raises(DataError, match="No images found below"):
        open_folder(tmp_path, None)
    with pytest.raises(DataError, match="not in class folders"):
        open_folder(plant(tmp_path / "flat", "1.png", "2.png"), None)
    with pytest.raises(DataError, match="not in class folders"):
        open_folder(plant(tmp_path / "flat_splits", "train/1.png", "test/2.png"), "train")
    with pytest.raises(DataError, match="two folders for the split val"):
        open_folder(plant(tmp_path / "twice", "val/a/1.png", "valid/a/1.png"), "val")
    with pytest.raises(DataError, match="no split test; the splits are train, val"):
        open_folder(plant(tmp_path / "two", "train/a/1.png", "val/a/1.png"), "test")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="this is a file"):
        open_folder(tmp_path / "file", None)


def test_a_file_that_vanished_is_named(tmp_path):
    source = open_folder(plant(tmp_path, "cat/1.png"), None)
    (tmp_path / "cat" / "1.png").unlink()
    with pytest.raises(ImageError, match=r"1\.png.*no such file"):
        source.read(0)


# ---- SPECs


def test_specs_of_one_folder(tmp_path, monkeypatch):
    plant(tmp_path / "data", "cat/1.png", "dog/1.png")
    monkeypatch.chdir(tmp_path)
    for spec in ("data", "./data", "folder:data", tmp_path / "data", f"folder:{tmp_path / 'data'}"):
        assert open_source(spec).names == ["cat/1.png", "dog/1.png"]
    plant(tmp_path / "zip:data", "cow/1.png")
    assert open_source("zip:data").classes == ["cow"], "a path that exists is meant"


def test_specs_that_do_not_fit(tmp_path):
    with pytest.raises(ConfigError, match="Did you mean folder:"):
        open_source("foldr:x")
    with pytest.raises(ConfigError, match="builtin:demo"):
        open_source("builtin:dmo")
    with pytest.raises(DataError, match="no such path"):
        open_source(tmp_path / "gone")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="kind of this file is not known"):
        open_source(tmp_path / "a.txt")
    with pytest.raises(ConfigError, match="Did you mean train"):
        open_source("builtin:demo", "trian")
    with pytest.raises(ConfigError, match="role"):
        open_split("builtin:demo", "predict")


def test_the_demo_is_whole():
    train, test = open_source("builtin:demo", "train"), open_source("builtin:demo", "test")
    assert train.classes == test.classes == "airplane automobile bird cat deer dog frog horse ship truck".split()
    assert set(Counter(train.labels).values()) == {100}
    assert set(Counter(test.labels).values()) == {50}
    assert len(train.classes) == len(Counter(train.labels)) == len(Counter(test.labels))
    assert train.names[0] == "airplane/00029.png"
    assert list_splits("builtin:demo") == ["train", "test"]


# ---- roles

FOUR = [f"{name}/{number}.png" for name in ("a", "b") for number in range(4)]


@pytest.mark.parametrize(
    ("splits", "role", "expected"),
    [
        ("train val test", "train", "train"),
        ("train val test", "val", "val"),
        ("train val test", "eval", "test"),
        ("train test", "train", "train"),
        ("train test", "val", "val"),
        ("train test", "eval", "test"),
        ("train val", "eval", "val"),
        ("val", "eval", "val"),
        ("train", "eval", "all"),
    ],
)
def test_roles_take_the_split_of_the_design(tmp_path, splits, role, expected):
    for split in splits.split():
        plant(tmp_path, *(f"{split}/{name}" for name in FOUR))
    source = open_split(tmp_path, role)
    assert source.split == expected
    held_out = splits == "train test" and role != "eval"
    assert len(source) == ({"train": 6, "val": 2}[role] if held_out else 8)
    if expected != "all":
        assert source.read(0).data.startswith(b"train" if held_out else expected.encode())


@pytest.mark.parametrize("prefix", ["", "train/"])
def test_without_a_validation_split_a_part_is_held_out(tmp_path, prefix):
    plant(tmp_path, *(prefix + name for name in FOUR))
    train, val = open_split(tmp_path, "train"), open_split(tmp_path, "val")
    assert (train.split, val.split) == ("train", "val")
    assert Counter(val.labels) == {0: 1, 1: 1}
    assert Counter(train.labels) == {0: 3, 1: 3}
    assert sorted([*train.names, *val.names]) == FOUR
    assert [train.read(i).name for i in range(6)] == train.names
    assert val.locate(0).endswith(val.names[0])
    assert isinstance(val, Source)
    assert open_split(tmp_path, "eval", split="val").names == val.names
    assert len(open_split(tmp_path, "eval")) == len(open_split(tmp_path, "train", split="all")) == 8
    other = [open_split(tmp_path, "val", seed=seed).names for seed in range(8)]
    assert any(names != val.names for names in other), "the seed does nothing"


def test_explicit_split_must_exist(tmp_path):
    plant(tmp_path, "train/a/1.png", "test/a/1.png")
    assert open_split(tmp_path, "eval", split="train").split == "train"
    with pytest.raises(DataError, match="no split val; the splits are train, test"):
        open_split(tmp_path, "eval", split="val")
    with pytest.raises(DataError, match="no split train; the splits are val"):
        open_split(plant(tmp_path / "v", "val/a/1.png"), "train")


def test_nothing_to_hold_out(tmp_path):
    with pytest.raises(DataError, match="2 or more images"):
        open_split(plant(tmp_path, "a/1.png", "b/1.png"), "train")
