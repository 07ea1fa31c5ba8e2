"""Packages that only some engines need, imported when they are asked for."""

from __future__ import annotations

import importlib
from typing import Any

from deepcait.errors import ConfigError


def require(module: str, *, asked: str, extra: str) -> Any:
    """Import a package of an extra.

    Args:
        module: dotted name.
        asked: what needs it, the beginning of the error's sentence.
        extra: the extra of deepcait that brings it.

    Raises:
        ConfigError: it is not installed, or broken.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{asked}: expected the package {module.partition('.')[0]}, got: {error}.",
            remedy=f'pip install "deepcait[{extra}]"',
        ) from error
