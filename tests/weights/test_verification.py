"""The one verification of exports: tensors and logits, each of which can fail it."""

from __future__ import annotations

import pytest
import torch

from deepcait.weights.verification import Verification, changed_keys, compare_logits

WHOLE = {
    "reader": "x 1.0",
    "max_drift": 5e-5,
    "num_tensors": 2,
    "batches": (1, 2),
    "num_images": 3,
    "drift": 5e-5,
    "agreed": 3,
}


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"drift": float("nan")}, False),
        ({"drift": 6e-5}, False),
        ({"agreed": 2}, False),
        ({"changed": ("norm.weight",)}, False),
        ({"num_images": 0, "agreed": 0, "drift": 0.0}, True),  # a reader that only read
    ],
)
def test_every_part_can_fail(changes, holds):
    assert Verification(**WHOLE | changes).holds == holds


def test_the_text_names_what_was_compared():
    assert str(Verification(**WHOLE)).startswith("x 1.0: 2 tensors, bit-identical; 3 of 3 images")
    changed = str(Verification(reader="x", max_drift=1e-5, num_tensors=9, changed=("a", "b", "c", "d")))
    assert changed == "x: 9 tensors, 4 of them changed (a, b, c)"


def test_facts_have_no_drift_without_images():
    assert Verification(reader="x", max_drift=1e-5, num_tensors=9).facts()["drift"] is None
    assert Verification(**WHOLE).facts()["drift"] == 5e-5


def test_logits_are_compared_in_units_of_their_standard_deviation():
    expected_BK = torch.tensor([[1.0, 2.0, 4.0], [5.0, 3.0, 1.0]])
    same = compare_logits(expected_BK, expected_BK.clone(), 1e-5)
    assert same == {"num_images": 2, "max_difference": 0.0, "drift": 0.0, "agreed": 2}
    got_BK = expected_BK + torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 0.5]])
    other = compare_logits(expected_BK, got_BK, 1e-5)
    assert other["max_difference"] == 3.0
    assert other["drift"] == pytest.approx(3.0 / expected_BK.double().std().item())
    assert other["agreed"] == 1


@pytest.mark.parametrize("got", [torch.full((2, 3), float("nan")), torch.zeros(2, 4), torch.zeros(1, 3)])
def test_logits_of_another_shape_or_not_finite_agree_for_no_image(got):
    found = compare_logits(torch.rand(2, 3), got, 1e-5)
    assert found["agreed"] == 0
    assert not Verification(reader="x", max_drift=1e-5, batches=(2,), **found).holds


def test_logits_that_are_all_equal():
    assert compare_logits(torch.zeros(2, 3), torch.zeros(2, 3), 1e-5)["drift"] == 0.0
    assert compare_logits(torch.zeros(2, 3), torch.ones(2, 3), 1e-5)["drift"] > 1e30


def test_changed_keys():
    expected = {"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2), "d": torch.ones(2)}
    got = {"a": torch.ones(2), "b": torch.zeros(2), "c": torch.ones(3), "e": torch.ones(1)}
    assert changed_keys(expected, got) == ("b", "c", "d", "e")
    assert changed_keys(expected, {key: tensor.clone() for key, tensor in expected.items()}) == ()
