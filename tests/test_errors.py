"""How a list stands in a message."""

from __future__ import annotations

import pytest

from deepcait.errors import some


@pytest.mark.parametrize(
    ("number", "written"),
    [(0, ""), (1, "n0"), (5, "n0, n1, n2, n3, n4"), (6, "n0, n1, n2, n3, n4 and 1 more"), (1_006, "and 1,001 more")],
)
def test_a_list_is_cut_after_five_names(number, written):
    assert some([f"n{index}" for index in range(number)]).endswith(written)
    assert bool(some([f"n{index}" for index in range(number)])) == bool(written)
