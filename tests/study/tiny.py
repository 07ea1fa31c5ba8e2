"""A study small enough for a test: two rows, two seeds, a network of one block on 48 photographs."""

from __future__ import annotations

from pathlib import Path

DATA = "builtin:demo"
SETTINGS = ["shape.depth=1", "shape.embed_dim=24", "shape.num_heads=3", "global_batch_size=16", "compute.device=cpu"]
SETTINGS += ["optimizer.lr=1e-2", "layer_scale_init=1.0"]
SETTINGS += ["keep.log_every_steps=1", "keep.checkpoint_every_steps=2"]


def command(out: Path, *more: str, name: str = "drop-path", only: str = "off,uniform-10", epochs: int = 2) -> list[str]:
    """The words of a small study, without `deepcait`."""
    words = ["study", name, "--data", DATA, "--out", str(out), "--epochs", str(epochs), "--images", "48"]
    words += ["--val-images", "50", *(["--only", only] if only else []), "--set", *SETTINGS]
    return [*words, *more]
