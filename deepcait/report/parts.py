"""Parts of both reports: proportions with intervals, curves, settings, commands that reproduce a run."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from deepcait.evaluation import wilson
from deepcait.explain.markup import Table
from deepcait.report.charts import Series, line_chart
from deepcait.report.record import Record

MAX_ROWS = 1000  # of a table with one row per class
_FREE = ("about.",)  # a recipe's metadata, which has no effect
WORDS = {"running": "not finished", "stopped": "stopped, can be resumed", "failed": "failed", "finished": "finished"}


def percent(share: float | None) -> str:
    """Return a proportion in percent, or a dash."""
    return "–" if share is None else f"{100 * share:.2f} %"


def interval(hits: int | None, trials: int | None) -> str:
    """Return the 95 % interval of a proportion, or "" if the counts are not known."""
    if not isinstance(hits, int) or not isinstance(trials, int) or not trials:
        return ""
    low, high = wilson(hits, trials)
    return f"{100 * low:.2f} to {100 * high:.2f} %"


def curves(records: Sequence[Record]) -> list[Markup]:
    """Return the charts of one run, or of several in the same charts."""
    many = len(records) > 1
    charts = [_losses(records, many), _accuracies(records, many)]
    for title, key, caption in (
        ("Learning rate", "lr", "The rate of the parameter group with the highest rate."),
        ("Gradient norm", "grad_norm", "Norm of all gradients before clipping, at the last step of each log row."),
    ):
        lines = [
            _line(record, "train_rows", key, _name(record, title.lower(), many), n, "epoch")
            for n, record in enumerate(records)
        ]
        charts.append(line_chart(title, lines, x_label="epoch", caption=caption))
    speed = [
        _line(record, "timing_rows", "images_per_s", _name(record, "images per second", many), number, "step")
        for number, record in enumerate(records)
    ]
    caption = "Training images per second, over all processes."
    charts.append(line_chart("Speed", speed, x_label="step", caption=caption))
    return charts


def _losses(records: Sequence[Record], many: bool) -> Markup:
    lines = []
    for number, record in enumerate(records):
        colour = 2 * number if many else 0
        lines.append(_line(record, "train_rows", "loss", _name(record, "training", many), colour, "epoch"))
        validation = _line(record, "eval_rows", "loss", _name(record, "validation", many), colour + 1, "epoch")
        lines.append(dataclasses.replace(validation, dashed=True))
    caption = (
        "In nats. The training loss includes augmentation, mixing and label smoothing, so it may be above validation."
    )
    return line_chart("Loss", lines, x_label="epoch", caption=caption)


def _accuracies(records: Sequence[Record], many: bool) -> Markup:
    lines = []
    for number, record in enumerate(records):
        band = [
            (float(row["epoch"]), *wilson(row["correct1"], row["num_images"]))
            for row in record.eval_rows
            if {"epoch", "correct1", "num_images"} <= row.keys()
        ]
        line = _line(record, "eval_rows", "top1", _name(record, "top-1", many), number, "epoch")
        lines.append(dataclasses.replace(line, band=band, dashed=many and number > 0))
        if many:
            continue
        if record.has_top5:
            lines.append(_line(record, "eval_rows", "top5", "top-5", 1, "epoch"))
        for key in sorted({key for row in record.eval_rows for key in row if key.endswith("_top1")}):
            name = f"top-1, {key.removesuffix('_top1')} weights"
            lines.append(dataclasses.replace(_line(record, "eval_rows", key, name, 2, "epoch"), dashed=True))
    caption = "On the validation images. The band is the 95 % interval of top-1 (Wilson)."
    return line_chart("Accuracy", lines, x_label="epoch", percent=True, caption=caption)


def _line(record: Record, rows: str, key: str, name: str, colour: int, x: str) -> Series:
    points = [(float(row[x]), row.get(key)) for row in getattr(record, rows) if isinstance(row.get(x), int | float)]
    return Series(name=name, points=points, colour=colour % 4)


def _name(record: Record, what: str, many: bool) -> str:
    return f"{record.name}: {what}" if many else what


def flat_settings(record: Record) -> dict[str, str]:
    """Return every setting of the recipe by its dotted name, as text."""
    found: dict[str, str] = {}

    def walk(value: Any, prefix: str) -> None:
        for field in dataclasses.fields(value):
            inner, name = getattr(value, field.name), f"{prefix}{field.name}"
            if dataclasses.is_dataclass(inner):
                walk(inner, f"{name}.")
            else:
                found[name] = str(inner)

    walk(record.recipe, "")
    return found


def run_names(records: Sequence[Record]) -> list[str]:
    """Return the names of the runs' folders, or their paths if two have the same name."""
    names = [record.name for record in records]
    return names if len(set(names)) == len(names) else [str(record.folder) for record in records]


def differing(columns: Sequence[dict[str, str]]) -> dict[str, list[str]]:
    """Return name -> its value in each run, a dash where it is missing, for the settings or facts that differ."""
    names = sorted({name for own in columns for name in own if not name.startswith(_FREE)})
    found = {name: [own.get(name, "–") for own in columns] for name in names}
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def differing_table(title: str, names: Sequence[str], found: dict[str, list[str]]) -> Table:
    """Return the result of `differing` as a table."""
    return Table(title, ["", *names], [[name, *(value or "(empty)" for value in own)] for name, own in found.items()])


def flat_environment(record: Record) -> dict[str, str]:
    """Return versions and machine, as text."""
    found: dict[str, str] = {}
    for name, value in record.environment.items():
        if isinstance(value, dict):
            found |= {inner: str(version) for inner, version in value.items() if version is not None}
        elif value is not None:
            found[name] = str(value)
    return found


def repeat_command(record: Record) -> str:
    """Return the commands that start the same run in another folder."""
    commit = record.environment.get("commit")
    # A folder given as "." or ".." has no name in its path.
    folder = record.folder if record.folder.name not in ("", "..") else record.folder.resolve()
    again = f"{folder}-again"
    lines = [f"git checkout {shlex.quote(str(commit))}    # the code of this run"] if commit else []
    config = shlex.quote(str(folder / "config.yaml"))
    lines.append(f"deepcait train --recipe {config} --out {shlex.quote(again)}")
    return "\n".join(lines)


def state_words(record: Record) -> str:
    """Return the state of the run."""
    state = str(record.state.get("state", "unknown"))
    text = WORDS.get(state, state)
    problem = record.state.get("error")
    return f"{text}: {problem}" if problem else text


def model_words(record: Record) -> str:
    """Return model, data and length of a run in one sentence."""
    recipe, data = record.recipe, record.data
    images = "its data"
    if _knows_data(data):
        images = f"{counted(data['num_train'], 'image')} of {counted(len(data['classes']), 'class', 'classes')}"
    teacher = f", distilled from {recipe.teacher.spec}" if recipe.teacher.spec else ""
    return f"{recipe.model} on {images} for {counted(recipe.epochs, 'epoch')}{teacher}: {state_words(record)}."


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _knows_data(data: dict[str, Any]) -> bool:
    return isinstance(data.get("num_train"), int) and isinstance(data.get("classes"), list)
