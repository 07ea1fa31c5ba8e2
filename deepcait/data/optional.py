"""Packages that only some forms of data need, imported when such data is opened."""

from __future__ import annotations

import importlib
from typing import Any

from deepcait.errors import ConfigError


def optional(module: str) -> Any:
    """Import a package of the extra `deepcait[data]`.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"This data needs the package {module.partition('.')[0]}, got: {error}.",
            remedy="pip install 'deepcait[data]'",
        ) from error
