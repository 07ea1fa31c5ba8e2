"""Folders that `datasets.save_to_disk` wrote: arrow files mapped into memory, read without the package datasets.

A Dataset is a folder with `state.json` (its arrow files), `dataset_info.json` (its columns and classes) and the files;
a DatasetDict has `dataset_dict.json` and one such folder per split. An image costs its own bytes, in any order.
"""

from __future__ import annotations

import bisect
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepcait.data.columns import USUAL, Columns
from deepcait.data.folder import split_of
from deepcait.data.image_table import (
    Layout,
    LazyColumns,
    class_labels,
    class_names_of,
    find_layout,
    image_bytes,
    read_cells,
    require_same_layout,
)
from deepcait.data.labels import Label
from deepcait.data.table import Table
from deepcait.errors import DataError, ImageError, some
from deepcait.optional import require

_DICT, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"
_REMEDY = "Save it again with datasets.save_to_disk, or give another DATA."


class ArrowReader:
    """Fetches rows of arrow files, each mapped into memory once per process.

    Args:
        files: the arrow files.
        column: of the images.
        firsts: the first row of each file in the whole table, ascending.
    """

    def __init__(self, files: Sequence[str], column: str, firsts: Sequence[int]) -> None:
        self.files = list(files)
        self.column = column
        self.firsts = list(firsts)
        self._mapped: dict[tuple[int, int], Any] = {}  # (process, file) -> its column of images

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": {}}

    def read(self, row: int) -> bytes:
        """Return the bytes of the image; ImageError when the file can't be read or the cell is empty."""
        file, inner = self._find(row)
        key = (os.getpid(), file)
        try:
            if key not in self._mapped:
                self._mapped[key] = _map_file(self.files[file], [self.column]).column(0)
            cell = self._mapped[key][inner].as_py()
        except DataError as error:
            raise ImageError(error.problem, remedy=error.remedy) from error
        except IndexError as error:
            raise ImageError(f"{self.locate(row)}: no such row any more.", remedy="Open the data again.") from error
        return image_bytes(self.locate(row), cell)

    def locate(self, row: int) -> str:
        """File and row in it, for messages."""
        file, inner = self._find(row)
        return f"{self.files[file]}: row {inner}"

    def _find(self, row: int) -> tuple[int, int]:
        file = bisect.bisect_right(self.firsts, row) - 1
        return file, row - self.firsts[file]


