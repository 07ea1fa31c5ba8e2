"""What training, evaluation and saving need of a network: a CaiT has it, and so can any other classifier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, Self

from torch import Tensor, nn


class NetworkConfig(Protocol):
    """Everything that fixes a network but its weights; a frozen dataclass."""

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
        """Layers, for a learning rate that falls towards the input."""
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


class Network(Protocol):
    """A torch module that returns logits (B, K) for images (B, C, H, W) and can be trained, measured and saved.

    What it has beside every `nn.Module`: `config`, from which it can be built again; `num_classes`, K;
    `pretrained_cfg`, timm's description of its preprocessing; and the methods below.
    """

    config: Any
    num_classes: int
    pretrained_cfg: dict[str, Any]

    def __call__(self, images_BCHW: Tensor, /) -> Tensor:
        """Return logits (B, K)."""
        ...

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Return names and parameters; those of the last layer begin with "head."."""
        ...

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return names and tensors."""
        ...

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new head of `num_classes` outputs in place."""
        ...

    def no_weight_decay(self) -> set[str]:
        """Return the names of the matrices that weight decay leaves alone."""
        ...

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute layers again in the backward pass instead of keeping what they made."""
        ...


def as_module(network: Network) -> nn.Module:
    """Return a network as the torch module that it is.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"expected a torch module, got {type(network).__name__}")
    return network
