"""Adapt weights to a model of another image size, patch size, number of channels, classes or blocks."""

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
    """How stored weights were adapted to a model; `str()` returns one line to print.

    Args:
        num_kept: tensors that were not changed.
        resized: old and new grid of the position embedding, None if it was kept.
        head: old and new number of classes if the head was replaced, else None.
        num_kept_rows: rows of the new head copied from classes of the same name.
        patch: old and new patch side in pixels if patches were resampled, else None.
        channels: old and new number of image channels if they differ, else None.
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
            parts.append(f"added {self.num_new_blocks} blocks that start as identities")
        if self.head:
            old, new = self.head
            verb = "re-initialised" if new else "dropped"
            parts.append(f"{verb} head {old} -> {new}")
            if self.num_kept_rows:
                parts[-1] += f" (rows of {self.num_kept_rows} classes copied by name)"
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

    The position embedding is resized from the stored grid. The head is left out if the classes differ, in number or,
    if both lists are known, in name: the target keeps its newly initialised head. Patches of another side are
    resampled, channels are converted, additional blocks start as identities (see `reshape.py`). Tensors that fit are
    passed on, not copied.

    Args:
        state_dict: with the released keys.
        target: the model, or the configuration of one, that the weights are adapted to.
        stored_grid: rows and columns that pos_embed was trained on; None means the target's if it has as many
            patches, else a square.
        old_classes: class names of the stored head.
        new_classes: class names of the target's head.
        keep_rows: copy the rows of classes with equal names into the new head; its other rows are newly initialised.
        old_norm, new_norm: means and deviations by channel, if the channels change; see `change_channels`.

    Raises:
        WeightsError: another tensor is missing, unknown, or has another shape; the message lists them.
    """
    config = target.config if isinstance(target, CaiT | ConvNet) else target
    adapted = dict(state_dict)
    expected = _expected_tensors(target)
    resized = _adapt_pos_embed(adapted, config, stored_grid)
    patch, channels = _adapt_patches(adapted, config, old_norm, new_norm)
    # Models with ablation options have other kinds of blocks, with other initial values.
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
    """Adapt weights to an existing model and copy them into it; `how`: arguments of `adapt_state_dict`.

    The model keeps its dtype and device, and its head if the stored one does not fit.

    Raises:
        WeightsError: as `adapt_state_dict`; the model is left as it was.
    """
    adapted, report = adapt_state_dict(state_dict, model, **how)
    model.load_state_dict(adapted, strict=False)
    return report


def build_loaded(
    config: NetworkConfig, state_dict: Mapping[str, Tensor], *, copy: bool = True, **how
) -> tuple[CaiT | ConvNet, AdaptReport]:
    """Build a model from weights, without random initialisation.

    The model is built on the meta device and filled with the tensors. It is float32 whatever the dtype of the stored
    weights; float32 weights are bit-identical. A head that the weights do not fill is newly initialised.

    Args:
        config: the model's.
        state_dict: with the released keys.
        copy: False uses the given tensors themselves, for callers that own them and no longer need them.
        how: arguments of `adapt_state_dict`.

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
    # One dtype for all tensors: images are float32, and mixed dtypes can't be multiplied.
    return tensor.detach().to(torch.float32, memory_format=torch.contiguous_format, copy=copy)


def _expected_tensors(target: CaiT | ConvNet | NetworkConfig) -> dict[str, tuple[int, ...]]:
    if not isinstance(target, CaiT | ConvNet):
        with torch.device("meta"):
            target = build_model(target)
    return {key: tuple(tensor.shape) for key, tensor in target.state_dict().items()}


def _adapt_pos_embed(adapted: StateDict, config: NetworkConfig, stored_grid: Grid | None) -> tuple[Grid, Grid] | None:
    """Replace the position embedding by a resized one; return both grids if they differ."""
    pos_embed = adapted.get("pos_embed")
    if pos_embed is None or pos_embed.ndim != 3 or not isinstance(config, CaiTConfig):
        return None  # reported with the other keys that do not fit
    num_patches = pos_embed.shape[1]
    side = math.isqrt(num_patches)
    grid = stored_grid or (config.grid if num_patches == config.num_patches else (side, side))
    if grid[0] * grid[1] != num_patches:
        raise WeightsError(
            f"pos_embed has {num_patches} rows; a grid of {grid[0]} x {grid[1]} patches needs {grid[0] * grid[1]}.",
            remedy="Set the grid (or img_size) to that of the images these weights were trained on.",
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
    """Remove a head that does not fit, or fill a new one by name; return old and new size, and rows copied."""
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
    """A new head with the rows of `pairs` (new, old) copied."""
    new_weight = nn.init.trunc_normal_(weight.new_empty(num_classes, weight.shape[1]), std=0.02)
    new_bias = bias.new_zeros(num_classes)
    new_rows, old_rows = (list(rows) for rows in zip(*pairs, strict=True))
    new_weight[new_rows], new_bias[new_rows] = weight[old_rows], bias[old_rows]
    return new_weight, new_bias


def _require_names(classes: Sequence[str] | None, num_classes: int, what: str) -> None:
    if classes is None or len(classes) != num_classes:
        got = "none" if classes is None else str(len(classes))
        raise WeightsError(
            f"{what}: copying rows of the head by name needs {num_classes} class names, got {got}.",
            remedy="Give the class names of both models, or initialise the head (keep_rows=false).",
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
            f"these weights do not fit the model, in {len(faults)} tensors: {'; '.join(faults[:MAX_LISTED])}{more}.",
            remedy="Only image and patch size, channels, classes and additional blocks may differ; choose the model "
            "that these weights belong to.",
        )
