"""CSV and parquet manifests: one row per image, with its path, its label and, if there are splits, its split."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepcait.data.columns import HOW_IMAGE, USUAL, Columns, column_of, list_columns
from deepcait.data.folder import split_of
from deepcait.data.image import MAX_BYTES, read_image_bytes
from deepcait.data.labels import Label
from deepcait.data.members import is_image
from deepcait.data.shards import find_one, open_binary
from deepcait.data.table import Table
from deepcait.errors import DataError
from deepcait.optional import require

# What each column may be called, the preferred first.
COLUMNS = {
    "path": ("path", "file_name", "filename", "file", "image_path", "image", "img", "filepath"),
    "label": ("label", "class", "class_name", "label_name", "category", "target", "labels"),
    "split": ("split", "subset", "partition", "set"),
}
_MAX_DIGITS = 18  # of a label that is taken for a number
_UNLABELLED = -1  # as the hub writes it if the labels of a test set are not published
_WHOLE = re.compile("-?[0-9]+")
_NO_FILE = "Manifests list files; parquet that holds the images themselves has a column image {bytes, path}."


class FileReader:
    """Reads image files by paths relative to a folder."""

    max_bytes = MAX_BYTES

    def __init__(self, base: str, paths: Sequence[str]) -> None:
        self.base = base
        self.paths = list(paths)

    def read(self, row: int) -> bytes:
        """Return the file; ImageError when it can't be read."""
        return read_image_bytes(self.locate(row), max_bytes=self.max_bytes)

    def locate(self, row: int) -> str:
        """Path of the image."""
        return str(Path(self.base) / self.paths[row])


def load_csv(place: str, columns: Columns = USUAL) -> tuple[Table, FileReader]:
    """Read a manifest of text: commas, semicolons or tabs, with a header or without.

    Without a header the columns are path, label and, if there is a third, split. An empty cell, or -1 where all
    labels are whole numbers, is an image without a label.

    Raises:
        DataError: no such file, another encoding, columns missing, a row that does not fit; with its line number.
    """
    place = find_one(place, ".csv")
    rows = _csv_rows(place, _read_text(place))
    if not rows:
        raise DataError(f"{place}: the file is empty.", remedy="Write one row per image.")
    header = [cell.strip() for cell in rows[0][1]]
    found, ignored = _find_columns(place, header, columns)
    if found is None:
        found = {name: number for number, name in enumerate(COLUMNS) if number < len(header)}
    else:
        rows = rows[1:]
    for line, cells in rows:
        if len(cells) != len(header):
            raise DataError(
                f"{place}, line {line}: expected {len(header)} columns, got {len(cells)}.",
                remedy="Put cells that hold the separator in double quotes.",
            )
    lines = [line for line, _ in rows]
    cells = {name: [row[column].strip() for _, row in rows] for name, column in found.items()}
    others = {name: [row[column].strip() for _, row in rows] for name, column in ignored.items()}
    return _manifest("csv", place, cells, lines, others, columns)


def load_jsonl(place: str, columns: Columns = USUAL) -> tuple[Table, FileReader]:
    """Read a manifest of JSON lines: an object an image, its keys what a CSV's columns are called.

    Raises:
        DataError: no such file, another encoding, a line that is not an object, keys missing.
    """
    place = find_one(place, ".jsonl")
    texts = _read_text(place).split("\n")  # other ends of lines may be within a JSON text
    rows: list[tuple[int, dict[str, Any]]] = []
    for line, text in enumerate(texts, start=1):
        try:
            row = json.loads(text) if text.strip() else None
        except (ValueError, RecursionError):
            row = text
        if row is not None and not isinstance(row, dict):
            raise DataError(
                f"{place}, line {line}: expected a JSON object, got {text[:60]!r}.", remedy="Correct that line."
            )
        rows += [] if row is None else [(line, row)]
    header = list(dict.fromkeys(key for _, row in rows for key in row))
    found, ignored = _find_columns(place, header, columns)
    if found is None:
        raise _missing(place, header)
    lines = [line for line, _ in rows]
    cells = {name: [row.get(header[column]) for _, row in rows] for name, column in found.items()}
    others = {name: [row.get(name) for _, row in rows] for name in ignored}
    return _manifest("jsonl", place, cells, lines, others, columns)


def load_parquet_manifest(place: str, columns: Columns = USUAL) -> tuple[Table, FileReader]:
    """Read a parquet file with columns path, label and perhaps split; labels are names or integers.

    Raises:
        DataError: columns missing, or a row that does not fit.
    """
    parquet = require("pyarrow.parquet", asked="parquet", extra="data")
    with open_binary(place) as file:
        try:
            # In this thread: pyarrow's own threads may hold the file when Python ends, which aborts the process.
            table = parquet.ParquetFile(file).read(use_threads=False)
        except Exception as error:  # pyarrow raises its own kinds, ValueErrors and OSErrors
            raise DataError(f"{place}: not a readable parquet file: {error}.", remedy="Fetch it again.") from error
    found, ignored = _find_columns(place, table.column_names, columns)
    if found is None:
        raise _missing(place, table.column_names)
    cells = {name: table.column(column).to_pylist() for name, column in found.items()}
    others = {name: table.column(column).to_pylist() for name, column in ignored.items()}
    return _manifest("parquet", place, cells, list(range(len(table))), others, columns)


