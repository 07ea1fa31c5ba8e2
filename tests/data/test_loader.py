"""The training loader: workers and restarts change no bit, nothing skipped is read, errors keep their words."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from deepcait.data import Preprocessing, open_folder
from deepcait.data.augment import Augment, build_augmentation
from deepcait.data.loader import TrainingSet, training_batches
from deepcait.data.order import Order
from deepcait.errors import ImageError

REPLICAS, LAST_STEP = [0, 1, 2], 7
PREPROCESSING = Preprocessing((16, 16))


class CountingSource:
    """A source that remembers what was read."""

    def __init__(self, source) -> None:
        self.source = source
        self.reads: list[int] = []

    def read(self, index: int):
        self.reads.append(index)
        return self.source.read(index)

    def locate(self, index: int) -> str:
        return self.source.locate(index)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for number in range(10):
            Image.fromarray(generator.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def order() -> Order:
    return Order(num_samples=20, global_batch_size=6, replicas=3, repeats=3, seed=4)


def training_set(source, seed: int = 4) -> TrainingSet:
    return TrainingSet(source, build_augmentation(Augment(erase=1.0), PREPROCESSING), seed)


def batches(samples: TrainingSet, order: Order, **options) -> list:
    return list(training_batches(samples, order, **({"replicas": REPLICAS, "first_step": 0, "last_step": 7} | options)))


def same(one: list, two: list) -> bool:
    return len(one) == len(two) and all(
        torch.equal(x, y) for a, b in zip(one, two, strict=True) for x, y in zip(a, b, strict=True)
    )


@pytest.fixture
def wanted(photos, order) -> list:
    return batches(training_set(open_folder(photos, None)), order)


def test_batches_follow_the_order(photos, order, wanted):
    source = open_folder(photos, None)
    assert len(wanted) == LAST_STEP * len(REPLICAS)
    for number, (images, labels) in enumerate(wanted):
        slots = order.slots(*divmod(number, 3))
        assert images.shape == (2, 3, 16, 16)
        assert labels.tolist() == [source.labels[slot.index] for slot in slots]


@pytest.mark.process
@pytest.mark.slow
def test_workers_change_no_bit(photos, order, wanted):
    late = batches(training_set(open_folder(photos, None)), order, num_workers=2, first_step=1)
    assert same(late, wanted[3:])


@pytest.mark.parametrize("first_step", [1, 3, 6])
def test_a_late_start_changes_no_bit(photos, order, wanted, first_step):
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    assert same(
        batches(training_set(open_folder(photos, None)), order, first_step=first_step), wanted[3 * first_step :]
    )


def test_a_process_computes_the_same_for_its_replicas(photos, order, wanted):
    one = batches(training_set(open_folder(photos, None)), order, replicas=[1])
    assert same(one, wanted[1::3])


def test_copies_and_epochs_are_augmented_anew(photos, order, wanted):
    seen: dict[int, list[torch.Tensor]] = {}
    for number, (images, _) in enumerate(wanted):
        for image, slot in zip(images, order.slots(*divmod(number, 3)), strict=True):
            seen.setdefault(slot.index, []).append(image)
    pairs = [(a, b) for images in seen.values() for i, a in enumerate(images) for b in images[:i]]
    assert len(pairs) > 20
    assert not any(torch.equal(a, b) for a, b in pairs)
    assert not same(batches(training_set(open_folder(photos, None), seed=5), order), wanted)


def test_skipped_samples_are_never_read(photos, order):
    source = CountingSource(open_folder(photos, None))
    batches(training_set(source), order, first_step=5)
    assert source.reads == [
        slot.index for step in (5, 6) for replica in REPLICAS for slot in order.slots(step, replica)
    ]


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=[pytest.mark.process, pytest.mark.slow])])
def test_a_damaged_file_stops_with_its_name_and_type(photos, order, tmp_path, num_workers):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for path in (photos / name).iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    (tmp_path / "b" / "3.png").write_bytes((photos / "b" / "3.png").read_bytes()[:200])
    with pytest.raises(ImageError) as caught:
        batches(training_set(open_folder(tmp_path, None)), order, num_workers=num_workers)
    assert type(caught.value) is ImageError
    assert str(tmp_path / "b" / "3.png") in caught.value.problem
    assert caught.value.remedy
