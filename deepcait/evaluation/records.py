"""The predictions for each image, from which metrics are computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deepcait.evaluation.counts import NO_CLASS

NUM_ANSWERS = 5
_COLUMNS = ("positions_N", "labels_NL", "ranks_N", "losses_N", "answers_NT", "probabilities_NT")


@dataclass(frozen=True)
class Records:
    """One row per image, N in total, in the order of the source; class indices are the model's.

    Args:
        positions_N: position of the image in the source.
        labels_NL: its labels, any of which is correct; padded with -1.
        ranks_N: rank of the best of its labels, from 0; 0 is a correct prediction.
        losses_N: in nats, float64.
        answers_NT: the T = min(5, classes) most probable classes, the best first; of ties the lower index.
        probabilities_NT: their probabilities, float64; NaN if a logit is.
        num_classes: K.
        num_possible: number of classes that the class mask allows; K without a mask.
        names: of the images, as the source has them.
        classes: of the model, None if it has no names.
    """

    positions_N: Tensor
    labels_NL: Tensor
    ranks_N: Tensor
    losses_N: Tensor
    answers_NT: Tensor
    probabilities_NT: Tensor
    num_classes: int
    num_possible: int
    names: Sequence[str] = field(default=(), repr=False)
    classes: Sequence[str] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.positions_N)

    @property
    def correct_N(self) -> Tensor:  # noqa: N802 - the shape
        """Whether the prediction is correct."""
        return self.ranks_N < 1

    @property
    def first_N(self) -> Tensor:  # noqa: N802
        """The predicted class."""
        return self.answers_NT[:, 0]

    @property
    def label_N(self) -> Tensor:  # noqa: N802
        """One label per image: the predicted one if correct, else the first of its labels."""
        return torch.where(self.correct_N, self.first_N, self.labels_NL[:, 0])

    def class_name(self, index: int) -> str:
        """The name of a class of the model; its index as text if the model has no names."""
        return self.classes[index] if self.classes is not None else str(index)

    def row_labels(self, row: int) -> list[int]:
        """The labels of an image."""
        return [label for label in self.labels_NL[row].tolist() if label != NO_CLASS]


def record(
    positions_B: Tensor, logits_BK: Tensor, labels_BL: Tensor, scores: tuple[Tensor, Tensor], num_possible: int
) -> Records:
    """Return the records of a batch.

    Args:
        positions_B: of its images in the source.
        logits_BK: -inf for classes that the mask excludes.
        labels_BL: padded with -1.
        scores: ranks and losses, as returned by `score`.
        num_possible: number of classes that the mask allows.
    """
    logits_BK = logits_BK.detach().cpu().double()
    # A copy: a view would keep the order of all K classes of every image in memory.
    answers_BT = logits_BK.argsort(dim=1, descending=True, stable=True)[:, : min(NUM_ANSWERS, num_possible)].clone()
    return Records(
        positions_N=positions_B.cpu(),
        labels_NL=labels_BL.cpu(),
        ranks_N=scores[0],
        losses_N=scores[1],
        answers_NT=answers_BT,
        probabilities_NT=logits_BK.softmax(1).gather(1, answers_BT),
        num_classes=logits_BK.shape[1],
        num_possible=num_possible,
    )


class Collected:
    """The rows of all batches, in tensors that are as long as all of them from the start.

    A small tensor per batch would be placed into the memory that the logits of former batches left, so that the next
    logits need new memory: with 10,000 classes that is a gigabyte per 3,000 images.

    Args:
        num_images: how many rows are expected; more make the tensors longer.
    """

    def __init__(self, num_images: int) -> None:
        self._room = num_images
        self._num = 0
        self._all: Records | None = None

    def add(self, part: Records) -> None:
        """Copy the rows of a batch."""
        end = self._num + len(part)
        if self._all is None or end > self._room:
            self._room = max(self._room, end if self._all is None else 2 * end)
            self._all = self._longer(self._all or part)
        for name in _COLUMNS:
            getattr(self._all, name)[self._num : end] = getattr(part, name)
        self._num = end

    def parts(self) -> list[Records]:
        """Return the rows as one part; none without images."""
        return [] if self._all is None else [_with_columns(self._all, lambda column: column[: self._num].clone())]

    def _longer(self, like: Records) -> Records:
        def longer(column: Tensor) -> Tensor:
            made = column.new_empty(self._room, *column.shape[1:])
            made[: self._num] = column[: self._num]
            return made

        return _with_columns(like, longer)


def _with_columns(records: Records, change: Callable[[Tensor], Tensor]) -> Records:
    changed: dict[str, Any] = {name: change(getattr(records, name)) for name in _COLUMNS}
    return dataclasses.replace(records, **changed)


def join(parts: Sequence[Records], names: Sequence[str], classes: Sequence[str] | None) -> Records:
    """Return all rows in the order of the source, from all batches and processes.

    Args:
        parts: at least one, of the same model and mask.
        names: of all images of the source.
        classes: of the model, or None.
    """
    order_N = torch.cat([part.positions_N for part in parts]).argsort()
    joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts])[order_N] for name in _COLUMNS}
    own_names = [names[position] for position in joined["positions_N"].tolist()]
    return dataclasses.replace(parts[0], **joined, names=own_names, classes=classes)
