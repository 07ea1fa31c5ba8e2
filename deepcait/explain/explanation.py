"""One image explained by one forward pass: the maps asked for, what each shows in words, and their scores."""

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
from deepcait.model.networks import require_cait
from deepcait.model.trace import Trace, trace
from deepcait.optional import require
from deepcait.runtime.files import write_bytes

METHODS = ("class-attention", "rollout", "gradient", "integrated-gradients", "occlusion")
DEFAULT_METHODS = METHODS[:3]
COLOUR_WORDS = "Colours run from 0 (dark blue) to the panel's largest value (light yellow)"


@dataclass(frozen=True, kw_only=True)
class Map:
    """One map of one image.

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
    """What a model attends to in one image, and what it predicts.

    frame: the part of the image that is the model's input, at its resolution.
    target, label: the class asked about.
    probabilities: float64 (K,), of every class. labels: name of every class.
    class_attention: float32 (class blocks, heads, 1 + N), softmax rows; position 0 is the class key.
    gradient: the same times the gradient of the target's logit; None where not asked for.
    maps: by method, in the order of METHODS.
    """

    frame: Image.Image
    target: int
    probabilities: np.ndarray
    labels: Sequence[str]
    grid: tuple[int, int]
    class_attention: np.ndarray
    gradient: np.ndarray | None
    maps: dict[str, Map] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name of the class asked about."""
        return self.labels[self.target]

    @property
    def probability(self) -> float:
        """The model's probability for the class asked about."""
        return float(self.probabilities[self.target])

    def top(self, count: int) -> list[tuple[int, str, float]]:
        """Return the most probable classes: (index, name, probability); of equal ones the lower index first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count].tolist()
        return [(index, self.labels[index], float(self.probabilities[index])) for index in order]

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
        """Return a map over the image in grey.

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
    steps: int = 0,
    traced: Trace | None = None,
) -> Explanation:
    """Explain one preprocessed image.

    The network runs once. Only the gradient runs its class stage again, and what covers parts of the image (the scores,
    occlusion) or integrates over images runs it as often as that takes.

    Args:
        model: in evaluation mode.
        image_CHW: on the model's device.
        frame: the same image before normalisation.
        target: class asked about; None takes the most probable.
        labels: index -> class name.
        methods: of METHODS, also as one text with commas between; class attention is always among the maps.
        steps: parts of deletion and insertion, which score the maps; 0 leaves the scores out.
        traced: the forward pass of this image alone, if it was made already.

    Raises:
        ConfigError: an unknown method or class, captum is not installed, or a network that has no class attention.
        ShapeError: an image of another size than the model's.
        WeightsError: logits that are no numbers.
    """
    methods = [name.strip() for name in methods.split(",")] if isinstance(methods, str) else methods
    require_methods(methods)
    model = require_cait(model)
    if traced is None:
        with torch.no_grad():
            traced = trace(model, image_CHW[None])
    probabilities_K = traced.logits[0].double().softmax(-1).cpu()
    if not probabilities_K.isfinite().all():
        raise WeightsError(
            "logits: expected numbers, got infinite ones or none.",
            remedy="The weights are damaged, or training diverged: take an earlier checkpoint.",
        )
    target = int(probabilities_K.argmax()) if target is None else target
    if not 0 <= target < len(probabilities_K):
        problem = f"class: expected an index from 0 to {len(probabilities_K) - 1}, got {target}."
        raise ConfigError(problem, remedy="`deepcait info SPEC` lists the classes.")
    labels = labels or [str(index) for index in range(len(probabilities_K))]
    gradient_LAT = None
    if "gradient" in methods:
        gradient_LAT = maps.gradient_attention(model, traced.patches, torch.tensor([target]))[0]
    asked = [method for method in METHODS if method in methods or method == "class-attention"]
    found = {method: _build(method, model, image_CHW, target, labels[target], traced, gradient_LAT) for method in asked}
    if steps:
        found = _with_faithfulness(found, model, image_CHW, target, steps)
    return Explanation(
        frame=frame,
        target=target,
        probabilities=probabilities_K.numpy(),
        labels=labels,
        grid=model.config.grid,
        class_attention=_numpy(traced.class_attention[0]),
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
    method: str, model: CaiT, image_CHW: Tensor, target: int, label: str, traced: Trace, gradient_LAT: Tensor | None
) -> Map:
    """One map with its words."""
    grid, patch = model.config.grid, model.config.patch_size
    if method == "class-attention":
        attention_LAT = traced.class_attention[0]
        return _map(method, attention_LAT.mean((0, 1))[1:].view(grid), _mean_words(attention_LAT))
    if method == "rollout":
        row_T = maps.rollout(traced)[0]
        words = (
            "The mean over heads of the absolute maps after the second head mixing, rows divided by their sum, "
            "multiplied through all patch blocks and all class blocks, with half the weight on the skip connection "
            f"at each. The {row_T[0]:.1%} that never left the class token are dropped. MLPs, values and "
            f"LayerScale are left out. Rollout is flat, so colours run from its smallest value, {row_T[1:].min():.4f} "
            f"(dark blue), to its largest, {row_T[1:].max():.4f} (light yellow)."
        )
        return _map(method, row_T[1:].view(grid), words, lowest=float(row_T[1:].min()))
    if method == "gradient" and gradient_LAT is not None:
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
