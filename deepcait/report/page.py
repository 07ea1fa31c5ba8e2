"""The report of a run: read it, evaluate its best model again, write an HTML file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from deepcait.data.roles import CHOSE, HELD_OUT, TRAINED_ON
from deepcait.evaluation import confusion, most_errors
from deepcait.explain.markup import Bars, Table, render_page
from deepcait.report import parts
from deepcait.report.charts import TEMPLATES
from deepcait.report.record import Record, read_run
from deepcait.report.results import Mistake, Results, measure_if_possible
from deepcait.runtime.claim import hold
from deepcait.runtime.device import choose_device
from deepcait.runtime.files import write_bytes
from deepcait.runtime.messages import is_main_process, progress
from deepcait.training.recipe import Recipe
from deepcait.training.start import start_of
from deepcait.training.watch import duration

_logger = logging.getLogger(__name__)
FILE_NAME = "report.html"
_MATRIX_CLASSES = 25  # with more, a matrix is not readable: confusions and the classes with most errors are listed
_LISTED = 20


def write_report(folder: str | Path, out: str | Path | None = None, **measuring: Any) -> Path:
    """Write the report of a run, finished or not, and return its path.

    If the data or the model can't be read any more, the page reports it and has the other parts.

    Args:
        folder: of the run.
        out: the file; None is `report.html` in the run.
        measuring: passed to `measure_run`: data, recipe, max_images, device, progress.

    Raises:
        RunError: the folder is not a run, or another process writes the file.
        WeightsError: the file can't be written.
    """
    record = read_run(folder)
    path = Path(out) if out is not None else record.folder / FILE_NAME
    with hold(path):
        results, reason = measure_if_possible(record, **measuring)
        write_bytes(path, render_report(record, results, reason).encode())
    return path


def write_at_end(folder: Path, *, device: str = "auto", recipe: Recipe | None = None) -> Path | None:
    """Write the report of a run that has just ended; errors are only logged, since the run is saved.

    Under torchrun only the main process writes it.

    Returns:
        The file, or None if it could not be written.
    """
    if not is_main_process():
        return None
    try:
        with progress("report: evaluating the best model") as update:
            path = write_report(folder, progress=update, device=choose_device(device), recipe=recipe)
    # Any error: a missing page must not make a finished training fail.
    except (Exception, KeyboardInterrupt) as error:
        problem = f"{type(error).__name__} {error}".strip()
        _logger.warning("no report was written (%s); try again with `deepcait report %s`", problem, folder)
        return None
    _logger.info("report:    %s", path)
    return path


def render_report(record: Record, results: Results | None, reason: str) -> str:
    """Return the page.

    Args:
        results: predictions of the best model; None if it could not be evaluated.
        reason: why not.
    """
    return render_page(
        "report.html",
        TEMPLATES,
        record=record,
        reason=reason,
        lead=parts.model_words(record),
        sections=_SECTIONS,
        tiles=_tiles(record),
        charts=parts.curves([record]),
        metrics=_metrics(record, results),
        checked=_checked(record, results),
        confusion=_confusion(results) if results else None,
        mistakes=_mistakes(results) if results else None,
        data_facts=_data_facts(record),
        classes=_classes(results) if results else None,
        max_matrix=_MATRIX_CLASSES,
        summary=record.recipe.about.summary,
        recipe_facts=_recipe_facts(record),
        environment=list(parts.flat_environment(record).items()),
        repeat=parts.repeat_command(record),
    )


_SECTIONS = [
    ("curves", "Curves"),
    ("metrics", "Final metrics"),
    ("confusion", "Confusion"),
    ("mistakes", "Mistakes"),
    ("data", "Data"),
    ("recipe", "Recipe"),
    ("environment", "Environment"),
    ("repeat", "Reproduce"),
]


def _tiles(record: Record) -> list[tuple[str, str, str]]:
    """The tiles: name, value, note."""
    best = record.best
    count = best.get("num_images")
    sure = parts.interval(best.get("correct1"), count)
    notes = [f"95 %: {sure}"] * bool(sure) if best else ["not evaluated"]
    notes += [f"chance {parts.percent(1 / record.num_classes)}"] if record.num_classes else []
    speed = record.images_per_s
    loss = f"{best['loss']:.4f}" if best.get("loss") is not None else "–"
    tiles = [("Top-1, best epoch", parts.percent(best.get("top1")), "; ".join(notes))]
    if record.has_top5:
        tiles.append(("Top-5", parts.percent(best.get("top5")), parts.interval(best.get("correct5"), count)))
    return [
        *tiles,
        ("Validation loss", loss, "nats per image"),
        ("Best epoch", str(best.get("epoch", "–")), f"of {record.recipe.epochs}; by {record.best_by}"),
        (
            "Training time",
            duration(record.seconds) if record.seconds else "–",
            f"{speed:,.0f} images per second" if speed else "",
        ),
    ]


def _metrics(record: Record, results: Results | None) -> Table | None:
    rows = []
    for name, row in (("best", record.best), ("last", record.last)):
        if not row:
            continue
        count = row.get("num_images")
        loss = row.get("loss")
        top5 = [parts.percent(row.get("top5")), parts.interval(row.get("correct5"), count)]
        rows.append(
            [
                f"{name}, epoch {row.get('epoch', '?')}",
                parts.percent(row["top1"]),
                parts.interval(row.get("correct1"), count),
                *top5 * record.has_top5,
                "–" if loss is None else f"{loss:.4f}",
                f"{count:,}" if isinstance(count, int) else "–",
                CHOSE,
            ]
        )
    if results is not None and results.test is not None:
        right, count, total = results.test.correct, results.test.num_images, results.test.total
        share, unknown = parts.percent(right / count), ["–", ""] * record.has_top5
        images = f"{count:,}" if count == total else f"{count:,} of {total:,}, evenly spaced"
        rows.append(["best, on the test part", share, parts.interval(right, count), *unknown, "–", images, HELD_OUT])
    if not rows:
        return None
    columns = ["model", "top-1", "95 % interval", *["top-5", "95 % interval"] * record.has_top5]
    columns += ["loss (nats)", "images", "role"]
    caption = (
        "Wilson intervals: the uncertainty from sampling these images, not the variation between seeds. Accuracy on "
        "images that chose the best epoch is optimistic."
    )
    return Table("Final metrics", columns, rows, caption)


def _checked(record: Record, results: Results | None) -> str:
    """Which weights were evaluated, and whether the saved model's predictions agree with training."""
    weights = {"ema": "averaged", "raw": "raw"}.get(str(record.best.get("weights")), "")
    note = f"The {weights} weights were evaluated. " if weights else ""
    if results is None:
        return note
    share = f"{results.correct:,} of {results.num_images:,} correct"
    if results.num_images < results.total:
        return (
            f"{note}Evaluated again for this report on every {results.total / results.num_images:.3g}th image: {share}."
        )
    before, total = record.best.get("correct1"), record.best.get("num_images")
    if before is None:
        return f"{note}Evaluated again for this report: {share}."
    if (before, total) == (results.correct, results.num_images):
        return f"{note}Evaluated again for this report: {share}, the same as during training."
    return f"{note}Evaluated again for this report: {share}, NOT the same as during training: {before:,} of {total:,}."


