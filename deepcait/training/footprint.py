"""The cost of a training step, counted without running it: saved activations in bytes, and arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from deepcait.model.cait import CaiT
from deepcait.model.convnet import ConvNet
from deepcait.model.network import NetworkConfig
from deepcait.model.networks import build_model
from deepcait.runtime.device import autocast
from deepcait.runtime.flops import ProductCounter
from deepcait.training.compute import set_compute
from deepcait.training.settings import Compute

# What a recipe can choose between, least computed first.
CHOICES = {
    "as it is by default": Compute(),
    "with compute.memory=small": Compute(memory="small"),
    "with compute.grad_checkpointing=true": Compute(grad_checkpointing=True),
}


def kept_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """Return the saved activations of `forward` in bytes: each storage once, without the model's parameters.

    Counts on any device, the meta device too, where nothing is computed.

    Args:
        model: whose parameters are not counted.
        forward: runs the model, and the loss if that shall count.
    """
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    # The tensors stay alive until all are counted, so that no storage takes the place of another.
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in kept}
    del result
    return sum(num_bytes for key, num_bytes in storages.items() if key not in own)


def own_bytes(model: nn.Module, shape: Sequence[int], compute: Compute, batch: int) -> int:
    """Return the same as `training_bytes` for a network of any kind, which really computes two and four images.

    Args:
        model: a user-defined network, in training mode afterwards.
        shape: (C, H, W) of an image.
        compute: its precision counts.
        batch: images, of one replica.
    """
    model.train()
    device = next(model.parameters()).device

    def kept(count: int) -> int:
        images_BCHW = torch.zeros(count, *shape, device=device)
        with autocast(compute.precision, device.type):
            return kept_bytes(model, lambda: model(images_BCHW))

    two, four = kept(2), kept(4)
    return two + (batch - 2) * (four - two) // 2


def own_flops(model: nn.Module, shape: Sequence[int]) -> int:
    """Return the floating-point operations of a forward and a backward pass of one image, really computed."""
    device = next(model.parameters()).device
    with ProductCounter() as counter:
        model.train()(torch.zeros(2, *shape, device=device)).sum().backward()
    model.zero_grad(set_to_none=True)
    return counter.flops // 2


@functools.lru_cache(maxsize=64)
def training_bytes(config: NetworkConfig, compute: Compute, batch: int) -> int:
    """Return the saved activations of a forward pass of `batch` images in bytes, without weights.

    Counted with fake tensors, which have shapes and no content: in a moment, and without memory.

    Args:
        config: of the model.
        compute: its precision, checkpointing, attention and memory count.
        batch: images, of one replica.
    """
    model = _empty(config, compute)
    with FakeTensorMode(), autocast(compute.precision):
        images_BCHW = _fill(model, batch)
        return kept_bytes(model, lambda: model(images_BCHW))


def training_flops(config: NetworkConfig, compute: Compute, batch: int) -> int:
    """Return the floating-point operations of a forward and a backward pass of `batch` images, one replica.

    The matrix products that are really computed, those of what the backward pass computes again included; the
    optimizer and everything elementwise left out. Counted on the meta device.
    """
    model = _empty(config, compute)
    with torch.device("meta"), ProductCounter() as counter:
        model(torch.empty(batch, config.in_chans, *config.img_size)).sum().backward()
    return counter.flops


def _empty(config: NetworkConfig, compute: Compute) -> CaiT | ConvNet:
    with torch.device("meta"):  # elsewhere, drawing weights looks at their values
        model = build_model(config).train()
    set_compute(model, compute)
    return model


def _fill(model: CaiT | ConvNet, batch: int) -> Tensor:
    """Give a model weights on the current fake device, and return images there."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(torch.empty(parameter.shape)))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return torch.empty(batch, model.config.in_chans, *model.config.img_size)
