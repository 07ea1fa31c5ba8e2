"""One picture explained: the maps that were asked for, what each shows in words, and how true each is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deepcait.errors import ConfigError, WeightsError
from deepcait.explain import attribution, maps, picture
from deepcait.explain.faithfulness import Faithfulness, areas_by_lot, measure_faithfulness
from deepcait.model import CaiT
from deepcait.optional import require
from deepcait.runtime.files import write_bytes

METHODS = ("class-attention", "rollout", "gradient", "integrated-gradients", "occlusion")
DEFAULT_METHODS = METHODS[:3]
COLOUR_WORDS = "Colours run from 0 (dark blue) to the panel's largest value (light yellow)"


@dataclass(frozen=True, kw_only=True)
class Map:
    """One map of one picture.

    method: one of METHODS. title, caption: what it is and exactly what is shown.
    values: float32 (rows, columns) of the patch grid, or (H, W) pixels for Integrated Gradients; signed where the
        method is.
    grid: float32 (rows, columns), the same a patch.
    lowest: the value that is shown in the darkest colour.
    faithfulness: None where it was not measured.
    """

    method: str
    title: str
    caption: str
    values: np.ndarray
    grid: np.ndarray
    lowest: float = 0.0
    faithfulness: Faithfulness | None = None

    @property
    def file_stem(self) -> str:
        """Name of its files, without the ending."""
        return self.method.replace("-", "_")


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a model saw in one picture, and why it said what it said.

    frame: the part of the picture that the model saw, at the model's resolution.
    target, label, probability: the class asked about and the model's probability for it.
    class_attention: float32 (class blocks, heads, 1 + N), softmax rows; position 0 is the class key.
    gradient: the same times the gradient of the target's logit; None where not asked for.
    maps: by method, in the order of METHODS.
    """

    frame: Image.Image
    target: int
    label: str
    probability: float
    grid: tuple[int, int]
    class_attention: np.ndarray
    gradient: np.ndarray | None
    maps: dict[str, Map] = field(default_factory=dict)

    @property
    def heads(self) -> np.ndarray:
        """Class attention to the patches, (class blocks, heads, rows, columns): class key dropped, not rescaled."""
        L, A, _ = self.class_attention.shape
        return self.class_attention[:, :, 1:].reshape(L, A, *self.grid)

    @property
    def heads_caption(self) -> str:
        """What the grid of heads shows."""
        own_L = self.class_attention[:, :, 0].mean(1)
        kept = ", ".join(f"{share:.1%} in block {index}" for index, share in enumerate(own_L))
        return (
            "Class attention of every head: softmax weights, the class stage mixes no heads. The class key is dropped "
            f"and the rest not rescaled (the class token gave itself {kept}, mean over heads). Each panel has its own "
            f"scale, from 0 to the maximum beside it. Bicubic from {self.grid[0]} x {self.grid[1]} patches."
        )

    def head_grid(self) -> Image.Image:
        """Return the panels of all heads, a row for each class block, as in the paper's figure."""
        return picture.head_grid(self.frame, self.heads, self.heads_caption)

    def overlay(self, method: str = "class-attention", *, opacity: float = 0.65) -> Image.Image:
        """Return a map over the picture in grey.

        Raises:
            ConfigError: the method was not asked for.
        """
        if method not in self.maps:
            raise ConfigError(f"method: expected one of {', '.join(self.maps)}, got {method!r}.", remedy="Ask for it.")
        made = self.maps[method]
        return picture.overlay(picture.enlarge(self.frame), made.values, opacity=opacity, lowest=made.lowest)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return every number, by name: what the `.npz` holds."""
        arrays = {"class_attention_rows": self.class_attention, "target": np.array(self.target)}
        if self.gradient is not None:
            arrays["gradient_products"] = self.gradient
        return arrays | {found.file_stem: found.values for found in self.maps.values()}

    def save(self, folder: str | Path) -> list[Path]:
        """Write `heads.png`, a PNG for each map (image, overlay, map alone), and `maps.npz`.

        Raises:
            WeightsError: it can't be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = {"heads.png": self.head_grid()}
        for found in self.maps.values():
            caption = f"{found.title}. {found.caption}"
            files[f"{found.file_stem}.png"] = picture.side_by_side(
                self.frame, found.values, caption, lowest=found.lowest
            )
        for name, image in files.items():
            write_bytes(folder / name, picture.to_bytes(image))
        arrays: Any = self.arrays()
        np.savez(folder / "maps.npz", **arrays)
        return [folder / name for name in (*files, "maps.npz")]


