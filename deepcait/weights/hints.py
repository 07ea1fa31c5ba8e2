"""Suggestions for a MODEL that can't be resolved."""

from __future__ import annotations

import difflib
from pathlib import Path

from deepcait.errors import ConfigError, some
from deepcait.model.variants import near_names, variant_names
from deepcait.weights.hub import HUB_PREFIX
from deepcait.weights.layouts import is_weights_file
from deepcait.weights.published import RELEASE_TAG
from deepcait.weights.registry import RELEASED


def nowhere(spec: str, path: Path) -> ConfigError:
    """Return the error for a MODEL that can't be resolved, with suggestions."""
    name = spec.lower().removeprefix("timm/").removesuffix(f".{RELEASE_TAG}")
    if name in variant_names():
        return ConfigError(f"There is no model {spec!r}.", remedy=f"Did you mean {name}?")
    looks_like_path = is_weights_file(spec) or "/" in spec or "\\" in spec or spec.startswith((".", "~"))
    if not looks_like_path:
        near = near_names(name)
        hint = f"Did you mean {' or '.join(near)}?" if near else "For the names, run `deepcait models`."
        return ConfigError(
            f"{spec!r} is not a model name, hf-hub:owner/name, a folder or a weights file.",
            remedy=hint,
        )
    released = next((one for one in RELEASED.values() if one.file.lower() == path.name.lower()), None)
    if released is not None:
        return ConfigError(
            f"{spec}: there is no such file.",
            remedy=f"The same model is {released.name}, downloaded from the hub; the file itself is at {released.url}.",
        )
    hints = [f"Did you mean {neighbour}?" for neighbour in _neighbours(path)] or [
        "Check the spelling of the path; for model names, run `deepcait models`."
    ]
    if spec.count("/") == 1 and not is_weights_file(spec) and not spec.startswith((".", "~", "/")):
        hints.append(f"A repository of the hub is written as {HUB_PREFIX}{spec}.")
    return ConfigError(
        f"{spec}: there is no such file or folder.",
        remedy=" ".join(hints),
    )


def _neighbours(path: Path) -> list[str]:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []
    return [str(path.parent / name) for name in difflib.get_close_matches(path.name, names, n=1)]


def listing(path: Path) -> str:
    """Return the first five names in a folder."""
    names = sorted(entry.name for entry in path.iterdir())
    return some(names) or "nothing in it"
