"""Validation of a run: several models on the same images, which are read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from deepcait.data import Preprocessing, Source
from deepcait.data.source import require_labels
from deepcait.evaluation.measure import Loading, Wanted, measure
from deepcait.evaluation.metrics import per_class
from deepcait.evaluation.protocols import Task
from deepcait.training.best import chosen_measure

_BATCH_SIZE = 64
# Starting workers costs seconds; a small validation set is read faster than they start.
_MANY_IMAGES = 5000


class Validation:
    """Evaluates models on the validation images of a run.

    Args:
        source: the images, their labels indices of `classes`.
        classes: index -> class name of the models.
        preprocessing: image -> image_CHW.
        best_by: the recipe's `keep.best_by`.
        num_workers: processes that decode, if there are many images.

    Attributes:
        best_by: the measure that it chooses; the metrics have it.
        device: of the models.
    """

    def __init__(
        self,
        source: Source,
        classes: Sequence[str],
        preprocessing: Preprocessing,
        *,
        best_by: str,
        num_workers: int,
        device: torch.device,
    ) -> None:
        self.source = source
        self.best_by = chosen_measure(best_by, len(source))
        # The labels are the model's already: training opened these images by its classes.
        task = Task("folder", source, [[label] for label in require_labels(source)])
        self.preprocessing = preprocessing
        self.wanted = Wanted(task, list(classes))
        self.loading = Loading(_BATCH_SIZE, num_workers if len(source) > _MANY_IMAGES else 0, device)

    def measure(self, models: Mapping[str, nn.Module]) -> dict[str, dict]:
        """Return the metrics of each model by its name (`top1`, `top5`, `loss`, counts), the same on every process."""
        positions = range(len(self.source))
        found = measure(list(models.values()), self.wanted, positions, self.preprocessing, self.loading)
        metrics: dict[str, dict] = {}
        for name, (counts, records) in zip(models, found, strict=True):
            metrics[name] = counts.metrics().to_dict()
            if self.best_by not in metrics[name]:
                metrics[name][self.best_by] = getattr(per_class(records), self.best_by)
        return metrics

    def row(self, models: Mapping[str, nn.Module], which: str) -> dict:
        """Return a row of `metrics.jsonl`: the metrics of `which`, those of the others by prefix."""
        metrics = self.measure(models)
        row = metrics[which] | {"weights": which}
        for other in metrics.keys() - {which}:
            row |= {f"{other}_{key}": value for key, value in metrics[other].items()}
        return row
