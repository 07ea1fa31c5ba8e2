"""A study's results as JSON and as a Markdown page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepcait.runtime.files import write_bytes
from deepcait.study.grid import Cell, Grid, Line, cells_of
from deepcait.study.outcome import Summary, read_outcome, reference_of, summarise, verdict
from deepcait.study.plan import StudyPlan, cell_config, cell_recipe, scale_of
from deepcait.weights.spec import describe


def results(folder: Path, grid: Grid, plan: StudyPlan, environment: dict[str, Any]) -> dict[str, Any]:
    """Return the results of a study as plain JSON; the same for the same cells.

    Args:
        folder: of the study, with its cells in `cells/`.
        grid: the study. plan: its plan.
        environment: versions and machine, from the study's start.
    """
    places = summarise(folder, grid, plan)
    data = _data_facts(folder, grid, plan)
    rows = []
    for place in places:
        paper = _paper(grid, place)
        rows.append(
            {
                "row": place.row,
                "column": place.column,
                "mean": place.mean,
                "spread": place.spread,
                "top1": list(place.accuracies),
                "failed": place.failed,
                "open": place.open,
                "compared": verdict(place, reference_of(place, grid, places)),
                "paper_percent": paper,
            }
        )
    return {
        "study": grid.name,
        "title": grid.title,
        "question": grid.question,
        "scale": scale_of(grid, plan, folder / "cells", data["num_train"], data["num_validation"]),
        "command": command_of(plan),
        "reference": grid.reference,
        "paper": grid.paper,
        "data": data,
        # Paths of data and teacher on this machine are private.
        "plan": dataclasses.asdict(plan) | {"data": plan.data_name, "teacher": teacher_facts(plan.teacher)},
        "environment": environment,
        "table": rows,
        "cells": [_cell_facts(folder, grid, plan, cell, len(data["classes"])) for cell in cells_of(grid, plan.seeds)],
    }


def teacher_facts(spec: str) -> dict[str, Any] | None:
    """Return a teacher's name, size and the accuracy of its own run; None without a teacher."""
    if not spec:
        return None
    facts: dict[str, Any] = {"name": spec.rstrip("/").rpartition("/")[2]}
    if spec.startswith(("timm:", "python:")):
        return facts
    described = describe(spec)
    metrics = described["metrics"] or {}
    return facts | {"params": described["params"], "top1": metrics.get("top1"), "num_images": metrics.get("num_images")}


def command_of(plan: StudyPlan) -> str:
    """Return the command that computes this table again, budget or not."""
    words = [f"deepcait study {plan.study} --data DATA --out FOLDER --seeds {plan.seeds} --epochs {plan.epochs}"]
    words += [f"--images {plan.images}", f"--val-images {plan.val_images}"]
    words += [f"--only {','.join(plan.only)}"] if plan.only else []
    words += ["--teacher TEACHER"] if plan.teacher else []
    words += [f"--set {' '.join(plan.set)}"] if plan.set else []
    return " ".join(words)


def markdown(found: dict[str, Any], grid: Grid) -> str:
    """Return the page of a study: its question and scale, and the table with the paper's results."""
    lines = [f"# {found['title']}: {found['scale']}", "", found["question"], ""]
    lines += _wide(found, grid) if len(grid.columns) > 1 else _long(found, grid)
    teacher = found["plan"]["teacher"]
    if teacher:
        accuracy = (
            f", top-1 {100 * teacher['top1']:.2f} % of {teacher['num_images']:,} images" if teacher.get("top1") else ""
        )
        lines += ["", f"Teacher: {teacher['name']}{accuracy}."]
    lines += ["", f"Paper: {' '.join(found['paper'].split())}", ""]
    seeds = "1 seed" if found["plan"]["seeds"] == 1 else f"{found['plan']['seeds']} seeds"
    lines += [
        f"Top-1: the mean over {seeds} of the accuracy after the last epoch, in percent; +- half the distance from the "
        "worst to the best seed. Compared: the difference from the reference in percentage points; n.s. (not "
        "significant) if it is within the spread over seeds or twice the sampling error. Training at such a small "
        "scale can show whether an idea works, not how much it improves accuracy on ImageNet.",
        "",
        f"    {found['command']}",
        "",
    ]
    return "\n".join(lines)


