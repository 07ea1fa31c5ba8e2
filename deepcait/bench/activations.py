"""Count the activation memory of inference and training, by batch size and resolution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import nn

from deepcait.bench.memory import live_bytes
from deepcait.inference.fold import fold
from deepcait.model.cait import CaiT
from deepcait.model.network import NetworkConfig
from deepcait.model.networks import build_model
from deepcait.model.variants import CaiTConfig
from deepcait.training.footprint import training_bytes
from deepcait.training.settings import Compute

# How a recipe can train: the name of the result's column, and the settings.
PATHS = {
    "training_bytes": Compute(),
    "training_small_bytes": Compute(memory="small"),
    "training_checkpointing_bytes": Compute(grad_checkpointing=True),
}


def count_activations(
    config: NetworkConfig, sizes: Sequence[tuple[int, int]], batches: Sequence[int]
) -> list[dict[str, int | list[int]]]:
    """Return the bytes of float32 activations, without weights, for every resolution and batch size.

    Inference: peak activation memory, eager, on one thread. Training: activations saved for the backward pass by
    default, with `compute.memory=small`, and with `compute.grad_checkpointing=true`. Counted for one image and for two;
    every further image takes as much as the second.

    Args:
        config: the model's.
        sizes: (H, W) of images in pixels; divisible by the patch side.
        batches: images per call; in training, images per replica.

    Returns:
        Rows of img_size, batch, inference_bytes, training_bytes, training_small_bytes, training_checkpointing_bytes.
    """
    rows = []
    for height, width in sizes:
        sized = config.replace(img_size=(height, width))
        lines = {"inference_bytes": _line(lambda batch, sized=sized: inference_bytes(sized, batch))}
        for name, compute in PATHS.items():
            lines[name] = _line(lambda batch, sized=sized, compute=compute: training_bytes(sized, compute, batch))
        rows += [
            {"img_size": [height, width], "batch": batch, **{name: line(batch) for name, line in lines.items()}}
            for batch in batches
        ]
    return rows


def inference_bytes(config: NetworkConfig, batch: int) -> int:
    """Count the peak activation memory of inference with the engine eager, in bytes.

    Two blocks are enough, since more of them have the same peak. One thread, since each thread has its own buffers,
    with which memory would not be a linear function of the batch size.
    """
    shallow = config.replace(depth=min(2, config.depth)) if type(config) is CaiTConfig else config
    model = build_model(shallow).eval()
    if type(model) is CaiT:
        model = cast("nn.Module", fold(model))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        return live_bytes(model, torch.zeros(batch, config.in_chans, *config.img_size))
    finally:
        torch.set_num_threads(threads)


def _line(count: Callable[[int], int]) -> Callable[[int], int]:
    """Extrapolate linearly from the counts of one image and of two."""
    one, two = count(1), count(2)
    return lambda batch: one + (batch - 1) * (two - one)
