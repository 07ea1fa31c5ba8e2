"""Parquet files that contain images, as on the hub: a column image {bytes, path} and a label.

Opening reads labels and paths only. Bytes are fetched a row group at a time; the groups used last stay in memory, up
to KEPT_BYTES in each process. Read in order this costs nothing; in a random order an image costs its group unless
that is kept, so that files larger than that are better trained on as tar, zip or folders.

Files are read without pyarrow's own threads: these may hold a file when Python ends, which aborts the process, and a
forked worker process, which does not have them, waits for them without end.
"""

from __future__ import annotations

import bisect
import contextlib
import os
from collections.abc import Sequence
from typing import Any

from deepcait.data.columns import USUAL, Columns
from deepcait.data.image_table import (
    Layout,
    LazyColumns,
    class_names_of,
    find_layout,
    image_bytes,
    read_cells,
    require_same_layout,
)
from deepcait.data.labels import Label
from deepcait.data.manifest import load_parquet_manifest
from deepcait.data.shards import find_shards, open_binary, require_ranges, shard_stem, splits_of_shards
from deepcait.data.table import Reader, Table
from deepcait.errors import DataError, ImageError
from deepcait.optional import require

# Of row groups, in each process; one group is kept however large it is.
KEPT_BYTES = 256 * 2**20


class ParquetReader:
    """Reads rows of parquet files; caches recently used row groups.

    Args:
        files: the parquet files.
        groups: (file, row group, first row of the group in the whole table), ascending.
    """

    def __init__(self, files: Sequence[str], column: str, groups: Sequence[tuple[int, int, int]]) -> None:
        self.files = list(files)
        self.column = column
        self.groups = list(groups)
        self.firsts = [first for _, _, first in groups]
        self.first_of_file = {file: first for file, _, first in reversed(self.groups)}
        self._open: tuple[tuple[int, int], Any] | None = None  # (process, file), its ParquetFile
        self._kept: dict[int, Any] = {}  # group -> its column of images, the one used last at the end

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None, "_kept": {}}

    def read(self, row: int) -> bytes:
        """Return the bytes of the image; ImageError when the file can't be read or the cell is empty."""
        number = bisect.bisect_right(self.firsts, row) - 1
        return image_bytes(self.locate(row), self._group(number, row)[row - self.firsts[number]].as_py())

    def locate(self, row: int) -> str:
        """File and row in it, for messages."""
        file = self.groups[bisect.bisect_right(self.firsts, row) - 1][0]
        return f"{self.files[file]}: row {row - self.first_of_file[file]}"

    def _group(self, number: int, row: int) -> Any:
        column = self._kept.pop(number, None)
        if column is None:
            column = self._read_group(number, row)
            num_bytes = column.nbytes + sum(kept.nbytes for kept in self._kept.values())
            while self._kept and num_bytes > KEPT_BYTES:
                num_bytes -= self._kept.pop(next(iter(self._kept))).nbytes
        self._kept[number] = column
        return column

    def _read_group(self, number: int, row: int) -> Any:
        file, group, _ = self.groups[number]
        key = (os.getpid(), file)
        try:
            if self._open is None or self._open[0] != key:
                parquet = require("pyarrow.parquet", asked="parquet", extra="data")
                if self._open is not None:
                    self._open[1].close(force=True)
                    self._open = None
                with contextlib.ExitStack() as closing:
                    opened = closing.enter_context(open_binary(self.files[file]))
                    self._open = (key, parquet.ParquetFile(opened))
                    closing.pop_all()  # it stays open for the next row group
            return self._open[1].read_row_group(group, columns=[self.column], use_threads=False).column(0)
        except DataError as error:
            raise ImageError(error.problem, remedy=error.remedy) from error
        except Exception as error:  # pyarrow raises its own kinds
            raise ImageError(
                f"{self.locate(row)}: the row group can't be read: {error}.",
                remedy="The file is damaged: fetch it again.",
            ) from error


def load_parquet(place: str, columns: Columns = USUAL) -> tuple[Table, Reader]:
    """List the images of one parquet file, a pattern or a folder; a manifest is recognised by its columns.

    Raises:
        ConfigError: pyarrow is not installed, or `columns` that do not fit.
        DataError: no parquet, no images in it, or files that do not fit together.
    """
    files = find_shards(place, ".parquet")
    require_ranges(files[0])
    words = splits_of_shards(files, place)
    layouts = [_layout(file, columns) for file in files]
    if layouts[0] is None and len(files) == 1:
        return load_parquet_manifest(files[0], columns)
    for file, layout in zip(files, layouts, strict=True):
        require_same_layout(file, layout, files[0], layouts[0])
    layout = layouts[0]
    assert layout is not None
    paths: list[str] = []
    labels: list[Label] = []
    splits: list[str | None] = []
    parts: list[str] = []
    groups: list[tuple[int, int, int]] = []
    for number, file in enumerate(files):
        own_paths, own_labels, sizes = _read_rows(file, layout)
        for group, size in enumerate(sizes):
            if size:
                groups.append((number, group, len(paths) + sum(sizes[:group])))
        paths += own_paths
        labels += own_labels
        splits += [words[number]] * len(own_paths)
        parts += [shard_stem(file)] * len(own_paths)
    table = Table(
        kind="parquet",
        where=place,
        paths=paths,
        labels=labels,
        splits=splits,
        parts=parts,
        class_names=layout.class_names,
        unlabelled=layout.unlabelled,
        columns=LazyColumns(layout.others, lambda name: [cell for file in files for cell in _cells_of(file, name)]),
    )
    return table, ParquetReader(files, layout.image, groups)


def _read_rows(file: str, layout: Layout) -> tuple[list[str], list[Label], list[int]]:
    """Paths and labels of the rows of a file, and the size of each row group; no image is read."""
    parquet = require("pyarrow.parquet", asked="parquet", extra="data")
    wanted = [column for column in (layout.path, layout.label) if column]
    with open_binary(file) as opened:
        try:
            content = parquet.ParquetFile(opened)
            sizes = [content.metadata.row_group(group).num_rows for group in range(content.num_row_groups)]
            table = content.read(columns=wanted, use_threads=False)
        except Exception as error:  # pyarrow raises its own kinds
            raise _damaged(file, error) from error
    return *read_cells(file, layout, table), sizes


def _layout(file: str, columns: Columns) -> Layout | None:
    """The columns of a file with images in it, None where it holds none."""
    parquet = require("pyarrow.parquet", asked="parquet", extra="data")
    with open_binary(file) as opened:
        try:
            schema = parquet.read_schema(opened)
        except Exception as error:  # pyarrow raises its own kinds
            raise _damaged(file, error) from error
    return find_layout(file, schema, columns, class_names_of(schema))


def _cells_of(file: str, column: str) -> list[object]:
    parquet = require("pyarrow.parquet", asked="parquet", extra="data")
    with open_binary(file) as opened:
        try:
            return parquet.ParquetFile(opened).read(columns=[column], use_threads=False).column(column).to_pylist()
        except Exception as error:  # pyarrow raises its own kinds
            raise _damaged(file, error) from error


def _damaged(file: str, error: Exception) -> DataError:
    return DataError(f"{file}: not a readable parquet file: {error}.", remedy="Fetch it again.")
