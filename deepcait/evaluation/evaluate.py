"""Evaluate a classifier on labelled images."""

from __future__ import annotations

import dataclasses
import os
import warnings as python_warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset

from deepcait.data import Preprocessing, Source
from deepcait.data.columns import USUAL, Columns
from deepcait.data.record import columns_for, find_record
from deepcait.errors import ConfigError, EvaluationWarning
from deepcait.evaluation.batches import Batches, as_data, looks_raw, measure_batches
from deepcait.evaluation.classes import model_classes, pretrained_cfg
from deepcait.evaluation.counts import Metrics
from deepcait.evaluation.measure import Loading, Wanted, is_shared, measure
from deepcait.evaluation.protocols import check_complete, open_with_roles, plan_task
from deepcait.evaluation.records import Records
from deepcait.evaluation.safeguards import (
    better_normalisation,
    declares_normalisation,
    near_chance,
    near_constant,
    no_numbers,
    other_preprocessing,
    seen_in_training,
    wrong_order,
)
from deepcait.runtime.messages import in_notebook
from deepcait.runtime.messages import progress as show_progress
from deepcait.runtime.state import undisturbed

_Progress: TypeAlias = Callable[[int, int], None]


class Ready(Protocol):
    """A model with classes and preprocessing, such as a `deepcait.Classifier`.

    network: the torch module that computes logits.
    classes: index -> class name; None if it has no names.
    preprocessing: image -> image_CHW.
    """

    network: nn.Module
    classes: list[str] | None
    preprocessing: Preprocessing


class Trained(Protocol):
    """A run, such as a `deepcait.Run`; its best model is evaluated."""

    @property
    def classifier(self) -> Ready:
        """The best model."""
        ...


