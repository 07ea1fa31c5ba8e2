"""CSV and parquet manifests: one row per image, with its path, its label and, if there are splits, its split."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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
_UNLABELLED = -1  # as the hub writes it where a test set keeps its labels to itself
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


def load_csv(place: str) -> tuple[Table, FileReader]:
    """Read a manifest of text: commas, semicolons or tabs, with a header or without.

    Without a header the columns are path, label and, where there is a third, split. An empty cell, or -1 where all
    labels are whole numbers, is an image without a label.

    Raises:
        DataError: no such file, another encoding, columns missing, a row that does not fit; with its line number.
    """
    place = find_one(place, ".csv")
    with open_binary(place) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{place}, line {line}: expected UTF-8, got {error}.", remedy="Save it as UTF-8.") from error
    rows = _csv_rows(place, text)
    if not rows:
        raise DataError(f"{place}: expected a row per image, got an empty file.", remedy="Check the path.")
    columns, ignored = _columns(place, rows[0][1])
    if columns is None:
        columns = {name: number for number, name in enumerate(COLUMNS) if number < len(rows[0][1])}
        width = len(rows[0][1])
    else:
        width, rows = len(rows[0][1]), rows[1:]
    for line, cells in rows:
        if len(cells) != width:
            raise DataError(
                f"{place}, line {line}: expected {width} columns, got {len(cells)}.",
                remedy="Put cells that hold the separator in double quotes.",
            )
    lines = [line for line, _ in rows]
    cells = {name: [row[column].strip() for _, row in rows] for name, column in columns.items()}
    return _manifest("csv", place, cells["path"], cells.get("label"), cells.get("split"), lines, ignored)


def load_jsonl(place: str) -> tuple[Table, FileReader]:
    """Read a manifest of JSON lines: an object an image, its keys what a CSV's columns are called.

    Raises:
        DataError: no such file, a line that is no object, keys missing.
    """
    place = find_one(place, ".jsonl")
    with open_binary(place) as file:
        texts = file.read().decode("utf-8-sig", "replace").splitlines()
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
    columns, ignored = _columns(place, header)
    if columns is None:
        raise _missing(place, header)
    lines = [line for line, _ in rows]
    cells = {name: [row.get(header[column]) for _, row in rows] for name, column in columns.items()}
    return _manifest("jsonl", place, cells["path"], cells.get("label"), cells.get("split"), lines, ignored)


def load_parquet_manifest(place: str) -> tuple[Table, FileReader]:
    """Read a parquet file with columns path, label and perhaps split; labels are names or integers.

    Raises:
        DataError: columns missing, or a row that does not fit.
    """
    parquet = require("pyarrow.parquet", asked="parquet", extra="data")
    with open_binary(place) as file:
        try:
            table = parquet.read_table(file)
        except Exception as error:  # pyarrow raises kinds of its own, ValueErrors and OSErrors
            raise DataError(f"{place}: expected a parquet file, got {error}.", remedy="Fetch it again.") from error
    columns, ignored = _columns(place, table.column_names)
    if columns is None:
        raise _missing(place, table.column_names)
    cells = {name: table.column(column).to_pylist() for name, column in columns.items()}
    lines = list(range(len(table)))
    return _manifest("parquet", place, cells["path"], cells.get("label"), cells.get("split"), lines, ignored)


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
            f"{place}, line {reader.line_num}: expected cells of text, got {error}.",
            remedy="Correct that line.",
        ) from error
    return rows


def _columns(place: str, header: Sequence[str]) -> tuple[dict[str, int] | None, list[str]]:
    """Return the meaning of each column, None if the row is an image instead of a header; and the unused columns."""
    words = [cell.strip().lower() for cell in header]
    columns = {}
    for name, synonyms in COLUMNS.items():
        column = next((words.index(synonym) for synonym in synonyms if synonym in words), None)
        if column is not None:
            columns[name] = column
    if "path" not in columns:
        if words and is_image(words[0]) and len(words) <= len(COLUMNS):
            return None, []
        raise _missing(place, header)
    return columns, [cell for number, cell in enumerate(header) if number not in columns.values()]


def _missing(place: str, header: Sequence[str]) -> DataError:
    return DataError(
        f"{place}: expected the columns path and label (and split), got {', '.join(header) or 'none'}.",
        remedy=f"Rename the columns. {_NO_FILE}",
    )


def _manifest(
    kind: str,
    place: str,
    paths: Sequence[str | None],
    labels: Sequence[str | int | None] | None,
    splits: Sequence[str | None] | None,
    lines: Sequence[int],
    ignored: Sequence[str],
) -> tuple[Table, FileReader]:
    what = "row" if kind == "parquet" else "line"
    for line, path in zip(lines, paths, strict=True):
        if not isinstance(path, str) or not path or "\0" in path:
            remedy = "Write the column as text (string)." if isinstance(path, bytes) else "Correct that row."
            raise DataError(f"{place}, {what} {line}: expected a path, got {str(path)[:60]!r}.", remedy=remedy)
    words: list[str | None] = [word or None for word in splits] if splits is not None else [None] * len(paths)
    for line, word in zip(lines, words, strict=True):
        if splits is not None and (not isinstance(word, str) or split_of(word) is None):
            raise DataError(
                f"{place}, {what} {line}: expected the split train, val or test, got {word!r}.",
                remedy="Correct that row, or remove the column.",
            )
    table = Table(
        kind=kind,
        where=place,
        paths=[path.replace("\\", "/").removeprefix("./") for path in paths if path is not None],
        labels=_labels(place, what, labels if labels is not None else [None] * len(paths), lines),
        splits=words,
        note=f"columns not used: {', '.join(ignored)}" if ignored else "",
        unlabelled=f"no column called {', '.join(COLUMNS['label'])} among {_shown(ignored)}" if labels is None else "",
    )
    return table, FileReader(str(Path(place).parent), table.paths)


def _shown(columns: Sequence[str]) -> str:
    return ", ".join(map(repr, columns)) or "the others, of which there are none"


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