def explain_image(
    model: CaiT,
    image_CHW: Tensor,
    frame: Image.Image,
    *,
    target: int | None = None,
    labels: Sequence[str] | None = None,
    methods: str | Sequence[str] = DEFAULT_METHODS,
    steps: int = 16,
) -> Explanation:
    """Explain one preprocessed picture.

    Args:
        model: in evaluation mode.
        image_CHW: on the model's device.
        frame: the same picture before normalisation.
        target: class asked about; None takes the most probable.
        labels: index -> class name.
        methods: of METHODS, also as one text with commas between; class attention is always among the maps.
        steps: parts of deletion and insertion; 0 leaves them out.

    Raises:
        ConfigError: an unknown method or class, captum is not installed, or a network that has no class attention.
        ShapeError: an image of another size than the model's.
        WeightsError: logits that are no numbers.
    """
    methods = [name.strip() for name in methods.split(",")] if isinstance(methods, str) else methods
    require_methods(methods)
    model = maps.unwrap(model)
    with torch.no_grad():
        probabilities_K = model(image_CHW[None])[0].softmax(-1)
    if not probabilities_K.isfinite().all():
        raise WeightsError(
            "logits: expected numbers, got infinite ones or none.",
            remedy="The weights are damaged, or training diverged: take an earlier checkpoint.",
        )
    target = int(probabilities_K.argmax()) if target is None else target
    if not 0 <= target < len(probabilities_K):
        problem = f"class: expected an index from 0 to {len(probabilities_K) - 1}, got {target}."
        raise ConfigError(problem, remedy="`deepcait info SPEC` lists the classes.")
    label = labels[target] if labels else str(target)
    attention_LAT = maps.class_attention(model, image_CHW[None])[0]
    gradient_LAT = None
    if "gradient" in methods:
        gradient_LAT = maps.gradient_attention(model, image_CHW[None], torch.tensor([target]))[0]
    asked = [method for method in METHODS if method in methods or method == "class-attention"]
    found = {method: _build(method, model, image_CHW, target, label, attention_LAT, gradient_LAT) for method in asked}
    if steps:
        found = _with_faithfulness(found, model, image_CHW, target, steps)
    return Explanation(
        frame=frame,
        target=target,
        label=label,
        probability=probabilities_K[target].item(),
        grid=model.config.grid,
        class_attention=_numpy(attention_LAT),
        gradient=None if gradient_LAT is None else _numpy(gradient_LAT),
        maps=found,
    )


def require_methods(methods: Sequence[str]) -> None:
    """Pass for methods that can be had here.

    Raises:
        ConfigError: an unknown one, or one whose package is not installed.
    """
    for method in methods:
        if method not in METHODS:
            raise ConfigError(f"method: expected one of {', '.join(METHODS)}, got {method!r}.", remedy="Choose some.")
    if {"integrated-gradients", "occlusion"} & set(methods):
        require("captum.attr", asked="Integrated Gradients and occlusion", extra="explain")


