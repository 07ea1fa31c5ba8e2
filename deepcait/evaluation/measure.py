"""The evaluation loop: each image once, for any batch size and number of processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
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
from deepcait.evaluation.records import Collected, Records, join, record
from deepcait.model.mode import evaluation_mode


@dataclass(frozen=True)
class Wanted:
    """What counts as a correct prediction.

    Args:
        task: images and labels of the protocol.
        classes: the model's class names, or None.
        class_mask: as given to `evaluate`.
    """

    task: Task
    classes: list[str] | None
    class_mask: str | Sequence[str | int] | None = None


@dataclass(frozen=True)
class Loading:
    """How images are loaded; does not change the result."""

    batch_size: int
    num_workers: int
    device: torch.device


@dataclass(frozen=True)
class _Answers:
    """The labels and mask for a model with K classes.

    Args:
        labels_NL: of every image of the task, as indices of the model; padded with -1.
        mask_K: classes that may be predicted; None for all.
        num_possible: the number of these classes.
    """

    labels_NL: Tensor
    mask_K: Tensor | None
    num_possible: int


def measure(
    models: Sequence[nn.Module],
    wanted: Wanted,
    positions: Sequence[int],
    preprocessing: Preprocessing,
    how: Loading,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[Counts, Records]]:
    """Return counts and records of each model over some images of the task, equal in every process.

    Each image is read once for all models.

    Args:
        models: each returns logits (B, K) for images (B, C, H, W).
        positions: of the images in the task's source.
        progress: called after each step with this process's images done and in total.

    Raises:
        DataError, ConfigError, ShapeError: as `evaluate`; an error of one process is raised by all.
    """
    own = _share(positions)
    tallies = [_Tally(model, wanted, len(own)) for model in models]
    error = None
    try:
        _count(tallies, wanted, own, preprocessing, how, progress)
    except DeepcaitError as caught:
        error = caught
    everyone = _gather_or_raise(error, [tally.rows.parts() for tally in tallies])
    device = how.device if is_shared() and dist.get_backend() == "nccl" else "cpu"
    measured = []
    for number, tally in enumerate(tallies):
        counts = tally.counts.merge(device)
        parts = [part for own in everyone for part in own[number]]
        if not parts:
            counts.metrics()  # raises if there is no image
        classes = _class_names(wanted, parts[0].num_classes)
        measured.append((counts, join(parts, wanted.task.source.names, classes)))
    return measured


def is_shared() -> bool:
    """Whether several processes evaluate together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _Tally:
    """Counts and records of one model over this process's images."""

    def __init__(self, model: nn.Module, wanted: Wanted, num_images: int) -> None:
        self.model = model
        self.wanted = wanted
        self.counts = Counts()
        self.rows = Collected(num_images)
        self.answers: _Answers | None = None

    def add(self, images_BCHW: Tensor, positions_B: Tensor) -> None:
        """Run the model on a batch and add the counts."""
        logits_BK = compute_logits(self.model, images_BCHW)
        self.answers = self.answers or _answers(self.wanted, logits_BK.shape[1])
        if self.answers.mask_K is not None:
            logits_BK = logits_BK.masked_fill(~self.answers.mask_K.to(logits_BK.device), -torch.inf)
        labels_BL = self.answers.labels_NL[positions_B]
        scores = score(logits_BK, labels_BL)
        self.counts.add(*scores)
        self.rows.add(record(positions_B, logits_BK, labels_BL, scores, self.answers.num_possible))


def _count(
    tallies: Sequence[_Tally],
    wanted: Wanted,
    own: Sequence[int],
    preprocessing: Preprocessing,
    how: Loading,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Evaluate this process's images."""
    own_N, done = torch.tensor(own), 0
    with ExitStack() as modes:
        for tally in tallies:
            modes.enter_context(evaluation_mode(tally.model))
        for images_BCHW, labels_B, indices_B in _loader(wanted.task.source, own, preprocessing, how):
            images_BCHW = images_BCHW.to(how.device, non_blocking=True)
            positions_B = own_N[indices_B]
            _require_labels(labels_B, positions_B, wanted.task)
            for tally in tallies:
                tally.add(images_BCHW, positions_B)
            done += len(indices_B)
            if progress is not None:
                progress(done, len(own))


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
    """Map the labels of the whole task to the model's classes."""
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


def _gather_or_raise(error: DeepcaitError | None, own: list[list[Records]]) -> list[list[list[Records]]]:
    """Gather a value from all processes, or raise the first error in all of them, so that none waits."""
    everyone: list[Any] = [(error, own)]
    if is_shared():
        everyone = [None] * dist.get_world_size()
        gather: Any = dist.all_gather_object  # its annotation is narrower than what it accepts
        gather(everyone, (error, own))
    for raised, _ in everyone:
        if raised is not None:
            raise raised
    return [theirs for _, theirs in everyone]


def _share(positions: Sequence[int]) -> Sequence[int]:
    """This process's images: every world-size-th from its rank, without duplicates."""
    return positions[dist.get_rank() :: dist.get_world_size()] if is_shared() else positions


def compute_logits(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    """Return the logits (B, K), in halves of the batch if a GPU's memory is too small for all.

    Raises:
        ShapeError: the model returns something else.
    """
    try:
        logits_BK = model(images_BCHW)
    except torch.OutOfMemoryError:
        if len(images_BCHW) == 1:
            raise
        logits_BK = None  # outside of the handler, whose traceback holds the activations
    if logits_BK is None:
        return torch.cat([compute_logits(model, half) for half in images_BCHW.chunk(2)])
    if not isinstance(logits_BK, Tensor) or logits_BK.ndim != 2 or logits_BK.shape[0] != images_BCHW.shape[0]:
        got = tuple(logits_BK.shape) if isinstance(logits_BK, Tensor) else type(logits_BK).__name__
        raise ShapeError(
            f"model: expected logits (B={images_BCHW.shape[0]}, K), got {got}.",
            remedy="Use a module that returns one row of logits per image.",
        )
    return logits_BK


def _require_labels(labels_B: Tensor, positions_B: Tensor, task: Task) -> None:
    """Raise unless every image of the batch has a label in the protocol."""
    missing_B = labels_B == NO_LABEL
    if task.labels is None and missing_B.any():
        where = task.source.locate(int(positions_B[missing_B][0]))
        raise DataError(
            f"{where}: this image has no label.",
            remedy="Evaluate labelled data; `deepcait predict` takes images without labels.",
        )
