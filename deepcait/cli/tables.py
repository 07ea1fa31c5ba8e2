"""Options of commands that read labelled images: which columns of a table are what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepcait.data import Columns


@dataclass(frozen=True, kw_only=True)
class TableArgs:
    """Columns of a table (.csv, .jsonl, .parquet, arrow), and where its files are."""

    label_column: str = ""
    """Column of the labels (default: the one called label, class, category, ...)."""
    image_column: str = ""
    """Column of the images or their paths (default: the one called path, file_name, image, ...)."""
    image_suffix: str = ""
    """Suffix of the files if their paths have none, such as .jpg."""
    image_root: str = ""
    """Folder that the paths are relative to (default: the folder of the table)."""


def table_columns(args: TableArgs) -> Columns:
    """Return the settings of a command line for the columns of a table.

    Raises:
        ConfigError: a suffix that can't be one.
    """
    from deepcait.data import Columns

    return Columns.from_settings(vars(args))
