"""The interface of a network that can be trained, evaluated and saved; CaiT and other classifiers have it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

from torch import Tensor, nn


class NetworkConfig(Protocol):
    """The configuration of a network, without its weights; a frozen dataclass."""

    @property
    def img_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        ...

    @property
    def in_chans(self) -> int:
        """C, image channels."""
        ...

    @property
    def num_classes(self) -> int:
        """K."""
        ...

    @property
    def depth(self) -> int:
        """Number of layers, for layer-wise learning-rate decay."""
        ...

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        ...

    def num_params(self) -> int:
        """Return the exact number of parameters."""
        ...

    def macs(self) -> int:
        """Return the multiply-adds of one image."""
        ...


@dataclass(frozen=True, kw_only=True)
class OwnConfig:
    """What is known of a network that its factory builds.

    factory: its name, as a recipe writes it. params, multiply_adds: counted, of one image.
    """

    factory: str
    img_size: tuple[int, int]
    in_chans: int
    num_classes: int
    depth: int
    params: int
    multiply_adds: int

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def num_params(self) -> int:
        """Return the number of parameters."""
        return self.params

    def macs(self) -> int:
        """Return the multiply-adds of one image."""
        return self.multiply_adds


class Network(Protocol):
    """A torch module that returns logits (B, K) for images (B, C, H, W) and can be trained, evaluated and saved.

    In addition to an `nn.Module`: `config`, from which it can be built again; `num_classes`, K;
    `pretrained_cfg`, timm's description of its preprocessing; and the methods below.
    """

    config: Any
    num_classes: int
    pretrained_cfg: dict[str, Any]

    def __call__(self, images_BCHW: Tensor, /) -> Tensor:
        """Return logits (B, K)."""
        ...

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Return names and parameters; names of the last layer begin with "head."."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return names and tensors."""
        ...

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one with `num_classes` outputs."""
        ...

    def no_weight_decay(self) -> set[str]:
        """Return names of matrices without weight decay."""
        ...

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute layers in the backward pass instead of saving their activations."""
        ...


def as_module(network: Network) -> nn.Module:
    """Return the network, typed as a torch module.

    Raises:
        TypeError: it is not a torch module.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"expected a torch module, got {type(network).__name__}")
    return network
