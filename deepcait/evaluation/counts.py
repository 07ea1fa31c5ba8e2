"""Integer sums over images, divided once: exact for any batch size, order and number of processes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from deepcait import display
from deepcait.data.roles import Roles
from deepcait.errors import DataError, ShapeError

# A loss is counted in ticks of 2^-32 nat: integers, whose sum does not depend on the order.
_TICKS_PER_NAT = 2**32
_LOW_BITS = 31
# No classifier's loss is larger; larger or non-finite losses make the mean undefined.
_MAX_LOSS = 2.0**30
# Padding for images with fewer labels than others.
NO_CLASS = -1


@dataclass(frozen=True)
class Metrics:
    """The result of an evaluation; accuracies are fractions in [0, 1].

    Args:
        num_images: number of evaluated images.
        correct1: number of images whose label has the highest logit.
        correct5: number of images whose label is in the top 5 (all images with five classes or fewer).
        loss: mean cross-entropy in nats; NaN if the loss of an image is not finite.
        num_skipped: number of images that the protocol leaves out (`real`: those without labels).
        records: the predictions for each image, see `Records`; None if not requested.
        warnings: signs of a wrong evaluation, one or two sentences each; usually empty.
        proposed_order: model class -> the class that its predictions correspond to, if the class order seems wrong.
        roles: what the images were to the run that the model is from; None for other models.
    """

    num_images: int
    correct1: int
    correct5: int
    loss: float
    num_skipped: int = 0
    records: Any = field(default=None, compare=False, repr=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)
    proposed_order: dict[int, int] | None = field(default=None, compare=False, repr=False)
    roles: Roles | None = field(default=None, compare=False)

    @property
    def top1(self) -> float:
        """Top-1 accuracy."""
        return self.correct1 / self.num_images

    @property
    def top5(self) -> float:
        """Top-5 accuracy (top-K with fewer than five classes)."""
        return self.correct5 / self.num_images

    def _repr_html_(self) -> str:
        """Shown in a notebook."""
        rows: list[tuple[str, object]] = [("images", f"{self.num_images:,}")]
        for name, correct in (("top-1", self.correct1), ("top-5", self.correct5)):
            rows.append((name, f"{100 * correct / self.num_images:.2f} % ({correct:,} correct)"))
        rows.append(("loss", f"{self.loss:.4f}" if math.isfinite(self.loss) else "not finite"))
        rows += [("left out", f"{self.num_skipped:,}")] if self.num_skipped else []
        return display.block(
            "Metrics", display.facts(rows), *(display.text(f"Warning: {one}") for one in self.warnings)
        )

    def to_dict(self) -> dict[str, int | float | None]:
        """Return the metrics for JSON; a loss that is not finite is None."""
        return {
            "num_images": self.num_images,
            "correct1": self.correct1,
            "correct5": self.correct5,
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss if math.isfinite(self.loss) else None,
        }


@dataclass
class Counts:
    """Counters to which batches are added, and which are summed over processes.

    Ties: of equal logits the lower class index comes first (as in torch.argmax; torch.topk does not specify an order).
    A row with NaN is never correct.

    Args:
        num_images, correct1, correct5: as in `Metrics`.
        loss_ticks: sum of the losses, each rounded to a multiple of 2^-32 nat.
        num_unbounded: number of images whose loss is not finite; they are not in `loss_ticks`.
    """

    num_images: int = 0
    correct1: int = 0
    correct5: int = 0
    loss_ticks: int = 0
    num_unbounded: int = 0

    def update(self, logits_BK: Tensor, labels: Tensor) -> None:
        """Add a batch; see `score` for the arguments and errors."""
        self.add(*score(logits_BK, labels))

    def add(self, ranks_B: Tensor, losses_B: Tensor) -> None:
        """Add the result of `score` for a batch."""
        self.num_images += len(ranks_B)
        self.correct1 += int((ranks_B < 1).sum())
        self.correct5 += int((ranks_B < 5).sum())
        bounded_B = losses_B.isfinite() & (losses_B < _MAX_LOSS)
        self.num_unbounded += int((~bounded_B).sum())
        self.loss_ticks += sum((losses_B[bounded_B] * _TICKS_PER_NAT).round().long().tolist())

    def merge(self, device: torch.device | str = "cpu") -> Counts:
        """Return the sum over all processes; with one process, a copy.

        Args:
            device: of tensors in collectives (cuda for nccl).
        """
        high, low = divmod(self.loss_ticks, 2**_LOW_BITS)
        counters = torch.tensor(
            [self.num_images, self.correct1, self.correct5, high, low, self.num_unbounded], device=device
        )
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counters)
        num_images, correct1, correct5, high, low, num_unbounded = counters.tolist()
        return Counts(num_images, correct1, correct5, high * 2**_LOW_BITS + low, num_unbounded)

    def metrics(self) -> Metrics:
        """Divide, once.

        Raises:
            DataError: no image was evaluated.
        """
        if not self.num_images:
            raise DataError("evaluation: the data has no images.", remedy="Give data with labelled images.")
        mean = self.loss_ticks / (_TICKS_PER_NAT * self.num_images)
        loss = math.nan if self.num_unbounded else mean
        return Metrics(self.num_images, self.correct1, self.correct5, loss)


def score(logits_BK: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rank of each image's label from 0, (B,), and its loss in nats, (B,) float64.

    An image may have several labels, any of which is correct: its rank is that of the best of them, its loss -log of
    the sum of their probabilities.

    Args:
        logits_BK: of the batch.
        labels: class indices (B,), or (B, L) with -1 where an image has fewer than L.

    Raises:
        ShapeError: the logits are not (B, K) for B labels.
        DataError: a label is outside 0..K-1, or an image has no label.
    """
    logits_BK, labels = logits_BK.detach().cpu().double(), labels.detach().cpu().long()
    labels_BL = labels[:, None] if labels.ndim == 1 else labels
    if logits_BK.ndim != 2 or labels_BL.shape[:1] != logits_BK.shape[:1] or logits_BK.shape[1] < 1:
        raise ShapeError(
            f"logits: expected (B, K) and B labels, got {tuple(logits_BK.shape)} and {tuple(labels.shape)}.",
            remedy="Evaluate a classifier that returns one row of logits per image.",
        )
    num_classes = logits_BK.shape[1]
    outside_BL = (labels_BL < 0) | (labels_BL >= num_classes)
    outside_BL[:, 1:] &= labels_BL[:, 1:] != NO_CLASS
    if outside_BL.any():
        raise DataError(
            f"labels: expected 0 to {num_classes - 1}, got {int(labels_BL[outside_BL][0])}.",
            remedy="Use a model with as many classes as the data, or map the labels to its classes.",
        )
    if labels_BL.shape[1] == 1:
        losses_B = torch.nn.functional.cross_entropy(logits_BK, labels_BL[:, 0], reduction="none")
        return label_ranks(logits_BK, labels_BL[:, 0]), losses_B
    present_BL, known_BL = labels_BL != NO_CLASS, labels_BL.clamp(min=0)
    ranks_BL = torch.stack([label_ranks(logits_BK, labels_B) for labels_B in known_BL.unbind(1)], dim=1)
    log_probabilities_BL = logits_BK.log_softmax(1).gather(1, known_BL).masked_fill(~present_BL, -math.inf)
    ranks_B = ranks_BL.masked_fill(~present_BL, max(num_classes, 5)).amin(1)
    return ranks_B, -log_probabilities_BL.logsumexp(1)


def label_ranks(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Return the number of classes ranked before the label, (B,); K for a row with NaN.

    A class comes before when its logit is higher, or equal with a lower index.
    """
    K = logits_BK.shape[1]
    label_logits_B1 = logits_BK.gather(1, labels_B[:, None])
    lower_index_BK = torch.arange(K, device=logits_BK.device) < labels_B[:, None]
    before_BK = (logits_BK > label_logits_B1) | ((logits_BK == label_logits_B1) & lower_index_BK)
    # At least 5, so that with fewer than five classes a row with NaN is not correct.
    return before_BK.sum(1).masked_fill(logits_BK.isnan().any(1), max(K, 5))
