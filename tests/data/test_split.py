"""The held-out part: stratified, seeded, a function of names alone."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcait.data.split import deal_folds, stratified_split
from deepcait.errors import ConfigError


def names_and_labels(sizes: list[int]) -> tuple[list[str], list[int]]:
    pairs = [(f"{label}/{number}.png", label) for label, size in enumerate(sizes) for number in range(size)]
    return [name for name, _ in pairs], [label for _, label in pairs]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.floats(0.01, 0.99), st.integers(0, 99))
def test_every_class_is_split_and_every_image_used_once(sizes, fraction, seed):
    names, labels = names_and_labels(sizes)
    train, val = stratified_split(names, labels, fraction=fraction, seed=seed)
    assert sorted(train + val) == list(range(len(names)))
    assert train == sorted(train)
    assert val == sorted(val)
    for label, size in enumerate(sizes):
        num_val = sum(labels[index] == label for index in val)
        assert num_val == (0 if size == 1 else min(max(1, round(fraction * size)), size - 1))


def test_order_does_not_matter_and_seed_does():
    names, labels = names_and_labels([30, 20, 10])
    held_out = {names[index] for index in stratified_split(names, labels, seed=3)[1]}
    order = list(range(60))
    random.Random(0).shuffle(order)
    shuffled = [names[index] for index in order]
    val = stratified_split(shuffled, [labels[index] for index in order], seed=3)[1]
    assert {shuffled[index] for index in val} == held_out
    assert {names[index] for index in stratified_split(names, labels, seed=4)[1]} != held_out


def test_golden_choice():
    """A changed hash would silently move images from train to val in resumed runs."""
    names, labels = names_and_labels([10, 10])
    assert stratified_split(names, labels, fraction=0.2, seed=0)[1] == GOLDEN


GOLDEN = [5, 7, 12, 17]


def test_values_that_do_not_fit():
    for fraction in (0, 1, -0.1, 1.5):
        with pytest.raises(ConfigError, match="fraction"):
            stratified_split(["a", "b"], [0, 0], fraction=fraction)
    with pytest.raises(ConfigError, match="one label a name"):
        stratified_split(["a", "b"], [0])


def grouped(num_patients: int) -> tuple[list[str], list[int], list[str]]:
    """Names, labels and patients: 1 to 5 images of each patient, of one or both of two classes."""
    draw, rows = random.Random(1), []
    for patient in range(num_patients):
        for number in range(draw.randint(1, 5)):
            rows.append((f"{patient}/{number}.png", draw.choice([patient % 2, patient % 2, 0]), f"p{patient}"))
    names, labels, groups = zip(*rows, strict=True)
    return list(names), list(labels), list(groups)


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5])
def test_groups_stay_on_one_side(fraction):
    names, labels, groups = grouped(60)
    train, val = stratified_split(names, labels, fraction=fraction, groups=groups)
    assert not {groups[index] for index in train} & {groups[index] for index in val}
    assert sorted(train + val) == list(range(len(names)))
    for label, total in Counter(labels).items():
        held = sum(labels[index] == label for index in val)
        assert held == pytest.approx(fraction * total, abs=3)  # less than a patient
    order = list(range(len(names)))
    random.Random(0).shuffle(order)
    again = stratified_split(*([of[i] for i in order] for of in (names, labels)), fraction=fraction,
                             groups=[groups[i] for i in order])[1]  # fmt: skip
    assert {names[order[index]] for index in again} == {names[index] for index in val}


def test_a_class_never_loses_its_last_group():
    names = [f"{number}.png" for number in range(9)]
    labels, groups = [0] * 6 + [1] * 3, [*"aabbcc", *"ddd"]
    train, val = stratified_split(names, labels, fraction=0.9, groups=groups)
    assert {labels[index] for index in train} == {0, 1}
    assert {labels[index] for index in val} == {0}
    # A share smaller than any group still takes one.
    assert len(stratified_split(names[:6], labels[:6], fraction=0.1, groups=groups[:6])[1]) == 2


@pytest.mark.parametrize("with_groups", [False, True])
def test_folds_are_equal_in_size_and_classes(with_groups):
    names, labels, groups = grouped(80)
    folds = deal_folds(names, labels, 4, groups=groups if with_groups else None)
    assert set(folds) == {0, 1, 2, 3}
    slack = 5 if with_groups else 1
    for label in (0, 1):
        sizes = Counter(fold for fold, own in zip(folds, labels, strict=True) if own == label)
        assert max(sizes.values()) - min(sizes.values()) <= slack
    if with_groups:
        assert all(len({f for f, g in zip(folds, groups, strict=True) if g == group}) == 1 for group in groups)
    assert deal_folds(names, labels, 4, seed=1, groups=groups if with_groups else None) != folds
    for num_folds in (0, 1, 400):
        with pytest.raises(ConfigError, match="Folds: expected 2 to"):
            deal_folds(names, labels, num_folds)
