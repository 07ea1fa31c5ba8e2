"""Every key of a recipe with its default, type and meaning, read from the dataclasses that define them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from deepcait.training.recipe import RECIPES, Recipe, load_recipe


@dataclass(frozen=True)
class RecipeKey:
    """One setting of a recipe.

    key: dotted name, as `--set` takes it. default: as YAML writes it. type: in Python's notation.
    meaning: one or two sentences.
    """

    key: str
    default: str
    type: str
    meaning: str


def recipe_keys() -> list[RecipeKey]:
    """Return every key of a recipe, in the order of `config.yaml`.

    >>> next(row for row in recipe_keys() if row.key == "optimizer.lr").default
    '0.0005'
    """
    return list(_keys(Recipe(), ""))


def list_recipes() -> list[dict[str, str]]:
    """Return name and summary of every recipe in the package, by name."""
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    return [{"name": name, "summary": load_recipe(name).about.summary} for name in names]


def recipe_values(name: str) -> dict[str, str]:
    """Return the settings of a recipe that differ from the defaults: dotted name to value, as YAML writes it.

    Args:
        name: of a recipe in the package, or the path of a .yaml file.

    Raises:
        ConfigError: no such recipe, or a key or value that does not fit.
    """
    defaults = {row.key: row.default for row in recipe_keys()}
    values = {row.key: row.default for row in _keys(load_recipe(name), "")}
    return {key: value for key, value in values.items() if value != defaults[key]}


def _keys(settings: Any, path: str) -> Iterator[RecipeKey]:
    meanings = _field_docstrings(type(settings))
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if not dataclasses.is_dataclass(value):
            kind = re.sub(r"\s*\|\s*None$", "", str(field.type))
            yield RecipeKey(f"{path}{field.name}", _as_yaml(value), kind, meanings.get(field.name, ""))
        elif field.name != "about":  # metadata, without an effect
            yield from _keys(value, f"{path}{field.name}.")


def _field_docstrings(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef))
    found = {}
    for field, below in zip(body, body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return found


def _as_yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_as_yaml, value))}]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) and value else json.dumps(value)
