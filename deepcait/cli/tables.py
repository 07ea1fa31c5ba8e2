"""Options of commands that read labelled images: which columns of a table are what."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
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
    """Return what a command line says about the columns of a table.

    Raises:
        ConfigError: a suffix that can't be one.
    """
    from deepcait.data import Columns

    return Columns(label=args.label_column, image=args.image_column, suffix=args.image_suffix, root=args.image_root)


def columns_of_run(spec: str, data: str) -> Columns:
    """Return the columns that a run was trained with, if `data` is the run's own; for any other MODEL the usual ones.

    Args:
        spec: MODEL.
        data: DATA.
    """
    from deepcait.data import Columns
    from deepcait.training.recipe import RUN_CONFIG, load_recipe

    folder = Path(spec).expanduser()
    config = next((own / RUN_CONFIG for own in (folder, folder.parent) if (own / RUN_CONFIG).is_file()), None)
    if config is None:
        return Columns()
    own = load_recipe(str(config.resolve())).data
    same = own.source == data or (os.path.exists(data) and os.path.realpath(own.source) == os.path.realpath(data))
    return own.columns() if same else Columns()
