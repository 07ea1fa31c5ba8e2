"""The held-out part: stratified, seeded, a function of names alone."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcait.data.split import read_manifest, stratified_split, write_manifest
from deepcait.errors import ConfigError, DataError


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


def test_manifest_round_trip(tmp_path):
    names, labels = names_and_labels([7, 5])
    train, val = stratified_split(names, labels)
    write_manifest(tmp_path / "new" / "split.json", names, val, seed=0)
    assert read_manifest(tmp_path / "new" / "split.json", names) == (train, val)
    backwards = names[::-1]
    assert {backwards[index] for index in read_manifest(tmp_path / "new" / "split.json", backwards)[1]} == {
        names[index] for index in val
    }
    assert json.loads((tmp_path / "new" / "split.json").read_text())["seed"] == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["split.json"]


def test_manifests_that_do_not_fit(tmp_path):
    names = ["a/1.png", "a/2.png", "a/3.png"]
    path = tmp_path / "split.json"
    write_manifest(path, names, [1])
    with pytest.raises(DataError, match=r"'a/1.png' missing"):
        read_manifest(path, names[1:])
    with pytest.raises(DataError, match="others"):
        read_manifest(path, [*names, "a/4.png"])
    path.write_text(json.dumps({"format": "deepcait-split-1", "train": ["a/1.png", "a/1.png"], "val": ["a/2.png"]}))
    with pytest.raises(DataError, match="others"):
        read_manifest(path, names)
    for text in (
        "",
        "[]",
        "{}",
        '{"format": "x", "train": [], "val": []}',
        '{"format": "deepcait-split-1", "train": 3}',
        '{"format": "deepcait-split-1", "train": [["a/1.png"]], "val": []}',
    ):
        path.write_text(text)
        with pytest.raises(DataError, match="expected a split manifest"):
            read_manifest(path, names)
    with pytest.raises(DataError, match="expected a split manifest"):
        read_manifest(tmp_path / "gone.json", names)
