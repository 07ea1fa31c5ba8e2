"""Evaluation on a torch Dataset of images, or on a DataLoader, whose batches the model takes as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from deepcait.data.own import WithClasses, dataset_classes
from deepcait.data.source import Source
from deepcait.errors import ConfigError, DataError
from deepcait.evaluation.classes import class_names, map_classes, pretrained_cfg
from deepcait.evaluation.counts import Counts, score
from deepcait.evaluation.masks import build_mask
from deepcait.evaluation.measure import compute_logits, is_shared
from deepcait.evaluation.records import Collected, Records, join, record
from deepcait.model.mode import evaluation_mode
from deepcait.parts import Part, part_of

_BATCH = "(images, labels): float images (B, C, H, W) as the model takes them, and class indices (B,)"


@dataclass
class Batches:
    """A DataLoader to evaluate on.

    Args:
        loader: yields (images_BCHW, labels_B).
        classes: the model's class names, or None.
        class_mask: as given to `evaluate`.
        device: of the model.
        lowest, highest: of the pixels, known afterwards.
    """

    loader: DataLoader
    classes: list[str] | None
    class_mask: str | Sequence[str | int] | None
    device: torch.device
    lowest: float = float("inf")
    highest: float = float("-inf")


def as_data(data: Any, classes: Sequence[str] | None) -> Any:
    """Return a dataset, or datasets by split, as the part that it is for `open_for`; a DATA or source as it is.

    Args:
        data: what `evaluate` was given.
        classes: the model's class names, which the labels of a dataset without `classes` are indices of.

    Raises:
        ConfigError: an iterable dataset.
    """
    if isinstance(data, IterableDataset):
        raise ConfigError(
            "data: expected a dataset with __len__ and __getitem__, got an iterable one.",
            remedy="Wrap it: evaluate(model, torch.utils.data.DataLoader(dataset, batch_size=32)).",
        )
    if isinstance(data, str | Source) or hasattr(data, "__fspath__"):
        return data
    if isinstance(data, Mapping):
        return part_of({split: _with_classes(one, classes) for split, one in data.items()})
    return data if isinstance(data, Part) else part_of(_with_classes(data, classes), factory=True)


def measure_batches(
    model: nn.Module, how: Batches, progress: Callable[[int, int], None] | None = None
) -> tuple[Counts, Records, list[str]]:
    """Return counts and records of a model over the batches of a DataLoader, and what looks wrong.

    Raises:
        ConfigError: several processes, a class mask "data", or a wrong number of class names.
        DataError: a batch is something else, has a label that the model does not have, or there is none.
    """
    if is_shared():
        raise ConfigError(
            "data: a DataLoader can't be shared between processes, since each process has its own.",
            remedy="Give the Dataset; every process then evaluates a part of it.",
        )
    if isinstance(how.class_mask, str):
        raise ConfigError(
            "class_mask: expected names or indices for a DataLoader, whose labels are not known before, got "
            f"{how.class_mask!r}.",
            remedy="Give the names, or the Dataset instead of its DataLoader.",
        )
    counts, done = Counts(), 0
    labelled = _Labels(how)
    total = len(how.loader.dataset) if isinstance(how.loader.dataset, Sized) else 0
    rows = Collected(total)
    with evaluation_mode(model):
        for batch in how.loader:
            images_BCHW, labels_B = _pair(batch)
            how.lowest = min(how.lowest, float(images_BCHW.min()))
            how.highest = max(how.highest, float(images_BCHW.max()))
            logits_BK = compute_logits(model, images_BCHW.to(how.device, torch.float32, non_blocking=True))
            labels_B1, mask_K = labelled(labels_B, logits_BK.shape[1])
            if mask_K is not None:
                logits_BK = logits_BK.masked_fill(~mask_K.to(logits_BK.device), -torch.inf)
            scores = score(logits_BK, labels_B1)
            counts.add(*scores)
            positions_B = torch.arange(done, done + len(labels_B))
            num_possible = logits_BK.shape[1] if mask_K is None else int(mask_K.sum())
            rows.add(record(positions_B, logits_BK, labels_B1, scores, num_possible))
            done += len(labels_B)
            if progress is not None:
                progress(done, max(done, total))
    parts = rows.parts()
    if not parts:
        counts.metrics()  # raises: there is no image
    names = [f"{index:08d}" for index in range(done)]
    left_out = [f"the DataLoader yielded {done:,} of the {total:,} images of its dataset."] if done < total else []
    return counts, join(parts, names, labelled.classes), left_out


def looks_raw(model: nn.Module, how: Batches) -> str | None:
    """Warn if the batches of a DataLoader look as if they had not been normalised as the model declares."""
    mean = pretrained_cfg(model).get("mean")
    if not mean or max(mean) <= 0 or how.lowest < 0:
        return None
    return (
        f"the batches have values from {how.lowest:.3g} to {how.highest:.3g}, none below 0: they were probably not "
        f"normalised with the model's mean {' '.join(f'{value:g}' for value in mean)}. A Dataset of images gets the "
        "model's preprocessing; a DataLoader's batches go to the model as they are."
    )


class _Labels:
    """Labels of batches as indices of the model, and the classes that may be predicted."""

    def __init__(self, how: Batches) -> None:
        self.class_mask = how.class_mask
        self.own = dataset_classes(how.loader.dataset)
        self.classes = how.classes
        self.index_of: dict[int, int] = {}

    def __call__(self, labels_B: Tensor, num_classes: int) -> tuple[Tensor, Tensor | None]:
        """Return the labels (B, 1) and the mask (K); raises as `measure_batches`."""
        if self.own:
            # All of them: which a batch has must not decide what the model's classes are.
            self.classes = class_names(_Used(self.own, range(len(self.own))), self.classes, num_classes)
        own = self.own or self.classes or [str(index) for index in range(num_classes)]
        used = set(labels_B.tolist())
        outside = [label for label in used if not 0 <= label < len(own)]
        if outside:
            raise DataError(
                f"labels: expected 0 to {len(own) - 1}, indices of the classes, got {outside[0]}.",
                remedy="Labels count from 0. Give the DataLoader of data with the model's classes.",
            )
        if not used <= self.index_of.keys():
            mapping = map_classes(_Used(own, sorted(used)), self.classes, num_classes)
            self.index_of |= {label: mapping[label] for label in used}
        labels_B1 = torch.tensor([[self.index_of[label]] for label in labels_B.tolist()])
        mask_K = build_mask(self.class_mask, labels_B1[:, 0].unique().tolist(), self.classes, num_classes)
        return labels_B1, mask_K


@dataclass(frozen=True)
class _Used:
    """Classes and the labels in use, without images."""

    classes: list[str]
    labels: Sequence[int]


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    """The images and labels of a batch."""
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        got = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__
        raise DataError(f"DataLoader: expected batches {_BATCH}, got {got}.", remedy="Give it a collate_fn.")
    images, labels = (part if isinstance(part, list | tuple) else torch.as_tensor(part) for part in batch)
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor) or not _fit(images, labels):
        got = " and ".join(_described(part) for part in (images, labels))
        raise DataError(f"DataLoader: expected batches {_BATCH}, got {got}.", remedy="Give it a collate_fn.")
    if not images.is_floating_point():
        raise DataError(
            f"DataLoader: expected float images as the model takes them, got {_described(images)}.",
            remedy="Give the Dataset instead, whose images get the model's preprocessing; or preprocess them in its "
            "transform: `Classifier.preprocessing` is one.",
        )
    return images, labels


def _fit(images: Tensor, labels: Tensor) -> bool:
    """Whether these are images (B, C, H, W) and integer labels (B,)."""
    return images.ndim == 4 and labels.shape == images.shape[:1] and not labels.is_floating_point()


def _described(part: Any) -> str:
    if isinstance(part, Tensor):
        return f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}"
    return type(part).__name__


def _with_classes(dataset: Any, classes: Sequence[str] | None) -> Any:
    """A dataset as it is if it has classes; otherwise its labels are indices of the model's."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__") or dataset_classes(dataset) is not None:
        return dataset
    return WithClasses(dataset, classes)