def _wide(found: dict[str, Any], grid: Grid) -> list[str]:
    at = {(row["row"], row["column"]): row for row in found["table"]}
    lines = ["| " + " | ".join([grid.across, *(column.title for column in grid.columns)]) + " |"]
    lines.append("| --- |" + " ---: |" * len(grid.columns))
    for row in grid.rows:
        ours = [at[row.id, column.id] for column in grid.columns]
        lines.append(_row(row.title, [_figure(place) for place in ours]))
        lines.append(_row(f"{row.title}: compared", [place["compared"] for place in ours]))
        paper = [place["paper_percent"] for place in ours]
        if any(value is not None for value in paper):
            lines.append(_row(f"*{row.title}: reported*", ["" if value is None else f"*{value}*" for value in paper]))
    return lines


def _long(found: dict[str, Any], grid: Grid) -> list[str]:
    facts = {(cell["row"], cell["column"]): cell for cell in found["cells"]}
    reported = any(place["paper_percent"] is not None for place in found["table"])
    lines = [f"| {grid.across} | top-1 % | compared | parameters | MMACs |" + " reported, top-1 % |" * reported]
    lines.append("| --- | ---: | ---: | ---: | ---: |" + " ---: |" * reported)
    for place in found["table"]:
        cell = facts[place["row"], place["column"]]
        row = [_figure(place), place["compared"], f"{cell['params']:,}", f"{cell['macs'] / 1e6:.1f}"]
        if reported:  # as many decimals as the source has
            row.append("" if place["paper_percent"] is None else f"*{place['paper_percent']}*")
        lines.append(_row(_line_of(grid.rows, place["row"]).title, row))
    return lines


def _row(head: str, cells: Sequence[str]) -> str:
    return f"| {head} | {' | '.join(cells)} |"


def _figure(place: dict[str, Any]) -> str:
    if place["failed"]:
        return f"failed ({place['failed']} of {place['failed'] + len(place['top1']) + place['open']})"
    if place["mean"] is None:
        return "..."
    spread = "" if place["spread"] is None else f" +- {50 * place['spread']:.2f}"
    return f"{100 * place['mean']:.2f}{spread}"


def _paper(grid: Grid, place: Summary) -> float | None:
    figures = _line_of(grid.rows, place.row).paper
    return figures.get(place.column) if isinstance(figures, dict) else figures


def _line_of(lines: Sequence[Line], name: str) -> Line:
    return next(line for line in lines if line.id == name)


def _cell_facts(folder: Path, grid: Grid, plan: StudyPlan, cell: Cell, num_classes: int) -> dict[str, Any]:
    outcome = read_outcome(folder, cell)
    config = cell_config(grid, plan, cell, folder / "cells", num_classes)
    recipe = cell_recipe(grid, plan, cell, folder / "cells")
    counted = ("step", "epoch", "num_images", "correct1", "correct5", "top1", "top5", "loss")
    metrics = outcome.metrics or {}
    return {
        "name": cell.name,
        "row": cell.row.id,
        "column": cell.column.id,
        "seed": cell.seed,
        "state": outcome.state,
        "reason": outcome.reason,
        "settings": [*grid.set, *cell.settings],
        "starts_from": cell.start,
        "epochs": recipe.epochs,
        "params": config.num_params(),
        "macs": config.macs(),
        "metrics": {name: metrics[name] for name in counted if name in metrics},
    }


def _data_facts(folder: Path, grid: Grid, plan: StudyPlan) -> dict[str, Any]:
    """Facts about the data, as written by the first cell that started; all cells have the same data."""
    for cell in cells_of(grid, plan.seeds):
        path = folder / "cells" / cell.name / "data.json"
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))
    return {"classes": [], "num_train": plan.images, "num_validation": plan.val_images, "fingerprint": None}


def write_reports(folder: Path, found: dict[str, Any], grid: Grid, *, name: str = "") -> list[Path]:
    """Write `table.md` and `results.json` atomically, and return their paths.

    Args:
        folder: to write to. found: from `results`. grid: the study.
        name: of both files instead, for a folder with several studies.
    """
    text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    paths = folder / f"{name or 'table'}.md", folder / f"{name or 'results'}.json"
    for path, content in zip(paths, (markdown(found, grid), text), strict=True):
        write_bytes(path, content.encode("utf-8"))
    return list(paths)
