"""The table of training steps in docs/concepts/speed.md.

    python docs/results/train_steps.py

Reads train_step_*_t2.json, which `deepcait bench MODEL --train --compiled --threads 2 --precision PRECISION --out
FOLDER` writes without the ending; prints the lines of the table.
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
STEPS = {
    "timm": "timm",
    "timm, compiled": "timm, compiled",
    "ours": "deepcait",
    "ours, memory small": "deepcait, `compute.memory=small`",
    "ours, checkpointing": "deepcait, `compute.grad_checkpointing=true`",
}


def table() -> list[str]:
    """Return the lines of the table."""
    head = ("model, batch", "precision", "step", "seconds", "speedup over timm", "over timm compiled")
    head += ("saved, relative to timm",)
    lines = ["| " + " | ".join(head) + " |", "| --- | --- | --- | ---: | ---: | ---: | ---: |"]
    for name in ("cait_xxs24_224_fp32", "cait_s24_224_fp32", "cait_xxs24_224_bf16", "cait_s24_224_bf16"):
        facts = json.loads((HERE / f"train_step_{name}_t2.json").read_text(encoding="utf-8"))
        link = f"[{name.split('_')[1].upper()}](../results/train_step_{name}_t2.md), {facts['batch']}"
        for step, title in STEPS.items():
            row = facts["steps"][step]
            ratios = [f"{row[key]['ratio']:.2f}" for key in ("times_timm", "times_timm_compiled")]
            kept = row.get("kept_bytes_of_timm")
            saved = "not measured" if kept is None else f"{kept:.3f}"
            cells = [link, facts["precision"], title, f"{row['median_s']:.2f}", *ratios, saved]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
