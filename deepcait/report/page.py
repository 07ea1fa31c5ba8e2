"""The report of one run: read it, let its best model answer once more, write one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deepcait.explain.markup import Markup, bars, colour_legend, element, join, page, picture_element, scroll, table
from deepcait.report import parts
from deepcait.report.record import Record, read_run
from deepcait.report.results import Mistake, Results, measure_if_possible
from deepcait.runtime.files import write_bytes
from deepcait.training.start import start_of
from deepcait.training.watch import duration

FILE_NAME = "report.html"
_MATRIX_CLASSES = 25  # with more, a matrix can't be read: the commonest confusions are listed
_LISTED = 20


def write_report(folder: str | Path, out: str | Path | None = None, **measuring: Any) -> Path:
    """Write the report of a run, finished or not, and return its path.

    Where the data or the model can't be read any more, the page says so and has the rest.

    Args:
        folder: of the run.
        out: the file; None is `report.html` in the run.
        measuring: passed on to `measure_run`: data, max_images, device, progress.

    Raises:
        RunError: no run there.
        WeightsError: the file can't be written.
    """
    record = read_run(folder)
    results, reason = measure_if_possible(record, **measuring)
    path = Path(out) if out is not None else record.folder / FILE_NAME
    write_bytes(path, render_report(record, results, reason).encode())
    return path


def render_report(record: Record, results: Results | None, reason: str) -> str:
    """Return the page.

    Args:
        results: what the best model answered; None where it could not be asked.
        reason: why not.
    """
    sections = [
        ("curves", "Curves", parts.curves([record])),
        ("metrics", "Final metrics", _metrics(record, results)),
        ("confusion", "Confusion", _confusion(results) if results else _missing(reason)),
        ("mistakes", "Mistakes", _mistakes(results) if results else _missing(reason)),
        ("data", "Data", _data(record, results)),
        ("recipe", "Recipe", _recipe(record)),
        ("environment", "Environment", parts.definition(list(parts.flat_environment(record).items()))),
        ("repeat", "Repeat it", _repeat(record)),
    ]
    header = join(
        element("p", "deepcait report", class_="kicker"),
        element("h1", record.name),
        element("p", parts.model_words(record), class_="lead"),
        _tiles(record),
        parts.contents([(anchor, title) for anchor, title, _ in sections]),
    )
    main = join(*(parts.section(anchor, title, body) for anchor, title, body in sections))
    return page(f"{record.name}: report", header, main, parts.footer())


def _tiles(record: Record) -> Markup:
    best = record.best
    count = best.get("num_images")
    sure = parts.interval(best.get("correct1"), count)
    notes = [f"95 %: {sure}"] * bool(sure) if best else ["not evaluated"]
    notes += [f"chance {parts.percent(1 / record.num_classes)}"] if record.num_classes else []
    top5 = parts.tile("Top-5", parts.percent(best.get("top5")), parts.interval(best.get("correct5"), count))
    speed = record.images_per_s
    return parts.tiles(
        parts.tile("Top-1, best", parts.percent(best.get("top1")), "; ".join(notes)),
        *[top5] * record.has_top5,
        parts.tile("Validation loss", f"{best['loss']:.4f}" if best.get("loss") is not None else "–", "nats an image"),
        parts.tile("Best epoch", str(best.get("epoch", "–")), f"of {record.recipe.epochs}"),
        parts.tile(
            "Training time",
            duration(record.seconds) if record.seconds else "–",
            f"{speed:,.0f} images a second" if speed else "",
        ),
    )


def _metrics(record: Record, results: Results | None) -> Markup:
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
            ]
        )
    if not rows:
        return element("p", "This run was not evaluated yet.", class_="soft")
    columns = ["model", "top-1", "95 % interval", *["top-5", "95 % interval"] * record.has_top5]
    columns += ["loss (nats)", "images"]
    caption = (
        "Intervals are Wilson's: what chance in drawing these validation images leaves open; other seeds are not in."
    )
    weights = {"ema": "averaged", "raw": "raw"}.get(str(record.best.get("weights")), "")
    note = f"The {weights} weights were evaluated. " if weights else ""
    return join(
        table("Final metrics", columns, rows, caption=caption),
        element("p", note + _checked(record, results), class_="soft", style="margin-top: 12px"),
    )


def _checked(record: Record, results: Results | None) -> str:
    """Whether the saved model answers as it did during training."""
    if results is None:
        return ""
    share = f"{results.correct:,} of {results.num_images:,} right"
    if results.num_images < results.total:
        return f"Asked again for this report on every {results.total / results.num_images:.3g}th image: {share}."
    told, total = record.best.get("correct1"), record.best.get("num_images")
    if told is None:
        return f"Asked again for this report: {share}."
    if (told, total) == (results.correct, results.num_images):
        return f"Asked again for this report: {share}, the same count as during training."
    return f"Asked again for this report: {share}, NOT what training counted: {told:,} of {total:,}."


def _confusion(results: Results) -> Markup:
    wrong = results.num_images - results.correct
    intro = f"{results.num_images:,} validation images, {wrong:,} answered wrong."
    if results.num_images < results.total:
        intro += f" They are {results.num_images:,} of {results.total:,}, at even distances."
    matrix = _matrix(results) if len(results.classes) <= _MATRIX_CLASSES else None
    return join(element("p", intro, class_="soft"), matrix, _commonest(results))


def _matrix(results: Results) -> Markup:
    head = element("tr", element("td", ""), *(element("th", name, scope="col", title=name) for name in results.classes))
    body = []
    for row, (name, counts) in enumerate(zip(results.classes, results.confusion.tolist(), strict=True)):
        total = sum(counts)
        cells = [
            element(
                "td",
                str(count) if count else "·",
                class_="right" if column == row else None,
                style=f"--share: {count / total if total else 0:.3f}",
                title=f"{name} answered {results.classes[column]}: {count} of {total}",
            )
            for column, count in enumerate(counts)
        ]
        body.append(element("tr", element("th", name, scope="row", title=name), *cells))
    made = element(
        "table",
        element("caption", "Rows: the label. Columns: the answer. Shade: share of the row. Framed: right."),
        element("thead", head),
        element("tbody", *body),
        class_="confusion",
    )
    return scroll("Confusion matrix", made)


def _commonest(results: Results) -> Markup | None:
    counts_KK = results.confusion.clone().fill_diagonal_(0)
    K = len(results.classes)
    totals = results.confusion.sum(1).tolist()
    cells = counts_KK.flatten().argsort(descending=True, stable=True)[:_LISTED].tolist()
    rows = [
        [results.classes[cell // K], results.classes[cell % K], f"{int(counts_KK.flatten()[cell]):,}"]
        + [f"{int(counts_KK.flatten()[cell]) / totals[cell // K]:.1%}"]
        for cell in cells
        if counts_KK.flatten()[cell] > 0
    ]
    if not rows:
        return None
    made = table("The commonest confusions", ["label", "answered", "images", "of the label"], rows)
    return element("details", element("summary", "The commonest confusions"), made, open=K > _MATRIX_CLASSES)


def _mistakes(results: Results) -> Markup:
    if not results.worst:
        return element("p", "No validation image was answered wrong.", class_="soft")
    looked = any(mistake.attention for mistake in results.worst)
    words = (
        "Left: what the model saw. Right: its class attention, the mean of the softmax weights over class blocks and "
        "heads, class key dropped; the class stage mixes no heads."
        if looked
        else "What the model saw. It has no class attention, so there is no map of where it looked."
    )
    return join(
        element("p", words, class_="soft"),
        colour_legend() if looked else None,
        element("h3", "The worst: surest of a wrong answer", style="margin: 16px 0 12px"),
        element("div", *map(_card, results.worst), class_="grid mistakes"),
        element("h3", "The best: wrong by the least", style="margin: 24px 0 12px") if results.nearest else None,
        element("div", *map(_card, results.nearest), class_="grid mistakes") if results.nearest else None,
    )


def _card(mistake: Mistake) -> Markup:
    target, answer, _ = mistake.answers[0]
    what = f"{mistake.label} answered as {answer}"
    pair = element(
        "div",
        picture_element(mistake.frame, f"{what}: the picture {mistake.name}", class_="pixels"),
        picture_element(mistake.attention, f"{what}: where the class token looked") if mistake.attention else None,
        class_="pair",
    )
    caption = join(
        # Each apart: two names that are read from right to left would exchange their places around the arrow.
        element("strong", element("bdi", mistake.label), " → ", element("bdi", answer)),
        element("code", mistake.name),
        bars(mistake.answers, target=target, truth=mistake.truth),
    )
    return element("figure", pair, element("figcaption", caption))


def _data(record: Record, results: Results | None) -> Markup:
    data = record.data
    facts = [("source", record.recipe.data.source)]
    facts += [(name, f"{data[key]:,} images") for name, key in _COUNTED if isinstance(data.get(key), int)]
    facts += [("classes", f"{len(data['classes']):,}")] if isinstance(data.get("classes"), list) else []
    facts += [("fingerprint", str(data["fingerprint"]))] if data.get("fingerprint") else []
    known = parts.definition(facts)
    if results is None:
        return known
    rows = []
    for index, name in enumerate(results.classes):
        total, right = int(results.confusion[index].sum()), int(results.confusion[index, index])
        share = parts.percent(right / total) if total else "–"
        rows.append([name, f"{results.train_counts[index]:,}", f"{total:,}", share, parts.interval(right, total)])
    caption = "Training images, and of the validation images asked the share answered right (recall)."
    made = table("Class by class", ["class", "training", "asked", "right", "95 % interval"], rows, caption=caption)
    few = len(rows) <= _MATRIX_CLASSES
    return join(known, element("details", element("summary", "Class by class"), made, open=few))


_COUNTED = (("training", "num_train"), ("validation", "num_validation"))


def _recipe(record: Record) -> Markup:
    recipe = record.recipe
    facts = [
        ("start", start_of(recipe)),
        ("length", f"{parts.counted(recipe.epochs, 'epoch')}, {recipe.global_batch_size:,} images a step"),
        (
            "learning rate",
            f"{recipe.peak_lr:g} at its peak ({recipe.optimizer.name}, decay {recipe.optimizer.weight_decay})",
        ),
        ("augmentation", f"crop {recipe.augment.crop}, mixup {recipe.mix.mixup:g}, cutmix {recipe.mix.cutmix:g}"),
        ("teacher", recipe.teacher.spec or "none"),
        ("seed", str(recipe.seed)),
    ]
    summary = element("p", recipe.about.summary, class_="soft") if recipe.about.summary else None
    whole = element("details", element("summary", "The whole recipe (config.yaml)"), parts.code(record.recipe_text))
    return join(summary, parts.definition(facts), whole)


def _repeat(record: Record) -> Markup:
    words = (
        "The recipe in the run folder starts the same run again: same order of data, same randomness. Relative paths "
        "in it begin where the run was started."
    )
    return join(element("p", words, class_="soft"), parts.code(parts.repeat_command(record)))


def _missing(reason: str) -> Markup:
    return join(
        element("p", "The best model could not be asked again, so this part is missing."),
        element("p", reason, class_="soft"),
        element("p", "Where the pictures lie elsewhere now: ", element("code", "deepcait report RUN --data PLACE")),
    )
