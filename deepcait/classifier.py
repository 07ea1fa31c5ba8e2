"""A ready-to-use model: network, classes and preprocessing."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from deepcait import display
from deepcait.data import Preprocessing
from deepcait.data.image import DEFAULT, ImageOptions
from deepcait.data.inputs import ImageInput, image_list, to_image
from deepcait.errors import ConfigError, ShapeError, WeightsError, some
from deepcait.explain import DEFAULT_METHODS, Explanation, Original, explain_image
from deepcait.inference.engines import build_engine
from deepcait.inference.flip import augmented
from deepcait.inference.precision import engine_for
from deepcait.inference.predictions import Prediction, Predictions, Ranked
from deepcait.model import CaiT
from deepcait.model.convnet import ConvNet
from deepcait.model.networks import require_cait
from deepcait.parts import part_of
from deepcait.runtime.device import choose_device
from deepcait.runtime.state import undisturbed
from deepcait.weights import resolve, save_artefact
from deepcait.weights.imagenet import readable


@undisturbed()
def load(
    model: Any = None,
    *,
    img_size: int | tuple[int, int] | None = None,
    device: str | torch.device | None = None,
    engine: str | None = None,
    precision: str = "auto",
    threads: int | None = None,
    tta: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    image_options: ImageOptions | None = None,
    spec: Any = None,
) -> Classifier:
    """Load a model with its classes and preprocessing.

    >>> nano = load("builtin:nano")
    >>> nano
    Classifier(builtin:nano: 10 classes, 32 x 32 px, 1,803,170 parameters)
    >>> nano.classes[:3], nano.preprocessing.img_size
    (['airplane', 'automobile', 'bird'], (32, 32))

    Args:
        model: MODEL: a model name (its released weights), `hf-hub:owner/name`, a model or run folder, a weights file,
            `builtin:nano`, or a user-defined network: `python:package.module:factory[,weights=FOLDER]`, or the factory.
        img_size: another image size than the stored one; the position embedding is resized.
        device: None means a GPU if there is one.
        engine: computes the logits, one of `deepcait.inference.ENGINES`; None means the network itself.
        precision: precision of the engine, one of `deepcait.inference.PRECISIONS`; auto is fp32. Without an engine,
            bf16, fp16 and int8 use the engine eager.
        threads: number of threads of the engine.
        tta: test-time augmentation: "flip" predicts the mean for an image and its mirror image; None predicts once.
        weights: of a user-defined network: the model or run folder that it was saved to.
        image_options: limits on images; None means the defaults, and the value range of the model's training.
        spec: former name of `model`.

    Raises:
        ConfigError: MODEL can't be resolved, or the engine can't run here.
        WeightsError: the weights are damaged, unsafe or not available.
    """
    if spec is not None:
        warnings.warn("the argument spec is called model now; the old name still works.", FutureWarning, stacklevel=3)
        model = spec
    model = part_of(model, factory=True) if callable(model) or isinstance(model, tuple) else model
    model = os.fspath(model) if isinstance(model, os.PathLike) else model
    found = resolve(model, img_size=img_size, weights=None if weights is None else Path(weights))
    return Classifier(
        found.model,
        classes=found.classes,
        preprocessing=Preprocessing.from_pretrained_cfg(found.pretrained_cfg),
        device=device,
        engine=engine,
        precision=precision,
        threads=threads,
        tta=tta,
        metadata={**found.section, "provenance": found.provenance},
        spec=found.spec,
        image_options=image_options or trained_options(found.section),
    )


def trained_options(section: dict[str, Any]) -> ImageOptions:
    """Return limits on images with the value range of the model's recipe; `section` is its section `deepcait`."""
    data = (section.get("recipe") or {}).get("data") or {}
    value = data.get("max_value", 0) if isinstance(data, dict) else 0
    return ImageOptions(max_value=value if isinstance(value, int) else 0)


