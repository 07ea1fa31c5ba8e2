"""Class masks: restrict predictions to some classes, such as the 200 of ImageNet-A or -R."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from deepcait.errors import ConfigError, some

DATA = "data"


def read_mask(text: str) -> str | list[str]:
    """Read the option: "data", or a file with one class per line, by name or index.

    Raises:
        ConfigError: the file does not exist, is empty, or is not text.
    """
    if text == DATA:
        return DATA
    path = Path(os.path.expanduser(text))
    try:
        # Some editors write a byte order mark.
        names = path.read_text(encoding="utf-8-sig").split("\n") if path.is_file() else []
    except UnicodeDecodeError:
        names = []
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise ConfigError(
            f"class mask: expected {DATA!r} or a file with one class per line, got {text!r}.",
            remedy="Use `data` to allow the classes of the data only.",
        )
    return names


def build_mask(
    wanted: str | Sequence[str | int] | None, used: Sequence[int], classes: Sequence[str] | None, num_classes: int
) -> Tensor | None:
    """Return which classes may be predicted, (K,) bool; None if all may.

    Args:
        wanted: None, "data", or the classes by name or index.
        used: the model's indices of the data's classes.
        classes: the model's class names, or None.
        num_classes: K.

    Raises:
        ConfigError: the model does not have a class, or the mask excludes a class of the data.
    """
    if wanted is None:
        return None
    allowed_K = torch.zeros(num_classes, dtype=torch.bool)
    if isinstance(wanted, str):
        if wanted != DATA:
            problem = f"class mask: expected {DATA!r} or a list of classes, got {wanted!r}."
            raise ConfigError(problem, remedy="Pass a list of names or indices.")
        allowed_K[list(used)] = True
        return allowed_K
    index_of: dict[str, int] = {str(index): index for index in range(num_classes)}
    index_of |= {name: index for index, name in enumerate(classes or ())}
    unknown = [str(name) for name in wanted if str(name) not in index_of]
    if unknown:
        raise ConfigError(
            f"class mask: the model does not have the classes {some(unknown)}.",
            remedy="Use the model's class names, or indices.",
        )
    allowed_K[[index_of[str(name)] for name in wanted]] = True
    hidden = [index for index in used if not allowed_K[index]]
    if hidden:
        name = classes[hidden[0]] if classes is not None else str(hidden[0])
        raise ConfigError(
            f"class mask: {name}, a class of the data, is not in the mask.",
            remedy="Add it, or exclude its images: they could never be correct.",
        )
    return allowed_K
