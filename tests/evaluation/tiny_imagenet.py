"""A constructed ImageNet: images of one grey each, and a model that reads its answer off the grey."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from deepcait.data import Preprocessing
from deepcait.weights.imagenet import wnids

NUM_CLASSES = 10
STEP = 20  # between the greys of two classes; JPEG changes a grey by 1 or 2
SIZE = 8
PLAIN = Preprocessing((SIZE, SIZE), mean=(0, 0, 0), std=(1, 1, 1))
WNIDS = wnids()[:NUM_CLASSES]

# number of the validation image -> (its class, the class that the model answers, its ReaL labels)
VAL = {
    1: (3, 3, [3]),
    2: (0, 0, [0, 1]),
    3: (9, 2, [2]),  # the folder is wrong, ReaL and the model are right
    4: (5, 5, []),  # without a label: left out
    5: (5, 6, [5, 6]),
    6: (1, 8, [1]),
    7: (2, 2, [7]),  # folder and model agree, ReaL says otherwise
    8: (0, 9, []),
    9: (7, 7, [7, 8, 9]),
    10: (4, 4, [4]),
    11: (8, 8, [8]),
    12: (6, 6, [6]),
}
# By hand. imagenet: 1, 2, 4, 7, 9, 10, 11, 12 are right. real: of 1, 2, 3, 5, 6, 7, 9, 10, 11, 12 all but 6 and 7.
VAL_CORRECT = 8
REAL_IMAGES, REAL_CORRECT = 10, 8


class GreyModel(nn.Module):
    """Its logits fall with the distance of the grey from each class's: K classes at 10, 10 + step, ..."""

    def __init__(self, classes: list[str] | None = None, num_classes: int = NUM_CLASSES, step: int = STEP) -> None:
        super().__init__()
        self.greys_K = 10.0 + step * torch.arange(num_classes)
        self.pretrained_cfg = {"label_names": classes} if classes else {}

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        greys_B = 255 * images_BCHW.mean((1, 2, 3))
        return -(greys_B[:, None] - self.greys_K).abs() / 10


def paint(path: Path, answer: int, step: int = STEP) -> None:
    """Write an image to which the model gives this answer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = 10 + step * answer
    Image.new("RGB", (SIZE, SIZE), (grey, grey, grey)).save(path, format="JPEG")


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def build_val(root: Path, *, flat: bool = False) -> Path:
    """Write ImageNet's validation below a root: folders of wnids, or flat."""
    for number, (label, answer, _) in VAL.items():
        paint(root / "val" / ("" if flat else WNIDS[label]) / val_name(number), answer)
    return root


def write_label_file(root: Path) -> None:
    """Write the wnids of a flat val, one a line, as the archive's file has them."""
    lines = [WNIDS[VAL[number][0]] for number in sorted(VAL)]
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(lines))


def write_real(path: Path, *, shift: int = 0) -> Path:
    """Write the ReaL labels: entry i belongs to the image number i + 1 (plus a shift that is wrong)."""
    entries = [VAL[(number - 1 + shift) % len(VAL) + 1][2] for number in sorted(VAL)]
    path.write_text(json.dumps(entries))
    return path


def build_v2(root: Path, num_classes: int, num_each: int = 10) -> Path:
    """Write ImageNet-V2: folders 0, 1, ...; the model is right but for the last image of every folder."""
    for label in range(num_classes):
        for number in range(num_each):
            wrong = number == num_each - 1
            paint(root / str(label) / f"{number}.jpeg", (label + wrong) % num_classes, step=V2_STEP)
    return root


V2_STEP = 16