def _read_text(place: str) -> str:
    with open_binary(place) as file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{place}, line {line}: the text is not UTF-8: {error}.", remedy="Save it as UTF-8.") from error


def _csv_rows(place: str, text: str) -> list[tuple[int, list[str]]]:
    """(line number, cells) of every row that is not empty."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max("\t;,", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise DataError(
            f"{place}, line {reader.line_num}: the line is not valid CSV: {error}.",
            remedy="Correct that line.",
        ) from error
    return rows


def _find_columns(place: str, header: Sequence[str], said: Columns) -> tuple[dict[str, int] | None, dict[str, int]]:
    """Return the meaning of each column, None if the row is an image instead of a header; and the other columns."""
    columns = {}
    for name, wanted, setting in (("path", said.image, "image_column"), ("label", said.label, "label_column")):
        if wanted:
            columns[name] = column_of(place, header, wanted, setting)
    words = [cell.strip().lower() for cell in header]
    for name, synonyms in COLUMNS.items():
        free = [word for number, word in enumerate(words) if number not in columns.values()]
        synonym = next((synonym for synonym in synonyms if synonym in free), None)
        if name not in columns and synonym is not None:
            columns[name] = words.index(synonym)
    if "path" not in columns:
        if words and is_image(words[0]) and len(words) <= len(COLUMNS):
            return None, {}
        raise _missing(place, header)
    return columns, {cell: number for number, cell in enumerate(header) if number not in columns.values()}


def _missing(place: str, header: Sequence[str]) -> DataError:
    return DataError(
        f"{place}: no column of paths found; the columns are {', '.join(header) or 'missing'}.",
        remedy=f"{HOW_IMAGE} {_NO_FILE}",
    )


def _manifest(
    kind: str,
    place: str,
    cells: Mapping[str, Sequence[Any]],
    lines: Sequence[int],
    others: Mapping[str, Sequence[Any]],
    columns: Columns,
) -> tuple[Table, FileReader]:
    what = "row" if kind == "parquet" else "line"
    paths = [_path(cell, columns.suffix) for cell in cells["path"]]
    for line, path in zip(lines, paths, strict=True):
        if not isinstance(path, str) or not path or "\0" in path:
            remedy = "Write the column as text (string)." if isinstance(path, bytes) else "Correct that row."
            raise DataError(f"{place}, {what} {line}: expected a path, got {str(path)[:60]!r}.", remedy=remedy)
    words: list[str | None] = [word or None for word in cells.get("split", [None] * len(paths))]
    for line, word in zip(lines, words, strict=True):
        if "split" in cells and (not isinstance(word, str) or split_of(word) is None):
            raise DataError(
                f"{place}, {what} {line}: expected the split train, val or test, got {word!r}.",
                remedy="Correct that row, or remove the column.",
            )
    table = Table(
        kind=kind,
        where=place,
        paths=paths,
        labels=_labels(place, what, cells.get("label", [None] * len(paths)), lines),
        splits=words,
        note=f"other columns: {', '.join(others)}" if others else "",
        unlabelled=""
        if "label" in cells
        else f"no column called {', '.join(COLUMNS['label'])} among {list_columns(list(others))}",
        columns=others,
    )
    root = os.path.expanduser(columns.root) if columns.root else str(Path(place).parent)
    return table, FileReader(root, table.paths)


def _path(cell: Any, suffix: str) -> Any:
    """A path with "/" between parts, and the suffix behind it if it has none of an image."""
    if suffix and isinstance(cell, int) and not isinstance(cell, bool):
        cell = str(cell)
    if not isinstance(cell, str) or not cell:
        return cell
    path = cell.replace("\\", "/").removeprefix("./")
    return path if not suffix or is_image(path) else path + suffix


def _labels(place: str, what: str, cells: Iterable[object], lines: Sequence[int]) -> list[Label]:
    """Class names as they are; whole numbers as integers, when all labels are and none has a leading zero."""
    labels: list[Label] = []
    for line, cell in zip(lines, cells, strict=True):
        if isinstance(cell, bool) or not isinstance(cell, str | int | None):
            raise DataError(
                f"{place}, {what} {line}: expected a class name or a whole number, got {cell!r}.",
                remedy="Correct that row.",
            )
        labels.append(cell if cell != "" else None)
    texts = [label for label in labels if isinstance(label, str)]
    if not all(_WHOLE.fullmatch(text) for text in texts):
        return labels
    for line, label in zip(lines, labels, strict=True):
        if label is not None and str(label) != str(_UNLABELLED) and str(label).startswith("-"):
            raise DataError(
                f"{place}, {what} {line}: expected a class name or a whole number from 0, got {label}.",
                remedy="Correct that row; -1 or an empty cell is an image without a label.",
            )
    labels = [None if str(label) == str(_UNLABELLED) else label for label in labels]
    written = [str(label) for label in labels if label is not None]
    if any(len(text) > _MAX_DIGITS or text != str(int(text)) for text in written):
        return [None if label is None else str(label) for label in labels]
    return [None if label is None else int(label) for label in labels]
