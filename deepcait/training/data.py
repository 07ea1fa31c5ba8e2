"""The data of a run: opened by its recipe, checked and split, and its order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepcait.data import Source, list_splits, open_parts
from deepcait.data.fix_list import leave_out, read_fix_list
from deepcait.data.holding import Parts
from deepcait.data.order import Order
from deepcait.data.plausible import doubts, lost_levels, require_classes
from deepcait.data.record import SPLIT_FILE, read_record
from deepcait.data.shrunk import shrunk
from deepcait.data.source import describe, require_labels, with_options
from deepcait.data.split import limited
from deepcait.errors import ConfigError
from deepcait.training.places import asking_for_places
from deepcait.training.recipe import Recipe


@dataclass(frozen=True)
class TrainingData:
    """What a run reads.

    train, validation, test: labelled images; their classes are the same. validation and test may be empty; the run
        never reads those of test.
    messages: what was opened and what was left out, a line each.
    doubts: what makes it doubtful that the data is what was meant, a line each.
    parts: all images of these parts, before some are left out.
    """

    train: Source
    validation: Source
    test: Source
    messages: tuple[str, ...]
    doubts: tuple[str, ...]
    parts: Parts


def open_training_data(recipe: Recipe, folder: Path | None = None) -> TrainingData:
    """Open the images to train on and to validate on; validation maps classes by name.

    Args:
        recipe: of the run.
        folder: of the run: the images that it held out at its beginning (`split.json`) are held out again.

    Raises:
        DataError, ConfigError: no data, no classes, a class in validation that training lacks, or an image
            without a label.
    """
    if not recipe.data.source:
        raise ConfigError("--data is missing.", remedy="Give --data, for example a folder.")
    messages = []
    how = recipe.data.holding(recipe.seed)
    known = folder is not None and (folder / SPLIT_FILE).is_file()
    record = read_record(folder / SPLIT_FILE) if folder is not None and known else None
    columns = recipe.data.columns()
    with asking_for_places(folder, recipe, "data"):
        left_out = read_fix_list(recipe.data.exclude) if recipe.data.exclude else ()  # folders in it are not classes
        parts = open_parts(
            recipe.data.source,
            how,
            labels=recipe.data.labels,
            columns=columns,
            record=record,
            left_out=frozenset(left_out),
        )
    train, validation, test = parts.train, parts.val, parts.test
    if recipe.data.exclude:
        before = len(train), len(validation), len(test)
        train, validation, test = (leave_out(source, recipe.data.exclude) for source in (train, validation, test))
        left_out = f"{before[0] - len(train):,} training and {before[1] - len(validation):,} validation images"
        left_out += f" and {before[2] - len(test):,} of the test part" if before[2] else ""
        messages.append(f"left out by {recipe.data.exclude}: {left_out}")
    for source in (train, validation, test):
        with_options(source, recipe.data.image_options())
        require_labels(source)  # now, not after hours
    require_classes(recipe.data.source, train)
    reasons = [*map(str, doubts(recipe.data.source, train)), *lost_levels(train)]
    train = shrunk(train, recipe.data.shrink_px, recipe.data.cache)
    messages.append(f"data: {describe(train)}; {_describe_others(recipe, validation, test)}")
    for what, limit in (("training", recipe.data.limit), ("validation", recipe.data.val_limit)):
        if limit:
            messages.append(f"only {limit:,} {what} images of them, drawn class by class")
    train, validation = limited(train, recipe.data.limit), limited(validation, recipe.data.val_limit)
    return TrainingData(train, validation, test, tuple(messages), tuple(reasons), parts)


def _describe_others(recipe: Recipe, validation: Source, test: Source) -> str:
    how = recipe.data.holding(recipe.seed)
    fold = f"fold {how.fold}" if how.fold is not None else ""
    if how.validate_on == "none":
        text = "validation: none, the last epoch is the model"
    elif fold:
        text = f"validation: {fold}, {len(validation):,} images"
    elif how.draws_val(list_splits(recipe.data.source, recipe.data.columns())):
        text = f"validation: {len(validation):,} images held out of train"
    else:
        text = f"validation: {describe(validation)}"
    if how.group_column and not fold:
        text += f", by {how.group_column}"
    return text + (f"; test: {fold + ', ' if fold else ''}{len(test):,} images held out of both" if len(test) else "")


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
