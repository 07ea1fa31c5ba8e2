"""Predictions of a run's best model on its validation images and test part: confusion, and selected errors."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from deepcait.data import Preprocessing, Source, Subset, open_image
from deepcait.data.roles import CHOSE, HELD_OUT
from deepcait.data.source import options_of, require_labels
from deepcait.errors import ConfigError, DeepcaitError, RunError
from deepcait.evaluation import Records, count_cells, map_classes, per_class
from deepcait.evaluation.measure import Loading, Wanted, measure
from deepcait.evaluation.metrics import PerClass
from deepcait.evaluation.protocols import plan_task
from deepcait.explain import class_attention
from deepcait.explain.drawing import enlarge, overlay
from deepcait.model.networks import require_cait
from deepcait.parts import is_part
from deepcait.report.record import Record
from deepcait.training.data import open_training_data
from deepcait.training.recipe import Recipe
from deepcait.weights import resolve
from deepcait.weights.imagenet import readable

NUM_MISTAKES = 8
MAX_IMAGES = 10_000
_BATCH_SIZE = 64
_THUMB_PX = 160


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A misclassified image.

    name: of the sample. label, truth: its class, name and index.
    answers: (class index, name, probability) of the three most probable classes, and of the label if not among them.
    frame, attention: the model's input and its mean class attention; None for a network without one.
    """

    name: str
    label: str
    truth: int
    answers: list[tuple[int, str, float]]
    frame: Image.Image
    attention: Image.Image | None


@dataclass(frozen=True, kw_only=True)
class Tested:
    """Correct predictions on a run's test part, of `num_images` evaluated images out of `total`."""

    correct: int
    num_images: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Results:
    """Predictions of the best model.

    classes: readable names. records: of the evaluated images.
    total: number of validation images, or of the test part if there are none; fewer may have been evaluated.
    worst: most confident errors. nearest: near misses. train_counts: training images per class.
    role: what the images were to the run. test: of the run's test part, None without.
    """

    classes: list[str]
    records: Records
    total: int
    worst: list[Mistake]
    nearest: list[Mistake]
    train_counts: list[int]
    role: str
    test: Tested | None

    @cached_property
    def per_class(self) -> PerClass:
        """Images, predictions and correct predictions of each class."""
        return per_class(self.records)

    @cached_property
    def errors(self) -> tuple[Tensor, Tensor]:
        """(label, prediction) of the errors that occur, (C, 2), and their numbers of images, (C,)."""
        wrong_N = ~self.records.correct_N
        return count_cells(self.records.label_N[wrong_N], self.records.first_N[wrong_N])

    @property
    def right(self) -> Tensor:
        """(N,), whether each image was classified correctly, in the data's order."""
        return self.records.correct_N

    @property
    def names(self) -> Sequence[str]:
        """Names of the images, in the data's order."""
        return self.records.names

    @property
    def num_images(self) -> int:
        """Number of evaluated images."""
        return len(self.records)

    @property
    def correct(self) -> int:
        """Number of correct predictions."""
        return int(self.right.sum())


