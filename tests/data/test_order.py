"""Order of training: timm's samplers on the same permutation, every sample once, nothing but arithmetic."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from timm.data.distributed_sampler import RepeatAugSampler
from torch.utils.data import DistributedSampler

from deepcait.data.order import Order, ReplicaBatches, Slot
from deepcait.errors import ConfigError


def epoch_slots(order: Order, replica: int, epoch: int = 0) -> list[Slot]:
    """What one replica computes in one epoch."""
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    return [slot for step in steps for slot in order.slots(step, replica)]


def indices(slots: list[Slot]) -> list[int]:
    return [slot.index for slot in slots]


def our_permutation(order: Order, epoch: int) -> list[int]:
    """The permutation before anything is repeated or dealt: one replica, one copy, a batch of one."""
    plain = Order(num_samples=order.num_samples, global_batch_size=1, seed=order.seed)
    return indices(epoch_slots(plain, 0, epoch))


def feed(monkeypatch: pytest.MonkeyPatch, permutation: list[int]) -> None:
    """Make a torch or timm sampler shuffle as we do."""
    monkeypatch.setattr(torch, "randperm", lambda n, generator=None: torch.tensor(permutation))


@pytest.mark.parametrize(("replicas", "repeats"), [(1, 1), (3, 3), (4, 3), (8, 3), (8, 1), (4, 2)])
@pytest.mark.parametrize("num_samples", [1024, 1000, 773])
def test_equals_the_sampler_of_repeated_augmentation(monkeypatch, replicas, repeats, num_samples):
    order = Order(num_samples=num_samples, global_batch_size=16 * replicas, replicas=replicas, repeats=repeats, seed=3)
    for epoch in (0, 2):
        permutation = our_permutation(order, epoch)
        assert sorted(permutation) == list(range(num_samples))
        with monkeypatch.context() as patch:
            feed(patch, permutation)
            for rank in range(replicas):
                ours = indices(epoch_slots(order, rank, epoch))
                # timm rounds an epoch down to 256 samples, we to whole global batches: the rows are the same.
                sampler = RepeatAugSampler(
                    range(num_samples), num_replicas=replicas, rank=rank, num_repeats=repeats, selected_round=0
                )
                theirs = list(sampler)
                assert len(theirs) - 16 <= len(ours) <= len(theirs)
                assert ours == theirs[: len(ours)]


@pytest.mark.parametrize("replicas", [1, 2, 8])
def test_without_repeats_equals_a_strided_sampler(monkeypatch, replicas):
    order = Order(num_samples=512, global_batch_size=32, replicas=replicas, seed=1)
    permutation = our_permutation(order, 1)
    feed(monkeypatch, permutation)
    for rank in range(replicas):
        sampler = DistributedSampler(range(512), num_replicas=replicas, rank=rank, shuffle=True)
        assert indices(epoch_slots(order, rank, 1)) == list(sampler)


@pytest.mark.parametrize("replicas", [1, 4])
def test_every_sample_once_an_epoch_where_sizes_divide(replicas):
    order = Order(num_samples=96, global_batch_size=24, replicas=replicas)
    for epoch in range(3):
        seen = [index for replica in range(replicas) for index in indices(epoch_slots(order, replica, epoch))]
        assert sorted(seen) == list(range(96))
    assert our_permutation(order, 0) != our_permutation(order, 1)


def test_a_remainder_waits_for_another_epoch():
    order = Order(num_samples=100, global_batch_size=24, replicas=2)
    assert order.steps_per_epoch == 4
    seen = Counter(i for epoch in range(8) for r in range(2) for i in indices(epoch_slots(order, r, epoch)))
    assert len(seen) == 100  # no sample is left out for good
    first = [i for r in range(2) for i in indices(epoch_slots(order, r, 0))]
    assert len(set(first)) == len(first) == 96


@pytest.mark.parametrize(("replicas", "repeats"), [(3, 3), (4, 3), (8, 3), (8, 8), (5, 2)])
def test_copies_fall_to_different_replicas_in_the_same_step_or_the_next(replicas, repeats):
    order = Order(num_samples=600, global_batch_size=replicas * 4, replicas=replicas, repeats=repeats)
    where: dict[int, list[int]] = {}
    for replica in range(replicas):
        for slot in epoch_slots(order, replica):
            where.setdefault(slot.index, []).append(replica)
    assert all(len(set(homes)) == len(homes) for homes in where.values())
    assert Counter(map(len, where.values()))[repeats] >= len(where) - 1  # the epoch's end may cut one short
    positions = [s.position for r in range(replicas) for s in epoch_slots(order, r)]
    assert len(set(positions)) == len(positions)  # so that each copy is augmented by a seed of its own


def test_an_epoch_of_repeats_sees_a_third_of_the_samples():
    order = Order(num_samples=960, global_batch_size=64, replicas=4, repeats=3)
    slots = [slot for replica in range(4) for slot in epoch_slots(order, replica)]
    assert len(slots) == 960
    assert len({slot.index for slot in slots}) == 320


def test_a_pure_function_of_seed_epoch_and_position():
    settings = {"num_samples": 50, "global_batch_size": 12, "replicas": 3, "repeats": 3}
    wanted = [Order(**settings, seed=5).slots(step, replica) for step in range(10) for replica in range(3)]
    torch.manual_seed(99)
    again = Order(**settings, seed=5)
    state = torch.get_rng_state()
    # Backwards, from anywhere, and without touching the global generator.
    backwards = [again.slots(step, replica) for step in reversed(range(10)) for replica in reversed(range(3))]
    assert backwards[::-1] == wanted
    assert torch.equal(torch.get_rng_state(), state)
    assert len(again._drawn) == 1  # a long run keeps one epoch's row, not all
    for first in (0, 1, 4, 9):
        assert list(ReplicaBatches(again, [0, 1, 2], first, 10)) == wanted[3 * first :]
    assert Order(**settings, seed=6).slots(0, 0) != wanted[0]
    assert all(slot.epoch == step // 4 for step in range(10) for slot in again.slots(step, 1))


def test_the_frozen_order():
    """Golden: a run of an older version goes on in the same order only while these stay."""
    order = Order(num_samples=10, global_batch_size=4, replicas=2, seed=0)
    assert [order.slots(step, replica) for step in (0, 3) for replica in (0, 1)] == [
        [(0, 0, 9), (0, 2, 8)],
        [(0, 1, 3), (0, 3, 5)],
        [(1, 4, 5), (1, 6, 4)],
        [(1, 5, 0), (1, 7, 8)],
    ]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_what_one_computes(processes):
    order = Order(num_samples=64, global_batch_size=16, replicas=4)
    shares = [range(p * 4 // processes, (p + 1) * 4 // processes) for p in range(processes)]
    rows = [list(ReplicaBatches(order, share, 2, 7)) for share in shares]
    each = 4 // processes
    together = [rows[p][step * each + r] for step in range(5) for p in range(processes) for r in range(each)]
    assert together == list(ReplicaBatches(order, range(4), 2, 7))
    assert all(
        len(ReplicaBatches(order, share, 2, 7)) == 5 * each == len(row) for share, row in zip(shares, rows, strict=True)
    )


def test_balanced_draws_are_equal_by_class():
    labels = (0,) * 900 + (1,) * 90 + (3,) * 10  # class 2 has no image
    order = Order(num_samples=1000, global_batch_size=50, class_labels=labels)
    drawn = Counter(labels[i] for epoch in range(6) for i in indices(epoch_slots(order, 0, epoch)))
    assert sum(drawn.values()) == 6000
    # 2000 expected of each; the deviation of a binomial is sqrt(6000 / 3 * 2 / 3) = 37.
    assert all(abs(drawn[label] - 2000) < 5 * 37 for label in (0, 1, 3))
    within = Counter(i for epoch in range(6) for i in indices(epoch_slots(order, 0, epoch)) if labels[i] == 3)
    assert set(within) == set(range(990, 1000))
    assert min(within.values()) > 120


def test_a_draw_beyond_the_last_chance_is_the_last_sample():
    """Their sum may be rounded to a little less than 1."""
    order = Order(num_samples=2, global_batch_size=2, class_labels=(0, 1))
    vars(order)["_reach"] = torch.tensor([0.0, 0.0], dtype=torch.float64)
    assert set(indices(epoch_slots(order, 0))) == {1}


def test_fewer_samples_than_a_batch():
    order = Order(num_samples=5, global_batch_size=16, replicas=2, repeats=2)
    assert order.steps_per_epoch == 1
    slots = order.slots(0, 0) + order.slots(0, 1)
    assert len(slots) == 16
    assert set(indices(slots)) == set(range(5))
    assert max(Counter(indices(slots)).values()) <= 4
    assert order.slots(1, 0)[0].epoch == 1


def test_replicas_divide_the_batch():
    with pytest.raises(ConfigError, match=r"global_batch_size \(32\) is not divisible by replicas \(3\)"):
        Order(num_samples=64, global_batch_size=32, replicas=3)


def test_as_many_replicas_as_repeats():
    with pytest.raises(ConfigError, match=r"augment.repeats \(3\) must not exceed replicas \(2\)"):
        Order(num_samples=64, global_batch_size=32, replicas=2, repeats=3)
