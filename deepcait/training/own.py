"""The user's parts of a run: their names, and digests of their source, which must be equal on resuming."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from deepcait.errors import RunError
from deepcait.parts import Part, is_importable, is_part, source_digest, split_weights
from deepcait.training.recipe import RUN_CONFIG, Recipe, load_recipe

_logger = logging.getLogger(__name__)
# Digest -> the setting that names the part.
SETTINGS = {
    "data": "data.source",
    "model": "model",
    "loss": "loss",
    "transform": "augment.transform",
    "teacher": "teacher.spec",
}


def own_parts(recipe: Recipe) -> dict[str, str]:
    """Return the names of the parts by the keys of their digests."""
    values = {name: _get(recipe, key) for name, key in SETTINGS.items()}
    return {name: value for name, value in values.items() if is_part(value)}


def with_parts(recipe: Recipe, parts: dict[str, Part]) -> Recipe:
    """Return the recipe with objects given in Python, by dotted name, in place of their names."""
    for key, part in parts.items():
        recipe = _replace(recipe, key.split("."), part)
    return recipe


def with_digests(recipe: Recipe, folder: Path | None) -> Recipe:
    """Return the recipe with the digests of its parts' source.

    Args:
        recipe: of the run.
        folder: of the run that is resumed; None for a new run.

    Raises:
        RunError: the run in the folder began with other source.
        ConfigError: there is no such part.
    """
    parts = own_parts(recipe)
    config = None if folder is None else folder / RUN_CONFIG
    before = load_recipe(str(config.resolve())).digests if config is not None and config.is_file() else None
    digests = {}
    for name, part in parts.items():
        known, _ = split_weights(part)
        digests[name] = source_digest(known, SETTINGS[name])
        expected = getattr(before, name) if before else ""
        if expected and expected != digests[name]:
            raise RunError(
                f"{folder}: the source of {SETTINGS[name]} {part} has changed since the run began (digest "
                f"{expected[:12]}, now {digests[name][:12] or 'none'}).",
                remedy="Restore its code, or start a new run in another --out. More: `deepcait help existing-run`.",
            )
        _logger.info("%s: %s, source %s", SETTINGS[name], part, digests[name][:12] or "not known")
        if not is_importable(known):
            _logger.warning("%s: %s can't be imported by its name: only Python resumes this run", SETTINGS[name], part)
    return dataclasses.replace(recipe, digests=dataclasses.replace(recipe.digests, **digests))


def _get(recipe: Recipe, key: str) -> str:
    value: Any = recipe
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _replace(settings: Any, path: list[str], value: Part) -> Any:
    name, *rest = path
    if not rest:
        return dataclasses.replace(settings, **{name: value})
    return dataclasses.replace(settings, **{name: _replace(getattr(settings, name), rest, value)})
