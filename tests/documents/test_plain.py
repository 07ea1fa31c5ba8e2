"""Docstrings as Sphinx gets them: formulas stay as they stand, names become lists, no sign means something else."""

from __future__ import annotations

import importlib.util
from pathlib import Path

PATH = Path(__file__).parent.parent.parent / "docs" / "plain.py"


def as_rst(text: str) -> str:
    spec = importlib.util.spec_from_file_location("plain", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return "\n".join(module.as_rst(text.split("\n"))).rstrip()


def test_formulas_code_and_signs():
    assert as_rst("A `x` * y_ of it.\n\n    q = W * x") == "A ``x`` \\* y\\_ of it.\n\n::\n\n        q = W * x"


def test_names_become_lists_and_go_on_below_them():
    assert (
        as_rst("main: (B, D), first\n  more.\nmlp: other.") == "* ``main``: (B, D), first\n  more.\n* ``mlp``: other."
    )
    assert as_rst("Returns:\n    a, b: two\n    of them.") == "Returns:\n    * ``a, b``: two\n      of them."
    assert as_rst("Source: a paper.") == "Source: a paper."
