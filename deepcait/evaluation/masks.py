"""Which of the model's classes are possible answers: sets such as ImageNet-A and -R know 200 of the 1,000."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from deepcait.errors import ConfigError, some

DATA = "data"


def read_mask(text: str) -> str | list[str]:
    """Read the option: "data", or a file with one class a line, its name or its index.

    Raises:
        ConfigError: no such file, or one that is empty or no text.
    """
    if text == DATA:
        return DATA
    path = Path(os.path.expanduser(text))
    try:
        # Some editors put a mark before the first character.
        names = path.read_text(encoding="utf-8-sig").split("\n") if path.is_file() else []
    except UnicodeDecodeError:
        names = []
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise ConfigError(
            f"class mask: expected {DATA!r} or a file with one class a line, got {text!r}.",
            remedy="With `data` the classes that the data has are the possible answers.",
        )
    return names


def build_mask(
    wanted: str | Sequence[str | int] | None, used: Sequence[int], classes: Sequence[str] | None, num_classes: int
) -> Tensor | None:
    """Return which classes may be answered, (K,) bool; None where all may.

    Args:
        wanted: None, "data", or the classes by name or index.
        used: the model's indices of the data's classes.
        classes: of the model, or None.
        num_classes: K.

    Raises:
        ConfigError: a class that the model does not have, or a mask that hides a class of the data.
    """
    if wanted is None:
        return None
    allowed_K = torch.zeros(num_classes, dtype=torch.bool)
    if isinstance(wanted, str):
        if wanted != DATA:
            raise ConfigError(f"class mask: expected {DATA!r} or a list of classes, got {wanted!r}.", remedy="Mend it.")
        allowed_K[list(used)] = True
        return allowed_K
    index_of: dict[str, int] = {str(index): index for index in range(num_classes)}
    index_of |= {name: index for index, name in enumerate(classes or ())}
    unknown = [str(name) for name in wanted if str(name) not in index_of]
    if unknown:
        raise ConfigError(
            f"class mask: expected classes of the model, got {some(unknown)}, which it does not have.",
            remedy="Give names as the model has them, or indices.",
        )
    allowed_K[[index_of[str(name)] for name in wanted]] = True
    hidden = [index for index in used if not allowed_K[index]]
    if hidden:
        name = classes[hidden[0]] if classes is not None else str(hidden[0])
        raise ConfigError(
            f"class mask: expected every class of the data in it, got none for {name}.",
            remedy="Add it, or leave its images out: they could never be right.",
        )
    return allowed_K
