"""Write a table of images with their splits or folds, which every command takes as DATA."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepcait.data.folder import FolderSource
from deepcait.data.holding import FOLD_COLUMN, Holding, column_values, open_parts
from deepcait.data.manifest import FileReader, load_csv
from deepcait.data.source import Source, innermost, require_labels
from deepcait.data.spec import list_splits, open_source, parse_spec
from deepcait.data.split import deal_folds
from deepcait.errors import ConfigError, DataError
from deepcait.runtime.files import require_file, write_bytes


def write_split(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    val: float = 0.0,
    test: float = 0.0,
    folds: int = 0,
    group: str = "",
    seed: int = 0,
) -> dict[str, Any]:
    """Write a .csv with the path, label and split of every image, and with folds the column `fold`.

    Classes are split in proportion. The same images are drawn as by `data.test_fraction`, `data.val_fraction` and the
    seed of a recipe. Splits that the data has are kept. Paths are relative to the table if the images are below its
    folder, which can then be moved with them; else absolute.

    Args:
        data: DATA whose images are files: class folders or a table.
        out: the .csv.
        val, test: fraction of the training images for each of these splits; 0 draws none. test is drawn first.
        folds: number of folds of the training images; 0 makes none.
        group: column of the data; images with the same value stay together. It is copied.
        seed: of val and of the folds; the test split does not depend on it.

    Returns:
        The number of images of each split, of each fold, and of classes.

    Raises:
        ConfigError: nothing to draw, or a split that the data has already.
        DataError: images without a class or inside an archive, a path or label that a table can't hold, or as
            `open_parts`.
    """
    place = Path(out)
    require_file(place, (".csv",), "--out")
    own = list_splits(data)
    _require_sound(data, place, own, val, test, folds)
    how = Holding(
        validate_on="auto" if val else "none", val_fraction=val, test_fraction=test, group_column=group, seed=seed
    )
    parts = open_parts(data, how)
    sides: dict[str, Source] = {"train": parts.train, "val": parts.val, "test": parts.test}
    for source in sides.values():
        require_labels(source)
    # Names as in training: an integer is never the index of another class.
    known = {"classes": parts.train.classes, "labels": "names"}
    sides |= {split: open_source(data, split, **known) for split in own if split != "train"}
    sides = {split: source for split, source in sides.items() if len(source)}
    for source in sides.values():
        _require_files(data, source)
    groups = {split: column_values(data, group, source) for split, source in sides.items()} if group else {}
    dealt = []
    if folds:
        train = sides["train"]
        dealt = deal_folds(train.names, train.labels, folds, seed=seed, groups=groups.get("train"))
    rows = _rows(place, sides, dealt, groups)
    header = ["path", "label", *["split"] * (len(sides) > 1), *[FOLD_COLUMN] * bool(folds), *[group] * bool(group)]
    _write(place, header, rows)
    facts: dict[str, Any] = {split: len(source) for split, source in sides.items()}
    facts |= {"folds": [dealt.count(fold) for fold in range(folds)], "classes": len(parts.train.classes)}
    return facts | ({"groups": len({value for own in groups.values() for value in own})} if group else {})


def _require_sound(
    data: str | os.PathLike[str], out: Path, own: Sequence[str], val: float, test: float, folds: int
) -> None:
    if not (val or test or folds):
        raise ConfigError("split: nothing to draw.", remedy="Give --val, --test or --folds, for example --test 0.2.")
    for option, fraction, split in (("--val", val, "val"), ("--test", test, "test")):
        if not 0 <= fraction < 1:
            raise ConfigError(f"{option}: expected a number in [0, 1), got {fraction:g}.", remedy="For example 0.2.")
        if fraction and split in own:
            raise ConfigError(
                f"{option}: {os.fspath(data)} has a split {split} already, which is kept.", remedy=f"Omit {option}."
            )
    if val + test >= 1:
        raise ConfigError("split: --val and --test leave no image to train on.", remedy="Give smaller fractions.")
    if folds and (val or "val" in own):
        raise ConfigError(
            "--folds: each fold validates once, so folds exclude a split val.",
            remedy="Omit --val, or split data without val.",
        )
    if folds < 0:
        raise ConfigError(f"--folds: expected 2 or more, got {folds}.", remedy="For example 5.")
    path = Path(os.path.expanduser(parse_spec(data)[1]))
    if path.exists() and out.exists() and out.samefile(path):
        raise ConfigError(f"--out: {out} is the data itself.", remedy="Give another file; the data is not changed.")


def _require_files(data: str | os.PathLike[str], source: Source) -> None:
    inner = innermost(source)
    if not isinstance(inner, FolderSource) and not isinstance(getattr(inner, "reader", None), FileReader):
        raise DataError(
            f"{os.fspath(data)}: the images are inside a {source.kind}, so a table can't list them by path.",
            remedy="Unpack it; or train with data.test_fraction, which holds out a part of any data.",
        )


def _rows(
    out: Path, sides: Mapping[str, Source], dealt: Sequence[int], groups: Mapping[str, Sequence[str]]
) -> list[list[str]]:
    base, rows = out.absolute().parent, []
    for split, source in sides.items():
        for index, label in enumerate(source.labels):
            image = Path(source.locate(index)).absolute()
            path = image.relative_to(base) if image.is_relative_to(base) else image
            row = [path.as_posix(), "" if label is None else source.classes[label]]
            row += [split] if len(sides) > 1 else []
            row += [str(dealt[index]) if split == "train" else ""] if dealt else []
            rows.append(row + ([groups[split][index]] if groups else []))
    return rows


def _write(out: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write the table if it reads back as it is."""
    held = io.StringIO()
    table = csv.writer(held, lineterminator="\n")
    table.writerow(header)
    table.writerows(rows)
    try:
        content = held.getvalue().encode()
    except UnicodeEncodeError as error:
        text = held.getvalue()[max(0, error.start - 40) : error.end]
        raise DataError(f"{ascii(text)}: this name is not UTF-8.", remedy="Rename the file or folder.") from error
    trial = out.with_name(f".{out.stem}.trial.csv")
    write_bytes(trial, content)
    try:
        read, reader = load_csv(str(trial))
    finally:
        trial.unlink()
    for row, cells in enumerate(rows):
        path, label = (out.parent / cells[0]).as_posix(), read.labels[row]
        if Path(reader.locate(row)).as_posix() != path or ("" if label is None else str(label)) != cells[1]:
            raise DataError(
                f"{cells[0]} (class {cells[1]!r}): a table can't hold this path or class name.",
                remedy="Rename it: no backslash, no space at its ends, no class called -1.",
            )
    write_bytes(out, content)
