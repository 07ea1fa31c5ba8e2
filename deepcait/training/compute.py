"""How a step is computed, by the recipe: precision, compilation, processes, and recomputation."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deepcait.model.cait import CaiT
from deepcait.model.network import Network, NetworkConfig
from deepcait.model.variants import CaiTConfig
from deepcait.runtime.processes import Processes
from deepcait.training.settings import Compute

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


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


def describe_compute(model: Network, compute: Compute, device: torch.device) -> str:
    """Return where and how a model trains, such as "cpu, bf16, backend lean (auto)"."""
    backend = f", backend {model.describe_backend(device)}" if isinstance(model, CaiT) else ""
    return f"{device}, {compute.precision}{backend}"


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
    """Return the context in which a step of this precision (fp32, bf16, fp16) computes logits and loss."""
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