def _confusion(results: Results) -> dict[str, Any]:
    wrong = results.num_images - results.correct
    is_small = len(results.classes) <= _MATRIX_CLASSES
    what = "validation images" if results.role == CHOSE else "images of the test part"
    intro = f"{results.num_images:,} {what}, {wrong:,} misclassified."
    if results.num_images < results.total:
        intro += f" They are {results.num_images:,} of {results.total:,}, evenly spaced."
    return {
        "intro": intro,
        "classes": results.classes,
        "confusion": confusion(results.records, range(len(results.classes))).tolist() if is_small else None,
        "commonest": _commonest(results),
        "worst": None if is_small else _worst(results),
    }


def _commonest(results: Results) -> Table | None:
    cells_C2, numbers_C = results.errors
    order_C = numbers_C.argsort(descending=True, stable=True)[:_LISTED]
    rows = [
        [results.classes[label], results.classes[answer], f"{number:,}"]
        + [f"{100 * number / int(results.per_class.support_K[label]):.1f} %"]
        for (label, answer), number in zip(cells_C2[order_C].tolist(), numbers_C[order_C].tolist(), strict=True)
    ]
    if not rows:
        return None
    return Table("Most frequent confusions", ["label", "prediction", "images", "of the label"], rows)


def _worst(results: Results) -> Table | None:
    """The classes with most errors, and what their images are classified as most often instead."""
    cells_C2, numbers_C = results.errors
    rows = []
    for index in most_errors(results.per_class, _LISTED):
        own_C = cells_C2[:, 0] == index
        answer = int(cells_C2[own_C, 1][numbers_C[own_C].argmax()])
        total, right = (int(column_K[index]) for column_K in (results.per_class.support_K, results.per_class.hits_K))
        share = f"{100 * right / total:.1f} %"
        rows.append([results.classes[index], f"{total:,}", f"{total - right:,}", share, results.classes[answer]])
    if not rows:
        return None
    return Table("Classes with most errors", ["class", "evaluated", "errors", "correct", "most often taken for"], rows)


