"""The list of a recipe's keys in docs/recipes.md is that of the code.

`python -m tests.documents.test_recipe_keys` writes it anew.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deepcait.cli import train
from deepcait.training.recipe import Recipe

PAGE = Path(__file__).parent.parent.parent / "docs" / "recipes.md"
HEAD = "| key | default | meaning |\n| --- | --- | --- |\n"


def meanings(kind: type) -> dict[str, str]:
    """What stands below each field of a dataclass."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef))
    found = {}
    for field, below in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return found


def shown(value: Any) -> str:
    """A default as YAML has it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) and value else json.dumps(value)


def rows(settings: Any, path: str = "") -> Iterator[str]:
    """A row a key, those of sections after their section's name."""
    told = meanings(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            if field.name != "about":  # a page of a notebook, which decides nothing
                yield from rows(value, f"{path}{field.name}.")
        else:
            meaning = told.get(field.name, "").replace("|", "\\|")
            assert meaning, f"{path}{field.name}: expected a docstring below the field"
            yield f"| `{path}{field.name}` | `{shown(value)}` | {meaning} |\n"


def table() -> str:
    return HEAD + "".join(rows(Recipe()))


def test_the_page_of_recipes_lists_every_key():
    assert table() in PAGE.read_text(encoding="utf-8"), "python -m tests.documents.test_recipe_keys writes it anew"


def test_the_help_of_train_leads_to_the_page():
    assert "docs/recipes.md" in train.__doc__
    assert PAGE.is_file()


if __name__ == "__main__":
    before, head, after = PAGE.read_text(encoding="utf-8").partition(HEAD)
    rest = after.splitlines(keepends=True)
    while rest and rest[0].startswith("|"):
        del rest[0]
    PAGE.write_text(before + table() + "".join(rest), encoding="utf-8")