@undisturbed()
def evaluate(
    model: nn.Module | Ready | Trained,
    data: str | os.PathLike[str] | Source | Dataset | DataLoader | Mapping[str, Dataset],
    *,
    protocol: str = "folder",
    preprocessing: Preprocessing | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    split: str | None = None,
    columns: Columns = USUAL,
    classes: Sequence[str] | None = None,
    class_mask: str | Sequence[str | int] | None = None,
    real_labels: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Metrics:
    """Evaluate a model: correct predictions and loss are summed over every image once, then divided.

    Under torch.distributed each process evaluates every world-size-th image, without padding, and all of them return
    the same metrics. The model is put into evaluation mode; its own modes are restored.

    >>> from deepcait import load
    >>> metrics = evaluate(load("builtin:nano", device="cpu"), "builtin:demo", split="test")
    >>> metrics.num_images, metrics.top1 == metrics.correct1 / metrics.num_images
    (500, True)

    Args:
        model: returns logits (B, K) for images (B, C, H, W); or a `deepcait.Classifier`, whose own preprocessing and
            classes are the defaults; or a `deepcait.Run`.
        data: a DATA; an open source; a torch `Dataset` of (image, label), or several by split, whose images get the
            preprocessing; or a `DataLoader` of (images (B, C, H, W), labels (B,)), whose batches go to the model as
            they are. Their labels are indices of the dataset's `classes`, which are found in the model's by name;
            without `classes` they are the model's own.
        protocol: "folder" (the data's labels), "imagenet", "real" or "v2", see `protocols`.
        preprocessing: image -> image_CHW; None means that of the model's `pretrained_cfg`. Not used for a DataLoader.
        batch_size: images per step; does not change the result. A DataLoader has its own.
        num_workers: worker processes; does not change the result. A DataLoader has its own.
        split: train, val, test or all; None means test, else val, else all. For the model of a run None means test,
            else the run's own test part, else its validation part, without images that it trained on.
        columns: of a table whose columns are not called as usual: `deepcait.data.Columns(label="breed")`. If none are
            given, the own data of a run is read with the columns that it was trained with.
        classes: index -> class name of the model; None means `label_names` of its `pretrained_cfg`, else the wnids for
            1,000 outputs and data with wnids, else the classes of the data, whose number must then be equal.
        class_mask: the classes that may be predicted: "data" for those of the data (as is usual for ImageNet-A and
            -R), or names or indices; None means all.
        real_labels: for "real": the file of labels; None means the copy in timm's package.
        device: the model is moved to it; None keeps the model's device.
        progress: called after each step with this process's images done and in total. None: a bar in a notebook.

    Returns:
        The metrics, with `records` of every image and the `warnings`.

    Warns:
        EvaluationWarning: for each of the metrics' `warnings`; under torch.distributed in process 0 only.

    Raises:
        ConfigError: the model is not a torch module, a protocol or split is unknown, there is no preprocessing, or a
            class mask is not valid.
        DataError: the model does not have a class or label, an image can't be read, or the data is not that of
            the protocol.
    """
    # Recognised by attributes, since the classes are in a higher layer.
    ready = model if isinstance(model, nn.Module) else cast("Ready", getattr(model, "classifier", model))
    options, spec = getattr(ready, "image_options", None), getattr(ready, "spec", None)
    model, preprocessing, classes = _taken_apart(ready, preprocessing, classes)
    classes = model_classes(model) if classes is None else list(classes)
    if device is not None:
        model.to(device)
    device = next((tensor.device for tensor in model.parameters()), torch.device(device or "cpu"))
    if isinstance(data, DataLoader):
        _require_no_options(protocol=protocol, split=split, real_labels=real_labels, columns=columns)
        how = Batches(data, classes, class_mask, device)
        with _watched(progress) as update:
            counts, records, doubts = measure_batches(model, how, update)
        doubts += [doubt for doubt in [looks_raw(model, how)] if doubt]
        return _finished(counts.metrics(), records, doubts)
    record = None
    if isinstance(spec, str):
        record = find_record(spec)
        columns = columns_for(spec, data, columns) if isinstance(data, str | os.PathLike) else columns
    how = {"split": split, "protocol": protocol, "options": options, "columns": columns}
    source, roles = open_with_roles(as_data(data, classes), record, **how)
    task = plan_task(source, protocol, real_labels)
    wanted = Wanted(task, classes, class_mask)
    given, preprocessing = preprocessing, preprocessing or model_preprocessing(model)
    how = Loading(batch_size, num_workers, device)
    with _watched(progress) as update:
        ((counts, records),) = measure([model], wanted, range(len(task.source)), preprocessing, how, update)

    def ask_again(other: Preprocessing, rows: Sequence[int]) -> Records:
        positions = records.positions_N[list(rows)].tolist()
        ((_, again),) = measure([model], wanted, positions, other, how)
        return again

    unknown = given is not None and not declares_normalisation(model)
    doubts = [
        *task.warnings,
        *check_complete(task, records.num_classes),
        *seen_in_training(roles),
        other_preprocessing(model, preprocessing),
        better_normalisation(records, preprocessing, ask_again) if unknown else None,
    ]
    metrics = dataclasses.replace(counts.metrics(), num_skipped=task.num_skipped, roles=roles)
    return _finished(metrics, records, [doubt for doubt in doubts if doubt])


@contextmanager
def _watched(update: _Progress | None) -> Iterator[_Progress | None]:
    """What is called with the progress: what was given; nothing; in a notebook a bar."""
    if update is not None or not in_notebook():
        yield update
    else:
        with show_progress("evaluating") as bar:
            yield bar


def _finished(metrics: Metrics, records: Records, doubts: Sequence[str]) -> Metrics:
    """The metrics with records and warnings, which the main process also raises as Python's warnings."""
    found = wrong_order(records)
    all_doubts = [
        *doubts,
        no_numbers(records),
        near_chance(metrics, records.num_possible) or near_constant(metrics, records),
        found[0] if found else None,
    ]
    warnings = tuple(doubt for doubt in all_doubts if doubt is not None)
    for text in warnings if not is_shared() or dist.get_rank() == 0 else ():
        python_warnings.warn(text, EvaluationWarning, stacklevel=4)  # the caller of `evaluate`, past its decorator
    proposed = found[1] if found else None
    return dataclasses.replace(metrics, records=records, warnings=warnings, proposed_order=proposed)


def _require_no_options(**given: Any) -> None:
    """Raise if an option was given that a DataLoader, which yields batches, makes meaningless."""
    for name, value in given.items():
        if value not in (None, "folder", USUAL):
            raise ConfigError(
                f"{name} ({str(value)!r}) can't be used with a DataLoader.",
                remedy="Leave it out, or give DATA or a Dataset.",
            )


def _taken_apart(
    model: nn.Module | Ready, preprocessing: Preprocessing | None, classes: Sequence[str] | None
) -> tuple[nn.Module, Preprocessing | None, Sequence[str] | None]:
    """The torch module, the preprocessing and the classes, as given or from a Classifier."""
    if isinstance(model, nn.Module):
        return model, preprocessing, classes
    network, own = getattr(model, "network", None), getattr(model, "preprocessing", None)
    if not isinstance(network, nn.Module) or not isinstance(own, Preprocessing):
        raise ConfigError(
            f"model: expected a torch module or a deepcait.Classifier, got {type(model).__name__}.",
            remedy="Load a name, a folder or a file with deepcait.load(MODEL).",
        )
    return network, preprocessing or own, getattr(model, "classes", None) if classes is None else classes


def model_preprocessing(model: nn.Module) -> Preprocessing:
    """Return the preprocessing of the model's `pretrained_cfg`.

    Raises:
        ConfigError: the model has none.
    """
    cfg = pretrained_cfg(model)
    if not cfg.get("input_size"):
        raise ConfigError(
            "preprocessing: not given, and the model has no pretrained_cfg.",
            remedy="Pass preprocessing=deepcait.data.Preprocessing(img_size=(224, 224)), for example.",
        )
    return Preprocessing.from_pretrained_cfg(cfg)