def _mistakes(results: Results) -> dict[str, Any]:
    return {
        "worst": [_card(mistake) for mistake in results.worst],
        "nearest": [_card(mistake) for mistake in results.nearest],
        "have_attention": any(mistake.attention for mistake in results.worst),
    }


def _card(mistake: Mistake) -> dict[str, Any]:
    target, answer, _ = mistake.answers[0]
    return {
        "label": mistake.label,
        "answer": answer,
        "name": mistake.name,
        "frame": mistake.frame,
        "attention": mistake.attention,
        "bars": Bars(mistake.answers, target=target, truth=mistake.truth),
    }


def _data_facts(record: Record) -> list[tuple[str, str]]:
    data = record.data
    facts = [("source", record.recipe.data.source)]
    facts += [
        (name, f"{data[key]:,} images, {role}")
        for name, key, role in _COUNTED
        if isinstance(data.get(key), int) and data[key]
    ]
    facts += [("classes", f"{len(data['classes']):,}")] if isinstance(data.get("classes"), list) else []
    return facts + ([("fingerprint", str(data["fingerprint"]))] if data.get("fingerprint") else [])


def _classes(results: Results) -> Table:
    rows, listed = [], range(len(results.classes))
    caption = "Training images, and recall on the evaluated images."
    if len(listed) > parts.MAX_ROWS:
        listed = most_errors(results.per_class, parts.MAX_ROWS)
        caption += f" Of {len(results.classes):,} classes the {len(listed):,} with most errors."
    for index in listed:
        total, right = (int(column_K[index]) for column_K in (results.per_class.support_K, results.per_class.hits_K))
        share = parts.percent(right / total) if total else "–"
        rows.append(
            [results.classes[index], f"{results.train_counts[index]:,}", f"{total:,}", share]
            + [parts.interval(right, total)]
        )
    return Table("Per class", ["class", "training", "evaluated", "correct", "95 % interval"], rows, caption)


_COUNTED = (
    ("training", "num_train", TRAINED_ON),
    ("validation", "num_validation", CHOSE),
    ("test part", "num_test", HELD_OUT),
)


def _recipe_facts(record: Record) -> list[tuple[str, str]]:
    recipe = record.recipe
    return [
        ("start", start_of(recipe)),
        ("length", f"{parts.counted(recipe.epochs, 'epoch')}, {recipe.global_batch_size:,} images per step"),
        (
            "learning rate",
            f"{recipe.peak_lr:g} peak ({recipe.optimizer.name}, decay {recipe.optimizer.weight_decay})",
        ),
        ("augmentation", f"crop {recipe.augment.crop}, mixup {recipe.mix.mixup:g}, cutmix {recipe.mix.cutmix:g}"),
        ("teacher", recipe.teacher.spec or "none"),
        ("seed", str(recipe.seed)),
    ]