def is_saved(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote a folder."""
    return (folder / _DICT).is_file() or ((folder / _STATE).is_file() and (folder / _INFO).is_file())


def load_arrow(place: str, columns: Columns = USUAL) -> tuple[Table, ArrowReader]:
    """List the images of a folder that `datasets.save_to_disk` wrote; no image is read.

    Raises:
        ConfigError: pyarrow is not installed, or `columns` that do not fit.
        DataError: not such a folder, no images in it, or files that do not fit together.
    """
    root = Path(os.path.expanduser(place))
    folders, note = _split_folders(root)
    files: list[str] = []
    firsts: list[int] = []
    paths: list[str] = []
    labels: list[Label] = []
    splits: list[str | None] = []
    parts: list[str] = []
    layout: Layout | None = None
    first: Path | None = None
    for word, folder in folders:
        for file in _data_files(folder):
            own, own_paths, own_labels = _read_file(file, folder, columns)
            layout, first = layout or own, first or file
            require_same_layout(file, own, first, layout)
            if own_paths:
                files.append(str(file))
                firsts.append(len(paths))
            paths += own_paths
            labels += own_labels
            splits += [word] * len(own_paths)
            parts += [file.stem] * len(own_paths)
    if layout is None or not paths:
        raise DataError(f"{place}: the data set has no rows.", remedy=_REMEDY)
    table = Table(
        kind="arrow",
        where=place,
        paths=paths,
        labels=labels,
        splits=splits,
        parts=parts,
        class_names=layout.class_names,
        note=note,
        unlabelled=layout.unlabelled,
        columns=LazyColumns(layout.others, lambda name: [cell for file in files for cell in _cells_of(file, name)]),
    )
    return table, ArrowReader(files, layout.image, firsts)


def _cells_of(file: str, column: str) -> list[object]:
    return _map_file(file, [column]).column(0).to_pylist()


def _split_folders(root: Path) -> tuple[list[tuple[str | None, Path]], str]:
    """(split, folder) of each Dataset, and a note on those left out."""
    if not (root / _DICT).is_file():
        word = _read_json(root / _STATE).get("_split")
        return [(word if isinstance(word, str) and split_of(word) else None, root)], ""
    names = _read_json(root / _DICT).get("splits")
    if not isinstance(names, list) or not all(isinstance(name, str) and _is_plain(name) for name in names):
        raise DataError(f"{root / _DICT}: expected a list of splits, got {str(names)[:60]}.", remedy=_REMEDY)
    others = [name for name in names if not split_of(name)]
    if len(others) == len(names):
        raise DataError(
            f"{root}: none of the splits is train, val or test: {some(names) or 'there are no splits'}.",
            remedy="Give the folder of one of them.",
        )
    note = f"splits not used: {', '.join(others)}" if others else ""
    return [(name, root / name) for name in names if split_of(name)], note


def _data_files(folder: Path) -> list[Path]:
    state = _read_json(folder / _STATE)
    entries = state.get("_data_files")
    named = [entry.get("filename") for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    names = [name for name in named if isinstance(name, str) and _is_plain(name)]
    if not names or len(names) < len(named):
        raise DataError(f"{folder / _STATE}: the names of the arrow files are missing.", remedy=_REMEDY)
    if state.get("_indices_data_files"):
        raise DataError(
            f"{folder}: the data set is a selection or a new order of rows (indices), which is not read.",
            remedy="Save it again: datasets.load_from_disk(...).flatten_indices().save_to_disk(...).",
        )
    return [folder / name for name in names]


def _read_file(file: Path, folder: Path, columns: Columns) -> tuple[Layout, list[str], list[Label]]:
    """The columns of an arrow file, and name and label of its rows."""
    table = _map_file(str(file), None)
    info = folder / _INFO
    named = class_labels(_read_json(info).get("features")) if info.is_file() else {}
    layout = find_layout(str(file), table.schema, columns, named or class_names_of(table.schema))
    if layout is None:
        raise DataError(
            f"{file}: no column of images {{bytes, path}}; the columns are {', '.join(map(repr, table.schema.names))}.",
            remedy="A table of paths is read as csv, jsonl or parquet.",
        )
    wanted = [layout.image, *([layout.label] if layout.label else [])]
    return layout, *read_cells(str(file), layout, table.select(list(dict.fromkeys(wanted))))


def _map_file(file: str, wanted: list[str] | None) -> Any:
    """The table of an arrow file (all columns, or some), in its own memory: only what is read comes from disk.

    Raises:
        DataError: it can't be read, or is damaged.
    """
    pyarrow = require("pyarrow", asked="arrow", extra="data")
    ipc = require("pyarrow.ipc", asked="arrow", extra="data")
    try:
        # Without pyarrow's own threads, which a forked worker process does not have.
        options = ipc.IpcReadOptions(use_threads=False)
        table = ipc.open_stream(pyarrow.memory_map(file), options=options).read_all()
        table = table if wanted is None else table.select(wanted)
        table.validate(full=True)  # of offsets and texts, else a damaged file could lead anywhere in memory
    except Exception as error:  # pyarrow raises its own kinds
        what = (
            "there is no such file" if isinstance(error, FileNotFoundError) else f"not a readable arrow file: {error}"
        )
        raise DataError(f"{file}: {what}.", remedy=_REMEDY) from error
    return table


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        missing = isinstance(error, FileNotFoundError)
        what = "there is no such file" if missing else f"not written by datasets.save_to_disk: {error}"
        raise DataError(f"{path}: {what}.", remedy=_REMEDY) from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(content).__name__}.", remedy=_REMEDY)
    return content


def _is_plain(name: str) -> bool:
    """Whether a name is a plain file name, which can't point outside the folder."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0:")
