"""What a model answered for each image: the table behind every metric that is more than a count."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deepcait.evaluation.counts import NO_CLASS

NUM_ANSWERS = 5


@dataclass(frozen=True)
class Records:
    """One row an image, N in all, in the order of the source; class indices are the model's.

    Args:
        positions_N: where the image stands in the source.
        labels_NL: its labels, any of which is right; -1 where it has fewer than L.
        ranks_N: how many classes come before the best of its labels; 0 is a right answer.
        losses_N: in nats, float64.
        answers_NT: the T = min(5, classes) most probable classes, the best first; of equal logits the lower index.
        probabilities_NT: theirs, float64; NaN where a logit is.
        num_classes: K.
        num_possible: how many of them the class mask lets through; K without a mask.
        names: of the images, as the source has them.
        classes: of the model, None where it has no names.
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
        """Whether the first answer is right."""
        return self.ranks_N < 1

    @property
    def first_N(self) -> Tensor:  # noqa: N802
        """The first answer."""
        return self.answers_NT[:, 0]

    @property
    def label_N(self) -> Tensor:  # noqa: N802
        """One label an image: the answered one where that is right, else the first of its labels."""
        return torch.where(self.correct_N, self.first_N, self.labels_NL[:, 0])

    def class_name(self, index: int) -> str:
        """The name of a class of the model; its index as text where the model has no names."""
        return self.classes[index] if self.classes is not None else str(index)

    def row_labels(self, row: int) -> list[int]:
        """The labels of an image."""
        return [label for label in self.labels_NL[row].tolist() if label != NO_CLASS]


def record(
    positions_B: Tensor, logits_BK: Tensor, labels_BL: Tensor, scores: tuple[Tensor, Tensor], num_possible: int
) -> Records:
    """Note a batch.

    Args:
        positions_B: of its images in the source.
        logits_BK: -inf at classes that the mask does not let through.
        labels_BL: filled with -1.
        scores: ranks and losses, as `score` returns them.
        num_possible: classes that the mask lets through.
    """
    logits_BK = logits_BK.detach().cpu().double()
    answers_BT = logits_BK.argsort(dim=1, descending=True, stable=True)[:, : min(NUM_ANSWERS, num_possible)]
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


def join(parts: Sequence[Records], names: Sequence[str], classes: Sequence[str] | None) -> Records:
    """Return all rows in the order of the source, whatever batch or process they come from.

    Args:
        parts: at least one, of the same model and mask.
        names: of all images of the source.
        classes: of the model, or None.
    """
    order_N = torch.cat([part.positions_N for part in parts]).argsort()
    columns = ("positions_N", "labels_NL", "ranks_N", "losses_N", "answers_NT", "probabilities_NT")
    joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts])[order_N] for name in columns}
    own_names = [names[position] for position in joined["positions_N"].tolist()]
    return dataclasses.replace(parts[0], **joined, names=own_names, classes=classes)
