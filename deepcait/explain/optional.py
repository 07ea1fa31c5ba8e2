"""Packages that only some explanations need, imported when they are asked for."""

from __future__ import annotations

import importlib
from typing import Any

from deepcait.errors import ConfigError


def optional(module: str, what: str) -> Any:
    """Import a package of the extra `deepcait[explain]`.

    Args:
        module: dotted name.
        what: what is asked for, the beginning of the error's sentence.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{what}: expected the package {module.partition('.')[0]}, got: {error}.",
            remedy='pip install "deepcait[explain]"',
        ) from error
