"""Compare two runs on one page: curves in the same plots, and differences in results and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepcait.evaluation.compare import count_pairs
from deepcait.explain.markup import Table, render_page
from deepcait.report import parts
from deepcait.report.charts import TEMPLATES, number
from deepcait.report.intervals import difference
from deepcait.report.record import Record, read_run
from deepcait.report.results import Results, measure_if_possible
from deepcait.runtime.claim import hold
from deepcait.runtime.files import write_bytes

FILE_NAME = "comparison.html"


def write_comparison(first: str | Path, second: str | Path, out: str | Path, **measuring: Any) -> Path:
    """Write the comparison of two runs, and return its path.

    Args:
        first, second: run folders; differences are second minus first.
        out: the file.
        measuring: passed to `measure_run`: data, max_images, device, progress.

    Raises:
        RunError: the folder is not a run, or another process writes the file.
        WeightsError: the file can't be written.
    """
    records = read_run(first), read_run(second)
    with hold(Path(out)):
        answers = [measure_if_possible(record, **measuring) for record in records]
        write_bytes(out, render_comparison(*records, *answers).encode())
    return Path(out)


def render_comparison(
    first: Record, second: Record, first_answers: tuple[Results | None, str], second_answers: tuple[Results | None, str]
) -> str:
    """Return the page; `answers`: results, or None and the reason."""
    both = first, second
    names = parts.run_names(both)
    paired, words = _paired(both, names, first_answers, second_answers)
    settings, environments = (
        [read(record) for record in both] for read in (parts.flat_settings, parts.flat_environment)
    )
    return render_page(
        "comparison.html",
        TEMPLATES,
        names=names,
        leads=[(name, parts.model_words(record)) for name, record in zip(names, both, strict=True)],
        sections=_SECTIONS,
        results=_results(both, names),
        paired=paired,
        words=words,
        charts=parts.curves(both),
        classes=_classes(names, first_answers[0], second_answers[0]),
        settings=parts.differing_table("Settings", names, parts.differing(settings)),
        environment=parts.differing_table("Environment", names, parts.differing(environments)),
        repeat="\n".join(map(parts.repeat_command, both)),
    )


_SECTIONS = [
    ("results", "Results"),
    ("images", "The same images"),
    ("curves", "Curves"),
    ("classes", "Per class"),
    ("settings", "Settings that differ"),
    ("environment", "Environment that differs"),
    ("repeat", "Reproduce"),
]


def _results(both: tuple[Record, Record], names: list[str]) -> Table:
    one, other = (record.best for record in both)
    rows = []
    top5 = [("top-5", "correct5", "top5")] * any(record.has_top5 for record in both)
    for label, hits, share in [("top-1", "correct1", "top1"), *top5]:
        row = [label, parts.percent(one.get(share)), parts.percent(other.get(share))]
        if all({hits, share, "num_images"} <= run.keys() for run in (one, other)):
            low, high = difference(*((run[hits], run["num_images"]) for run in (one, other)))
            row += [_points(other[share] - one[share]), f"{_points(low)} to {_points(high)}"]
        else:
            row += ["–", ""]
        rows.append(row)
    rows.append(["validation loss", *(_number(run.get("loss")) for run in (one, other)), "", ""])
    rows.append(["best epoch", *(str(run.get("epoch", "–")) for run in (one, other)), "", ""])
    rows.append(["training images per second", *(_number(run.images_per_s) for run in both), "", ""])
    caption = (
        "The best model of each run. Differences are second minus first, in percentage points. The interval is "
        "Newcombe's for independent images; it is wide if both runs were evaluated on the same images, see below."
    )
    return Table("Results", ["", *names, "difference", "95 % interval"], rows, caption)


def _paired(both, names: list[str], *answers: tuple[Results | None, str]) -> tuple[Table | None, str]:
    """The comparison on the same images with its description, or None and the reason."""
    (one, reason_one), (other, reason_other) = answers
    if one is None or other is None:
        return None, reason_one or reason_other
    if both[0].data.get("fingerprint") != both[1].data.get("fingerprint") or one.names != other.names:
        return None, "The two runs have different data, so their predictions can't be compared per image."
    right_one, right_other = one.right, other.right
    pairs = count_pairs(right_one, right_other)
    rows = [
        ["both correct", f"{int((right_one & right_other).sum()):,}"],
        [f"only {names[0]} correct", f"{pairs.only_first:,}"],
        [f"only {names[1]} correct", f"{pairs.only_second:,}"],
        ["both wrong", f"{int((~right_one & ~right_other).sum()):,}"],
    ]
    words = (
        f"McNemar's exact test: p = {pairs.p_value:.2g}. "
        + (
            "The difference is larger than expected from sampling images."
            if pairs.p_value < 0.05
            else "The difference may be due to sampling images alone."
        )
        + " The variation between seeds is not included."
    )
    return Table("The same images", ["validation images", "number"], rows), words


def _classes(names: list[str], one: Results | None, other: Results | None) -> Table | None:
    if one is None or other is None or one.classes != other.classes:
        return None
    rows = []
    for index, label in enumerate(one.classes):
        shares = []
        for results in (one, other):
            total = int(results.per_class.support_K[index])
            shares.append(int(results.per_class.hits_K[index]) / total if total else None)
        before, after = shares
        change = None if before is None or after is None else after - before
        rows.append((change or 0.0, [label, *map(parts.percent, shares), "–" if change is None else _points(change)]))
    rows.sort(key=lambda row: row[0])
    caption = "Recall per class; the largest decrease first."
    if len(rows) > parts.MAX_ROWS:
        half = parts.MAX_ROWS // 2
        caption += f" Of {len(rows):,} classes the {half:,} largest decreases and the {half:,} largest increases."
        rows = rows[:half] + rows[-half:]
    return Table("Per class", ["label", *names, "difference"], [row for _, row in rows], caption)


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _number(value: Any) -> str:
    return number(value) if isinstance(value, int | float) else "–"
