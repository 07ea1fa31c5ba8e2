"""Settings of a table: which columns are the image and the label, and the folder and suffix of the files."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepcait.errors import ConfigError, DataError

# Field of `Columns` -> its name in recipes, options and messages.
_SETTINGS = {"label": "label_column", "image": "image_column", "suffix": "image_suffix", "root": "image_root"}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The user's settings of a table (CSV, JSON lines, parquet, arrow); empty texts mean the usual names.

    Args:
        label: column of the class.
        image: column of the image's path, or of the images themselves.
        suffix: put behind a path that has no suffix of an image, such as .jpg.
        root: folder that the paths are relative to; empty is the table's own.
    """

    label: str = ""
    image: str = ""
    suffix: str = ""
    root: str = ""

    def __post_init__(self) -> None:
        if self.suffix and (not self.suffix.startswith(".") or set(self.suffix) & set("/\\\0")):
            raise ConfigError(
                f"image_suffix: expected a suffix such as .jpg, got {self.suffix!r}.",
                remedy="Write it with its dot; folders belong to image_root.",
            )

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Columns:
        """Return the columns that settings of a recipe or options of a command name. Raises ConfigError."""
        return cls(**{field: str(settings.get(name) or "") for field, name in _SETTINGS.items()})

    @property
    def settings(self) -> list[str]:
        """The settings that are not empty, by their names in recipes and options."""
        return [name for field, name in _SETTINGS.items() if getattr(self, field)]


USUAL = Columns()
# How columns are named, for remedies.
HOW_LABEL = "Name the column: train --set data.label_column=NAME; eval, doctor: --label-column NAME; for split: label."
HOW_IMAGE = "Name the column: train --set data.image_column=NAME; eval, doctor: --image-column NAME."


def column_of(where: str, header: Sequence[str], wanted: str, setting: str) -> int:
    """Return the position of a column that a setting names: exactly as written, else whatever its case.

    Raises:
        DataError: no such column; the message lists those that there are.
    """
    plain = [cell.strip() for cell in header]
    for words, word in ((plain, wanted.strip()), ([cell.lower() for cell in plain], wanted.strip().lower())):
        if word in words:
            return words.index(word)
    near = difflib.get_close_matches(wanted, plain, n=1)
    raise DataError(
        f"{where}: {setting}: expected a column, got {wanted!r}; the columns are {list_columns(plain)}.",
        remedy=f"Did you mean {near[0]!r}?" if near else "Give one of them.",
    )


def list_columns(names: Sequence[str]) -> str:
    """Return the names of columns for a message."""
    return ", ".join(map(repr, names)) or "(none)"
