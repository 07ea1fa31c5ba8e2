"""Packages that only an extra brings, imported when they are asked for."""

from __future__ import annotations

import importlib
from typing import Any

from deepcait.errors import ConfigError


def require(module: str, *, asked: str, extra: str) -> Any:
    """Import a module of a package that an extra of deepcait brings.

    Args:
        module: dotted name.
        asked: what needs it, the beginning of the error's sentence.
        extra: the extra.

    Raises:
        ConfigError: the package, or one that it needs, is not installed, or is broken.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = (error.name or module).partition(".")[0]
        raise ConfigError(
            f"{asked}: expected the package {package}, got: {error}.", remedy=f'pip install "deepcait[{extra}]"'
        ) from error
