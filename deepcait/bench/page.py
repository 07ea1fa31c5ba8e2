"""Parts that every benchmark's result has: the machine it was measured on, and tables of its page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from deepcait.runtime.environment import environment, num_cpus, processor


def conditions(device: torch.device | None = None) -> dict[str, Any]:
    """Return the processor and the GPU in words, and the versions and the machine, as plain JSON."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device is not None and device.type == "cuda" else {}
    return gpu | {"cpu": f"{processor()}, {num_cpus()} threads", "environment": environment()}


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
