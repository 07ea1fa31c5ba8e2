"""A run's best model on its validation images, one by one: confusion, and the mistakes worth looking at."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from deepcait.data import Preprocessing, Source, Subset, evaluation_loader, open_image
from deepcait.data.source import options_of, require_labels
from deepcait.errors import ConfigError, DeepcaitError, RunError
from deepcait.evaluation import map_classes
from deepcait.explain import class_attention
from deepcait.explain.maps import require_cait
from deepcait.explain.picture import enlarge, overlay
from deepcait.report.record import Record
from deepcait.training.recipe import Recipe
from deepcait.training.run import open_training_data
from deepcait.weights import resolve
from deepcait.weights.imagenet import readable

NUM_MISTAKES = 8
MAX_IMAGES = 10_000
_BATCH_SIZE = 64
_THUMB_PX = 160


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """One picture that was answered wrong.

    name: of the sample. label, truth: its class, name and index.
    answers: (class index, name, probability), the three most probable, and the label's own where it is none of them.
    frame, attention: what it saw, and its mean class attention; None for a network that has none.
    """

    name: str
    label: str
    truth: int
    answers: list[tuple[int, str, float]]
    frame: Image.Image
    attention: Image.Image | None


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the best model answered.

    classes: readable names. confusion: (K, K) counts, rows are labels, columns answers.
    right: (N,), by image, in reading order. names: of the images.
    total: validation images there are; fewer may have been measured.
    worst: most sure and wrong. nearest: wrong by the least. train_counts: training images a class.
    """

    classes: list[str]
    confusion: Tensor
    right: Tensor
    names: list[str]
    total: int
    worst: list[Mistake]
    nearest: list[Mistake]
    train_counts: list[int]

    @property
    def num_images(self) -> int:
        """How many were measured."""
        return len(self.right)

    @property
    def correct(self) -> int:
        """How many were answered right."""
        return int(self.right.sum())


