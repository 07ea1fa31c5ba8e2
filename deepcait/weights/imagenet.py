"""The 1,000 classes of ImageNet-1k, in the order of the released models: wnids and readable names."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path

from deepcait.errors import WeightsError

NUM_CLASSES = 1000
# Sets of images of 200 of the classes: the keys of their published accuracies.
SUBSETS = ("imagenet_a", "imagenet_r")
NUM_SUBSET = 200


def wnids() -> list[str]:
    """Index -> wnid, such as n01440764; read from the tables in timm's package, which is not imported.

    >>> wnids()[0], len(wnids())
    ('n01440764', 1000)

    Raises:
        WeightsError: the installed timm has no such table.
    """
    return list(_wnids())


def wnids_of(num_classes: int) -> list[str] | None:
    """Index -> wnid of a classifier of ImageNet with so many classes, as timm has them; None if there is none.

    1,000 are those of ImageNet-1k; larger ones (11,821, 21,841, 21,843) are parts of ImageNet-21k and -22k.
    """
    if num_classes == NUM_CLASSES:
        return wnids()
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    return None if subset is None else ImageNetInfo(subset).label_names()


def names() -> list[str]:
    """Index -> name, such as "tench, Tinca tinca"; two pairs of classes share a name.

    >>> names()[0]
    'tench, Tinca tinca'

    Raises:
        WeightsError: the installed timm has no such table.
    """
    return [_name_of()[wnid] for wnid in _wnids()]


def readable(class_name: str) -> str:
    """The name of a class given as one of the 1,000 wnids; other class names are returned unchanged.

    >>> readable("n02123045"), readable("cat")
    ('tabby, tabby cat', 'cat')
    """
    is_wnid = len(class_name) == 9 and class_name[0] == "n" and class_name[1:].isdecimal()
    return _name_of().get(class_name, class_name) if is_wnid else class_name


def is_imagenet(classes: Sequence[str] | None) -> bool:
    """Whether these are the 1,000 wnids, in order."""
    return classes is not None and len(classes) == NUM_CLASSES and tuple(classes) == _wnids()


def subset_name(classes: Iterable[str]) -> str | None:
    """Which set of 200 of the classes these wnids are: "imagenet_a", "imagenet_r", or None."""
    wanted = set(classes)
    if len(wanted) != NUM_SUBSET:
        return None
    return next((name for name in SUBSETS if wanted == set(read_table(f"{name}_synsets.txt").split())), None)


@functools.lru_cache(maxsize=1)
def _wnids() -> tuple[str, ...]:
    found = tuple(read_table("imagenet_synsets.txt").split())
    if len(found) != NUM_CLASSES or list(found) != sorted(found):
        raise WeightsError(
            f"timm's table of ImageNet classes is damaged: expected {NUM_CLASSES} sorted wnids, got {len(found)}.",
            remedy="Reinstall timm: pip uninstall timm, then pip install timm.",
        )
    return found


@functools.lru_cache(maxsize=1)
def _name_of() -> dict[str, str]:
    lines = (line.partition("\t") for line in read_table("imagenet_synset_to_lemma.txt").splitlines())
    wanted = set(_wnids())
    return {wnid: name.strip() for wnid, _, name in lines if wnid in wanted}


def read_table(file: str) -> str:
    """The text of a table in timm's package; timm is not imported.

    Raises:
        WeightsError: the installed timm has no such table.
    """
    spec = importlib.util.find_spec("timm")
    try:
        folder = Path(spec.origin if spec and spec.origin else "").parent / "data" / "_info"
        return (folder / file).read_text(encoding="utf-8")
    except OSError as error:
        raise WeightsError(
            f"the installed timm has no table {file} ({error}).", remedy="Install timm>=1.0.31."
        ) from error
