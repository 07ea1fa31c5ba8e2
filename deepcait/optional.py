"""Optional dependencies, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from deepcait.errors import ConfigError


def require(module: str, *, asked: str, extra: str) -> Any:
    """Import a module of an optional dependency.

    Args:
        module: dotted name.
        asked: what needs it: the subject of the error's sentence.
        extra: the extra of deepcait that installs it.

    Raises:
        ConfigError: the package or one of its dependencies is not installed or broken.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = (error.name or module).partition(".")[0]
        raise ConfigError(
            f"{asked}: the package {package} can't be imported: {error}.",
            remedy=f'Install it: pip install "deepcait[{extra}]"',
        ) from error
