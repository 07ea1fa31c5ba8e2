"""Pictures whose answer is known: 16 coloured squares, of which only the one in the last corner decides the class.

Every square has the colour of some class, so no colour is rare and no other place tells the class: a model that
answers right has read the corner, and a map that is true to it shows the corner.

`python -m tests.explain.corner --out docs/results/corner.json` writes the figures over five seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F

from deepcait.explain import class_attention, gradient_attention, measure_faithfulness, positive_mean, rollout
from deepcait.model import CaiT, CaiTConfig
from deepcait.model.trace import trace
from tests.results import finish

SIDE, CELLS, PATCH = 8, 4, 4  # squares of 8 pixels, 4 x 4 of them: the corner is 1/16 of the area, four patches
GRID, DEEP = SIDE * CELLS // PATCH, SIDE // PATCH
COLOURS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]])
NUM_PICTURES, STEPS = 40, 250


def draw_pictures(number: int, generator: torch.Generator):
    """Normalised noisy pictures (B, 3, 32, 32), and their classes (B,): the colours of the corners."""
    classes_Byx = torch.randint(0, len(COLOURS), (number, CELLS, CELLS), generator=generator)
    colours_BCyx = COLOURS[classes_Byx].permute(0, 3, 1, 2)
    images_BCHW = colours_BCyx.repeat_interleave(SIDE, 2).repeat_interleave(SIDE, 3) - 0.4
    return images_BCHW + 0.3 * torch.randn(images_BCHW.shape, generator=generator), classes_Byx[:, -1, -1]


def train_on_corners(seed: int = 0):
    """A CaiT of two patch and two class blocks that has learnt the corner, in about ten seconds; and new pictures."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": SIDE * CELLS, "patch_size": PATCH}
    # As deep CaiTs begin: the patches keep what they hold, so that the class token has to fetch it.
    model = CaiT(CaiTConfig(num_classes=len(COLOURS), layer_scale_init=1e-4, **sizes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    for _ in range(STEPS):
        images_BCHW, labels_B = draw_pictures(64, generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images_BCHW), labels_B).backward()
        optimizer.step()
    return model.eval(), *draw_pictures(NUM_PICTURES, generator)


def corner_share(maps_BN: torch.Tensor, total: torch.Tensor | float = 1.0) -> float:
    """The mean share of the maps' mass that lies in the corner."""
    return (maps_BN.view(-1, GRID, GRID)[:, -DEEP:, -DEEP:].sum((1, 2)) / total).mean().item()


def score(model, images_BCHW, labels_B, maps_BN) -> dict[str, float]:
    """Mean areas over the pictures: deletion and insertion, by the maps and by lot."""
    areas = []
    for image_CHW, label, map_N in zip(images_BCHW, labels_B, maps_BN, strict=True):

        @torch.no_grad()
        def probability(pictures_BCHW, label=label):
            return model(pictures_BCHW).softmax(-1)[:, label]

        areas.append(measure_faithfulness(probability, image_CHW, map_N.view(GRID, GRID)))
    names = ("deletion", "random_deletion", "insertion", "random_insertion")
    return {name: sum(getattr(area, name) for area in areas) / len(areas) for name in names}


def measure(seed: int) -> dict:
    """Every figure of one seed."""
    model, images_BCHW, labels_B = train_on_corners(seed)
    attention_BLAT = class_attention(model, images_BCHW)
    maps_BN = attention_BLAT.mean((1, 2))[:, 1:]
    weighted_BN = positive_mean(gradient_attention(model, trace(model, images_BCHW).patches, labels_B))[:, 1:]
    rolled_BN = rollout(trace(model, images_BCHW))[:, 1:]
    with torch.no_grad():
        right = (model(images_BCHW).argmax(-1) == labels_B).sum().item()
    return {
        "seed": seed,
        "right": right,
        "pictures": NUM_PICTURES,
        "mass_in_the_corner": {
            "class attention, mean of blocks and heads": corner_share(maps_BN),
            **{f"class block {i}": corner_share(attention_BLAT[:, i].mean(1)[:, 1:]) for i in range(2)},
            "gradient-weighted, of the patches' sum": corner_share(weighted_BN, weighted_BN.sum(-1)),
            "rollout, of the patches' sum": corner_share(rolled_BN, rolled_BN.sum(-1)),
        },
        "areas": score(model, images_BCHW, labels_B, maps_BN),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    what = "a CaiT of two patch and two class blocks on pictures where one corner, 1/16 of the area, decides"
    command = "python -m tests.explain.corner --out docs/results/corner.json"
    finish(what, command, {"seeds": [measure(seed) for seed in range(args.seeds)]}, args.out)


if __name__ == "__main__":
    main()
