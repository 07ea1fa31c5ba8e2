"""Which class of the data is which class of the model: by name, or by index."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from deepcait.data import Preprocessing, Source
from deepcait.errors import ConfigError, DataError, some
from deepcait.weights.imagenet import NUM_CLASSES, wnids


def pretrained_cfg(model: Any) -> dict:
    """Return the model's own description in timm's words; empty where it has none.

    Read from `pretrained_cfg` (older timm: `default_cfg`), or from a `Preprocessing` in an attribute `preprocessing`.
    """
    # DistributedDataParallel keeps the model in `module`.
    inner = getattr(model, "module", model)
    own = getattr(inner, "preprocessing", None)
    cfg = getattr(inner, "pretrained_cfg", None) or getattr(inner, "default_cfg", None) or {}
    cfg = dict(cfg) if isinstance(cfg, Mapping) else vars(cfg)
    return own.to_pretrained_cfg() | cfg if isinstance(own, Preprocessing) else cfg


def model_classes(model: nn.Module) -> list[str] | None:
    """Return index -> class name as the model's `pretrained_cfg` has it, or None."""
    names = pretrained_cfg(model).get("label_names")
    return list(names) if names else None


def class_names(source: Source, classes: Sequence[str] | None, num_classes: int) -> list[str] | None:
    """Return index -> class name of the model, also where it has none, or only integers, and they can be known.

    They can where it has 1,000 classes and the data has wnids: every published ImageNet model has its classes in the
    order of the sorted wnids, and so have the integers of ImageNet as shards.

    Args:
        source: the data.
        classes: the names that the model has, or None.
        num_classes: K, the width of the model's logits.
    """
    nameless = classes is None or list(classes) == [str(index) for index in range(NUM_CLASSES)]
    used = {source.classes[label] for label in source.labels if label is not None}
    if nameless and num_classes == NUM_CLASSES and used and used <= set(wnids()):
        return wnids()
    return None if classes is None else list(classes)


def map_classes(source: Source, classes: Sequence[str] | None, num_classes: int) -> list[int]:
    """Return, for each class of the source, its index in the model; -1 where no image needs it.

    By name where the model's classes have names. Bare integers are the model's indices. Where the model has no
    names, the data's order counts, and there must be as many classes.

    Args:
        source: its classes, and the labels in use.
        classes: names of the model's classes, or None.
        num_classes: K, the width of the model's logits.

    Raises:
        ConfigError: more names, or fewer, than logits.
        DataError: a class that the model does not have, or has twice, or another number of classes.
    """
    if classes is not None and len(classes) != num_classes:
        raise ConfigError(
            f"classes: expected {num_classes} names, one a logit, got {len(classes)}.",
            remedy="Give the names of all classes of the model, in its order.",
        )
    used = {label for label in source.labels if label is not None}
    if classes is None and not _all_integers(source.classes):
        if len(source.classes) != num_classes:
            raise _other_number(source, num_classes)
        return list(range(num_classes))
    index_of = {name: index for index, name in enumerate(classes or ())}
    if _all_integers(source.classes) and not any(name in index_of for name in source.classes):
        index_of = {name: int(name) for name in source.classes if int(name) < num_classes}
    unknown = [source.classes[label] for label in sorted(used) if source.classes[label] not in index_of]
    if unknown:
        names = list(classes) if classes is not None else [f"0 to {num_classes - 1}"]
        raise DataError(
            f"classes: expected those of the model ({some(names)}), got {some(unknown)}, which it does not have.",
            remedy="Rename those folders to classes of the model, remove them, or use a model trained on this data. "
            "More: `deepcait help different-classes`.",
        )
    _require_one_of_each([source.classes[label] for label in sorted(used)], classes or ())
    return [index_of.get(name, -1) for name in source.classes]


def _require_one_of_each(names: Sequence[str], classes: Sequence[str]) -> None:
    known = Counter(classes)
    twice = [name for name in names if known[name] > 1]
    if twice:
        raise DataError(
            f"classes: expected the model to have one of each name, got two or more of {some(twice)}.",
            remedy="Name the data's classes by index, or give the model's classes names of their own.",
        )


def describe_mapping(source: Source, classes: Sequence[str] | None) -> str:
    """Return one sentence for the user: how the data's classes find the model's."""
    num_used = len({label for label in source.labels if label is not None})
    if _all_integers(source.classes) and not set(source.classes) & set(classes or ()):
        return f"{num_used:,} of the model's classes, the bare integers of the data are class indices"
    if classes is None:
        return f"{num_used:,} classes, in the order of the data (the model has no names)"
    return f"{num_used:,} of the model's {len(classes):,} classes, by name"


def _all_integers(names: Sequence[str]) -> bool:
    return bool(names) and all(name.isascii() and name.isdecimal() for name in names)


def _other_number(source: Source, num_classes: int) -> DataError:
    return DataError(
        f"classes: expected {num_classes} in the data, as many as the model has, got {len(source.classes)} "
        f"({some(source.classes)}).",
        remedy="Use a model trained on this data, or pass the names of the model's classes.",
    )
