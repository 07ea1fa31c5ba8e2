"""The images to train, validate and test on: splits of the data, or parts of train that are held out."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from deepcait.data.columns import USUAL, Columns
from deepcait.data.labels import RULES
from deepcait.data.record import PARTS, SplitRecord
from deepcait.data.source import Source, Subset
from deepcait.data.spec import SPLITS, list_splits, open_source, read_column, require_one_of
from deepcait.data.split import TEST_SEED, stratified_split
from deepcait.errors import ConfigError, DataError, some

ROLES = ("train", "val", "eval")
VALIDATE_ON = ("auto", "val", "none", "test", "0.1")
FOLD_COLUMN = "fold"


@dataclass(frozen=True, kw_only=True)
class Holding:
    """How images are held out from training, if the data has no such split.

    Args:
        validate_on: auto: val, else a part of train; val or test: that split, which must exist; none: no images; 0.1:
            as in version 0.1, val, else test, else a part of train.
        val_fraction, seed: of the validation part, see `stratified_split`.
        test_fraction: of the test part, which is drawn first and does not depend on the seed; 0 draws none.
        fold: number of the fold to validate on; with validate_on none it is the test part. None: no folds.
        group_column: column of the data; images with the same value in it stay together.
    """

    validate_on: str = "auto"
    val_fraction: float = 0.1
    test_fraction: float = 0.0
    fold: int | None = None
    group_column: str = ""
    seed: int = 0

    def draws_val(self, own: Sequence[str]) -> bool:
        """Return whether the validation images are drawn from train, for data with these splits."""
        if self.fold is not None:
            return self.validate_on != "none"
        return "val" not in own and (self.validate_on == "auto" or (self.validate_on == "0.1" and "test" not in own))

    def val_split(self, own: Sequence[str]) -> str:
        """Return the split of the data to validate on, if none is drawn."""
        falls_back = self.validate_on == "0.1" and "test" in own and "val" not in own
        return "test" if self.validate_on == "test" or falls_back else "val"


@dataclass(frozen=True)
class Parts:
    """The training, validation and test images of a run, which never reads those of test.

    val and test may be empty.
    """

    train: Source
    val: Source
    test: Source


def open_parts(
    spec: str | os.PathLike[str],
    how: Holding,
    *,
    classes: Sequence[str] | None = None,
    labels: str = "auto",
    columns: Columns = USUAL,
    record: SplitRecord | None = None,
    left_out: Collection[str] = (),
) -> Parts:
    """Open the parts of a training; the parts that are drawn follow from names and `how` alone.

    Args:
        spec: a DATA.
        how: how images are held out.
        classes, labels, columns: as in `open_source`; the classes are those of the training images.
        record: of the run to resume; the same images are held out again.
        left_out: absolute paths of class folders that are not read.

    Raises:
        ConfigError: settings that contradict each other or the data.
        DataError: as `open_source`, no such column, or too few images to hold out any.
    """
    require_one_of(how.validate_on, VALIDATE_ON, "validate_on")
    require_one_of(labels, RULES, "labels")
    own = list_splits(spec, columns)
    _require_possible(spec, own, how)
    same = {"columns": columns, "left_out": left_out}
    whole = open_source(spec, "train" if own else None, classes=classes, labels=labels, **same)
    if how.draws_val(own) or how.test_fraction or how.fold is not None:
        keys = [part for part in PARTS if part != "val" or how.draws_val(own)]
        drawn = record.indices(whole.names, keys) if record else _draw(spec, own, how, whole, columns)
        train, val, test = (Subset(whole, drawn.get(part, []), split=part) for part in PARTS)
    else:
        train, val, test = whole, Subset(whole, [], split="none"), Subset(whole, [], split="test")
    if how.validate_on != "none" and not how.draws_val(own):
        # Classes are fixed now: what is an integer is the name that it was in training, never an index.
        rule = "names" if labels == "auto" else labels
        val = open_source(spec, how.val_split(own), classes=train.classes, labels=rule, **same)
    parts = Parts(train, val, test)
    if how.group_column:
        _require_whole_groups(spec, how.group_column, parts, columns)
    return parts


def open_split(
    spec: str | os.PathLike[str],
    role: str,
    *,
    split: str | None = None,
    validate_on: str = "auto",
    classes: Sequence[str] | None = None,
    labels: str = "auto",
    columns: Columns = USUAL,
    fraction: float = 0.1,
    seed: int = 0,
) -> Source:
    """Open the images for a role: to train on, to validate on during training, or to evaluate on.

        train   the split train
        val     the split val, else a stratified part of train, which `train` then leaves out
        eval    test, else val, else all

    Args:
        role: train, val or eval.
        split: train, val, test or all, instead of the default of the role.
        validate_on, fraction, seed: as in `Holding`.
        classes, labels, columns: as in `open_source`.

    Raises:
        ConfigError: unknown role, split, kind or validate_on.
        DataError: as `open_source`, or too few images to hold out any.
    """
    require_one_of(role, ROLES, "role")
    require_one_of(split, (*SPLITS, None), "split")
    require_one_of(validate_on, VALIDATE_ON, "validate_on")
    how = Holding(validate_on=validate_on, val_fraction=fraction, seed=seed)
    own = list_splits(spec, columns)
    if role == "eval":
        wanted = split or next((name for name in ("test", "val") if name in own), "all")
    else:
        wanted = split or ("train" if role == "train" else "val" if how.draws_val(own) else how.val_split(own))
    # Splits of the data are evaluated completely.
    whole = role == "eval" and "test" in own
    if wanted not in ("train", "val") or whole or not how.draws_val(own):
        return open_source(spec, wanted, classes=classes, labels=labels, columns=columns)
    parts = open_parts(spec, how, classes=classes, labels=labels, columns=columns)
    return parts.train if wanted == "train" else parts.val


def _require_possible(spec: str | os.PathLike[str], own: Sequence[str], how: Holding) -> None:
    if not 0 <= how.test_fraction < 1:
        raise ConfigError(
            f"data.test_fraction: expected a number in [0, 1), got {how.test_fraction}.", remedy="0 is off; e.g. 0.2."
        )
    if how.test_fraction and "test" in own:
        raise ConfigError(
            f"data.test_fraction: {os.fspath(spec)} has a split test already.", remedy="Leave data.test_fraction out."
        )
    if how.fold is None:
        return
    if how.test_fraction or how.validate_on not in ("auto", "none"):
        other = "data.test_fraction" if how.test_fraction else f"data.validate_on={how.validate_on}"
        raise ConfigError(
            f"data.fold: the fold is what validates, so {other} can't be set too.",
            remedy="Leave one of them out; `deepcait split --test F --folds K` writes a split test and folds.",
        )


def _draw(
    spec: str | os.PathLike[str], own: Sequence[str], how: Holding, whole: Source, columns: Columns
) -> dict[str, list[int]]:
    """Return the positions in the training images of each part that is drawn."""
    groups = None
    if how.group_column:
        groups = column_values(spec, how.group_column, whole, columns)
    if how.fold is not None:
        return _fold_of(spec, how, whole, columns)
    drawn: dict[str, list[int]] = {"train": list(range(len(whole))), "val": [], "test": []}
    draws = [("test", how.test_fraction, TEST_SEED)] if how.test_fraction else []
    draws += [("val", how.val_fraction, how.seed)] if how.draws_val(own) else []
    for part, fraction, seed in draws:
        left = drawn["train"]
        names, labels = [whole.names[index] for index in left], [whole.labels[index] for index in left]
        own_groups = None if groups is None else [groups[index] for index in left]
        kept, held = stratified_split(names, labels, fraction=fraction, seed=seed, groups=own_groups)
        if not held:
            what = f"groups in {how.group_column}" if groups is not None else "images"
            raise DataError(
                f"{os.fspath(spec)}: no class has 2 or more {what}, so none can be held out.",
                remedy="Add images, or a folder val/ of class folders, or train with data.validate_on=none.",
            )
        drawn["train"], drawn[part] = [left[index] for index in kept], [left[index] for index in held]
    return drawn


def _require_whole_groups(spec: str | os.PathLike[str], column: str, parts: Parts, columns: Columns) -> None:
    """Raise if splits or folds of the data separate images of one group; parts that are drawn never do."""
    side_of: dict[str, str] = {}
    for side, source in (("train", parts.train), ("val", parts.val), ("test", parts.test)):
        for value in column_values(spec, column, source, columns) if len(source) else ():
            if side_of.setdefault(value, side) != side:
                raise DataError(
                    f"{os.fspath(spec)}: data.group_column={column}: {value!r} is in {side_of[value]} and in {side}.",
                    remedy=f"`deepcait split --group {column}` writes splits or folds that keep groups together; or "
                    "omit data.group_column.",
                )


def _fold_of(spec: str | os.PathLike[str], how: Holding, whole: Source, columns: Columns) -> dict[str, list[int]]:
    folds = column_values(spec, FOLD_COLUMN, whole, columns)
    held = [index for index, fold in enumerate(folds) if fold == str(how.fold)]
    others = [index for index, fold in enumerate(folds) if fold not in (str(how.fold), "")]
    without = len(folds) - len(held) - len(others)
    if not held or not others or without:
        found = sorted(set(folds) - {""}, key=lambda fold: (len(fold), fold))
        got = f"{without:,} training images without a fold" if without else f"the folds {some(found) or '(none)'}"
        raise DataError(
            f"{os.fspath(spec)}: data.fold={how.fold} needs images in that fold and in others; the data has {got}.",
            remedy="Choose one of the folds; `deepcait split --folds K` writes them from 0 to K - 1.",
        )
    part = "test" if how.validate_on == "none" else "val"
    return {"train": others, "val": [], "test": []} | {part: held}


def column_values(
    spec: str | os.PathLike[str],
    column: str,
    source: Source,
    columns: Columns = USUAL,
    *,
    may_lack: bool = False,
) -> list[str]:
    """Return the value of a column of the data for each image of a source opened from it, as text.

    Raises:
        DataError: the data has no such column, or an image has no value in it (a fold may be missing).
    """
    values = read_column(spec, column, source, columns)
    if column != FOLD_COLUMN and not may_lack and "" in values:
        raise DataError(
            f"{source.locate(values.index(''))}: the column {column} is empty in this row.",
            remedy="Fill in the column in every row; give an image without a group its own value.",
        )
    return values
