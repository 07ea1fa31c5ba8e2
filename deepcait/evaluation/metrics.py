"""Metrics per class, balanced accuracy and calibration, from the records of the images, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepcait.evaluation.counts import Metrics
from deepcait.evaluation.intervals import bootstrap_mean, wilson
from deepcait.evaluation.records import Records

NUM_BINS = 15


@dataclass(frozen=True)
class PerClass:
    """One value per class of the model, K in all; 0 if a denominator is 0.

    Args:
        support_K: images with this label. answered_K: images with this prediction. hits_K: both.
    """

    support_K: Tensor
    answered_K: Tensor
    hits_K: Tensor

    @property
    def recall_K(self) -> Tensor:  # noqa: N802 - the shape
        """Accuracy on the images of the class."""
        return _divide(self.hits_K, self.support_K)

    @property
    def precision_K(self) -> Tensor:  # noqa: N802
        """Fraction of predictions of this class that are correct."""
        return _divide(self.hits_K, self.answered_K)

    @property
    def f1_K(self) -> Tensor:  # noqa: N802
        """Harmonic mean of the two."""
        return _divide(2 * self.hits_K, self.support_K + self.answered_K)

    def macro(self, values_K: Tensor) -> float:
        """Mean over the classes that occur, as label or prediction."""
        return values_K[(self.support_K + self.answered_K) > 0].mean().item()

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that have images."""
        return self.recall_K[self.support_K > 0].mean().item()

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the classes that occur, as label or prediction."""
        return self.macro(self.f1_K)


def count_cells(labels_N: Tensor, answers_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cells of the confusion matrix that are not 0, sorted, and their numbers of images.

    Memory grows with the pairs that occur, not with K x K.

    Returns:
        (C, 2) labels and predictions, and (C,) images.
    """
    cells_C2, numbers_C = torch.stack([labels_N, answers_N], dim=1).unique(dim=0, return_counts=True)
    return cells_C2, numbers_C


def confusion(records: Records, classes: Sequence[int]) -> Tensor:
    """Return the confusion matrix among U classes, (U labels, U predictions), integers.

    An image with several labels counts for the predicted one if it is among them, else for its first.

    Args:
        records: of the images.
        classes: indices, without duplicates; the matrix has U x U cells.
    """
    U = len(classes)
    place_K = torch.full((records.num_classes,), -1)
    place_K[list(classes)] = torch.arange(U)
    rows_N, columns_N = place_K[records.label_N], place_K[records.first_N]
    among_N = (rows_N >= 0) & (columns_N >= 0)
    return torch.bincount((rows_N * U + columns_N)[among_N], minlength=U * U).reshape(U, U)


def per_class(records: Records) -> PerClass:
    """Count labels, predictions and correct predictions of each class."""
    K = records.num_classes
    return PerClass(
        support_K=torch.bincount(records.label_N, minlength=K),
        answered_K=torch.bincount(records.first_N, minlength=K),
        hits_K=torch.bincount(records.label_N[records.correct_N], minlength=K),
    )


def most_errors(classes: PerClass, most: int) -> list[int]:
    """Return the classes whose images are misclassified most often, at most `most`, the worst first."""
    errors_K = classes.support_K - classes.hits_K
    order_K = errors_K.argsort(descending=True, stable=True)[:most]
    return order_K[errors_K[order_K] > 0].tolist()


@dataclass(frozen=True)
class Calibration:
    """Reliability diagram in M bins of equal width: [0, 1/M), ..., [(M-1)/M, 1].

    Args:
        num_M: images whose highest probability is in the bin.
        confidence_M, accuracy_M: their means; 0 in an empty bin.
    """

    num_M: Tensor
    confidence_M: Tensor
    accuracy_M: Tensor

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean distance of the two, weighted by images; NaN without images."""
        gaps_M = (self.confidence_M - self.accuracy_M).abs()
        return ((gaps_M * self.num_M).sum() / self.num_M.sum()).item()


def calibration(records: Records, num_bins: int = NUM_BINS) -> Calibration:
    """Sort the images into bins by their highest probability; an image with NaN is left out."""
    confidences_N = records.probabilities_NT[:, 0]
    finite_N = confidences_N.isfinite()
    confidences_N, correct_N = confidences_N[finite_N], records.correct_N[finite_N].double()
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)
    bins_N = (torch.bucketize(confidences_N, edges, right=True) - 1).clamp(max=num_bins - 1)
    num_M = torch.bincount(bins_N, minlength=num_bins)
    sums = [torch.bincount(bins_N, weights=values, minlength=num_bins) for values in (confidences_N, correct_N)]
    return Calibration(num_M, *(_divide(values_M, num_M) for values_M in sums))


def summarise(metrics: Metrics) -> dict[str, Any]:
    """Return further metrics for JSON: balanced, macro, calibration, and 95 % intervals."""
    records: Records = metrics.records
    classes = per_class(records)
    finite = bool(records.losses_N.isfinite().all())
    intervals: dict[str, Any] = {
        "top1": list(wilson(metrics.correct1, metrics.num_images)),
        "top5": list(wilson(metrics.correct5, metrics.num_images)),
        "loss": list(bootstrap_mean(records.losses_N)) if finite else None,
    }
    ece = calibration(records).ece
    return {
        "balanced_accuracy": classes.balanced_accuracy,
        "macro_precision": classes.macro(classes.precision_K),
        "macro_recall": classes.macro(classes.recall_K),
        "macro_f1": classes.macro_f1,
        "ece": None if math.isnan(ece) else ece,
        "intervals": intervals,
    }


def list_classes(records: Records) -> list[dict[str, Any]]:
    """Return one object per class that occurs, for JSON and CSV; `accuracy` is its recall."""
    classes = per_class(records)
    columns = (classes.support_K, classes.answered_K, classes.hits_K)
    rates = (classes.recall_K, classes.precision_K, classes.f1_K)
    return [
        {
            "index": index,
            "class": records.class_name(index),
            **dict(zip(("num_images", "num_answers", "num_correct"), (int(c[index]) for c in columns), strict=True)),
            **dict(zip(("accuracy", "precision", "f1"), (float(r[index]) for r in rates), strict=True)),
        }
        for index in (classes.support_K + classes.answered_K).nonzero().flatten().tolist()
    ]


def list_confusion(records: Records) -> list[dict[str, int]]:
    """Return the cells of the confusion matrix that are not 0: {label, answer (the prediction), num_images}."""
    cells_C2, numbers_C = count_cells(records.label_N, records.first_N)
    return [
        {"label": label, "answer": answer, "num_images": number}
        for (label, answer), number in zip(cells_C2.tolist(), numbers_C.tolist(), strict=True)
    ]


def list_reliability(records: Records) -> list[dict[str, float | int]]:
    """Return the bins of the reliability curve."""
    curve = calibration(records)
    return [
        {"from": i / NUM_BINS, "to": (i + 1) / NUM_BINS, "num_images": int(number), "confidence": c, "accuracy": a}
        for i, (number, c, a) in enumerate(
            zip(curve.num_M, curve.confidence_M.tolist(), curve.accuracy_M.tolist(), strict=True)
        )
    ]


def _divide(numerators: Tensor, denominators: Tensor) -> Tensor:
    """The quotients in float64; 0 if a denominator is 0."""
    return numerators.double() / denominators.clamp(min=1).double()
