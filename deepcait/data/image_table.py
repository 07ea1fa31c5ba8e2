"""Tables that hold the images themselves, as the hub's `datasets` writes them: which column is what."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepcait.data.columns import Columns, column_of, list_columns
from deepcait.data.labels import Label
from deepcait.errors import ConfigError, DataError, ImageError
from deepcait.optional import require

IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "target", "cls")


# What must be the same in all files of one data set -> what messages call it.
_COMPARED = {
    "image": "different columns of images",
    "path": "different columns of paths",
    "label": "different columns of labels",
    "class_names": "different classes",
    "others": "different other columns",
}


@dataclass(frozen=True)
class Layout:
    """The columns of a file: `path` is None if images are bare bytes, `label` if there are none.

    unlabelled: why there is no label: the columns that were looked for, and those there are.
    others: other columns of text and whole numbers.
    """

    image: str
    path: str | None
    label: str | None
    class_names: list[str] | None
    unlabelled: str = ""
    others: tuple[str, ...] = ()


class LazyColumns(Mapping[str, Sequence[object]]):
    """Columns that are read on first access.

    Args:
        names: of the columns.
        read: name -> its value in each row.
    """

    def __init__(self, names: Sequence[str], read: Callable[[str], Sequence[object]]) -> None:
        self.names, self.read = names, read

    def __getitem__(self, name: str) -> Sequence[object]:
        if name not in self.names:
            raise KeyError(name)
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def find_layout(file: str, schema: Any, columns: Columns, class_names: Mapping[str, list[str]]) -> Layout | None:
    """Return the columns of a file with images in it, None if it has none (or `columns` names one of paths).

    Args:
        file: for messages.
        schema: pyarrow's.
        columns: the user's settings.
        class_names: column -> names of its classes, if the file has some.

    Raises:
        DataError: no column of that name.
        ConfigError: a folder or suffix for images that are in the file.
    """
    types = require("pyarrow", asked="parquet", extra="data").types
    fields = {field.name: field.type for field in schema}
    structs = [name for name, kind in fields.items() if types.is_struct(kind) and kind.get_field_index("bytes") >= 0]
    binary = [name for name, kind in fields.items() if types.is_binary(kind) or types.is_large_binary(kind)]
    if columns.image:
        image: str | None = schema.names[column_of(file, schema.names, columns.image, "image_column")]
        image = image if image in structs + binary else None
    else:
        # Some programs write text as bytes: a column called path or name does not contain images.
        images = structs or [name for name in binary if "path" not in name.lower() and "name" not in name.lower()]
        image = next((name for name in IMAGE_COLUMNS if name in images), images[0] if images else None)
    if image is None:
        return None
    if columns.root or columns.suffix:
        raise ConfigError(
            f"{file}: {' and '.join(columns.settings)}: this table contains the images, not their paths.",
            remedy="Leave image_root and image_suffix out.",
        )
    path = f"{image}.path" if image in structs and fields[image].get_field_index("path") >= 0 else None
    label, unlabelled = _find_label(file, schema.names, columns, list(class_names))
    plain = (types.is_string, types.is_large_string, types.is_integer)
    others = tuple(name for name, kind in fields.items() if name != label and any(is_one(kind) for is_one in plain))
    return Layout(image, path, label, class_names.get(label or ""), unlabelled, others)


def _find_label(file: str, names: Sequence[str], columns: Columns, several: list[str]) -> tuple[str | None, str]:
    """The column of labels, or why it isn't found."""
    if columns.label:
        return names[column_of(file, names, columns.label, "label_column")], ""
    label = next((name for name in LABEL_COLUMNS if name in names), None)
    if label is None and len(several) == 1:
        (label,) = several
    if label is not None:
        return label, ""
    if several:
        return None, f"several columns are labels ({', '.join(several)}), none is called label"
    return None, f"no column called {', '.join(LABEL_COLUMNS)} among {list_columns(names)}"


def class_names_of(schema: Any) -> dict[str, list[str]]:
    """Return column -> class names, as the hub's `datasets` writes them into a schema."""
    try:
        return class_labels(json.loads(schema.metadata[b"huggingface"])["info"]["features"])
    except (KeyError, ValueError, TypeError):
        return {}


def class_labels(features: Any) -> dict[str, list[str]]:
    """Return column -> class names of the features that are class labels."""
    return {
        column: [str(name) for name in feature["names"]]
        for column, feature in (features.items() if isinstance(features, dict) else ())
        if isinstance(feature, dict)
        and feature.get("_type") == "ClassLabel"
        and isinstance(feature.get("names"), list)
        and feature["names"]
    }


def read_cells(file: str, layout: Layout, table: Any) -> tuple[list[str], list[Label]]:
    """Return the name and the label of every row; no image is read.

    Args:
        file: for messages.
        layout: of the file.
        table: pyarrow's, with the columns of the images (or their paths alone) and the labels.

    Raises:
        DataError: a path that is not text, or a label that is neither a name nor an integer.
    """
    num_rows = len(table)
    compute = require("pyarrow.compute", asked="parquet", extra="data")
    paths = compute.struct_field(table.column(layout.image), "path").to_pylist() if layout.path else []
    row = next((row for row, path in enumerate(paths) if not isinstance(path, str | None)), None)
    if row is not None:
        raise DataError(
            f"{file}, row {row}: expected text in the column {layout.path}, got {str(paths[row])[:60]}.",
            remedy="Write the column as text (string).",
        )
    if not paths or not all(paths) or len(set(paths)) < len(paths):
        paths = [f"{row:08d}" for row in range(num_rows)]
    labels: list[Any] = table.column(layout.label).to_pylist() if layout.label else [None] * num_rows
    odd = next((label for label in labels if isinstance(label, bool) or not isinstance(label, str | int | None)), None)
    if odd is not None:
        raise DataError(
            f"{file}: expected integers or class names in the column {layout.label}, got {odd!r}.",
            remedy="Give one label per image.",
        )
    # The hub writes -1 if the labels of a test set are not published.
    return [path.replace("\\", "/") for path in paths], [None if label == -1 else label for label in labels]


def require_same_layout(file: object, own: Layout | None, first_file: object, first: Layout | None) -> None:
    """Pass if a file has the columns and classes of the first one.

    Raises:
        DataError: it has others, and which; or it has no images.
    """
    remedy = "Give files of one data set, with the same columns and classes."
    if own is None or first is None:
        raise DataError(f"{file if own is None else first_file}: no column of images {{bytes, path}}.", remedy=remedy)
    for field, what in _COMPARED.items():
        one, other = getattr(first, field), getattr(own, field)
        if one != other:
            raise DataError(f"{first_file} and {file}: {what}: {_listed(one)} and {_listed(other)}.", remedy=remedy)


def _listed(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"({', '.join(map(str, value))})"
    return str(value or "none")


def image_bytes(place: str, cell: Any) -> bytes:
    """Return the bytes of an image's cell; ImageError when it has none."""
    data = cell["bytes"] if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise ImageError(
            f"{place}: the cell has no image.",
            remedy="If the table has paths instead of images, call their column path.",
        )
    return data
