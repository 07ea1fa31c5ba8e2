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
from deepcait.runtime.device import bf16_is_faster, device_type, has_bf16, why_not_compiled
from deepcait.runtime.environment import num_cpus
from deepcait.runtime.processes import Processes, num_local_processes
from deepcait.training.recipe import Recipe
from deepcait.training.settings import Compute

# Data-loading workers that `auto` takes at most: with a training on the CPU, and for a GPU.
_MOST_WORKERS = (4, 16)
# Share of the activations that compiled blocks store if memory is small.
SMALL_BUDGET = 0.2


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


def choose_compile(compute: Compute, device: torch.device) -> bool | str:
    """Return how the steps of a training are compiled: auto takes blocks on a GPU whose kernels can be compiled here.

    Without gradient checkpointing only, which stores less already, and for the backend reference: lean's operators are
    closed to the compiler.
    """
    if compute.compile != "auto":
        return compute.compile
    open_blocks = compute.backend in ("auto", "reference") and not compute.grad_checkpointing
    return "blocks" if open_blocks and device.type == "cuda" and not why_not_compiled(device) else False


def choose_settings(recipe: Recipe, device: torch.device) -> Recipe:
    """Return a recipe with what `auto` takes on a device, for precision, compilation and data-loading workers."""
    compute = dataclasses.replace(
        recipe.compute,
        precision=choose_precision(recipe.compute.precision, device),
        compile=choose_compile(recipe.compute, device),
    )
    data = dataclasses.replace(recipe.data, num_workers=choose_workers(recipe.data.num_workers, device))
    return dataclasses.replace(recipe, compute=compute, data=data)


def describe_choices(asked: Recipe, chosen: Recipe, device: torch.device) -> str:
    """Return where a recipe computes, in which precision and with how many workers, with the reason of what is auto."""
    precision, workers = chosen.compute.precision, chosen.data.num_workers
    if asked.compute.precision == "auto":
        precision += {"bf16": " (auto: this GPU has it)", "fp16": " (auto: this GPU has no bf16)"}.get(
            precision, f" (auto: {device.type})"
        )
    elif precision == "bf16":
        precision += _bf16_note(device)
    if device.type == "cuda":
        precision += ", TF32 for what stays fp32" if uses_tf32(chosen) else ", no TF32"
    text = f"{device}, {precision}{_compilation(asked, chosen, device)}"
    text += f", {workers} data-loading worker{'s' * (workers != 1)}"
    if asked.data.num_workers == "auto":
        processes = num_local_processes()
        shared = f" for {processes} processes" if processes > 1 else ""
        text += f" (auto: {num_cpus()} processors{shared})"
    return text


def _bf16_note(device: torch.device) -> str:
    """What is slow about bf16 on a device; empty if nothing is."""
    if device.type not in ("cuda", "cpu"):
        return ""
    on_cpu = device.type == "cpu"
    if not has_bf16(device):
        how = "processor only emulates (fp32 is several times faster)" if on_cpu else "GPU only emulates"
        return f", which this {how}"
    return ", which is slower than fp32 on this processor" if on_cpu and not bf16_is_faster() else ""


def _compilation(asked: Recipe, chosen: Recipe, device: torch.device) -> str:
    """What is compiled, or why nothing is; empty on a CPU if nothing is."""
    by_default = " (auto)" if asked.compute.compile == "auto" else ""
    if chosen.compute.compile in (True, "blocks"):
        return f", {'compiled blocks' if chosen.compute.compile == 'blocks' else 'compiled'}{by_default}"
    if device.type == "cuda" and by_default and (reason := why_not_compiled(device)):
        return f", not compiled ({reason})"
    return ""


def allows_tf32(precision: str) -> bool:
    """Whether matrix products that stay in float32 may round their inputs to TF32 on a GPU."""
    return precision != "fp32-strict"


def uses_tf32(recipe: Recipe) -> bool:
    """Whether a run allows TF32; runs of 0.1 did not."""
    return allows_tf32(recipe.compute.precision) and recipe.version > 1


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
    """Return the same settings with backend "auto" replaced by the backend that it takes on the device of the run."""
    if compute.backend != "auto":
        return compute
    return dataclasses.replace(compute, backend="lean" if device_type(compute.device) == "cpu" else "reference")


def describe_compute(model: Network, asked: Recipe, chosen: Recipe, device: torch.device) -> str:
    """Return where and how a model trains, such as "cpu, bf16, 2 data-loading workers, backend lean (auto)"."""
    backend = f", backend {model.describe_backend(device)}" if isinstance(model, CaiT) else ""
    return f"{describe_choices(asked, chosen, device)}{backend}"


def note_of(config: NetworkConfig, compute: Compute) -> str:
    """Return a note on settings that have no effect on this network; empty if there are none."""
    compute = expected_backend(compute)
    if compute.memory != "small" or (compute.compile == "blocks" and isinstance(config, CaiTConfig)):
        return ""
    if type(config) is not CaiTConfig:
        why = "it needs the blocks of a plain CaiT, and this network has others"
    elif compute.backend == "reference":
        why = "it belongs to compute.backend=lean and compute.compile=blocks"
    else:
        return ""
    return f"compute.memory=small changes nothing here: {why}; compute.grad_checkpointing=true saves memory"


@contextlib.contextmanager
def compiled_memory(compute: Compute) -> Iterator[None]:
    """Limit what compiled blocks store for the backward pass, inside the context, if compute.memory is small."""
    if compute.compile != "blocks" or compute.memory != "small":
        yield
        return
    import torch._functorch.config  # not part of `import torch`

    before = torch._functorch.config.activation_memory_budget
    torch._functorch.config.activation_memory_budget = SMALL_BUDGET
    try:
        yield
    finally:
        torch._functorch.config.activation_memory_budget = before


def not_compiled(compute: Compute) -> contextlib.AbstractContextManager:
    """Return the context in which compiled modules compute as they would uncompiled, as `deepcait eval` does."""
    if compute.compile in (False, "auto"):  # spares the seconds that importing the compiler takes
        return contextlib.nullcontext()
    return cast("contextlib.AbstractContextManager", torch.compiler.set_stance("force_eager"))


def compile_blocks(model: nn.Module) -> None:
    """Compile each block of a CaiT in place: one compilation for all that are alike, whose state-dict keys stay.

    Gradients of a block are complete before the next one's, so that several processes exchange them meanwhile.
    """
    if not isinstance(model, CaiT):
        return
    for block in [*model.blocks, *model.blocks_token_only]:
        # Kernels chosen by a measurement would round otherwise in the next process: a resumed run is bit-identical.
        block.compile(dynamic=False, options={"deterministic": True})


def wrap(model: nn.Module, compute: Compute, processes: Processes) -> nn.Module:
    """Return the model, compiled and wrapped for several processes if requested; the weights are shared."""
    net = model
    if compute.compile == "blocks":
        compile_blocks(model)
    elif compute.compile is True:
        net = cast("nn.Module", torch.compile(model))
    if processes.world_size == 1:
        return net
    on_gpu = next(model.parameters()).is_cuda
    devices = [processes.local_rank] if on_gpu else None
    # Gradients that are views of what is exchanged: one copy fewer per parameter and step.
    return DistributedDataParallel(net, device_ids=devices, gradient_as_bucket_view=on_gpu)
