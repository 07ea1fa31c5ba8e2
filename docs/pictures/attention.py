"""Draw docs/pictures/attention.png: photographs of the package and the class attention of `builtin:nano`.

python docs/pictures/attention.py
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

import deepcait

HERE = Path(__file__).parent
PHOTOGRAPHS = ("horse/00013.png", "ship/00072.png", "frog/00299.png")
SIDE, GAP = 160, 8


def main() -> None:
    """Write one row: each photograph, then the same with its class attention."""
    classifier = deepcait.load("builtin:nano")
    folder = HERE.parent.parent / "deepcait" / "assets" / "demo" / "test"
    panels = []
    for name in PHOTOGRAPHS:
        explanation = classifier.explain(folder / name, methods=["class-attention"])
        print(name, explanation.label)
        panels += [Image.open(folder / name).convert("RGB"), explanation.overlay("class-attention")]
    row = Image.new("RGB", ((SIDE + GAP) * len(panels) - GAP, SIDE), "white")
    for index, panel in enumerate(panels):
        row.paste(panel.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), ((SIDE + GAP) * index, 0))
    row.save(HERE / "attention.png")


if __name__ == "__main__":
    main()
