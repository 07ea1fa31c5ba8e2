"""What images were to a run: by path, label and content, in moved folders, other forms, and with only val."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcait.data import open_source, pairing
from deepcait.data.holding import Holding, open_parts
from deepcait.data.pairing import Named, pair_images
from deepcait.data.record import Part, SplitRecord, part_of_run, read_record, record_text
from deepcait.data.roles import CHOSE, HELD_OUT, TRAINED_ON, describe_roles, open_for_run, roles_in
from deepcait.errors import DataError
from deepcait.evaluation import open_with_roles
from tests.evaluation.tiny_imagenet import WNIDS, build_val, paint, write_real


def paint_noise(path: Path, *seed: int) -> None:
    """Write an image that no other is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


def record_of(tmp_path: Path, data: Path | str, how: Holding, *, used: int | None = None) -> SplitRecord:
    """What a run on this data records, through its file."""
    parts = open_parts(data, how)
    kept = parts.train if used is None else open_parts(data, how).train
    if used is not None:
        kept.names = kept.names[:used]
    found = {"train": part_of_run(parts.train, kept), "val": part_of_run(parts.val), "test": part_of_run(parts.test)}
    (tmp_path / "split.json").write_text(record_text(found, source=str(data)))
    return read_record(tmp_path / "split.json")


IMAGES = [Named("b/a/1.png", "", None), Named("a/1.png", "", None), Named("2.png", "", None)]


class ListOfNames:
    """A source that is not read."""

    kind, split = "csv", "all"

    def __init__(self, names: list[str], labels: list[str]) -> None:
        self.names, self.classes = names, sorted(set(labels))
        self.labels = [self.classes.index(label) for label in labels]

    def __len__(self) -> int:
        return len(self.names)


@pytest.fixture
def flat(tmp_path) -> Path:
    for label, name in enumerate(("cat", "dog")):
        for number in range(10):
            paint_noise(tmp_path / "flat" / name / f"{number}.png", label, number)
    return tmp_path / "flat"


@pytest.fixture
def split(tmp_path) -> Path:
    """Splits whose images have the same names."""
    for seed, part in enumerate(("train", "val")):
        for label, name in enumerate(("cat", "dog")):
            for number in range(4):
                paint_noise(tmp_path / "split" / part / name / f"{number}.png", 7 + seed, label, number)
    return tmp_path / "split"


def test_the_order_of_what_is_evaluated(tmp_path, flat):
    record = record_of(tmp_path, flat, Holding(test_fraction=0.2))
    source, roles = open_for_run(flat, record)
    assert (len(source), roles.counts, roles.part) == (4, {HELD_OUT: 4}, "test")
    record = record_of(tmp_path, flat, Holding())
    source, roles = open_for_run(flat, record)
    assert (len(source), roles.counts, roles.part) == (2, {CHOSE: 2}, "val")
    for name in source.names:
        (flat / name).unlink()
    with pytest.raises(DataError, match="all 18 images have names"):
        open_for_run(flat, record)
    paint_noise(flat / "cat" / "new.png", 99)
    source, roles = open_for_run(flat, record)
    assert (source.names, roles.counts, roles.left_out) == (["cat/new.png"], {HELD_OUT: 1}, 18)
    source, roles = open_for_run(flat, record, "all")
    assert (len(source), roles.counts) == (19, {TRAINED_ON: 18, HELD_OUT: 1})


def test_an_empty_class_folder_is_no_error(tmp_path, flat):
    record = record_of(tmp_path, flat, Holding())
    (flat / "unicorn").mkdir()
    assert [len(open_for_run(flat, record, split)[0]) for split in (None, "val", "train", "all")] == [2, 2, 18, 20]


def test_missing_images_of_a_part_are_counted(tmp_path, flat):
    record = record_of(tmp_path, flat, Holding(test_fraction=0.4))
    source, _ = open_for_run(flat, record)
    (flat / source.names[0]).unlink()
    source, roles = open_for_run(flat, record)
    assert (len(source), roles.missing) == (7, 1)


def test_images_that_the_run_left_out_are_not_trained_on(tmp_path, flat):
    record = record_of(tmp_path, flat, Holding(), used=5)
    assert describe_roles(open_source(flat), record).counts == {TRAINED_ON: 5, CHOSE: 2, HELD_OUT: 13}


