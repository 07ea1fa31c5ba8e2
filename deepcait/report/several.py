"""Several runs in one table: the numbers of each, mean and standard deviation, and what differs between them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcait.data.record import SPLIT_FILE, SplitRecord, read_record
from deepcait.errors import RunError, some
from deepcait.explain.markup import Table, render_page
from deepcait.report import parts
from deepcait.report.charts import TEMPLATES
from deepcait.report.record import Record, read_run
from deepcait.report.results import measure_if_possible
from deepcait.runtime.claim import hold
from deepcait.runtime.files import write_bytes

MEASURES = {
    "top1": "top-1",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "loss": "loss",
    "test_top1": "top-1 of the test part",
}
_SECTIONS = [
    ("results", "Results"),
    ("curves", "Curves"),
    ("settings", "Settings that differ"),
    ("environment", "Environment that differs"),
    ("repeat", "Reproduce"),
]


@dataclass(frozen=True, kw_only=True)
class Several:
    """What several runs come to.

    Args:
        records: of the runs.
        rows: of each run: name, seed, fold, epoch, the measures of `MEASURES` that it has, counts.
        mean, std: of each measure that all runs have; std is that of a sample.
        pooled: (measure, correct, images) of all runs together if no image is in two of them, as in folds; else None.
        differing: setting -> its value in each run, for those that differ.
        notes: what limits the comparison, one sentence each.
    """

    records: list[Record]
    rows: list[dict[str, Any]]
    mean: dict[str, float]
    std: dict[str, float]
    pooled: tuple[str, int, int] | None
    differing: dict[str, list[str]]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        pooled = None
        if self.pooled is not None:
            measure, correct, total = self.pooled
            pooled = {"measure": measure, "correct1": correct, "num_images": total, "top1": correct / total}
        return {
            "rows": self.rows, "mean": self.mean, "std": self.std, "pooled": pooled, "differing": self.differing,
            "notes": self.notes,
        }  # fmt: skip

    def table(self) -> Table:
        """One row per run, then mean, standard deviation, and all folds together."""
        measures = [name for name in MEASURES if any(name in row for row in self.rows)]
        has_fold = any(row["fold"] is not None for row in self.rows)
        head = ["run", "seed", *["fold"] * has_fold, "best epoch", *(MEASURES[name] for name in measures), "images"]
        rows = [
            [row["name"], str(row["seed"]), *[str(row["fold"])] * has_fold, str(row["epoch"])]
            + [_shown(name, row.get(name)) for name in measures]
            + [f"{row['num_images'] or row.get('test_num_images') or 0:,}"]
            for row in self.rows
        ]
        empty = [""] * (2 + has_fold)
        for name, values in (("mean", self.mean), ("standard deviation", self.std)):
            rows.append([name, *empty, *(_shown(measure, values.get(measure)) for measure in measures), ""])
        if self.pooled is not None:
            pooled, correct, total = self.pooled
            cells = [parts.percent(correct / total) if name == pooled else "" for name in measures]
            rows.append(["all together", *empty, *cells, f"{total:,}"])
        return Table("Results", head, rows, " ".join(self.notes) or None)


def compare_runs(folders: Sequence[str | Path], **measuring: Any) -> Several:
    """Read several runs and return their numbers; the test part of each, if it has one, is evaluated again.

    Args:
        folders: of the runs, two or more.
        measuring: passed to `measure_run`: data, max_images, device, progress.

    Raises:
        RunError: not a run, one that has nothing to compare yet, one given twice, or runs of other classes.
    """
    records = [read_run(folder) for folder in folders]
    _require_comparable(records)
    splits = [_split_of(record) for record in records]
    rows = [_row(record, split, measuring) for record, split in zip(records, splits, strict=True)]
    rows = [{"name": name, **row} for name, row in zip(parts.run_names(records), rows, strict=True)]
    common = [name for name in MEASURES if all(_is_number(row.get(name)) for row in rows)]
    values = {name: [float(row[name]) for row in rows] for name in common}
    differing = parts.differing([parts.flat_settings(record) for record in records])
    pooled = None if "data.source" in differing else _pooled(rows, splits)
    return Several(
        records=records,
        rows=rows,
        mean={name: statistics.fmean(own) for name, own in values.items()},
        std={name: statistics.stdev(own) for name, own in values.items()},
        pooled=pooled,
        differing=differing,
        notes=_notes(rows, splits, differing, pooled),
    )


def write_several(several: Several, out: str | Path) -> Path:
    """Write the page of several runs, and return its path.

    Raises:
        RunError: another process writes the file.
        WeightsError: the file can't be written.
    """
    records = several.records
    names = parts.run_names(records)
    environments = parts.differing([parts.flat_environment(record) for record in records])
    page = render_page(
        "several.html",
        TEMPLATES,
        names=names,
        leads=[(name, parts.model_words(record)) for name, record in zip(names, records, strict=True)],
        sections=_SECTIONS,
        results=several.table(),
        interval=parts.interval(*several.pooled[1:]) if several.pooled else "",
        charts=parts.curves(records),
        settings=parts.differing_table("Settings", names, several.differing),
        environment=parts.differing_table("Environment", names, environments),
        repeat="\n".join(map(parts.repeat_command, records)),
    )
    with hold(Path(out)):
        write_bytes(out, page.encode())
    return Path(out)


def _require_comparable(records: Sequence[Record]) -> None:
    places = [record.folder.resolve() for record in records]
    twice = [str(place) for place in dict.fromkeys(places) if places.count(place) > 1]
    if twice:
        raise RunError(f"report: {some(twice)} is given twice.", remedy="Give each run once.")
    first = records[0]
    for record in records[1:]:
        if record.data.get("classes") != first.data.get("classes"):
            ours, theirs = (set(one.data.get("classes") or ()) for one in (first, record))
            what = f"only one has {some(sorted(ours ^ theirs))}" if ours != theirs else "their order differs"
            raise RunError(
                f"report: {first.folder} and {record.folder} have other classes ({what}), so their numbers can't be "
                "averaged.",
                remedy="Give runs of the same classes; two runs are compared side by side.",
            )


def _split_of(record: Record) -> SplitRecord | None:
    path = record.folder / SPLIT_FILE
    return read_record(path) if path.is_file() else None


def _row(record: Record, split: SplitRecord | None, measuring: dict[str, Any]) -> dict[str, Any]:
    best, recipe = record.best, record.recipe
    row: dict[str, Any] = {"run": str(record.folder), "seed": recipe.seed, "fold": recipe.data.fold}
    row |= {"epoch": best.get("epoch", "–"), "num_images": best.get("num_images"), "correct1": best.get("correct1")}
    row |= {name: best[name] for name in MEASURES if _is_number(best.get(name))}
    if split is not None and "test" in split.parts and split.parts["test"].names:
        results, reason = measure_if_possible(record, **measuring)
        if results is None:
            raise RunError(f"{record.folder}: its test part can't be evaluated: {reason}", remedy="Give --data.")
        if results.test is None:
            raise RunError(
                f"{record.folder}: the data has no test part any more.", remedy="Give other data with --data."
            )
        test = results.test
        row |= {"test_correct1": test.correct, "test_num_images": test.num_images, "test_total": test.total}
        row |= {"test_top1": test.correct / test.num_images}
    if "top1" not in row and "test_top1" not in row:
        raise RunError(
            f"{record.folder}: this run has not been evaluated yet.",
            remedy="Wait for its first epoch, or leave it out; without validation, train with data.test_fraction.",
        )
    return row


def _pooled(rows: Sequence[dict[str, Any]], splits: Sequence[SplitRecord | None]) -> tuple[str, int, int] | None:
    """Measure, correct predictions and images of all runs, if each image validates or tests one of them only."""
    for part, measure, keys in (
        ("val", "top1", ("correct1", "num_images")),
        ("test", "test_top1", ("test_correct1", "test_num_images")),
    ):
        used = [_images_of(split, part) for split in splits]
        names = [name for own in used for name in own]
        counted = all(isinstance(row.get(key), int) for row in rows for key in keys)
        if counted and all(used) and len(set(names)) == len(names):
            correct, total = (sum(row[key] for row in rows) for key in keys)
            return measure, correct, total
    return None


def _images_of(split: SplitRecord | None, key: str) -> list[str]:
    part = split.parts.get(key) if split is not None else None
    return [] if part is None else [name for name in part.names if name not in part.unused]


def _notes(
    rows: Sequence[dict[str, Any]],
    splits: Sequence[SplitRecord | None],
    differing: dict[str, list[str]],
    pooled: tuple[str, int, int] | None,
) -> list[str]:
    notes = []
    if any("top1" in row for row in rows):
        notes.append("The validation images chose the best epoch, so accuracy on them is optimistic.")
    if all(row["fold"] is not None for row in rows) and len({row["fold"] for row in rows}) == len(rows):
        kind = "validation" if pooled is not None and pooled[0] == "top1" else "test"
        shared = "some images may be" if pooled is None else f"no {kind} image is"
        notes.append(f"Cross-validation over {len(rows)} folds: {shared} evaluated in two of them.")
    else:
        differ = {key: len({tuple(_images_of(split, key)) for split in splits}) > 1 for key in ("val", "test")}
        notes += ["The runs validate on different images."] * differ["val"] + ["The test parts differ."] * differ[
            "test"
        ]
    notes += [
        f"{row['name']}: {row['test_num_images']:,} of {row['test_total']:,} images of the test part were evaluated."
        for row in rows
        if row.get("test_num_images") != row.get("test_total")
    ]
    expected = {"seed", "data.fold"}
    other = [key for key in differing if key not in expected]
    if other:
        notes.append(f"The runs differ in {some(other)}: the standard deviation is not that of one recipe.")
    return notes


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _shown(measure: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if measure in ("loss", "macro_f1") else parts.percent(value)
