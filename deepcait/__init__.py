"""Deep image transformers with LayerScale and class attention: build, load, train, evaluate and use CaiT.

Importing this package is fast: dependencies such as PyTorch are imported when a name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str

    from deepcait.api import Run, open_run, train
    from deepcait.classifier import Classifier, load
    from deepcait.errors import DeepcaitError
    from deepcait.evaluation import evaluate
    from deepcait.inference.fold import fold
    from deepcait.model import CaiT, CaiTConfig
    from deepcait.training.keys import recipe_keys
    from deepcait.weights.create import create_model
    from deepcait.weights.registry import list_models

__all__ = [
    "CaiT",
    "CaiTConfig",
    "Classifier",
    "DeepcaitError",
    "Run",
    "__version__",
    "create_model",
    "evaluate",
    "fold",
    "list_models",
    "load",
    "open_run",
    "recipe_keys",
    "train",
]

# Public name -> module that defines it.
_HOME = {
    "CaiT": "deepcait.model",
    "CaiTConfig": "deepcait.model",
    "Classifier": "deepcait.classifier",
    "DeepcaitError": "deepcait.errors",
    "create_model": "deepcait.weights.create",
    "evaluate": "deepcait.evaluation",
    "fold": "deepcait.inference.fold",
    "list_models": "deepcait.weights.registry",
    "Run": "deepcait.api",
    "load": "deepcait.classifier",
    "open_run": "deepcait.api",
    "recipe_keys": "deepcait.training.keys",
    "train": "deepcait.api",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def _version() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("deepcait")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
