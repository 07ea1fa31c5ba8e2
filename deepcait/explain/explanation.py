"""Explain one image with one forward pass: the requested maps, their captions and scores."""

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

from deepcait import display
from deepcait.errors import ConfigError, WeightsError
from deepcait.explain import attribution, drawing, maps
from deepcait.explain.faithfulness import Faithfulness, areas_by_chance, measure_faithfulness
from deepcait.model import CaiT
from deepcait.model.networks import require_cait
from deepcait.model.trace import Trace, trace
from deepcait.optional import require
from deepcait.runtime.files import write_bytes
from deepcait.runtime.state import undisturbed

METHODS = ("class-attention", "rollout", "gradient", "integrated-gradients", "occlusion")
DEFAULT_METHODS = METHODS[:3]
_SHOWN_PX = 640  # the longer side of what a notebook stores, which has several images per explanation
COLOUR_WORDS = "Colours run from 0 (dark blue) to the panel's largest value (light yellow)"


@dataclass(frozen=True)
class Original:
    """The image that was explained, before its preprocessing.

    image: upright RGB. box: the part that is the model's input, (left, top, right, bottom) in its pixels.
    """

    image: Image.Image
    box: tuple[float, float, float, float]

    def reduced(self, longest_px: int) -> Original:
        """Return it with the longer side at `longest_px`; a smaller image stays as it is."""
        factor = longest_px / max(self.image.size)
        if factor >= 1:
            return self
        left, top, right, bottom = (side * factor for side in self.box)
        return Original(drawing.fit(self.image, longest_px), (left, top, right, bottom))


@dataclass(frozen=True, kw_only=True)
class Map:
    """A map of one image.

    method: one of METHODS. title, caption, details: its name, what is shown, and exactly how it is computed.
    values: float32 (rows, columns) of the patch grid, or (H, W) pixels for Integrated Gradients; signed if the method
        is.
    grid: float32 (rows, columns), the same per patch.
    lowest: the value shown in the darkest colour.
    faithfulness: None if it was not measured.
    original: the image under the map when it is shown.
    """

    method: str
    title: str
    caption: str
    details: str
    values: np.ndarray = field(repr=False)
    grid: np.ndarray = field(repr=False)
    lowest: float = 0.0
    faithfulness: Faithfulness | None = None
    original: Original | None = field(default=None, repr=False, compare=False)

    def overlay(self, *, opacity: float = 0.65) -> Image.Image:
        """Return the map on top of the whole greyscale image, at the resolution of the image.

        Raises:
            ConfigError: the map was computed without an image.
        """
        if self.original is None:
            raise ConfigError("this map has no image to be drawn on.", remedy="Make it with Classifier.explain(image).")
        box = self.original.box
        return drawing.overlay_original(self.original.image, box, self.values, opacity=opacity, lowest=self.lowest)

    def reduced(self) -> Map:
        """Return the map over a reduced image, as a notebook stores it."""
        return self if self.original is None else dataclasses.replace(self, original=self.original.reduced(_SHOWN_PX))

    def _repr_png_(self) -> bytes | None:
        """Shown in a notebook."""
        return None if self.original is None else drawing.to_bytes(_fitted(self.reduced().overlay()))

    @property
    def file_stem(self) -> str:
        """Name of its files, without the suffix."""
        return self.method.replace("-", "_")


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """A model's predictions for one image, and maps of what it attends to.

    frame: the part of the image that is the model's input, at its resolution.
    target, label: the target class.
    probabilities: float64 (K,), of every class. labels: name of every class.
    class_attention: float32 (class blocks, heads, 1 + N), softmax rows; position 0 is the class key.
    gradient: the same times the gradient of the target's logit; None if not requested.
    maps: by method, in the order of METHODS.
    """

    frame: Image.Image
    target: int
    probabilities: np.ndarray = field(repr=False)
    labels: Sequence[str] = field(repr=False)
    grid: tuple[int, int]
    class_attention: np.ndarray = field(repr=False)
    gradient: np.ndarray | None = field(repr=False)
    maps: dict[str, Map] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Name of the target class."""
        return self.labels[self.target]

    @property
    def probability(self) -> float:
        """Probability of the target class."""
        return float(self.probabilities[self.target])

    def top(self, count: int) -> list[tuple[int, str, float]]:
        """Return the most probable classes, (index, name, probability); of ties, the lower index first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count].tolist()
        return [(index, self.labels[index], float(self.probabilities[index])) for index in order]

    @property
    def heads(self) -> np.ndarray:
        """Class attention to the patches, (class blocks, heads, rows, columns); not renormalised."""
        L, A, _ = self.class_attention.shape
        return self.class_attention[:, :, 1:].reshape(L, A, *self.grid)

    @property
    def heads_caption(self) -> str:
        """Caption of the grid of heads."""
        return "Attention weights of the class token, per class block and head; each panel has its own scale."

    @property
    def heads_details(self) -> str:
        """How the grid of heads is computed."""
        own_L = self.class_attention[:, :, 0].mean(1)
        own = ", ".join(f"{100 * share:.1f} % in class block {number}" for number, share in enumerate(own_L, 1))
        return (
            f"The class token's attention to itself ({own}; mean over heads) is omitted; the rest is not renormalised. "
            f"Colours run from 0 to each panel's maximum. Bicubic from {self.grid[0]} x {self.grid[1]} patches."
        )

    def head_grid(self) -> Image.Image:
        """Return the panels of all heads, one row per class block, as in the paper's figure."""
        return drawing.head_grid(self.frame, self.heads, f"{self.heads_caption} {self.heads_details}")

    def overlay(self, method: str = "class-attention", *, opacity: float = 0.65) -> Image.Image:
        """Return a map on top of the greyscale image.

        Raises:
            ConfigError: the method was not requested.
        """
        if method not in self.maps:
            problem = f"no map {method!r} was computed, only {', '.join(self.maps)}."
            raise ConfigError(problem, remedy=f"Call explain(..., methods={method!r}).")
        made = self.maps[method]
        return drawing.overlay(drawing.enlarge(self.frame), made.values, opacity=opacity, lowest=made.lowest)

    def _repr_html_(self) -> str:
        """Shown in a notebook: the predictions, the image, and each map over it, large images reduced."""
        maps = [made.reduced() for made in self.maps.values()]
        image = next((made.original.image for made in maps if made.original), self.frame)
        figures = [("Image", "", drawing.enlarge(image))]
        for made in maps:
            figures.append((made.title, made.caption, made.overlay() if made.original else self.overlay(made.method)))
        parts = [display.bars([(name, probability) for _, name, probability in self.top(5)])]
        for title, caption, shown in figures:
            shown = _fitted(shown)
            parts.append(display.figure(drawing.to_bytes(shown), shown.size, title, caption))
        return display.block(f"{self.label}: {100 * self.probability:.1f} %", *parts)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name: the content of the `.npz`."""
        arrays = {"class_attention_rows": self.class_attention, "target": np.array(self.target)}
        if self.gradient is not None:
            arrays["gradient_products"] = self.gradient
        return arrays | {found.file_stem: found.values for found in self.maps.values()}

    def save(self, folder: str | Path) -> list[Path]:
        """Write `heads.png`, a PNG per map (image, overlay, map alone), and `maps.npz`.

        Raises:
            WeightsError: it can't be written.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        files = {"heads.png": self.head_grid()}
        for found in self.maps.values():
            caption = f"{found.title}. {found.caption} {found.details}"
            files[f"{found.file_stem}.png"] = drawing.side_by_side(
                self.frame, found.values, caption, lowest=found.lowest
            )
        for name, image in files.items():
            write_bytes(folder / name, drawing.to_bytes(image))
        arrays: Any = self.arrays()
        np.savez(folder / "maps.npz", **arrays)
        return [folder / name for name in (*files, "maps.npz")]


