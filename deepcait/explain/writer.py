"""Write explanations of images to a folder: PNGs, arrays, plots of the model, and an HTML page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from deepcait.data import Preprocessing
from deepcait.data.resample import planes
from deepcait.explain.drawing import to_bytes
from deepcait.explain.explanation import DEFAULT_METHODS, Explanation, explain_image
from deepcait.explain.figures import accuracy_plate, layer_plates
from deepcait.explain.folder import FIGURES_FILE, FIGURES_FOLDER, PAGE_FILE, figure_file, image_folder, remove_earlier
from deepcait.explain.gallery import Entry, Plate, gallery
from deepcait.explain.layers import LayerMeasures, LayerMeter
from deepcait.model import CaiT
from deepcait.model.convnet import ConvNet
from deepcait.model.networks import require_cait
from deepcait.model.trace import trace
from deepcait.runtime.files import write_bytes

_NUM_PREDICTIONS = 5


class Explainable(Protocol):
    """The interface that a page needs; `deepcait.Classifier` has it."""

    model: CaiT | ConvNet
    preprocessing: Preprocessing

    def open(self, image: Path) -> Image.Image:
        """Return the image of a file, upright, as input of the preprocessing."""
        ...

    def label(self, index: int) -> str:
        """Return the name of a class."""
        ...


def write_gallery(
    classifier: Explainable,
    paths: Sequence[Path],
    out: Path,
    *,
    name: str,
    target: int | None = None,
    methods: Sequence[str] = DEFAULT_METHODS,
    steps: int = 0,
    results: Sequence[dict[str, Any]] | None = None,
    published: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Explain images, write the results to a folder, and return the facts about each image.

    Each file is decoded once, all of them before anything is written, and passes through the network once, except for
    the methods named in `explain_image`.

    Args:
        classifier: the model with its preprocessing and classes.
        paths: of the images.
        out: folder of the page; see `folder.require_place`.
        name: heading of the page.
        target, methods, steps: as for `explain_image`.
        results: also plot the layers measured on these images, and accuracy against cost from these rows.
        published: whether the rows are published values.
        progress: called with the images done and the images in total.

    Raises:
        ImageError: an image can't be read; nothing was written.
        ConfigError: as for `explain_image`; or plots of a network that is not a CaiT without ablation options.
        WeightsError: the logits contain NaN or infinite values.
    """
    model = require_cait(classifier.model)
    labels = [classifier.label(index) for index in range(model.num_classes)]
    # At the model's resolution, so that all of them fit in memory.
    frames = [classifier.preprocessing.frame(classifier.open(path)) for path in paths]
    meter = LayerMeter(model) if results is not None else None
    entries, facts = [], []
    for number, (path, frame) in enumerate(zip(paths, frames, strict=True)):
        image_CHW = classifier.preprocessing.normalise(planes(frame)).to(model.pos_embed.device)
        with torch.no_grad(), meter.attached() if meter is not None else nullcontext():
            traced = trace(model, image_CHW[None], differentiable="gradient" in methods)
        how = {"target": target, "labels": labels, "methods": methods, "steps": steps}
        found = explain_image(model, image_CHW, frame, **how, traced=traced)
        folder = out / image_folder(number, path)
        facts.append(_facts(path, folder, found, found.save(folder)))
        entries.append(
            Entry(name=path.name, folder=folder.name, explanation=found, predictions=found.top(_NUM_PREDICTIONS))
        )
        if progress is not None:
            progress(number + 1, len(paths))
    plates: list[Plate] = []
    if meter is not None and results is not None:
        plates = _write_figures(out / FIGURES_FOLDER, meter.result(), results, published)
    write_bytes(out / PAGE_FILE, gallery(name, _describe(model), entries, plates).encode())
    kept = [Path(about["folder"]) / file for about in facts for file in about["files"]]
    remove_earlier(out, kept, figures=bool(plates))
    return facts


def _facts(path: Path, folder: Path, found: Explanation, files: Sequence[Path]) -> dict[str, Any]:
    """The facts about one image that `--json` prints."""
    return {
        "file": str(path),
        "folder": str(folder),
        "class": {"index": found.target, "label": found.label, "probability": found.probability},
        "predictions": [
            {"index": index, "label": label, "probability": probability}
            for index, label, probability in found.top(_NUM_PREDICTIONS)
        ],
        "files": [file.name for file in files],
        "maps": {
            made.method: {
                "caption": f"{made.caption} {made.details}",
                "faithfulness": None if made.faithfulness is None else made.faithfulness.to_dict(),
            }
            for made in found.maps.values()
        },
    }


def _write_figures(
    folder: Path, measures: LayerMeasures, results: Sequence[dict[str, Any]], published: bool
) -> list[Plate]:
    """Write the plots of the model as PNG, and their values as JSON."""
    plates = [*layer_plates(measures), accuracy_plate(list(results), published=published)]
    folder.mkdir(parents=True, exist_ok=True)
    for plate in plates:
        write_bytes(folder / figure_file(plate.title), to_bytes(plate.image))
    captions = {plate.title: plate.caption for plate in plates}
    numbers = {"captions": captions, "layers": measures.to_dict(), "accuracy": list(results)}
    write_bytes(folder / FIGURES_FILE, (json.dumps(numbers, indent=1) + "\n").encode())
    return plates


def _describe(model: CaiT) -> str:
    config = model.config
    rows, columns = config.grid
    return (
        f"{config.depth} patch blocks and {config.cls_depth} class blocks, {config.num_heads} heads, "
        f"{rows} x {columns} patches of {config.patch_size} px, {config.num_params():,} parameters, "
        f"{config.num_classes:,} classes."
    )
