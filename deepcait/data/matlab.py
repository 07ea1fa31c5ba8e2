"""Annotations in Matlab files, as Python numbers and strings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deepcait.errors import DataError
from deepcait.optional import require


def load_matlab(path: Path, name: str) -> Any:
    """The variable of that name in a .mat file, with the dimensions of length 1 taken away.

    Raises:
        ConfigError: scipy is not installed.
        DataError: no such file, or no such variable in it.
    """
    loadmat = require("scipy.io", asked=".mat labels", extra="data").loadmat
    try:
        content = loadmat(str(path), squeeze_me=True, variable_names=[name])
        return content[name]
    except Exception as error:  # scipy raises nearly anything for damaged files
        what = f"it has no variable {name}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path}: not the official annotations: {what}.", remedy="Fetch the official file again."
        ) from error


def rows_of(structure: Any, path: Path, *fields: str) -> list[tuple]:
    """The given fields of every element of a Matlab structure array, as Python values.

    Raises:
        DataError: a field is missing.
    """
    array = np.atleast_1d(structure)
    missing = [field for field in fields if field not in (array.dtype.names or ())]
    if missing:
        raise DataError(
            f"{path}: the field {missing[0]} is missing.",
            remedy="Fetch the official file again.",
        )
    columns = [[_plain(value) for value in array[field]] for field in fields]
    return list(zip(*columns, strict=True))


def whole_number(value: Any, path: Path) -> int:
    """A number of a Matlab array as an integer.

    Raises:
        DataError: it is a text, a fraction, or several.
    """
    number = _plain(value)
    if not isinstance(number, int):
        raise DataError(
            f"{path}: expected whole numbers, got {str(number)[:60]!r}.", remedy="Fetch the official file again."
        )
    return int(number)


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic | np.ndarray) and np.size(value) == 1 else value
    return int(value) if isinstance(value, float) and value.is_integer() else value
