"""Measure any classifier on labelled images."""

from __future__ import annotations

import dataclasses
import os
import warnings as python_warnings
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import nn

from deepcait.data import Preprocessing, Source
from deepcait.errors import ConfigError
from deepcait.evaluation.classes import model_classes, pretrained_cfg
from deepcait.evaluation.counts import Metrics
from deepcait.evaluation.measure import Loading, Wanted, is_shared, measure
from deepcait.evaluation.protocols import check_complete, open_for, plan_task
from deepcait.evaluation.records import Records
from deepcait.evaluation.safeguards import (
    better_normalisation,
    declares_normalisation,
    near_chance,
    near_constant,
    no_numbers,
    other_preprocessing,
    wrong_order,
)


def evaluate(
    model: nn.Module,
    data: str | os.PathLike[str] | Source,
    *,
    protocol: str = "folder",
    preprocessing: Preprocessing | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    class_mask: str | Sequence[str | int] | None = None,
    real_labels: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> Metrics:
    """Count right answers and add up the loss over every image once, then divide.

    Under torch.distributed each process takes every world-size-th image, without padding, and all of them
    return the same metrics. The model is in evaluation mode meanwhile; its own modes are restored.

    >>> from deepcait import load
    >>> metrics = evaluate(load("builtin:nano", device="cpu").model, "builtin:demo", split="test")
    >>> metrics.num_images, metrics.top1 == metrics.correct1 / metrics.num_images
    (500, True)

    Args:
        model: returns logits (B, K) for images (B, C, H, W).
        data: a data SPEC, or an open source.
        protocol: "folder", labels as they lie; "imagenet", "real" or "v2", see `protocols`.
        preprocessing: picture -> image_CHW; None takes what the model's `pretrained_cfg` says.
        batch_size: images a step; changes no count.
        num_workers: processes that decode; changes nothing measured.
        split: train, val, test or all; None takes test, else val, else all.
        classes: index -> class name of the model; None takes `label_names` of its `pretrained_cfg`, else the wnids for
            1,000 outputs and data of wnids, else the classes of the data in their order, which must then be as many.
        class_mask: the only classes that may be answered: "data" for those of the data (as is usual for ImageNet-A and
            -R), or their names or indices; None lets all through.
        real_labels: for "real": the file of labels; None takes the copy in timm's package.
        device: the model is moved there and stays; None leaves it where it is.
        progress: called after each step with the images done and to do, of this process.
        warn: called with each sentence that a safeguard has to say; None makes it a Python warning.

    Returns:
        The metrics, with `records` of every image and the `warnings`.

    Raises:
        ConfigError: no torch module, an unknown protocol or split, no preprocessing known, a class mask that does not
            fit.
        DataError: a class or label that the model does not have, an image that can't be read, data that is not what
            the protocol is about.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model: expected a torch module, got {type(model).__name__}.",
            remedy="Of a deepcait.Classifier give its `model`, and preprocessing= and classes= as it has them.",
        )
    task = plan_task(open_for(data, split=split, protocol=protocol), protocol, real_labels)
    wanted = Wanted(task, model_classes(model) if classes is None else list(classes), class_mask)
    given, preprocessing = preprocessing, preprocessing or model_preprocessing(model)
    if device is not None:
        model.to(device)
    device = next((tensor.device for tensor in model.parameters()), torch.device(device or "cpu"))
    how = Loading(batch_size, num_workers, device)
    counts, records = measure(model, wanted, range(len(task.source)), preprocessing, how, progress)
    metrics = counts.metrics()

    def ask_again(other: Preprocessing, rows: Sequence[int]) -> Records:
        positions = records.positions_N[list(rows)].tolist()
        return measure(model, wanted, positions, other, how)[1]

    found = wrong_order(records)
    unknown = given is not None and not declares_normalisation(model)
    warnings = [
        *task.warnings,
        *check_complete(task, records.num_classes),
        other_preprocessing(model, preprocessing),
        better_normalisation(records, preprocessing, ask_again) if unknown else None,
        no_numbers(records),
        near_chance(metrics, records.num_possible) or near_constant(metrics, records),
        found[0] if found else None,
    ]
    told = tuple(warning for warning in warnings if warning is not None)
    _tell(told, warn)
    return dataclasses.replace(
        metrics,
        num_skipped=task.num_skipped,
        records=records,
        warnings=told,
        proposed_order=found[1] if found else None,
    )


def model_preprocessing(model: nn.Module) -> Preprocessing:
    """Return the preprocessing that the model's `pretrained_cfg` asks for.

    Raises:
        ConfigError: the model says nothing.
    """
    cfg = pretrained_cfg(model)
    if not cfg.get("input_size"):
        raise ConfigError(
            "preprocessing: expected it as an argument or in the model's pretrained_cfg, got neither.",
            remedy="Pass preprocessing=deepcait.data.Preprocessing(img_size=(224, 224)), for example.",
        )
    return Preprocessing.from_pretrained_cfg(cfg)


def _tell(warnings: Sequence[str], warn: Callable[[str], None] | None) -> None:
    if is_shared() and dist.get_rank() != 0:
        return
    for text in warnings:
        if warn is not None:
            warn(text)
        else:
            # The line of whoever called `evaluate`.
            python_warnings.warn(text, UserWarning, stacklevel=3)
