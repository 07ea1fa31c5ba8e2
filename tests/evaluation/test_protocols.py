"""ImageNet, ReaL and V2 in small: results worked out by hand, in any order; and the traps on the way."""

from __future__ import annotations

import hashlib
import math
from types import SimpleNamespace

import pytest
import torch

from deepcait.data import Subset
from deepcait.data import folder as folder_module
from deepcait.data import imagenet as imagenet_module
from deepcait.data import labels as labels_module
from deepcait.errors import ConfigError, DataError
from deepcait.evaluation import classes as classes_module
from deepcait.evaluation import evaluate, open_for, protocols
from deepcait.evaluation.protocols import REAL_SHA256, plan_task, read_real_labels, real_index
from tests.evaluation.tiny_imagenet import (
    PLAIN,
    REAL_CORRECT,
    REAL_IMAGES,
    V2_STEP,
    VAL,
    VAL_CORRECT,
    WNIDS,
    GreyModel,
    build_v2,
    build_val,
    paint,
    val_name,
    write_label_file,
    write_real,
)


def measure(data, protocol, model=None, **options):
    return evaluate(model or GreyModel(WNIDS), data, protocol=protocol, preprocessing=PLAIN, **options)


def says(metrics, part: str) -> bool:
    return any(part in text for text in metrics.warnings)


@pytest.fixture
def val(tmp_path):
    return build_val(tmp_path / "imagenet")


@pytest.fixture
def real(tmp_path):
    return write_real(tmp_path / "real.json")


def permuted(source):
    order = torch.randperm(len(source)).tolist()
    assert order != sorted(order)
    return Subset(source, order, split=source.split)


# -- ImageNet ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "val"])
def test_imagenet(val, place):
    metrics = measure(val / place, "imagenet")
    assert (metrics.num_images, metrics.correct1) == (len(VAL), VAL_CORRECT)
    assert says(metrics, "expected the 50,000 validation images, got 12")
    assert metrics == measure(permuted(open_for(val, protocol="imagenet")), "imagenet")
    for row, name in enumerate(metrics.records.names):
        label, answer, _ = VAL[real_index(name) + 1]
        assert metrics.records.row_labels(row) == [label]
        assert metrics.records.first_N[row] == answer


@pytest.mark.parametrize("place", ["", "val"])
def test_imagenet_with_a_flat_val(tmp_path, place):
    root = build_val(tmp_path / "imagenet", flat=True)
    with pytest.raises(DataError, match="not in class folders, and there is no file of labels") as caught:
        measure(root / place, "imagenet")
    assert "ILSVRC2012_devkit_t12" in caught.value.remedy
    write_label_file(root)
    assert measure(root / place, "imagenet").correct1 == VAL_CORRECT


def test_the_trap_of_a_flat_val(tmp_path, monkeypatch):
    """Flat images without labels are explained; a listing that took them for one class would go through."""
    root = build_val(tmp_path / "imagenet", flat=True)
    with pytest.raises(DataError, match="not in class folders") as caught:
        measure(root / "val", "folder")
    assert "imagenet:ROOT" in caught.value.remedy
    # Without the safeguard every image counts as class 0, silently.
    one_class = [(".", [val_name(number) for number in VAL])]
    monkeypatch.setattr(folder_module, "_class_files", lambda folder, **_: one_class)
    monkeypatch.setattr(folder_module, "_own_classes", lambda *_: ["."])
    metrics = measure(root / "val", "folder", model=GreyModel(num_classes=1))
    assert (metrics.num_images, metrics.correct1) == (12, 12)


def test_imagenet_is_no_other_data(tmp_path):
    for label in range(10):
        paint(tmp_path / str(label) / "1.jpeg", label)
    with pytest.raises(DataError, match="folders train and val are missing"):
        measure(tmp_path, "imagenet")
    with pytest.raises(DataError, match="wnids such as n01440764"):
        measure(open_for(tmp_path), "imagenet")


