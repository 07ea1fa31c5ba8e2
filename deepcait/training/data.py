"""The data of a run: opened by its recipe, checked and split, and its order."""

from __future__ import annotations

from dataclasses import dataclass

from deepcait.data import Source, Subset, open_split
from deepcait.data.fix_list import leave_out
from deepcait.data.order import Order
from deepcait.data.plausible import doubts, lost_levels, require_classes
from deepcait.data.shrunk import shrunk
from deepcait.data.source import describe, require_labels, with_options
from deepcait.data.spec import holds_out
from deepcait.data.split import limited
from deepcait.errors import ConfigError
from deepcait.training.recipe import Recipe


@dataclass(frozen=True)
class TrainingData:
    """What a run reads.

    train, validation: labelled images; their classes are the same. Without validation, the latter is empty.
    messages: what was opened and what was left out, a line each.
    doubts: what makes it doubtful that the data is what was meant, a line each.
    """

    train: Source
    validation: Source
    messages: tuple[str, ...]
    doubts: tuple[str, ...]


def open_training_data(recipe: Recipe) -> TrainingData:
    """Open the images to train on and to validate on; validation maps classes by name.

    Raises:
        DataError, ConfigError: no data, no classes, a class in validation that training lacks, or an image
            without a label.
    """
    if not recipe.data.source:
        raise ConfigError("--data: expected a DATA, got none.", remedy="Give --data, for example a folder.")
    messages = []
    train, validation = open_parts(recipe)
    if recipe.data.exclude:
        before = len(train), len(validation)
        train, validation = (leave_out(source, recipe.data.exclude) for source in (train, validation))
        left_out = f"{before[0] - len(train):,} training and {before[1] - len(validation):,} validation images"
        messages.append(f"left out by {recipe.data.exclude}: {left_out}")
    for source in (train, validation):
        with_options(source, recipe.data.image_options())
        require_labels(source)  # now, not after hours
    require_classes(recipe.data.source, train)
    reasons = [*map(str, doubts(recipe.data.source, train)), *lost_levels(train)]
    train = shrunk(train, recipe.data.shrink_px, recipe.data.cache)
    messages.append(f"data: {describe(train)}; validation: {_describe_validation(recipe, validation)}")
    for what, limit in (("training", recipe.data.limit), ("validation", recipe.data.val_limit)):
        if limit:
            messages.append(f"only {limit:,} {what} images of them, drawn class by class")
    limits = recipe.data.limit, recipe.data.val_limit
    return TrainingData(limited(train, limits[0]), limited(validation, limits[1]), tuple(messages), tuple(reasons))


def open_parts(recipe: Recipe) -> tuple[Source, Source]:
    """Return the images to train on and to validate on; the latter are none where nothing validates."""
    data = recipe.data
    how: dict = {"validate_on": data.validate_on, "fraction": data.val_fraction, "seed": recipe.seed}
    how["columns"] = data.columns()
    train = open_split(data.source, "train", labels=data.labels, **how)
    if data.validate_on == "none":
        return train, Subset(train, [], split="none")
    # Classes are fixed now: what is an integer is the name that it was in training, never an index.
    labels = "names" if data.labels == "auto" else data.labels
    return train, open_split(data.source, "val", classes=train.classes, labels=labels, **how)


def _describe_validation(recipe: Recipe, validation: Source) -> str:
    if recipe.data.validate_on == "none":
        return "none, the last epoch is the model"
    if holds_out(recipe.data.source, recipe.data.validate_on, recipe.data.columns()):
        return f"{len(validation):,} images held out of train"
    return describe(validation)


def build_order(recipe: Recipe, samples: Source) -> Order:
    """Return the order of the training data that a recipe fixes."""
    return Order(
        num_samples=len(samples),
        global_batch_size=recipe.global_batch_size,
        replicas=recipe.replicas,
        repeats=recipe.augment.repeats,
        seed=recipe.seed,
        class_labels=tuple(require_labels(samples)) if recipe.data.balanced else None,
    )
