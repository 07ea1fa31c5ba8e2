"""Weights of one shape made to fit a model of another: other image or patch size, channels, classes, more blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepcait.errors import WeightsError
from deepcait.model.cait import CaiT
from deepcait.model.convnet import ConvNet
from deepcait.model.embedding import resize_pos_embed
from deepcait.model.network import NetworkConfig
from deepcait.model.networks import build_model
from deepcait.model.variants import CaiTConfig
from deepcait.weights.layouts import StateDict
from deepcait.weights.reshape import Means, change_channels, new_blocks, resize_patches

Grid = tuple[int, int]
HEAD = ("head.weight", "head.bias")
PATCHES = ("patch_embed.proj.weight", "patch_embed.proj.bias")
MAX_LISTED = 8


@dataclass(frozen=True, kw_only=True)
class AdaptReport:
    """What became of stored weights on their way into a model; `str()` of it is one line to print.

    Args:
        num_kept: tensors taken over as they were.
        resized: old and new grid of the position embedding, None where it was kept.
        head: old and new number of classes where the head did not stay, else None.
        num_kept_rows: rows of the new head that came from classes of the same name.
        patch: old and new patch side in pixels where patches were resampled, else None.
        channels: old and new number of image channels where they differ, else None.
        num_new_blocks: blocks added after the stored ones.
    """

    num_kept: int
    resized: tuple[Grid, Grid] | None = None
    head: tuple[int, int] | None = None
    num_kept_rows: int = 0
    patch: tuple[int, int] | None = None
    channels: tuple[int, int] | None = None
    num_new_blocks: int = 0

    def __str__(self) -> str:
        parts = [f"kept {self.num_kept} tensors"]
        if self.resized:
            (old_rows, old_cols), (rows, cols) = self.resized
            parts.append(f"resized pos_embed {old_rows}x{old_cols} -> {rows}x{cols}")
        if self.patch:
            parts.append(f"resampled patches {self.patch[0]} px -> {self.patch[1]} px")
        if self.channels:
            parts.append(f"changed channels {self.channels[0]} -> {self.channels[1]}")
        if self.num_new_blocks:
            parts.append(f"added {self.num_new_blocks} blocks that pass their tokens on")
        if self.head:
            old, new = self.head
            verb = "re-initialised" if new else "dropped"
            parts.append(f"{verb} head {old} -> {new}")
            if self.num_kept_rows:
                parts[-1] += f" (rows of {self.num_kept_rows} classes kept by name)"
        return ", ".join(parts)


def adapt_state_dict(
    state_dict: Mapping[str, Tensor],
    target: CaiT | ConvNet | NetworkConfig,
    *,
    stored_grid: Grid | None = None,
    old_classes: Sequence[str] | None = None,
    new_classes: Sequence[str] | None = None,
    keep_rows: bool = False,
    old_norm: tuple[Means, Means] | None = None,
    new_norm: tuple[Means, Means] | None = None,
) -> tuple[StateDict, AdaptReport]:
    """Return the weights in the target's shapes, and what was changed.

    The position embedding is resized from the stored grid. The head is left out where the classes differ, in
    number or, where both lists are known, in name: the target keeps its freshly drawn one. Patches of another side
    are resampled, other channels derived, blocks that are not stored start as identities (see `reshape.py`). The
    tensors that fit are passed on, not copied.

    Args:
        state_dict: with the released keys.
        target: the model, or the configuration of one, that the weights shall fit.
        stored_grid: rows and columns that pos_embed was trained on; None means the target's where it has as many
            patches, else a square.
        old_classes: names behind the rows of the stored head.
        new_classes: names behind the rows of the target's head.
        keep_rows: take the rows of classes with equal names into the new head; its other rows are drawn anew.
        old_norm, new_norm: means and deviations by channel, where the channels change; see `change_channels`.

    Raises:
        WeightsError: any other tensor is missing, unknown, or of another shape; the message lists them.
    """
    config = target.config if isinstance(target, CaiT | ConvNet) else target
    adapted = dict(state_dict)
    expected = _expected_tensors(target)
    resized = _adapt_pos_embed(adapted, config, stored_grid)
    patch, channels = _adapt_patches(adapted, config, old_norm, new_norm)
    # The alternatives of an ablation have blocks of their own kinds, which start otherwise.
    added = new_blocks(adapted, expected) if type(config) is CaiTConfig else {}
    head, num_kept_rows = _adapt_head(adapted, config, old_classes, new_classes, keep_rows)
    adapted |= added
    optional = set(HEAD) if head else set()
    _require_equal_keys(adapted, expected, optional)
    report = AdaptReport(
        num_kept=sum(tensor is state_dict.get(key) for key, tensor in adapted.items()),
        resized=resized,
        head=head,
        num_kept_rows=num_kept_rows,
        patch=patch,
        channels=channels,
        num_new_blocks=sum(key.endswith("gamma_1") for key in added),
    )
    return {key: adapted[key] for key in expected if key in adapted}, report


def load_into(model: CaiT, state_dict: Mapping[str, Tensor], **how) -> AdaptReport:
    """Copy weights into a model that exists, adapted to it; `how` is what `adapt_state_dict` takes.

    The model's dtype and device stay, and so does its head where the stored one does not fit.

    Raises:
        WeightsError: as `adapt_state_dict`; the model is left as it was.
    """
    adapted, report = adapt_state_dict(state_dict, model, **how)
    model.load_state_dict(adapted, strict=False)
    return report


def build_loaded(
    config: NetworkConfig, state_dict: Mapping[str, Tensor], *, copy: bool = True, **how
) -> tuple[CaiT | ConvNet, AdaptReport]:
    """Build a model around weights, without drawing random ones first.

    The model is laid out on the meta device and the tensors are put in. The model is float32 whatever the weights
    were stored in, as if they had been copied into a fresh one; those in float32 stay bit for bit. A head that the
    weights do not fill is drawn anew.

    Args:
        config: the model wanted.
        state_dict: with the released keys.
        copy: False puts the given tensors themselves into the model, for a caller who owns and forgets them.
        how: what `adapt_state_dict` takes.

    Raises:
        WeightsError: as `adapt_state_dict`.
    """
    adapted, report = adapt_state_dict(state_dict, config, **how)
    with torch.device("meta"):
        model = build_model(config)
    model.load_state_dict(
        {key: _parameter_of(value, copy) for key, value in adapted.items()}, strict=False, assign=True
    )
    if config.num_classes and model.head.weight.is_meta:
        model.reset_classifier(config.num_classes)
    return model, report


def _parameter_of(tensor: Tensor, copy: bool) -> Tensor:
    # One type for all: images are float32, and a model of two types multiplies neither with them nor with itself.
    return tensor.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=copy)


def _expected_tensors(target: CaiT | ConvNet | NetworkConfig) -> dict[str, tuple[int, ...]]:
    if not isinstance(target, CaiT | ConvNet):
        with torch.device("meta"):
            target = build_model(target)
    return {key: tuple(tensor.shape) for key, tensor in target.state_dict().items()}


def _adapt_pos_embed(adapted: StateDict, config: NetworkConfig, stored_grid: Grid | None) -> tuple[Grid, Grid] | None:
    """Resize the position embedding in place of the old one; return the two grids if they differ."""
    pos_embed = adapted.get("pos_embed")
    if pos_embed is None or pos_embed.ndim != 3 or not isinstance(config, CaiTConfig):
        return None  # listed with the other keys that do not fit
    num_patches = pos_embed.shape[1]
    side = math.isqrt(num_patches)
    grid = stored_grid or (config.grid if num_patches == config.num_patches else (side, side))
    if grid[0] * grid[1] != num_patches:
        raise WeightsError(
            f"pos_embed: expected {grid[0]} x {grid[1]} = {grid[0] * grid[1]} rows, got {num_patches}.",
            remedy="Give the grid (or the img_size) that these weights were trained on.",
        )
    if grid == config.grid:
        return None
    adapted["pos_embed"] = resize_pos_embed(pos_embed, grid, config.grid)
    return grid, config.grid


def _adapt_patches(
    adapted: StateDict,
    config: NetworkConfig,
    old_norm: tuple[Means, Means] | None,
    new_norm: tuple[Means, Means] | None,
) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
    """Resample the patch projection and change its channels; return old and new side, old and new channels."""
    kernel, bias = (adapted.get(key) for key in PATCHES)
    if kernel is None or bias is None or kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
        return None, None
    if not isinstance(config, CaiTConfig):
        return None, None
    side, chans = kernel.shape[2], kernel.shape[1]
    kernel, bias = change_channels(kernel, bias, config.in_chans, old_norm=old_norm, new_norm=new_norm)
    adapted |= zip(PATCHES, (resize_patches(kernel, config.patch_size), bias), strict=True)
    patch = (side, config.patch_size) if side != config.patch_size else None
    return patch, (chans, config.in_chans) if chans != config.in_chans else None


def _adapt_head(
    adapted: StateDict,
    config: NetworkConfig,
    old_classes: Sequence[str] | None,
    new_classes: Sequence[str] | None,
    keep_rows: bool,
) -> tuple[tuple[int, int] | None, int]:
    """Take out a head that does not fit, or fill a new one by name; return old and new size, and rows kept."""
    weight, bias = (adapted.get(key) for key in HEAD)
    old = 0 if weight is None else weight.shape[0]
    renamed = bool(old_classes and new_classes) and list(old_classes or ()) != list(new_classes or ())
    if old == config.num_classes and not renamed:
        return None, 0
    for key in HEAD:
        adapted.pop(key, None)
    kept = 0
    if keep_rows:
        _require_names(old_classes, old, "old_classes")
        _require_names(new_classes, config.num_classes, "new_classes")
        row_of = {name: row for row, name in enumerate(old_classes or ())}
        pairs = [(new, row_of[name]) for new, name in enumerate(new_classes or ()) if name in row_of]
        if pairs and weight is not None and bias is not None:
            adapted |= dict(zip(HEAD, _head_by_name(weight, bias, config.num_classes, pairs), strict=True))
            kept = len(pairs)
    return (old, config.num_classes), kept


def _head_by_name(
    weight: Tensor, bias: Tensor, num_classes: int, pairs: list[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """A fresh head with the rows of `pairs` (new, old) taken over."""
    new_weight = nn.init.trunc_normal_(weight.new_empty(num_classes, weight.shape[1]), std=0.02)
    new_bias = bias.new_zeros(num_classes)
    new_rows, old_rows = (list(rows) for rows in zip(*pairs, strict=True))
    new_weight[new_rows], new_bias[new_rows] = weight[old_rows], bias[old_rows]
    return new_weight, new_bias


def _require_names(classes: Sequence[str] | None, num_classes: int, what: str) -> None:
    if classes is None or len(classes) != num_classes:
        got = "none" if classes is None else str(len(classes))
        raise WeightsError(
            f"{what}: expected {num_classes} names to keep rows of the head by name, got {got}.",
            remedy="Give the names of both models' classes, or let the head start anew.",
        )


def _require_equal_keys(adapted: StateDict, expected: dict[str, tuple[int, ...]], optional: set[str]) -> None:
    """Raise with the list of keys that are missing, unknown, or of another shape or kind."""
    faults = [f"{key} missing {shape}" for key, shape in expected.items() if key not in adapted and key not in optional]
    for key, tensor in adapted.items():
        shape = tuple(tensor.shape)
        if key not in expected:
            faults.append(f"{key} unexpected {shape}")
        elif shape != expected[key]:
            faults.append(f"{key} {shape} instead of {expected[key]}")
        elif not tensor.is_floating_point():
            faults.append(f"{key} of {tensor.dtype} instead of floating point")
    if faults:
        more = f" and {len(faults) - MAX_LISTED} more" if len(faults) > MAX_LISTED else ""
        raise WeightsError(
            f"expected the weights of this model, got {len(faults)} tensors that do not fit: "
            f"{'; '.join(faults[:MAX_LISTED])}{more}.",
            remedy="Only image and patch size, channels, classes and more blocks may differ; choose the model that "
            "these weights were trained as.",
        )