# -- ReaL -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", [False, True])
def test_real(tmp_path, real, flat):
    root = build_val(tmp_path / "imagenet", flat=flat)
    metrics = measure(root, "real", real_labels=real)
    assert (metrics.num_images, metrics.num_skipped) == (REAL_IMAGES, len(VAL) - REAL_IMAGES)
    assert metrics.correct1 == REAL_CORRECT
    # Image 6: grey 8, label 1, seven classes are nearer; image 7: grey 2, label 7, others at 1..5 first.
    assert metrics.correct5 == REAL_CORRECT
    assert metrics == measure(permuted(open_for(root, protocol="real")), "real", real_labels=real)
    assert measure(root / "val", "real", real_labels=real) == metrics
    labels = {name: metrics.records.row_labels(row) for row, name in enumerate(metrics.records.names)}
    assert {real_index(name) + 1: own for name, own in labels.items()} == {n: v[2] for n, v in VAL.items() if v[2]}


def test_the_loss_of_several_labels_is_that_of_all_of_them_together(tmp_path, real):
    root = build_val(tmp_path / "imagenet")
    metrics = measure(root, "real", real_labels=real)
    total = 0.0
    for _, answer, labels in VAL.values():
        weights = [math.exp(-2 * abs(answer - k)) for k in range(10)]
        if labels:
            total -= math.log(sum(weights[k] for k in labels) / sum(weights))
    assert metrics.loss == pytest.approx(total / REAL_IMAGES, abs=0.02)  # JPEG moves a grey a little


def test_the_trap_of_images_without_labels(tmp_path, real, monkeypatch):
    """Empty lists are neither right nor wrong: they do not count."""
    root = build_val(tmp_path / "imagenet")
    assert measure(root, "real", real_labels=real).top1 == REAL_CORRECT / REAL_IMAGES
    # Without the safeguard: every image counts, those without a label as class 0.
    entries = [own or [0] for own in read_real_labels(real)]
    monkeypatch.setattr(protocols, "read_real_labels", lambda path: entries)
    trapped = measure(root, "real", real_labels=real)
    assert (trapped.num_images, trapped.top1) == (12, REAL_CORRECT / 12)


def test_the_trap_of_numbers_that_begin_at_one(tmp_path, real, monkeypatch):
    """Entry i of the list is image i + 1."""
    root = build_val(tmp_path / "imagenet")
    assert real_index(val_name(1)) == 0
    assert not says(measure(root, "real", real_labels=real), "shifted")
    shifted = write_real(tmp_path / "shifted.json", shift=1)
    assert says(measure(root, "real", real_labels=shifted), "shifted against each other")
    right = real_index
    monkeypatch.setattr(protocols, "real_index", lambda name: (right(name) + 1) % len(VAL))
    trapped = measure(root, "real", real_labels=real)
    assert trapped.correct1 < REAL_CORRECT
    assert says(trapped, "shifted against each other")
    # Without the comparison with the folders this is not found.
    monkeypatch.setattr(protocols, "_check_agreement", lambda source, labels: [])
    assert not says(measure(root, "real", real_labels=real), "shifted")


@pytest.mark.parametrize(("num_agreed", "reported"), [(3, True), (4, False), (8, False)])
def test_half_of_the_folders_must_agree_with_the_real_labels(num_agreed, reported):
    """Eight images of the first class; the others are called the second one."""
    source = SimpleNamespace(classes=WNIDS, labels=[0] * 8)
    found = protocols._check_agreement(source, [[0]] * num_agreed + [[1]] * (8 - num_agreed))
    assert bool(found) is reported
    assert all(f"{num_agreed} of 8 images" in warning for warning in found)


