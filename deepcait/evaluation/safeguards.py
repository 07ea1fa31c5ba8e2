"""Warnings about evaluations that may be wrong: chance level, wrong class order, wrong preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepcait.data import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from deepcait.data.roles import TRAINED_ON, Roles
from deepcait.errors import some
from deepcait.evaluation.classes import pretrained_cfg
from deepcait.evaluation.compare import count_pairs
from deepcait.evaluation.counts import Metrics
from deepcait.evaluation.intervals import wilson
from deepcait.evaluation.metrics import count_cells
from deepcait.evaluation.records import Records

# With fewer images, nothing can be concluded.
_FEWEST_IMAGES = 30
_NEAR_CHANCE = 0.02
_SURE = 0.999
_MIN_P_VALUE = 0.001
_NUM_PROBED = 256
_NUM_SHOWN = 4
# ImageNet's; that of Inception, Lite and most vision transformers; none.
_NORMALISATIONS = (
    (IMAGENET_MEAN, IMAGENET_STD),
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
)


def no_numbers(records: Records) -> str | None:
    """Warn if logits are NaN or infinite."""
    num = int(records.probabilities_NT.isnan().any(1).sum())
    if not num:
        return None
    return (
        f"the model returned NaN or infinite logits for {num:,} of {len(records):,} images: its weights are damaged, "
        "or training diverged."
    )


def seen_in_training(roles: Roles | None) -> list[str]:
    """Warn if the run trained on images that are evaluated, or if some of its part are gone."""
    if roles is None:
        return []
    total, trained = sum(roles.counts.values()), roles.counts.get(TRAINED_ON, 0)
    warnings = []
    if trained:
        warnings.append(
            f"data: the run trained on {trained:,} of these {total:,} images: the accuracy is not that on new images."
        )
    if roles.missing:
        warnings.append(
            f"data: {roles.missing:,} of the {roles.missing + total:,} images of the run's {roles.part} part are not "
            "in the data any more."
        )
    return warnings


def near_chance(metrics: Metrics, num_possible: int) -> str | None:
    """Warn if the accuracy is not significantly above chance."""
    chance = 1 / num_possible
    low, high = wilson(metrics.correct1, metrics.num_images)
    if metrics.num_images < _FEWEST_IMAGES or num_possible < 2 or low > chance + _NEAR_CHANCE * (1 - chance):
        return None
    said = "below" if high < chance else "about" if low <= chance else "only slightly above"
    return (
        f"top-1 {100 * metrics.top1:.2f} % is {said} chance ({100 * chance:.2f} %): the class order of data and model "
        "may differ, the weights may be random, or the preprocessing may be wrong."
    )


def near_constant(metrics: Metrics, records: Records) -> str | None:
    """Warn if the accuracy is not significantly above always predicting the largest class.

    Not for data with only a part of the model's classes.
    """
    numbers = records.label_N.unique(return_counts=True)[1].tolist()
    if metrics.num_images < _FEWEST_IMAGES or not 1 < len(numbers) == records.num_possible:
        return None
    low, high = wilson(metrics.correct1, metrics.num_images)
    share = max(numbers) / metrics.num_images
    if low > share:
        return None
    said = "below" if high < share else "not significantly above"
    return (
        f"top-1 {100 * metrics.top1:.2f} % is {said} always predicting the largest class ({100 * share:.2f} %, "
        f"{max(numbers):,} of {metrics.num_images:,} images): see the balanced accuracy."
    )


def wrong_order(records: Records) -> tuple[str, dict[int, int]] | None:
    """Warn if the predictions are correct except for a permutation of the classes, and propose it.

    A permutation is estimated from the confusion matrix of every second image and tested on the others, so that it
    can't
    be found in noise: over the classes that it moves, it must be correct significantly more than twice as often.

    Returns:
        The warning, and for each class of the data that has images the class that its predictions mean; None if the
        order is right, or nothing can be concluded.
    """
    labels_N, answers_N = records.label_N, records.first_N
    half_N = _every_second_of_its_class(labels_N)
    order = _match(labels_N[half_N], answers_N[half_N])
    moved = {label: answer for label, answer in order.items() if label != answer}
    others = zip(labels_N[~half_N].tolist(), answers_N[~half_N].tolist(), strict=True)
    tested = [(label, answer) for label, answer in others if label in moved]
    num, num_within = len(tested), len(set(moved.values()) & set(order))
    # Predictions of classes that the data does not have are not a permutation.
    if num < _FEWEST_IMAGES or len(moved) < 2 or 2 * num_within < len(moved):
        return None
    low, _ = wilson(sum(moved[label] == answer for label, answer in tested), num, _SURE)
    _, high = wilson(sum(label == answer for label, answer in tested), num, _SURE)
    if low <= 2 * high:
        return None
    # There is one: the proposal may use all images.
    order = _match(labels_N, answers_N)
    moved = {label: answer for label, answer in order.items() if label != answer}
    return _describe_order(records, moved, low), order


def other_preprocessing(model: nn.Module, used: Preprocessing) -> str | None:
    """Warn if the preprocessing differs from the model's `pretrained_cfg`."""
    cfg = pretrained_cfg(model)
    facts: list[tuple[str, Any, Any]] = []
    for key, name, got in (
        ("mean", "mean", used.mean),
        ("std", "std", used.std),
        ("interpolation", "interpolation", used.interpolation),
        ("crop_pct", "crop ratio", used.crop_ratio),
        ("input_size", "image size", (used.channels, *used.img_size)),
    ):
        declared = cfg.get(key)
        declared = tuple(declared) if isinstance(declared, list | tuple) else declared
        if declared is not None and not _equal(declared, got):
            facts.append((name, declared, got))
    if not facts:
        return None
    differences = "; ".join(f"{name} {_text(got)} instead of {_text(declared)}" for name, declared, got in facts)
    return (
        f"preprocessing: {differences}, as the model declares. The accuracy is not that of the model as it was trained."
    )