@undisturbed()
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
    original: Original | None = None,
) -> Explanation:
    """Explain one preprocessed image.

    The network runs once; only methods that change the image (scores, occlusion, Integrated Gradients) run it several
    times.

    Args:
        model: in evaluation mode.
        image_CHW: on the model's device.
        frame: the same image before normalisation.
        target: index of the target class; None means the most probable.
        labels: index -> class name.
        methods: of METHODS, or one string with commas; class attention is always included.
        steps: steps of deletion and insertion, which score the maps; 0 means no scores.
        traced: the forward pass of this image, if it was already computed; differentiable for the method gradient.
        original: the whole image, over which maps are shown; None means `frame`.

    Raises:
        ConfigError: a method or class is unknown, captum is not installed, or the network has no class attention.
        ShapeError: the image's size is not the model's.
        WeightsError: the logits contain NaN or infinite values.
    """
    methods = [name.strip() for name in methods.split(",")] if isinstance(methods, str) else methods
    require_methods(methods)
    model = require_cait(model)
    if traced is None:
        with torch.no_grad():
            traced = trace(model, image_CHW[None], differentiable="gradient" in methods)
    probabilities_K = traced.logits[0].detach().double().softmax(-1).cpu()
    if not probabilities_K.isfinite().all():
        raise WeightsError(
            "the model returned NaN or infinite logits: its weights are damaged, or training diverged.",
            remedy="Use an earlier checkpoint, or the original weights.",
        )
    target = int(probabilities_K.argmax()) if target is None else target
    if not 0 <= target < len(probabilities_K):
        problem = f"class: expected an index from 0 to {len(probabilities_K) - 1}, got {target}."
        raise ConfigError(problem, remedy="`deepcait info MODEL` lists the classes.")
    labels = labels or [str(index) for index in range(len(probabilities_K))]
    gradient_LAT = None
    if "gradient" in methods:
        gradient_LAT = maps.weigh_by_gradient(traced, torch.tensor([target]))[0]
    asked = [method for method in METHODS if method in methods or method == "class-attention"]
    found = {method: _build(method, model, image_CHW, target, labels[target], traced, gradient_LAT) for method in asked}
    original = original or Original(frame, (0, 0, *frame.size))
    found = {method: dataclasses.replace(made, original=original) for method, made in found.items()}
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
    """Raise unless all methods are known and installed.

    Raises:
        ConfigError: a method is unknown, or its package is not installed.
    """
    for method in methods:
        if method not in METHODS:
            problem = f"method: expected one of {', '.join(METHODS)}, got {method!r}."
            raise ConfigError(problem, remedy="Use one or more of these, separated by commas.")
    if {"integrated-gradients", "occlusion"} & set(methods):
        require("captum.attr", asked="Integrated Gradients and occlusion", extra="explain")


