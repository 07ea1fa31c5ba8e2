"""How a step is computed, by the recipe: precision, compilation, processes, and recomputation."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deepcait.model.cait import CaiT
from deepcait.model.network import Network, NetworkConfig
from deepcait.model.variants import CaiTConfig
from deepcait.runtime.device import has_bf16
from deepcait.runtime.environment import num_cpus
from deepcait.runtime.processes import Processes, num_local_processes
from deepcait.training.recipe import Recipe
from deepcait.training.settings import Compute

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Data-loading workers that `auto` takes at most: beside a training on the CPU, for a GPU.
_MOST_WORKERS = (4, 16)


def choose_precision(asked: str, device: torch.device) -> str:
    """Return the precision of a training: auto is bf16 on a GPU that has it, fp16 on an older one, else fp32."""
    if asked != "auto":
        return asked
    if device.type != "cuda":
        return "fp32"
    return "bf16" if has_bf16(device) else "fp16"


def choose_workers(asked: int | str, device: torch.device) -> int:
    """Return the number of data-loading workers of a process: auto takes its share of the processors.

    Half of them on a CPU, where the training computes on the same processors; all but one for a GPU.
    """
    if isinstance(asked, int):
        return asked
    share = num_cpus() // num_local_processes()
    most = _MOST_WORKERS[device.type == "cuda"]
    return max(1, min(most, share - 1 if device.type == "cuda" else share // 2))


def choose_settings(recipe: Recipe, device: torch.device) -> Recipe:
    """Return a recipe with what `auto` takes on a device, for precision and data-loading workers."""
    compute = dataclasses.replace(recipe.compute, precision=choose_precision(recipe.compute.precision, device))
    data = dataclasses.replace(recipe.data, num_workers=choose_workers(recipe.data.num_workers, device))
    return dataclasses.replace(recipe, compute=compute, data=data)


def describe_choices(asked: Recipe, chosen: Recipe, device: torch.device) -> str:
    """Return where a recipe computes, in which precision and with how many workers, with the reason of what is auto."""
    precision, workers = chosen.compute.precision, chosen.data.num_workers
    if asked.compute.precision == "auto":
        precision += {"bf16": " (auto: this GPU has it)", "fp16": " (auto: this GPU has no bf16)"}.get(
            precision, f" (auto: {device.type})"
        )
    elif precision == "bf16" and device.type == "cuda" and not has_bf16(device):
        precision += ", which this GPU only emulates"
    if device.type == "cuda":
        precision += ", TF32 for what stays fp32" if uses_tf32(chosen) else ", no TF32"
    text = f"{device}, {precision}, {workers} data-loading worker{'s' * (workers != 1)}"
    if asked.data.num_workers == "auto":
        processes = num_local_processes()
        shared = f" for {processes} processes" if processes > 1 else ""
        text += f" (auto: {num_cpus()} processors{shared})"
    return text


def uses_tf32(recipe: Recipe) -> bool:
    """Whether matrix products that stay in float32 may round their inputs to TF32 on a GPU; runs of 0.1 did not."""
    return recipe.compute.precision != "fp32-strict" and recipe.version > 1


@contextlib.contextmanager
def tf32(device: torch.device, allowed: bool) -> Iterator[None]:
    """Allow or forbid TF32 on a GPU inside the block; the program's own settings are restored."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def set_compute(model: Network, compute: Compute) -> None:
    """Set how a model trains: checkpointing, backend, memory."""
    model.set_grad_checkpointing(compute.grad_checkpointing)
    if isinstance(model, CaiT):
        model.set_backend(compute.backend, small_memory=compute.memory == "small")


def expected_backend(compute: Compute) -> Compute:
    """Return the same settings with "auto" replaced by the backend that it takes on this device; reserves no device."""
    if compute.backend != "auto":
        return compute
    on_gpu = compute.device.startswith("cuda") or (compute.device == "auto" and torch.cuda.is_available())
    return dataclasses.replace(compute, backend="reference" if on_gpu else "lean")


def describe_compute(model: Network, asked: Recipe, chosen: Recipe, device: torch.device) -> str:
    """Return where and how a model trains, such as "cpu, bf16, 2 data-loading workers, backend lean (auto)"."""
    backend = f", backend {model.describe_backend(device)}" if isinstance(model, CaiT) else ""
    return f"{describe_choices(asked, chosen, device)}{backend}"


def note_of(config: NetworkConfig, compute: Compute) -> str:
    """Return a note on settings that have no effect on this network; empty if there are none."""
    compute = expected_backend(compute)
    if compute.memory != "small":
        return ""
    if type(config) is not CaiTConfig:
        why = "it needs the blocks of a plain CaiT, and this network has others"
    elif compute.backend == "reference":
        why = "it belongs to compute.backend=lean, not reference"
    else:
        return ""
    return f"compute.memory=small changes nothing here: {why}; compute.grad_checkpointing=true saves memory"


def autocast(precision: str, device: str = "cpu") -> contextlib.AbstractContextManager:
    """Return the context in which a step of this precision (fp32, fp32-strict, bf16, fp16) computes logits and loss."""
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device, dtype) if dtype else contextlib.nullcontext()


def wrap(model: nn.Module, compute: Compute, processes: Processes) -> nn.Module:
    """Return the model, compiled and wrapped for several processes if requested; the weights are shared."""
    net = cast("nn.Module", torch.compile(model)) if compute.compile else model
    if processes.world_size == 1:
        return net
    on_gpu = next(model.parameters()).is_cuda
    devices = [processes.local_rank] if on_gpu else None
    # Gradients that are views of what is exchanged: two launches fewer per parameter and step.
    return DistributedDataParallel(net, device_ids=devices, gradient_as_bucket_view=on_gpu)