def declares_normalisation(model: nn.Module) -> bool:
    """Whether the model declares its mean and std."""
    return pretrained_cfg(model).get("mean") is not None


def better_normalisation(
    records: Records, used: Preprocessing, measure: Callable[[Preprocessing, Sequence[int]], Records]
) -> str | None:
    """Warn if a model that declares no mean and std is significantly better with another common one.

    The model is evaluated again on at most 256 of the images with each of the common normalisations; McNemar's test on
    these images must be significant.

    Args:
        records: of all images, under `used`.
        measure: (preprocessing, rows of the records) -> records of these images.
    """
    if len(records) < _FEWEST_IMAGES or used.channels != len(IMAGENET_MEAN):
        return None
    rows = torch.linspace(0, len(records) - 1, min(len(records), _NUM_PROBED), dtype=torch.float32).long()
    own_N = records.correct_N[rows]
    better: list[tuple[int, Preprocessing]] = []
    for mean, std in _NORMALISATIONS:
        if _equal(mean, used.mean) and _equal(std, used.std):
            continue
        other = Preprocessing(used.img_size, mean, std, used.interpolation, used.crop_ratio)
        correct_N = measure(other, rows.tolist()).correct_N
        paired = count_pairs(correct_N, own_N)
        if paired.only_first > paired.only_second and paired.p_value < _MIN_P_VALUE:
            better.append((int(correct_N.sum()), other))
    if not better:
        return None
    num_correct, other = max(better, key=lambda one: one[0])
    return (
        f"preprocessing: with mean {_text(other.mean)} and std {_text(other.std)} the model predicts {num_correct:,} "
        f"of {len(rows):,} images correctly; with mean {_text(used.mean)} and std {_text(used.std)} as used "
        f"{int(own_N.sum()):,}: it was probably trained with the former."
    )


def _every_second_of_its_class(labels_N: Tensor) -> Tensor:
    """Which images are the first, third, ... of their class."""
    order_N = labels_N.argsort(stable=True)
    _, numbers_C = labels_N.unique(return_counts=True)
    starts_C = numbers_C.cumsum(0) - numbers_C
    place_N = torch.arange(len(labels_N)) - starts_C.repeat_interleave(numbers_C)
    half_N = torch.zeros(len(labels_N), dtype=torch.bool)
    half_N[order_N] = place_N % 2 == 0
    return half_N


def _match(labels_N: Tensor, answers_N: Tensor) -> dict[int, int]:
    """Assign each label a different prediction, by the largest fraction of its images; ties are unchanged."""
    num_of = dict(zip(*(column.tolist() for column in labels_N.unique(return_counts=True)), strict=True))
    cells_C2, numbers_C = count_cells(labels_N, answers_N)
    cells = [
        (-number / num_of[label], label != answer, label, answer)
        for (label, answer), number in zip(cells_C2.tolist(), numbers_C.tolist(), strict=True)
    ]
    order: dict[int, int] = {}
    taken: set[int] = set()
    for _, _, label, answer in sorted(cells):
        if label not in order and answer not in taken:
            order[label] = answer
            taken.add(answer)
    return order


def _describe_order(records: Records, moved: dict[int, int], share: float) -> str:
    pairs = [f"{records.class_name(label)} -> {records.class_name(answer)}" for label, answer in moved.items()]
    shown = some(pairs, _NUM_SHOWN)
    shifts = {(answer - label) for label, answer in moved.items()}
    cause = ""
    if len(shifts) == 1:
        (shift,) = shifts
        cause = (
            f" Every prediction is the label {'+' if shift > 0 else '-'} {abs(shift)}: labels are off by {abs(shift)}."
        )
    elif is_text_order(moved):
        cause = " The order is that of numbers sorted as text (0, 1, 10, 100, ...)."
    return (
        f"class order: for {len(moved):,} classes, more than {100 * share:.0f} % of the images are predicted as one "
        f"other class ({shown}).{cause} The classes of the data and of the model are probably in different orders; "
        "pass the model's with classes=, or name the data's folders like the model's classes."
    )


def is_text_order(moved: dict[int, int]) -> bool:
    """Whether the permutation is that of numbers sorted as text."""
    for num_classes in {max(*moved, *moved.values()) + 1, 10, 100, 1000}:
        as_text = sorted(range(num_classes), key=str)
        inverse = {number: place for place, number in enumerate(as_text)}
        for order in (dict(enumerate(as_text)), inverse):
            if all(order.get(label) == answer for label, answer in moved.items()):
                return True
    return False


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) < 1e-6
    return one == other


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(f"{part:g}" for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
