"""Map labels to class indices. Labels are names, also if they are integers. All mapping happens here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from deepcait.errors import DataError, some

# A class name, an integer that the data itself stores as a number, or None if there is no label.
Label: TypeAlias = str | int | None
# What integers mean (`data.labels`). auto is names if classes are found; where they are given, names if the classes
# contain all of them, else indices. 0.1 is what that version did: numbers in tables are indices, folders are names.
RULES = ("auto", "names", "indices", "0.1")
_MAX_INDEX = 100_000
_MAX_DIGITS = 18
_MORE = "`deepcait help different-classes` has more."


def is_integer(name: str) -> bool:
    """Whether a class name is a whole number, leading zeros allowed; longer ones are names like any other."""
    return name.isascii() and name.isdecimal() and len(name) <= _MAX_DIGITS


def is_numbering(names: Sequence[str]) -> bool:
    """Whether the names are 0 to K - 1 in order: then names and indices are the same."""
    return all(name == str(index) for index, name in enumerate(names))


def sort_classes(names: Iterable[str]) -> list[str]:
    """Sort as text, like ImageFolder; by number when all names are integers.

    ImageNet-V2 has folders 0..999: as text "10" would come before "2" and every label be wrong.
    """
    names = list(names)
    if all(map(is_integer, names)):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def find_classes(where: object, labels: Iterable[Label], rule: str = "auto") -> list[str]:
    """Return index -> class name as the labels of training data define it.

    Args:
        where: the data, for messages.
        labels: those in use, in any order.
        rule: one of RULES.

    Raises:
        DataError: numbers and names mixed, or labels that can't be indices if `rule` says that they are.
    """
    found = set(labels) - {None}
    numbers = [label for label in found if isinstance(label, int)]
    names = [label for label in found if isinstance(label, str)]
    if min(numbers, default=0) < 0:
        raise DataError(
            f"{where}: expected labels from 0, got {min(numbers)}.",
            remedy="Correct it; -1 is an image without a label.",
        )
    if numbers and not all(map(is_integer, names)):
        raise DataError(
            f"{where}: labels are class names or integers, not both ({names[0]!r} and {numbers[0]}).",
            remedy="Write every label the same way.",
        )
    texts = {str(label) for label in found}
    if not texts or not (rule == "indices" or (rule == "0.1" and numbers)):
        return sort_classes(texts)
    odd = sorted(text for text in texts if not is_integer(text))
    if odd:
        raise DataError(
            f"{where}: data.labels=indices needs integers from 0 as labels, got {some(odd)}.",
            remedy="Leave data.labels out: labels are then the names of the classes.",
        )
    highest = max(map(int, texts))
    if highest >= _MAX_INDEX:
        raise DataError(
            f"{where}: data.labels=indices needs labels from 0 to {_MAX_INDEX - 1:,}, got {highest}.",
            remedy="Leave data.labels out: labels are then the names of the classes.",
        )
    return [str(index) for index in range(highest + 1)]


def map_labels(where: object, names: Iterable[str], classes: Sequence[str], rule: str = "auto") -> dict[str, int]:
    """Return label -> index of its class, for labels whose classes are given, by training or by a model.

    By name where the classes contain all labels. Else integers are indices, unless the classes are called by other
    integers themselves, or `rule` is "names".

    Args:
        where: the data, for messages.
        names: the labels in use, integers as text.
        classes: index -> class name.
        rule: one of RULES.

    Raises:
        DataError: a label that no class has, or that several have, or an index out of range.
    """
    used = sort_classes(set(names))
    index_of = {name: index for index, name in enumerate(classes)}
    unknown = [name for name in used if name not in index_of]
    by_number = not is_numbering(classes) and any(map(is_integer, classes))
    may_be_indices = all(map(is_integer, used)) and rule != "names" and (rule == "indices" or not by_number)
    if may_be_indices and (unknown or rule == "indices"):
        return _as_indices(where, used, len(classes))
    if unknown:
        raise DataError(
            f"{where}: unknown class {some([repr(name) for name in unknown])}: the model has {len(classes):,} classes "
            f"({some(classes)}).",
            remedy="Rename those labels to classes of the model, remove them, or use a model trained on this data. "
            + _MORE,
        )
    twice = [name for name in used if list(classes).count(name) > 1] if len(index_of) < len(classes) else []
    if twice:
        raise DataError(
            f"{where}: the model has several classes with the same name: {some(twice)}.",
            remedy="Name the data's classes by index, or give each class of the model a different name.",
        )
    return {name: index_of[name] for name in used}


def _as_indices(where: object, used: Sequence[str], num_classes: int) -> dict[str, int]:
    outside = [name for name in used if int(name) >= num_classes]
    if outside:
        raise DataError(
            f"{where}: expected class indices 0 to {num_classes - 1}, got {some(outside)}.",
            remedy="Indices count from 0; subtract 1 from labels that count from 1. " + _MORE,
        )
    return {name: int(name) for name in used}
