"""Measure a model's layers: strength of the branches, LayerScale, attention entropy and distance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcait.errors import ConfigError
from deepcait.model import CaiT
from deepcait.model.attention import ClassAttention, TalkingHeadsAttention
from deepcait.model.networks import require_cait
from deepcait.model.watch import require_one_report, watch_attention


@dataclass(frozen=True, kw_only=True)
class LayerMeasures:
    """Measurements of every block; M is the patch blocks followed by the class blocks, L the patch blocks alone.

    attention_ratio, mlp_ratio: (M,), mean over images and tokens of ||branch|| / ||main|| (2-norms over the width), the
        branch with LayerScale; in the class stage, of the class token.
    gammas: (M, 2, D), |LayerScale|, of attention and MLP.
    mixing, mixing_after: (L, A, A), weights of the two head mixings, before and after the softmax; rows are outputs.
    entropy: (M, A), of the softmax rows in nats, mean over images and queries; before the second mixing.
    distance: (L, A), mean over images and queries of the attention-weighted distance between patches, in patches.
    uniform_entropy, uniform_distance: the values for uniform attention over all patches.
    num_images: how many images were averaged.
    """

    attention_ratio: np.ndarray
    mlp_ratio: np.ndarray
    gammas: np.ndarray
    mixing: np.ndarray
    mixing_after: np.ndarray
    entropy: np.ndarray
    distance: np.ndarray
    uniform_entropy: float
    uniform_distance: float
    num_images: int

    @property
    def depth(self) -> int:
        """L, the number of patch blocks."""
        return len(self.mixing)

    def to_dict(self) -> dict[str, Any]:
        """Return all values except single gammas, for JSON."""
        plain = {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in vars(self).items()
            if name != "gammas"
        }
        return plain | {"gammas_mean": self.gammas.mean(-1).tolist()}


class LayerMeter:
    """Measure every block during forward passes of the caller.

    Args:
        model: a CaiT without ablation options, in evaluation mode.

    Raises:
        ConfigError: it is another network, or an attention layer was replaced.
    """

    def __init__(self, model: CaiT) -> None:
        if type(model) is not CaiT:
            raise ConfigError(
                f"the layers of {type(model).__name__} can't be measured: a CaiT without ablation options is needed.",
                remedy="Use a model whose blocks have LayerScale and talking heads.",
            )
        self.model = model
        for name, module in model.named_modules():
            if name.endswith(".attn") and not isinstance(module, TalkingHeadsAttention | ClassAttention):
                raise ConfigError(
                    f"the layers of this model can't be measured: {name} was replaced by {type(module).__name__}.",
                    remedy="Derive it from the layer that it replaces, in deepcait.model.attention.",
                )
        self._blocks: list[Any] = [*model.blocks, *model.blocks_token_only]
        self._names = {module: f"{name}.attn" for name, module in model.named_modules()}
        self._index = {id(block.attn): number for number, block in enumerate(self._blocks)}
        self._distance_NN = patch_distances(model.config.grid).to(model.pos_embed.device)
        self._sums: list[dict[str, Tensor]] = [{} for _ in self._blocks]
        self._num_images = 0
        self._main = torch.empty(0)  # the residual stream that the current branch adds to

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Context manager: forward passes inside are measured, of one image or several."""
        handles = []
        for number, block in enumerate(self._blocks):
            handles += [
                block.register_forward_pre_hook(self._take_main),
                block.attn.register_forward_hook(partial(self._add_ratio, number, "attention", block.gamma_1)),
                block.norm2.register_forward_pre_hook(self._take_main),
                block.mlp.register_forward_hook(partial(self._add_ratio, number, "mlp", block.gamma_2)),
            ]
        handles.append(self.model.blocks[0].register_forward_pre_hook(self._count))
        try:
            with watch_attention(self._add_attention):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def result(self) -> LayerMeasures:
        """Return the means over all images.

        Raises:
            ConfigError: no image was measured, or an attention layer reported no weights.
        """
        if not self._num_images:
            raise ConfigError("no image was measured.", remedy="Give one or more images.")
        for block, sums in zip(self._blocks, self._sums, strict=True):
            require_one_report(self._names[block], block.attn, int("entropy" in sums))
        patch_blocks, config = self._blocks[: len(self.model.blocks)], self.model.config
        gammas = [torch.stack((block.gamma_1, block.gamma_2)).abs() for block in self._blocks]
        return LayerMeasures(
            attention_ratio=self._mean("attention"),
            mlp_ratio=self._mean("mlp"),
            gammas=_stack(gammas),
            mixing=_stack([block.attn.proj_l.weight for block in patch_blocks]),
            mixing_after=_stack([block.attn.proj_w.weight for block in patch_blocks]),
            entropy=self._mean("entropy"),
            distance=self._mean("distance"),
            uniform_entropy=float(np.log(config.num_patches)),
            uniform_distance=float(self._distance_NN.mean()),
            num_images=self._num_images,
        )

    def _count(self, block: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._num_images += len(args[0])

    def _take_main(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._main = args[0].detach()

    def _add_ratio(self, number: int, name: str, gamma: Tensor, module: nn.Module, args: object, out: Tensor) -> None:
        ratio_BQ = (gamma * out).double().norm(dim=-1) / self._main.double().norm(dim=-1)
        self._add(number, name, ratio_BQ.mean(1).sum())

    def _add_attention(self, attention: nn.Module, weights: Tensor, mixed: Tensor | None) -> None:
        number = self._index[id(attention)]
        self._add(number, "entropy", len(weights) * entropy(weights))
        if mixed is not None:
            distance_BAN = (weights.double() * self._distance_NN).sum(-1)
            self._add(number, "distance", distance_BAN.mean(2).sum(0))

    def _add(self, number: int, name: str, value: Tensor) -> None:
        # Detached: the caller may differentiate, and a sum would keep the activations of every image in memory.
        sums, value = self._sums[number], value.detach()
        sums[name] = sums[name] + value if name in sums else value

    def _mean(self, name: str) -> np.ndarray:
        return _stack([sums[name] for sums in self._sums if name in sums]) / self._num_images


@torch.no_grad()
def measure_layers(model: CaiT, images: Iterable[Tensor]) -> LayerMeasures:
    """Measure every block over some images, one after another.

    Args:
        model: in evaluation mode.
        images: each (C, H, W), preprocessed, on the model's device.

    Raises:
        ConfigError: there is no image, or the network is not a CaiT without ablation options.
    """
    model = require_cait(model)
    meter = LayerMeter(model)
    with meter.attached():
        for image_CHW in images:
            model(image_CHW[None])
    return meter.result()


def patch_distances(grid: tuple[int, int]) -> Tensor:
    """Return the distances between the centres of all pairs of patches, in patches, (N, N)."""
    places_N2 = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float64) for side in grid)).view(-1, 2)
    return torch.cdist(places_N2, places_N2)


def entropy(weights_BAQJ: Tensor) -> Tensor:
    """Return the entropy of attention weights in nats, mean over images and queries, (A,)."""
    return torch.special.entr(weights_BAQJ.double()).sum(-1).mean((0, 2))


def _stack(rows: list[Tensor]) -> np.ndarray:
    return torch.stack(rows).detach().double().cpu().numpy()