def _build(
    method: str, model: CaiT, image_CHW: Tensor, target: int, label: str, traced: Trace, gradient_LAT: Tensor | None
) -> Map:
    """One map with its captions."""
    grid, patch = model.config.grid, model.config.patch_size
    if method == "class-attention":
        attention_LAT = traced.class_attention[0]
        return _map(method, attention_LAT.mean((0, 1))[1:].view(grid), *_mean_words(attention_LAT))
    if method == "rollout":
        row_T = maps.rollout(traced)[0]
        low, high = row_T[1:].min(), row_T[1:].max()
        details = (
            "The mean over heads of the absolute weights after the second head mixing, rows divided by their sum, is "
            "multiplied through all blocks, with half the weight on the skip connection. MLPs, values and LayerScale "
            f"are ignored. The class token's own share ({100 * row_T[0]:.1f} %) is omitted. "
            f"Colours run from the smallest value, {low:.4f} (dark blue), to the largest, {high:.4f} (light yellow)."
        )
        caption = "Attention accumulated over all blocks."
        return _map(method, row_T[1:].view(grid), caption, details, lowest=float(low))
    if method == "gradient" and gradient_LAT is not None:
        row_T = maps.positive_mean(gradient_LAT[None])[0]
        details = (
            "Negative products are set to 0; mean over class blocks and heads. The class token's own position is "
            f"omitted. {COLOUR_WORDS}."
        )
        caption = f'Class attention times the gradient of the logit of "{label}" with respect to it.'
        return _map(method, row_T[1:].view(grid), caption, details)
    if method == "integrated-gradients":
        made = attribution.integrated_gradients(model, image_CHW, target)
        details = (
            "32 steps from the mean colour, summed over channels. Positive values are shown; the signed values are in "
            f"maps.npz. Their sum differs from the change of the logit by {100 * (made.gap or 0):.1f} % of it. "
            f"{COLOUR_WORDS}."
        )
        pooled = attribution.pool_to_grid(made.values, patch)
        return _map(method, made.values, f'Attribution of the logit of "{label}" to pixels.', details, grid=pooled)
    made = attribution.occlusion(model, image_CHW, target)
    details = f"Positive values are shown; the signed values are in maps.npz. {COLOUR_WORDS}."
    caption = f'Decrease of the logit of "{label}" when a single patch is replaced by the mean colour.'
    return _map(method, attribution.pool_to_grid(made.values, patch), caption, details)


def _mean_words(attention_LAT: Tensor) -> tuple[str, str]:
    L, A, _ = attention_LAT.shape
    blocks, heads = f"{L} class block{'s' * (L > 1)}", f"{A} head{'s' * (A > 1)}"
    details = (
        f"The class token's attention to itself ({100 * (attention_LAT[:, :, 0].mean()):.1f} %) is omitted; the rest "
        f"is not renormalised. {COLOUR_WORDS}."
    )
    return f"Attention weights of the class token, mean over {blocks} and {heads}.", details


_TITLES = {
    "class-attention": "Class attention",
    "rollout": "Rollout",
    "gradient": "Gradient-weighted class attention",
    "integrated-gradients": "Integrated Gradients",
    "occlusion": "Occlusion",
}


def _map(
    method: str, values: Tensor, caption: str, details: str, *, grid: Tensor | None = None, lowest: float = 0.0
) -> Map:
    rows, columns = (values if grid is None else grid).shape
    return Map(
        method=method,
        title=_TITLES[method],
        caption=caption,
        details=f"{details} Bicubic from {rows} x {columns} patches." if grid is None else details,
        values=_numpy(values),
        grid=_numpy(values if grid is None else grid),
        lowest=lowest,
    )


def _with_faithfulness(
    found: dict[str, Map], model: CaiT, image_CHW: Tensor, target: int, steps: int
) -> dict[str, Map]:
    """Every map with its scores; all are compared with the same random orders."""

    @torch.no_grad()
    def probability(images_BCHW: Tensor) -> Tensor:
        return model(images_BCHW).softmax(-1)[:, target]

    by_chance = areas_by_chance(probability, image_CHW, model.config.grid, steps=steps)
    measured = {
        method: measure_faithfulness(
            probability, image_CHW, torch.from_numpy(made.grid), steps=steps, by_chance=by_chance
        )
        for method, made in found.items()
    }
    return {method: dataclasses.replace(made, faithfulness=measured[method]) for method, made in found.items()}


def _fitted(image: Image.Image) -> Image.Image:
    return drawing.fit(image, _SHOWN_PX) if max(image.size) > _SHOWN_PX else image


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
