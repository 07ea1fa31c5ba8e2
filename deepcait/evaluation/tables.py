"""Write results to files: one row per model (Markdown, CSV, JSON), one row per image (CSV)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepcait.evaluation.compare import compare
from deepcait.evaluation.metrics import list_classes, list_confusion, list_reliability
from deepcait.evaluation.records import Records
from deepcait.runtime.files import write_bytes

TABLE_SUFFIXES = (".md", ".csv", ".json")
IMAGE_COLUMNS = (
    *("path", "label", "predictions", "probabilities", "correct", "loss"),
    *("label_name", "prediction_name", "model", "img_size"),
)
_ACCURACY = {"folder": "top-1", "imagenet": "ImNet top-1", "real": "ReaL top-1", "v2": "V2 top-1"}


def pair_rows(rows: list[dict[str, Any]], records: Sequence[Records]) -> None:
    """Add to each row of `eval --json` how it compares with each other one on the same images."""
    if len(rows) < 2:
        return
    for i, row in enumerate(rows):
        row["paired"] = []
        for j, other in enumerate(rows):
            if i == j:
                continue
            paired = compare(records[i], records[j])
            row["paired"].append(
                {
                    "model": other["model"],
                    "img_size": other["img_size"],
                    "only_this": paired.only_first,
                    "only_other": paired.only_second,
                    "p_value": paired.p_value,
                }
            )


def write_table(
    path: Path, rows: Sequence[Mapping[str, Any]], records: Sequence[Records], stamp: Mapping[str, Any]
) -> None:
    """Write the rows of several evaluations in the format of the file's suffix; JSON includes all classes.

    Args:
        path: ends in .md, .csv or .json.
        rows: as printed by `eval --json`.
        records: of the same evaluations.
        stamp: provenance: command, date, commit, versions, hardware.
    """
    if path.suffix.lower() == ".json":
        full = [dict(row) | detail(own) for row, own in zip(rows, records, strict=True)]
        text = json.dumps({**stamp, "results": full}, indent=1, allow_nan=False) + "\n"
    elif path.suffix.lower() == ".csv":
        text = _csv([_flat(row) for row in rows])
    else:
        text = markdown(rows) + f"\n`{stamp['command']}`, {stamp['date']}, commit {stamp['commit']}.\n"
    write_bytes(path, text.encode("utf-8"))


def detail(records: Records) -> dict[str, Any]:
    """Return the tables: per class, the confusion matrix, the reliability curve."""
    return {
        "per_class": list_classes(records),
        "confusion": list_confusion(records),
        "reliability": list_reliability(records),
    }


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table like the paper's: parameters, multiply-adds, resolution, accuracies in percent."""
    several, top5 = len(rows) > 1, [top5_of(row) for row in rows]
    with_top5 = any(one is not None for one in top5)
    columns = ["model", "params (M)", "GMACs", "px", _ACCURACY[rows[0]["protocol"]], "95 % interval"]
    columns += ["top-5"] * with_top5 + ["loss", "expected"] + ["against the first (p)"] * several
    lines = ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    for row, own_top5 in zip(rows, top5, strict=True):
        low, high = row["intervals"]["top1"]
        cells = [
            f"`{row['model']}`",
            f"{row['params'] / 1e6:.1f}",
            f"{row['gmacs']:.2f}",
            pixels(row["img_size"]),
            f"{100 * row['top1']:.2f}",
            f"{100 * low:.2f} to {100 * high:.2f}",
            *(["" if own_top5 is None else f"{100 * own_top5:.2f}"] * with_top5),
            "" if row["loss"] is None else f"{row['loss']:.4f}",
            "" if row["expected"] is None else f"{100 * row['expected']['top1']:.2f}",
        ]
        if several:
            cells.append("" if row is rows[0] else _against_first(row))
        lines.append("| " + " | ".join(cells) + " |")
    first = rows[0]
    lines.append(f"\n{first['num_images']:,} images of {first['data']}, protocol {first['protocol']}.")
    return "\n".join(lines) + "\n"


def top5_of(row: Mapping[str, Any]) -> float | None:
    """Return the top-5 accuracy of a row; None with five classes or fewer, where it is always 1."""
    return row["top5"] if row["num_possible"] > 5 else None


def write_images(path: Path, measured: Sequence[tuple[Mapping[str, Any], Records]]) -> None:
    """Write one row per image: its name, labels, top predictions and their probabilities, separated by spaces.

    Args:
        path: the CSV file.
        measured: a row of `eval --json` with its records, one or several.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(IMAGE_COLUMNS)
    for row, records in measured:
        tail = (row["model"], pixels(row["img_size"]))
        answers, probabilities = records.answers_NT.tolist(), records.probabilities_NT.tolist()
        label, loss, correct = records.label_N.tolist(), records.losses_N.tolist(), records.correct_N.tolist()
        for i, name in enumerate(records.names):
            cells = (
                name,
                " ".join(map(str, records.row_labels(i))),
                " ".join(map(str, answers[i])),
                " ".join(map(repr, probabilities[i])),
                int(correct[i]),
                repr(loss[i]),
                records.class_name(label[i]),
                records.class_name(answers[i][0]),
            )
            writer.writerow((*cells, *tail))
    # A file name that is not UTF-8 is written with escapes, as on stdout.
    write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))


def _against_first(row: Mapping[str, Any]) -> str:
    paired = row["paired"][0]
    return f"+{paired['only_this']} -{paired['only_other']} ({paired['p_value']:.2g})"


def pixels(img_size: int | Sequence[int]) -> str:
    """Return an image size as text: 224 for a square, else "224 x 320", height first."""
    return str(img_size) if isinstance(img_size, int) else " x ".join(map(str, img_size))


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a row that fit into a cell; intervals as two columns, the expected accuracy as one."""
    flat = {key: value for key, value in row.items() if not isinstance(value, list | dict)}
    flat["img_size"] = pixels(row["img_size"])
    for key, ends in row["intervals"].items():
        flat[f"{key}_low"], flat[f"{key}_high"] = ends or ("", "")
    flat["expected_top1"] = row["expected"]["top1"] if row["expected"] else ""
    flat["warnings"] = " ".join(row["warnings"])
    return flat


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
