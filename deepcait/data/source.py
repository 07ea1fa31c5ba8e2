"""The interface of every data source: bytes, a label and a name by index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from deepcait.data.columns import HOW_LABEL
from deepcait.data.image import DEFAULT, ImageOptions
from deepcait.errors import DataError


class Sample(NamedTuple):
    """One image as it is stored.

    data: the undecoded file. label: class index, None where the source has no labels.
    name: relative, "/" between parts, the same whatever machine or order reads it.
    """

    data: bytes
    label: int | None
    name: str


@runtime_checkable
class Source(Protocol):
    """An indexed collection of labelled images; opening it reads no image."""

    kind: str  # folder, ...
    split: str  # train, val, test or all
    classes: list[str]  # index -> class name

    @property
    def names(self) -> Sequence[str]:
        """The name of every sample, in reading order."""
        ...

    @property
    def labels(self) -> Sequence[int | None]:
        """The class index of every sample; None if it has none."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample:
        """The sample at `index`. Raises ImageError when its file can't be read."""
        ...

    def locate(self, index: int) -> str:
        """Location of the sample, for messages: something the user can open."""
        ...


SourceT = TypeVar("SourceT", bound="Source")


class Subset:
    """Some samples of a source, in the order given; classes and label indices stay those of the source."""

    def __init__(self, source: Source, indices: Sequence[int], *, split: str) -> None:
        self.source = source
        self.indices = list(indices)
        self.kind = source.kind
        self.split = split
        self.classes = source.classes
        self.note = getattr(source, "note", "")
        self.names = [source.names[index] for index in self.indices]
        self.labels = [source.labels[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Sample:
        """The sample at `index` of this subset."""
        return self.source.read(self.indices[index])

    def locate(self, index: int) -> str:
        """Location of the sample in the whole source."""
        return self.source.locate(self.indices[index])


def with_options(source: SourceT, options: ImageOptions) -> SourceT:
    """Return the source with these limits on its images, wherever they are read."""
    inner = innermost(source)
    inner.image_options = options
    reader = getattr(inner, "reader", None)
    if hasattr(reader, "max_bytes"):
        reader.max_bytes = options.max_bytes  # pyrefly: ignore[missing-attribute]
    return source


def options_of(source: Source) -> ImageOptions:
    """Return the limits that the images of a source are opened with."""
    return getattr(innermost(source), "image_options", DEFAULT)


def own_split(source: Source) -> str:
    """Return the split of the data itself that images are from; "" if it has none, or all are taken."""
    split = innermost(source).split
    return split if split in ("train", "val", "test") else ""


def innermost(source: Any) -> Any:
    """Return the source that reads, below those that choose or change its images."""
    while (inner := getattr(source, "source", None)) is not None:
        source = inner
    return source


def require_labels(source: Source) -> list[int]:
    """Return the label of every sample.

    Raises:
        DataError: some samples have none; the message names the first.
    """
    for index, label in enumerate(source.labels):
        if label is None:
            why = getattr(innermost(source), "unlabelled", "")
            raise DataError(
                f"{source.locate(index)} has no class"
                f"{f' ({why})' if why and not any(label is not None for label in source.labels) else ''}.",
                remedy="Every image needs a class." + (f" {HOW_LABEL}" if "column" in why else ""),
            )
    return [label for label in source.labels if label is not None]


def describe(source: Source) -> str:
    """One line for the user: what was recognised, and what was assumed (the source's `note`, if it has one)."""
    note = getattr(source, "note", "")
    line = f"{source.kind}, split {source.split}: {len(source):,} images, {len(source.classes):,} classes"
    return f"{line}; {note}" if note else line
