"""Sides of a data set, its splits or folds, and groups of images that are on more than one of them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence

from deepcait.data.columns import USUAL, Columns
from deepcait.data.findings import Finding
from deepcait.data.holding import FOLD_COLUMN, column_values
from deepcait.data.source import Source
from deepcait.data.spec import column_names

# A column of one of these names is used for groups by default.
GROUP_COLUMNS = (
    *("group", "group_id", "patient", "patient_id", "subject", "subject_id", "case_id", "person", "person_id"),
    *("video", "video_id", "sequence_id", "scene_id", "session_id", "site_id", "individual_id"),
)


def fold_sides(
    spec: str | os.PathLike[str], sources: Mapping[str, Source], columns: Columns = USUAL
) -> dict[str, list[str]]:
    """Return for each split the side of its images: the split, or `fold 3` if the data has folds."""
    sides = {split: [split] * len(source) for split, source in sources.items()}
    if FOLD_COLUMN in column_names(spec, columns):
        for split, source in sources.items():
            folds = column_values(spec, FOLD_COLUMN, source, columns)
            sides[split] = [f"fold {fold}" if fold else split for fold in folds]
    return sides


def split_groups(
    spec: str | os.PathLike[str],
    sources: Mapping[str, Source],
    sides: Mapping[str, Sequence[str]],
    group: str,
    columns: Columns = USUAL,
) -> list[Finding]:
    """Return a finding for each group of images that is in two splits or folds.

    Raises:
        DataError: the data has no such column.
    """
    names = column_names(spec, columns)
    column = group or next((name for name in names if name.lower() in GROUP_COLUMNS), "")
    if not column:
        return []
    where: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for split, source in sources.items():
        for index, value in enumerate(column_values(spec, column, source, columns, may_lack=True)):
            if value:
                where[value][sides[split][index]].append(source.locate(index))
    return [
        Finding(
            "split_group",
            tuple(place for places in own.values() for place in places),
            f"{column} {value} is in {', '.join(own)}: an image of one can help to predict the other",
        )
        for value, own in where.items()
        if len(own) > 1
    ]