def _build(
    method: str, model: CaiT, image_CHW: Tensor, target: int, label: str, attention_LAT: Tensor, gradient_LAT
) -> Map:
    """One map with its words."""
    grid, patch = model.config.grid, model.config.patch_size
    if method == "class-attention":
        return _map(method, attention_LAT.mean((0, 1))[1:].view(grid), _mean_words(attention_LAT))
    if method == "rollout":
        row_T = maps.rollout(model, image_CHW[None])[0]
        words = (
            "The mean over heads of the absolute maps after the second head mixing, rows divided by their sum, "
            "multiplied through all patch blocks and all class blocks, with half the weight on the skip connection "
            f"at each. The {row_T[0]:.1%} that never left the class token are dropped. MLPs, values and "
            f"LayerScale are left out. Rollout is flat, so colours run from its smallest value, {row_T[1:].min():.4f} "
            f"(dark blue), to its largest, {row_T[1:].max():.4f} (light yellow)."
        )
        return _map(method, row_T[1:].view(grid), words, lowest=float(row_T[1:].min()))
    if method == "gradient":
        row_T = maps.positive_mean(gradient_LAT[None])[0]
        words = (
            f'Class attention times the gradient of the logit of "{label}" by it, negative products set to 0, mean '
            f"over class blocks and heads; no head mixing in the class stage; class key dropped. {COLOUR_WORDS}."
        )
        return _map(method, row_T[1:].view(grid), words)
    if method == "integrated-gradients":
        made = attribution.integrated_gradients(model, image_CHW, target)
        words = (
            f'Of the logit of "{label}" in 32 steps from the mean colour, summed over channels, a '
            f"value a pixel; positive part shown, the signed values are in maps.npz. The sum misses the rise of the "
            f"logit by {made.gap:.1%} of it. {COLOUR_WORDS}."
        )
        pooled = attribution.pool_to_grid(made.values, patch)
        return _map(method, made.values, words, grid=pooled)
    made = attribution.occlusion(model, image_CHW, target)
    words = (
        f'How far the logit of "{label}" falls when the mean colour covers one patch at a time; where it '
        f"rises, 0 is shown, the signed values are in maps.npz. {COLOUR_WORDS}."
    )
    return _map(method, attribution.pool_to_grid(made.values, patch), words)


def _mean_words(attention_LAT: Tensor) -> str:
    L, A, _ = attention_LAT.shape
    blocks, heads = f"{L} class block{'s' * (L > 1)}", f"{A} head{'s' * (A > 1)}"
    return (
        f"Mean of the softmax weights over {blocks} and {heads}; the class stage mixes no heads. The class key is "
        f"dropped and the rest not rescaled (the class token gave itself {attention_LAT[:, :, 0].mean():.1%}). "
        f"{COLOUR_WORDS}."
    )


_TITLES = {
    "class-attention": "Class attention",
    "rollout": "Rollout",
    "gradient": "Gradient-weighted class attention",
    "integrated-gradients": "Integrated Gradients",
    "occlusion": "Occlusion",
}


def _map(method: str, values: Tensor, words: str, *, grid: Tensor | None = None, lowest: float = 0.0) -> Map:
    rows, columns = (values if grid is None else grid).shape
    caption = f"{words} Bicubic from {rows} x {columns} patches." if grid is None else words
    return Map(
        method=method,
        title=_TITLES[method],
        caption=caption,
        values=_numpy(values),
        grid=_numpy(values if grid is None else grid),
        lowest=lowest,
    )


def _with_faithfulness(
    found: dict[str, Map], model: CaiT, image_CHW: Tensor, target: int, steps: int
) -> dict[str, Map]:
    """Every map with its scores; all are compared with the same lots."""

    @torch.no_grad()
    def probability(images_BCHW: Tensor) -> Tensor:
        return model(images_BCHW).softmax(-1)[:, target]

    by_lot = areas_by_lot(probability, image_CHW, model.config.grid, steps=steps)
    measured = {
        method: measure_faithfulness(probability, image_CHW, torch.from_numpy(made.grid), steps=steps, by_lot=by_lot)
        for method, made in found.items()
    }
    return {method: dataclasses.replace(made, faithfulness=measured[method]) for method, made in found.items()}


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
