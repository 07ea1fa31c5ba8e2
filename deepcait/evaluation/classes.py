"""Map the classes of the data to those of the model, by name or by index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import nn

from deepcait.data import Preprocessing
from deepcait.data.labels import is_integer, map_labels
from deepcait.data.plausible import folder_meant
from deepcait.errors import ConfigError, DataError, some
from deepcait.weights.imagenet import NUM_CLASSES, wnids


class Labelled(Protocol):
    """Images of which only the classes are used, such as a `Source`."""

    @property
    def classes(self) -> list[str]:
        """Index -> class name."""
        ...

    @property
    def labels(self) -> Sequence[int | None]:
        """The class index of every image."""
        ...


def pretrained_cfg(model: Any) -> dict:
    """Return the model's own description with timm's keys; empty if it has none.

    Read from `pretrained_cfg` (older timm: `default_cfg`), or from a `Preprocessing` in an attribute `preprocessing`.
    """
    # DistributedDataParallel keeps the model in `module`.
    inner = getattr(model, "module", model)
    own = getattr(inner, "preprocessing", None)
    cfg = getattr(inner, "pretrained_cfg", None) or getattr(inner, "default_cfg", None) or {}
    cfg = dict(cfg) if isinstance(cfg, Mapping) else vars(cfg)
    return own.to_pretrained_cfg() | cfg if isinstance(own, Preprocessing) else cfg


def model_classes(model: nn.Module) -> list[str] | None:
    """Return index -> class name from the model's `pretrained_cfg`, or None."""
    names = pretrained_cfg(model).get("label_names")
    return list(names) if names else None


def class_names(source: Labelled, classes: Sequence[str] | None, num_classes: int) -> list[str] | None:
    """Return index -> class name of the model, inferred for ImageNet models without names.

    They are inferred if the model has 1,000 classes and the data has wnids: published ImageNet models have their
    classes in the order of the sorted wnids, and so do the integers of ImageNet in shards.

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


def map_classes(source: Labelled, classes: Sequence[str] | None, num_classes: int) -> list[int]:
    """Return the model's index of each class of the source; -1 for classes without images.

    Matched by name if the model has class names, else as `map_labels` reads integers. If the model has no names,
    integers in range are indices; otherwise the order of the data is used, and the numbers of classes must be equal.

    Args:
        source: its classes and labels.
        classes: names of the model's classes, or None.
        num_classes: K, the width of the model's logits.

    Raises:
        ConfigError: the number of names is not the number of logits.
        DataError: the model does not have a class, or has it twice, or the numbers of classes differ.
    """
    if classes is not None and len(classes) != num_classes:
        raise ConfigError(
            f"classes: expected {num_classes} names, one per logit, got {len(classes)}.",
            remedy="Give the names of all classes of the model, in its order.",
        )
    used = [source.classes[label] for label in sorted({label for label in source.labels if label is not None})]
    if classes is None and not all(is_integer(name) and int(name) < num_classes for name in source.classes):
        if len(source.classes) == num_classes:
            return list(range(num_classes))
        if not all(map(is_integer, used)):
            raise _other_number(source, num_classes)
    try:
        index_of = map_labels("classes", used, classes or [str(index) for index in range(num_classes)])
    except DataError as error:
        raise DataError(error.problem, remedy=folder_meant(source, classes or ()) or error.remedy) from error
    return [index_of.get(name, -1) for name in source.classes]


def describe_mapping(source: Labelled, classes: Sequence[str] | None) -> str:
    """Return one sentence about how the data's classes were mapped to the model's."""
    used = {source.classes[label] for label in source.labels if label is not None}
    if not used <= set(classes or ()) and all(map(is_integer, used)):
        return f"{len(used):,} of the model's classes, the integers of the data are class indices"
    if classes is None:
        return f"{len(used):,} classes, in the order of the data (the model has no names)"
    return f"{len(used):,} of the model's {len(classes):,} classes, by name"


def _other_number(source: Labelled, num_classes: int) -> DataError:
    return DataError(
        f"classes: the model has {num_classes} classes, the data {len(source.classes)} ({some(source.classes)}).",
        remedy="Use a model trained on this data, or pass the model's class names with classes=.",
    )