def test_equal_names_in_two_splits_are_two_images(tmp_path, split):
    record = record_of(tmp_path, split, Holding())
    assert describe_roles(open_source(split), record).counts == {TRAINED_ON: 8, CHOSE: 8}
    source, roles = open_for_run(split, record)
    assert (source.split, roles.counts) == ("val", {CHOSE: 8})
    for part, role in (("train", TRAINED_ON), ("val", CHOSE)):  # by content, where the folder says nothing
        assert set(roles_in(open_source(split / part), record)) == {role}
        shutil.copytree(split / part, tmp_path / "moved" / part / "more" / part)
        assert set(roles_in(open_source(tmp_path / "moved" / part / "more" / part), record)) == {role}
    with pytest.raises(DataError, match="all 8 images have names and labels of images that the run trained on"):
        open_for_run(split / "train", record)


def test_a_table_of_the_same_images(tmp_path, flat):
    record = record_of(tmp_path, flat, Holding(test_fraction=0.2))
    rows = [f"flat/{name}/{number}.png,{label}\n" for label, name in enumerate(("cat", "dog")) for number in range(10)]
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(rows))  # labels as indices
    source, roles = open_for_run(tmp_path / "list.csv", record)
    assert (len(source), roles.part) == (4, "test")


def test_names_alone_are_not_enough(tmp_path, flat):
    record = record_of(tmp_path, flat, Holding())
    for number in range(10):
        paint_noise(tmp_path / "new" / "cat" / f"{number}.png", 5, number)
    source, roles = open_for_run(tmp_path / "new", record)
    assert (len(source), roles.counts) == (10, {HELD_OUT: 10})


@pytest.mark.parametrize("prefix", ["", "photos/"])
def test_names_that_end_alike_are_two_images(prefix):
    train, test = Part(names=["a/1.png", "2.png"], labels=["a", "x"]), Part(names=["b/a/1.png"], labels=["b"])
    record = SplitRecord(where="split.json", parts={"train": train, "val": Part(), "test": test})
    source = ListOfNames([f"{prefix}a/1.png", f"{prefix}b/a/1.png", f"{prefix}2.png"], ["a", "b", "y"])
    assert roles_in(source, record) == [TRAINED_ON, HELD_OUT, HELD_OUT]
    found = pair_images([Named(f"{prefix}{name}", "", None) for name in train.names + test.names], IMAGES)
    assert found == [(0, 1), (1, 2), (2, 0)]
    assert pair_images(IMAGES, [Named(f"{prefix}{image.path}", "", None) for image in IMAGES]) == [
        *((0, 0), (1, 1), (2, 2)),
    ]


def test_the_work_does_not_grow_with_repeated_names(monkeypatch):
    images = [Named(f"{number}/image.png", "", None) for number in range(10_000)]
    calls = []
    monkeypatch.setattr(pairing, "_may_be_one", lambda *two: calls.append(two) or True)
    for prefix in ("", "photos/"):
        others = [image._replace(path=prefix + image.path) for image in images[::-1]]
        assert pair_images(images, others) == [(index, 9_999 - index) for index in range(10_000)]
    assert len(calls) == 20_000


def test_the_form_before_has_no_content(tmp_path, flat):
    names = open_source(flat).names
    facts = {"format": "deepcait-split-1", "train": names[2:], "val": names[:2]}
    (tmp_path / "split.json").write_text(json.dumps(facts))
    assert describe_roles(open_source(flat), read_record(tmp_path / "split.json")).counts == {TRAINED_ON: 18, CHOSE: 2}
    shutil.copytree(flat, tmp_path / "whole" / "test")
    shutil.copytree(flat, tmp_path / "whole" / "train")
    source, roles = open_for_run(tmp_path / "whole", read_record(tmp_path / "split.json"))
    assert (source.split, len(source), roles.counts) == ("test", 20, {HELD_OUT: 20})


@pytest.mark.parametrize("protocol", ["folder", "imagenet", "real"])
def test_imagenet_with_only_val(tmp_path, protocol, monkeypatch):
    root = build_val(tmp_path / "imagenet")
    for label, wnid in enumerate(WNIDS):
        for number in range(2):
            paint(root / "train" / wnid / f"{wnid}_{number}.JPEG", label)
    record = record_of(tmp_path, f"imagenet:{root}", Holding())
    shutil.rmtree(root / "train")
    write_real(tmp_path / "real.json")
    source, roles = open_with_roles(f"imagenet:{root}", record, protocol=protocol)
    assert (len(source), roles.counts) == (12, {CHOSE: 12})