def measure_run(
    record: Record,
    *,
    data: str | None = None,
    max_images: int = MAX_IMAGES,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Let the run's best model answer its validation images.

    Args:
        record: of the run.
        data: data SPEC in place of the recipe's, where the pictures lie elsewhere now.
        max_images: of more, as many are taken at even distances.
        device: where the model computes.
        progress: called with images done and to do.

    Raises:
        DeepcaitError: no model yet, data that is gone or has no such classes.
        OSError: data that can't be read.
    """
    recipe = record.recipe
    if data is not None:
        recipe = recipe_with_data(record, data)
    train_source, source = open_training_data(recipe, lambda line: None)
    found = resolve(record.folder)
    model = found.model.to(device)
    preprocessing = Preprocessing.from_pretrained_cfg(found.pretrained_cfg)
    part = thin_out(source, max_images)
    mapping = torch.tensor(map_classes(part, found.classes, model.num_classes))
    logits, labels = [], []
    with torch.no_grad():
        for images_BCHW, labels_B, _ in evaluation_loader(part, preprocessing, batch_size=_BATCH_SIZE):
            logits.append(model(images_BCHW.to(device)).float().cpu())
            labels.append(mapping[labels_B])
            if progress is not None:
                progress(sum(map(len, labels)), len(part))
    if not logits:
        raise RunError("report: expected validation images, got none.", remedy="Check the data of the run.")
    logits_NK, labels_N = torch.cat(logits), torch.cat(labels)
    if not logits_NK.isfinite().all():
        raise RunError(
            "best: expected logits that are numbers, got others.", remedy="Training diverged, or it is damaged."
        )
    probabilities_NK = logits_NK.double().softmax(-1)
    answers_N = logits_NK.argmax(-1)
    classes = name_classes(found.classes or list(map(str, range(model.num_classes))))

    def look(indices: list[int]) -> list[Mistake]:
        return [_mistake(part, i, model, preprocessing, classes, probabilities_NK[i], labels_N[i]) for i in indices]

    worst, nearest = choose_mistakes(probabilities_NK, labels_N, answers_N)
    train_mapping = map_classes(train_source, found.classes, model.num_classes)
    train_labels = torch.tensor([train_mapping[label] for label in require_labels(train_source)])
    return Results(
        classes=classes,
        confusion=count_confusion(labels_N, answers_N, model.num_classes),
        right=answers_N == labels_N,
        names=list(part.names),
        total=len(source),
        worst=look(worst),
        nearest=look(nearest),
        train_counts=torch.bincount(train_labels, minlength=model.num_classes).tolist(),
    )


def measure_if_possible(record: Record, **options) -> tuple[Results | None, str]:
    """Return the results, or None and the reason that there are none.

    Raises:
        DeepcaitError: data that somebody named for this page is not to be used; of the run's own the page tells.
    """
    if options.get("data"):
        return measure_run(record, **options), ""
    try:
        return measure_run(record, **options), ""
    except DeepcaitError as error:
        return None, f"{error.problem} {error.remedy}"
    except OSError as error:
        return None, f"The data of the run can't be read: {error}."


def recipe_with_data(record: Record, data: str) -> Recipe:
    """Return the run's recipe with other data."""
    return dataclasses.replace(record.recipe, data=dataclasses.replace(record.recipe.data, source=data))


def name_classes(classes: Sequence[str]) -> list[str]:
    """Return readable names; where classes share one (the two cranes of ImageNet), the stored names tell them apart."""
    names = [readable(name) for name in classes]
    shared = {name for name, count in Counter(names).items() if count > 1}
    return [f"{name} ({stored})" if name in shared else name for name, stored in zip(names, classes, strict=True)]


def thin_out(source: Source, max_images: int) -> Source:
    """Return the source, or `max_images` of its samples at even distances."""
    total = len(source)
    if total <= max_images:
        return source
    return Subset(source, [index * total // max_images for index in range(max_images)], split=source.split)


def count_confusion(labels_N: Tensor, answers_N: Tensor, num_classes: int) -> Tensor:
    """Return how often each label (row) got each answer (column), (K, K)."""
    cells = torch.bincount(labels_N * num_classes + answers_N, minlength=num_classes * num_classes)
    return cells.view(num_classes, num_classes)


def choose_mistakes(
    probabilities_NK: Tensor, labels_N: Tensor, answers_N: Tensor, count: int = NUM_MISTAKES
) -> tuple[list[int], list[int]]:
    """Return the indices of the worst mistakes (surest of the wrong answer) and of the nearest to right.

    Nearest: the least by which the answer's probability is above the label's. No picture is in both.
    """
    wrong = (answers_N != labels_N).nonzero()[:, 0]
    answer_N = probabilities_NK.gather(1, answers_N[:, None])[:, 0]
    label_N = probabilities_NK.gather(1, labels_N[:, None])[:, 0]
    by_margin = wrong[(answer_N - label_N)[wrong].argsort(stable=True)].tolist()
    by_surety = wrong[answer_N[wrong].argsort(descending=True, stable=True)].tolist()
    worst = by_surety[: min(count, -(-len(by_surety) // 2))]
    return worst, [index for index in by_margin if index not in worst][:count]


def _mistake(part: Source, index: int, model, preprocessing: Preprocessing, classes, row_K: Tensor, label) -> Mistake:
    picture = open_image(part.read(index).data, name=part.locate(index), options=options_of(part))
    image_1CHW = preprocessing(picture)[None].to(next(model.parameters()).device)
    frame = enlarge(preprocessing.frame(picture), _THUMB_PX)
    ranked, truth = row_K.argsort(descending=True, stable=True)[:3].tolist(), int(label)
    shown = ranked if truth in ranked else [*ranked, truth]
    return Mistake(
        name=part.names[index],
        label=classes[truth],
        truth=truth,
        answers=[(k, classes[k], row_K[k].item()) for k in shown],
        frame=frame,
        attention=_attention(model, image_1CHW, frame),
    )


def _attention(model, image_1CHW: Tensor, frame: Image.Image) -> Image.Image | None:
    try:
        weights_T = class_attention(require_cait(model), image_1CHW)[0].mean((0, 1)).float().cpu()
    except ConfigError:  # a teacher, or an alternative without class stage
        return None
    return overlay(frame, weights_T[1:].view(model.config.grid).numpy())