def test_real_wants_official_names_once(tmp_path, real):
    root = build_val(tmp_path / "imagenet")
    paint(root / "val" / WNIDS[0] / "copy of ILSVRC2012_val_00000002.JPEG", 0)
    with pytest.raises(DataError, match="more than once: 00000002"):
        measure(root, "real", real_labels=real)
    paint(root / "val" / WNIDS[0] / "ILSVRC2012_val_00000013.JPEG", 0)
    with pytest.raises(DataError, match="to 00000012"):
        measure(root, "real", real_labels=real)
    paint(root / "val" / WNIDS[0] / "holiday.JPEG", 0)
    (root / "val" / WNIDS[0] / "ILSVRC2012_val_00000013.JPEG").unlink()
    with pytest.raises(DataError, match="holiday"):
        measure(root, "real", real_labels=real)


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", '[["3"]]', "[[1000]]", "[[-1]]", "[[true]]", "[" * 100_000])
def test_a_file_of_other_content_is_refused(tmp_path, text):
    (tmp_path / "real.json").write_text(text)
    with pytest.raises(DataError, match="one list of class indices per image"):
        read_real_labels(tmp_path / "real.json")


def test_the_published_labels():
    """The figures of the published file: 46,837 images count, with 1.2288 labels on average."""
    labels = read_real_labels()
    filled = [own for own in labels if own]
    assert (len(labels), len(filled)) == (50_000, 46_837)
    assert sum(map(len, filled)) / len(filled) == pytest.approx(1.2288, abs=5e-5)
    assert {len(own) for own in filled} == set(range(1, 10))


def test_the_whole_of_real_counts_46837():
    class Names:
        kind, split, classes = "folder", "val", []
        names = [val_name(number) for number in range(1, 50_001)]
        labels = [None] * 50_000

        def __len__(self):
            return 50_000

        def locate(self, index):
            return self.names[index]

    task = plan_task(Names(), "real")
    assert (len(task.source), task.num_skipped) == (46_837, 3_163)
    assert protocols.check_complete(task, 1000) == []


def test_another_packaged_file_is_refused(monkeypatch):
    text = protocols.read_table("imagenet_real_labels.json")
    assert hashlib.sha256(text.encode()).hexdigest() == REAL_SHA256
    monkeypatch.setattr(protocols, "read_table", lambda file: text.replace("970", "971"))
    with pytest.raises(DataError, match="expected sha256 d83e9bff"):
        read_real_labels()


def test_real_labels_are_for_real(val, real):
    with pytest.raises(ConfigError, match="protocol imagenet"):
        measure(val, "imagenet", real_labels=real)


# -- ImageNet-V2 ------------------------------------------------------------------------------------------------------


def v2_model(num_classes: int) -> GreyModel:
    return GreyModel(num_classes=num_classes, step=V2_STEP)


def test_v2(tmp_path):
    metrics = measure(build_v2(tmp_path, 12), "v2", v2_model(12))
    assert (metrics.num_images, metrics.correct1) == (120, 108)
    assert metrics.warnings == ()
    assert measure(permuted(open_for(tmp_path, protocol="v2")), "v2", v2_model(12)) == metrics
    (tmp_path / "3" / "0.jpeg").unlink()
    (tmp_path / "11" / "9.jpeg").unlink()
    partly = measure(tmp_path, "v2", v2_model(12))
    assert partly.num_images == 118
    assert says(partly, "not so in 3 (9), 11 (9)")


def test_a_v2_of_a_thousand_classes_must_be_whole(tmp_path):
    build_v2(tmp_path, 3)
    with pytest.raises(
        DataError,
        match=r"folders 0 to 999 must have 10 images each; not so in 997 of them: "
        r"3 \(0\), 4 \(0\), 5 \(0\) and 994 more",
    ):
        measure(tmp_path, "v2", GreyModel(num_classes=1000))
    assert measure(f"imagenet-v2:{tmp_path}", "folder", GreyModel(num_classes=1000, step=V2_STEP)).num_images == 30


def test_v2_is_no_other_data(val):
    with pytest.raises(DataError, match="numbers 0 to 999"):
        measure(open_for(val, protocol="imagenet"), "v2")


def test_the_trap_of_folders_sorted_as_text(tmp_path, monkeypatch):
    """10 and 11 come after 9; two safeguards stand in the way, sorting by number and reading the number itself."""
    build_v2(tmp_path, 12)
    assert measure(tmp_path, "folder", v2_model(12)).correct1 == 108
    monkeypatch.setattr(labels_module, "sort_classes", sorted)
    monkeypatch.setattr(imagenet_module, "sort_classes", sorted)
    assert measure(tmp_path, "folder", v2_model(12)).correct1 == 108
    monkeypatch.setattr(classes_module, "is_integer", lambda name: False)
    trapped = measure(tmp_path, "folder", v2_model(12))
    # 0 and 1 keep their place; 1's last image is answered 2, which is now called 10's place.
    assert trapped.correct1 < 30
    assert says(trapped, "numbers sorted as text")
