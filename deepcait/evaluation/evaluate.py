"""Measure any classifier on labelled images."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from deepcait.data import NO_LABEL, Preprocessing, RaisingLoader, Source, Subset, evaluation_loader, open_split
from deepcait.errors import ConfigError, DataError, DeepcaitError, ShapeError
from deepcait.evaluation.classes import map_classes, model_classes, pretrained_cfg
from deepcait.evaluation.counts import Counts, Metrics

PROTOCOLS = ("folder", "imagenet", "real", "v2")


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
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Metrics:
    """Count right answers and add up the loss over every image once, then divide.

    Under torch.distributed each process takes every world-size-th image, without padding, and all of them
    return the same metrics. The model is in evaluation mode meanwhile; its own modes are restored.

    Args:
        model: returns logits (B, K) for images (B, C, H, W).
        data: a data SPEC, or an open source.
        protocol: "folder", labels as they lie; the others come later.
        preprocessing: picture -> image_CHW; None takes what the model's `pretrained_cfg` says.
        batch_size: images a step; changes no count.
        num_workers: processes that decode; changes nothing measured.
        split: train, val, test or all; None takes test, else val, else all.
        classes: index -> class name of the model; None takes `label_names` of its `pretrained_cfg`, else the
            classes of the data in their order, which must then be as many as the model's.
        device: the model is moved there and stays; None leaves it where it is.
        progress: called after each step with the images done and to do, of this process.

    Raises:
        ConfigError: an unknown protocol or split, no preprocessing known.
        DataError: a class or label that the model does not have, an image that can't be read.
    """
    require_protocol(protocol)
    source = open_for(data, split=split)
    classes = model_classes(model) if classes is None else list(classes)
    preprocessing = preprocessing or model_preprocessing(model)
    if device is not None:
        model.to(device)
    device = next((tensor.device for tensor in model.parameters()), torch.device(device or "cpu"))
    part = _share(source)
    loader = evaluation_loader(
        part,
        preprocessing,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        device=device,
    )
    error, counts = None, Counts()
    try:
        counts = _count(model, loader, part, classes, device, progress)
    except DeepcaitError as caught:
        error = caught
    _raise_together(error)
    return counts.merge(device if _is_shared() and dist.get_backend() == "nccl" else "cpu").metrics()


def require_protocol(protocol: str) -> None:
    """Pass for the protocol of this version.

    Raises:
        ConfigError: an unknown protocol, or one that is not in this version.
    """
    if protocol == "folder":
        return
    if protocol in PROTOCOLS:
        raise ConfigError(f"protocol: {protocol!r} is not in this version yet.", remedy="Use folder.")
    near = difflib.get_close_matches(protocol, PROTOCOLS, n=1)
    raise ConfigError(
        f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}.",
        remedy=f"Did you mean {near[0]}?" if near else "Use folder.",
    )


def open_for(data: str | os.PathLike[str] | Source, *, split: str | None = None) -> Source:
    """Open what is to be evaluated: a data SPEC's test, else val, else all; an open source as it is.

    Raises:
        ConfigError: a split for a source that is open already.
    """
    if isinstance(data, str | os.PathLike):
        return open_split(data, "eval", split=split)
    if split not in (None, data.split):
        raise ConfigError(
            f"split: expected none, since the source is open already, got {split!r}.",
            remedy="Open that split of it, or give the data as a SPEC.",
        )
    return data


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


def _count(
    model: nn.Module,
    loader: RaisingLoader,
    part: Source,
    classes: Sequence[str] | None,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> Counts:
    """Count over the images of this process."""
    counts, mapping = Counts(), None
    with _evaluation_mode(model):
        for images_BCHW, labels_B, indices_B in loader:
            logits_BK = _logits(model, images_BCHW.to(device, non_blocking=True))
            if mapping is None:
                mapping = torch.tensor(map_classes(part, classes, logits_BK.shape[1]))
            counts.update(logits_BK, mapping[_require_labels(labels_B, indices_B, part)])
            if progress is not None:
                progress(counts.num_images, len(part))
    return counts


def _is_shared() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _raise_together(error: DeepcaitError | None) -> None:
    """Raise the first error of any process in all of them: none waits for one that gave up, and rank 0 can tell."""
    errors: list[Any] = [error]
    if _is_shared():
        errors = [None] * dist.get_world_size()
        gather: Any = dist.all_gather_object  # its annotation is narrower than what it takes
        gather(errors, error)
    for raised in errors:
        if raised is not None:
            raise raised


def _share(source: Source) -> Source:
    """The images of this process: every world-size-th, from its rank on; no image twice."""
    if not _is_shared():
        return source
    return Subset(source, range(dist.get_rank(), len(source), dist.get_world_size()), split=source.split)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module is in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _logits(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    logits_BK = model(images_BCHW)
    if not isinstance(logits_BK, Tensor) or logits_BK.ndim != 2 or logits_BK.shape[0] != images_BCHW.shape[0]:
        got = tuple(logits_BK.shape) if isinstance(logits_BK, Tensor) else type(logits_BK).__name__
        raise ShapeError(
            f"model: expected logits (B={images_BCHW.shape[0]}, K), got {got}.",
            remedy="Give a module that returns one row of logits an image.",
        )
    return logits_BK


def _require_labels(labels_B: Tensor, indices_B: Tensor, source: Source) -> Tensor:
    missing_B = labels_B == NO_LABEL
    if missing_B.any():
        where = source.locate(int(indices_B[missing_B][0]))
        raise DataError(
            f"{where}: expected an image with a label, got one without.",
            remedy="Evaluate labelled data; `deepcait predict` takes images without labels.",
        )
    return labels_B