class Classifier:
    """A model with its classes and preprocessing, which predicts, explains, and can be saved.

    Args:
        model: put into evaluation mode and moved to the device.
        classes: index -> class name; None if the model has no names.
        preprocessing: image -> image_CHW.
        device: None means a GPU if there is one.
        engine: computes the logits, one of `deepcait.inference.ENGINES`; None means the network itself, which always
            computes features and explanations.
        precision: precision of the engine; see `load`.
        threads: number of threads of the engine.
        tta: test-time augmentation of predictions and logits; see `load`.
        metadata: recipe, metrics and provenance, which are saved with the model.
        spec: the MODEL that it was loaded from, for printing.
        image_options: limits on images, and the value range of images above 8 bits.

    Raises:
        ConfigError: the model has no head, the number of classes is not that of its rows, the device is not available,
            or the engine can't run.
    """

    @undisturbed()
    def __init__(
        self,
        model: CaiT | ConvNet,
        *,
        classes: Sequence[str] | None,
        preprocessing: Preprocessing,
        device: str | torch.device | None = None,
        engine: str | None = None,
        precision: str = "auto",
        threads: int | None = None,
        tta: str | None = None,
        metadata: dict[str, Any] | None = None,
        spec: str | None = None,
        image_options: ImageOptions = DEFAULT,
    ) -> None:
        if not model.num_classes:
            raise ConfigError("the model has no classifier (num_classes is 0).", remedy="Load it with num_classes.")
        if classes is not None and len(classes) != model.num_classes:
            raise ConfigError(
                f"classes: expected {model.num_classes} names, got {len(classes)}.",
                remedy="Give the names in the order of the head's rows.",
            )
        self.device = choose_device(str(device or "auto"))
        self.model = model.eval().to(self.device)
        self.network: nn.Module = self.model
        engine = engine_for(engine, precision)
        if engine is not None:
            self.network = build_engine(engine, self.model, threads=threads, precision=precision)
        self.network = augmented(self.network, tta)
        self.classes = list(classes) if classes is not None else None
        self.preprocessing = preprocessing
        self.metadata = metadata or {}
        self.spec = spec
        self.image_options = image_options

    @property
    def cait(self) -> CaiT:
        """The model as a CaiT, which has features by token and class attention.

        Raises:
            ConfigError: it is another network.
        """
        return require_cait(self.model)

    def __repr__(self) -> str:
        height, width = self.preprocessing.img_size
        params = sum(parameter.numel() for parameter in self.model.parameters())
        facts = f"{self.model.num_classes:,} classes, {height} x {width} px, {params:,} parameters"
        return f"Classifier({self.spec or type(self.model).__name__}: {facts})"

    def _repr_html_(self) -> str:
        """Shown in a notebook."""
        names = some([readable(name) for name in self.classes], 8) if self.classes else "no names"
        rows: list[tuple[str, object]] = [
            ("classes", f"{self.model.num_classes:,}: {names}"),
            ("preprocessing", self.preprocessing),
            ("parameters", f"{sum(parameter.numel() for parameter in self.model.parameters()):,}"),
            ("computed by", f"{type(self.network).__name__} on {self.device}"),
        ]
        return display.block(f"Classifier {self.spec or type(self.model).__name__}", display.facts(rows))

    @undisturbed()
    def predict(
        self,
        images: ImageInput | Sequence[ImageInput],
        topk: int = 5,
        *,
        min_probability: float = 0.0,
        batch_size: int = 32,
    ) -> Predictions:
        """Return the most probable classes of each image, the most probable first.

        Args:
            images: one image or a list of them. An image is a path, the bytes of a file, a file opened in binary mode,
                a PIL image, or pixels with red first, as uint8 or as floats from 0 to 1: an array (H, W), (H, W, 3) or
                (H, W, 4), a tensor (3, H, W). An array or tensor of four dimensions is a batch of such images.
            topk: predictions per image; as many as there are classes if they are fewer. Of equal logits the lower class
                index comes first.
            min_probability: less probable classes are left out; an image may then have no prediction.
            batch_size: images per forward pass.

        Raises:
            ConfigError: topk or batch_size below 1, a probability outside [0, 1], or something that is not an image.
            ImageError: an image that can't be read.
        """
        _require_positive("topk", topk)
        batches = self._batches(images, batch_size)
        rows = [row for images_BCHW in batches for row in self.rank(self.logits(images_BCHW), topk, min_probability)]
        return Predictions(rows)

    @undisturbed()
    def logits(self, images_BCHW: Tensor) -> Tensor:
        """Return the logits (B, K), on the CPU, for preprocessed images.

        Raises:
            ShapeError: images of another size than the model's.
        """
        if images_BCHW.ndim != 4:
            raise ShapeError(
                f"images: expected (B, C, H, W), got {tuple(images_BCHW.shape)}.",
                remedy="Stack the images with torch.stack.",
            )
        with torch.no_grad():
            return self.network(images_BCHW.to(self.device)).cpu()

    def rank(self, logits_BK: Tensor, topk: int, min_probability: float = 0.0) -> Predictions:
        """Return the `topk` most probable classes of each row of logits, the most probable first; see `predict`.

        Raises:
            ConfigError: a probability outside [0, 1].
            WeightsError: logits that contain NaN or infinity.
        """
        if not 0 <= min_probability <= 1:
            raise ConfigError(f"min_probability: expected 0 to 1, got {min_probability}.", remedy="0 keeps all.")
        if not logits_BK.isfinite().all():
            raise WeightsError(
                "the model returned NaN or infinite logits: its weights are damaged, or training diverged.",
                remedy="Use an earlier checkpoint, or the original weights.",
            )
        probabilities_BK = logits_BK.double().softmax(-1)
        order_BK = logits_BK.argsort(dim=-1, descending=True, stable=True)[:, :topk]
        ranked = [
            [Prediction(index, self.label(index), row_K[index].item()) for index in order_K]
            for order_K, row_K in zip(order_BK.tolist(), probabilities_BK, strict=True)
        ]
        return Predictions(Ranked(one for one in row if one.probability >= min_probability) for row in ranked)

    @undisturbed()
    def predict_and_embed(
        self,
        images: ImageInput | Sequence[ImageInput],
        topk: int = 5,
        *,
        min_probability: float = 0.0,
        batch_size: int = 32,
    ) -> tuple[Predictions, Tensor]:
        """Return what `predict` and `embed` return, from one forward pass.

        The network itself computes both, once per image: engines have no features, and `tta` is not applied.

        Raises:
            ConfigError, ImageError: as `predict`.
        """
        _require_positive("topk", topk)
        predictions, features = Predictions(), [torch.empty(0, self.cait.num_features, dtype=torch.float32)]
        for images_BCHW in self._batches(images, batch_size):
            logits_BK, features_BD = self.logits_and_features(images_BCHW)
            predictions += self.rank(logits_BK, topk, min_probability)
            features.append(features_BD)
        return predictions, torch.cat(features)

    @undisturbed()
    def embed(self, images: ImageInput | Sequence[ImageInput], *, batch_size: int = 32) -> Tensor:
        """Return the features of each image, (B, D) on the CPU: the class token that the head reads.

        Raises:
            ConfigError, ImageError: as `predict`.
        """
        parts = [self.features(images_BCHW) for images_BCHW in self._batches(images, batch_size)]
        return torch.cat([torch.empty(0, self.cait.num_features, dtype=torch.float32), *parts])

    def _batches(self, images: ImageInput | Sequence[ImageInput], batch_size: int) -> Iterator[Tensor]:
        """Yield the images preprocessed, (B, C, H, W), at most `batch_size` at once."""
        _require_positive("batch_size", batch_size)
        given = image_list(images)
        for start in range(0, len(given), batch_size):
            yield torch.stack([self.preprocessing(self.open(image)) for image in given[start : start + batch_size]])

    def open(self, image: ImageInput) -> Image.Image:
        """Return an image before its preprocessing: upright RGB. Raises as `predict`."""
        return to_image(image, options=self.image_options)

    def features(self, images_BCHW: Tensor) -> Tensor:
        """Return the features (B, D), on the CPU, for preprocessed images; the logits are the head of them."""
        return self.logits_and_features(images_BCHW)[1]

    @undisturbed()
    def logits_and_features(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and features (B, D) of one forward pass of the network itself, on the CPU."""
        with torch.no_grad():
            cait = self.cait
            tokens_BTD = cait.forward_features(images_BCHW.to(self.device))
            features_BD = cait.forward_head(tokens_BTD, pre_logits=True)
            return cait.forward_head(tokens_BTD).cpu(), features_BD.cpu()

    @undisturbed()
    def logits_and_attention(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, K) and class attention of one forward pass of the network itself, on the CPU."""
        with torch.no_grad():
            logits_BK, attention_BLAT = self.cait.logits_and_attention(images_BCHW.to(self.device))
            return logits_BK.cpu(), attention_BLAT.cpu()

    @undisturbed()
    def explain(
        self,
        image: ImageInput,
        *,
        target: int | str | None = None,
        methods: str | Sequence[str] = DEFAULT_METHODS,
        steps: int = 0,
    ) -> Explanation:
        """Explain a prediction: attention maps of one image and, on request, their faithfulness scores.

        Args:
            image: as in `predict`.
            target: index or name of the target class; None means the most probable.
            methods: some of `deepcait.explain.METHODS`, or one string with commas ("rollout,gradient"); class attention
                is always included.
            steps: steps of deletion and insertion, which score the maps; 0 means no scores.

        Raises:
            ConfigError: a class or method is unknown, or a package of deepcait[explain] is missing.
            ImageError: the image can't be read.
            WeightsError: the logits contain NaN or infinity.
        """
        opened = self.open(image)
        return explain_image(
            self.cait,
            self.preprocessing(opened).to(self.device),
            self.preprocessing.frame(opened),
            target=self.index(target) if isinstance(target, str) else target,
            labels=[self.label(index) for index in range(self.model.num_classes)],
            methods=methods,
            steps=steps,
            original=Original(opened, self.preprocessing.seen_box(*opened.size)),
        )

    def index(self, name: str) -> int:
        """Return the index of a class by its name, its stored name, or its index as text.

        Raises:
            ConfigError: the model has no such class (similar names are suggested), or several (ImageNet's cranes).
        """
        names = [self.label(index) for index in range(self.model.num_classes)]
        for known in (names, self.classes or [], [str(index) for index in range(len(names))]):
            found = [index for index, other in enumerate(known) if other == name]
            if len(found) > 1:
                raise ConfigError(
                    f"class: several classes are named {name!r}: {', '.join(map(str, found))}.",
                    remedy="Use the index of one of them.",
                )
            if found:
                return found[0]
        near = difflib.get_close_matches(name, names, n=3)
        raise ConfigError(
            f"class: the model has no class {name!r} among its {len(names)}.",
            remedy=f"Did you mean {' or '.join(near)}?" if near else "`deepcait info MODEL` lists the classes.",
        )

    def label(self, index: int) -> str:
        """Return the name of a class, readable if it is a wnid; the index as text if the model has no names."""
        return readable(self.classes[index]) if self.classes is not None else str(index)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write model, classes and preprocessing to a model folder, which `load`, timm and the hub read.

        Raises:
            ConfigError: the folder holds something else.
            WeightsError: it can't be written.
        """
        return save_artefact(
            os.fspath(folder),
            self.model,
            preprocessing=self.model.pretrained_cfg | self.preprocessing.to_pretrained_cfg(),
            classes=self.classes,
            recipe=self.metadata.get("recipe"),
            metrics=self.metadata.get("metrics"),
            provenance=self.metadata.get("provenance"),
        )


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name}: expected 1 or more, got {value}.", remedy=f"Use {name}=1 or more.")
