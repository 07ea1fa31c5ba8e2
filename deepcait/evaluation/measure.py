"""Measure a model on the images of a task: each image once, whatever batch or process it falls to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deepcait.data import NO_LABEL, Preprocessing, RaisingLoader, Source, Subset, evaluation_loader
from deepcait.errors import DataError, DeepcaitError, ShapeError
from deepcait.evaluation.classes import class_names, map_classes
from deepcait.evaluation.counts import NO_CLASS, Counts, score
from deepcait.evaluation.masks import build_mask
from deepcait.evaluation.protocols import Task
from deepcait.evaluation.records import Records, join, record
from deepcait.model.mode import evaluation_mode


@dataclass(frozen=True)
class Wanted:
    """What counts as a right answer.

    Args:
        task: images and labels of the protocol.
        classes: names of the model's classes, or None.
        class_mask: as given to `evaluate`.
    """

    task: Task
    classes: list[str] | None
    class_mask: str | Sequence[str | int] | None = None


@dataclass(frozen=True)
class Loading:
    """How images come to the model; changes nothing measured."""

    batch_size: int
    num_workers: int
    device: torch.device


@dataclass(frozen=True)
class _Answers:
    """What is known once the number of the model's classes is: K.

    Args:
        labels_NL: of every image of the task, as indices of the model; -1 fills.
        mask_K: classes that may be answered; None for all.
        num_possible: how many these are.
    """

    labels_NL: Tensor
    mask_K: Tensor | None
    num_possible: int


def measure(
    model: nn.Module,
    wanted: Wanted,
    positions: Sequence[int],
    preprocessing: Preprocessing,
    how: Loading,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Counts, Records]:
    """Return counts and records over some images of the task, over all processes, the same in each of them.

    Args:
        positions: of the images in the task's source.
        progress: called after each step with the images done and to do, of this process.

    Raises:
        DataError, ConfigError, ShapeError: as `evaluate`; what one process raises, all of them raise.
    """
    own = _share(positions)
    error, counts, parts = None, Counts(), []
    try:
        counts, parts = _count(model, wanted, own, preprocessing, how, progress)
    except DeepcaitError as caught:
        error = caught
    parts = _gather_or_raise(error, parts)
    counts = counts.merge(how.device if is_shared() and dist.get_backend() == "nccl" else "cpu")
    if not parts:
        counts.metrics()  # raises: no image
    classes = _class_names(wanted, parts[0].num_classes)
    return counts, join(parts, wanted.task.source.names, classes)


def is_shared() -> bool:
    """Whether several processes measure together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _count(
    model: nn.Module,
    wanted: Wanted,
    own: Sequence[int],
    preprocessing: Preprocessing,
    how: Loading,
    progress: Callable[[int, int], None] | None,
) -> tuple[Counts, list[Records]]:
    """Count over the images of this process."""
    counts, answers, parts = Counts(), None, []
    own_N = torch.tensor(own)
    with evaluation_mode(model):
        for images_BCHW, labels_B, indices_B in _loader(wanted.task.source, own, preprocessing, how):
            logits_BK = _logits(model, images_BCHW.to(how.device, non_blocking=True))
            positions_B = own_N[indices_B]
            _require_labels(labels_B, positions_B, wanted.task)
            answers = answers or _answers(wanted, logits_BK.shape[1])
            if answers.mask_K is not None:
                logits_BK = logits_BK.masked_fill(~answers.mask_K.to(logits_BK.device), -torch.inf)
            labels_BL = answers.labels_NL[positions_B]
            scores = score(logits_BK, labels_BL)
            counts.add(*scores)
            parts.append(record(positions_B, logits_BK, labels_BL, scores, answers.num_possible))
            if progress is not None:
                progress(counts.num_images, len(own))
    return counts, parts


def _loader(source: Source, own: Sequence[int], preprocessing: Preprocessing, how: Loading) -> RaisingLoader:
    return evaluation_loader(
        Subset(source, own, split=source.split),
        preprocessing,
        batch_size=how.batch_size,
        num_workers=how.num_workers,
        pin_memory=how.device.type == "cuda",
        device=how.device,
    )


def _answers(wanted: Wanted, num_classes: int) -> _Answers:
    """Translate the labels of the whole task into the model's classes."""
    task, classes = wanted.task, _class_names(wanted, num_classes)
    if task.labels is None:
        mapping = map_classes(task.source, classes, num_classes)
        labels = [[NO_CLASS if label is None else mapping[label]] for label in task.source.labels]
    else:
        labels = [list(own) for own in task.labels]
    width = max(map(len, labels), default=1)
    labels_NL = torch.tensor([own + [NO_CLASS] * (width - len(own)) for own in labels]).reshape(-1, width)
    used = sorted(set(labels_NL.flatten().tolist()) - {NO_CLASS})
    mask_K = build_mask(wanted.class_mask, used, classes, num_classes)
    return _Answers(labels_NL, mask_K, num_classes if mask_K is None else int(mask_K.sum()))


def _class_names(wanted: Wanted, num_classes: int) -> list[str] | None:
    return class_names(wanted.task.source, wanted.classes, num_classes)


def _gather_or_raise(error: DeepcaitError | None, parts: list[Records]) -> list[Records]:
    """Return the parts of all processes, or raise the first error of any in all of them: none waits for another."""
    told: list[Any] = [(error, parts)]
    if is_shared():
        told = [None] * dist.get_world_size()
        gather: Any = dist.all_gather_object  # its annotation is narrower than what it takes
        gather(told, (error, parts))
    for raised, _ in told:
        if raised is not None:
            raise raised
    return [part for _, own in told for part in own]


def _share(positions: Sequence[int]) -> Sequence[int]:
    """The images of this process: every world-size-th, from its rank on; no image twice."""
    return positions[dist.get_rank() :: dist.get_world_size()] if is_shared() else positions


def _logits(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    logits_BK = model(images_BCHW)
    if not isinstance(logits_BK, Tensor) or logits_BK.ndim != 2 or logits_BK.shape[0] != images_BCHW.shape[0]:
        got = tuple(logits_BK.shape) if isinstance(logits_BK, Tensor) else type(logits_BK).__name__
        raise ShapeError(
            f"model: expected logits (B={images_BCHW.shape[0]}, K), got {got}.",
            remedy="Give a module that returns one row of logits an image.",
        )
    return logits_BK


def _require_labels(labels_B: Tensor, positions_B: Tensor, task: Task) -> None:
    """Pass where the protocol has a label for every image of the batch."""
    missing_B = labels_B == NO_LABEL
    if task.labels is None and missing_B.any():
        where = task.source.locate(int(positions_B[missing_B][0]))
        raise DataError(
            f"{where}: expected an image with a label, got one without.",
            remedy="Evaluate labelled data; `deepcait predict` takes images without labels.",
        )