def measure_run(
    record: Record,
    *,
    data: str | None = None,
    recipe: Recipe | None = None,
    max_images: int = MAX_IMAGES,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Evaluate the run's best model on its validation images, and on its test part.

    Args:
        record: of the run.
        data: DATA in place of the recipe's, if the images have moved.
        recipe: of the training that has just ended, with its own parts; those of a folder are never imported.
        max_images: if there are more, evenly spaced ones are used.
        device: where the model computes.
        progress: called with the images done and the images in total.

    Raises:
        DeepcaitError: there is no model yet, or the data does not exist or has other classes.
        OSError: the data can't be read.
    """
    trained_by = recipe
    recipe = recipe or record.recipe
    if data is not None:
        recipe = recipe_with_data(record, data)
    if trained_by is None and is_part(recipe.data.source) and data is None:
        problem = f"The data of the run is {recipe.data.source}; code that a folder names is not imported."
        raise RunError(problem, remedy="Read that code, then give it as --data.")
    opened = open_training_data(recipe, record.folder)
    own = trained_by is not None and is_part(recipe.model)
    found = resolve(recipe.model, weights=record.folder) if own else resolve(record.folder)
    model = found.model.to(device)
    preprocessing = Preprocessing.from_pretrained_cfg(found.pretrained_cfg)
    shown, role = (opened.validation, CHOSE) if len(opened.validation) else (opened.test, HELD_OUT)
    part = thin_out(shown, max_images)
    if not len(part):
        raise RunError("report: the data has no validation images.", remedy="Give other data with --data.")

    def records_of(source: Source) -> Records:
        wanted, loading = (
            Wanted(plan_task(source, "folder"), found.classes),
            Loading(_BATCH_SIZE, 0, torch.device(device)),
        )
        return measure([model], wanted, range(len(source)), preprocessing, loading, progress)[0][1]

    records = records_of(part)
    if records.probabilities_NT.isnan().any():
        raise RunError(
            "the best model returned NaN or infinite logits.", remedy="Training diverged: lower the learning rate."
        )
    classes = name_classes(found.classes or list(map(str, range(model.num_classes))))
    train_mapping = map_classes(opened.train, found.classes, model.num_classes)
    train_labels = torch.tensor([train_mapping[label] for label in require_labels(opened.train)])
    worst, nearest = (
        [_mistake(part, records, row, model, preprocessing, classes) for row in rows]
        for rows in choose_mistakes(records)
    )
    test = None
    if num_test := len(opened.test):
        tested = records if role == HELD_OUT else records_of(thin_out(opened.test, max_images))
        test = Tested(correct=int(tested.correct_N.sum()), num_images=len(tested), total=num_test)
    return Results(
        classes=classes,
        records=records,
        total=len(shown),
        worst=worst,
        nearest=nearest,
        train_counts=torch.bincount(train_labels, minlength=model.num_classes).tolist(),
        role=role,
        test=test,
    )


def measure_if_possible(record: Record, **options) -> tuple[Results | None, str]:
    """Return the results, or None and the reason.

    Raises:
        DeepcaitError: data given for this report can't be used; for the run's own data the page has a note.
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
    """Return readable names; if classes share one (the two cranes of ImageNet), the stored names are added."""
    names = [readable(name) for name in classes]
    shared = {name for name, count in Counter(names).items() if count > 1}
    return [f"{name} ({stored})" if name in shared else name for name, stored in zip(names, classes, strict=True)]


def thin_out(source: Source, max_images: int) -> Source:
    """Return the source, or `max_images` evenly spaced samples of it."""
    total = len(source)
    if total <= max_images:
        return source
    return Subset(source, [index * total // max_images for index in range(max_images)], split=source.split)


def choose_mistakes(records: Records, count: int = NUM_MISTAKES) -> tuple[list[int], list[int]]:
    """Return the rows of the most confident errors and of the near misses; without duplicates.

    A near miss: the probability of the prediction is only slightly above the label's.
    """
    wrong = (~records.correct_N).nonzero()[:, 0]
    answer_N = records.probabilities_NT[:, 0]
    margin_N = answer_N - (-records.losses_N).exp()
    by_margin = wrong[margin_N[wrong].argsort(stable=True)].tolist()
    by_confidence = wrong[answer_N[wrong].argsort(descending=True, stable=True)].tolist()
    worst = by_confidence[: min(count, -(-len(by_confidence) // 2))]
    return worst, [row for row in by_margin if row not in worst][:count]


def _mistake(
    part: Source, records: Records, row: int, model, preprocessing: Preprocessing, classes: list[str]
) -> Mistake:
    image = open_image(part.read(row).data, name=part.locate(row), options=options_of(part))
    image_1CHW = preprocessing(image)[None].to(next(model.parameters()).device)
    frame = enlarge(preprocessing.frame(image), _THUMB_PX)
    truth = int(records.labels_NL[row, 0])
    shown = dict(zip(records.answers_NT[row, :3].tolist(), records.probabilities_NT[row, :3].tolist(), strict=True))
    shown.setdefault(truth, math.exp(-records.losses_N[row]))
    return Mistake(
        name=part.names[row],
        label=classes[truth],
        truth=truth,
        answers=[(k, classes[k], probability) for k, probability in shown.items()],
        frame=frame,
        attention=_attention(model, image_1CHW, frame),
    )


def _attention(model, image_1CHW: Tensor, frame: Image.Image) -> Image.Image | None:
    try:
        weights_T = class_attention(require_cait(model), image_1CHW)[0].mean((0, 1)).float().cpu()
    except ConfigError:  # a teacher, or a model without class stage
        return None
    return overlay(frame, weights_T[1:].view(model.config.grid).numpy())
