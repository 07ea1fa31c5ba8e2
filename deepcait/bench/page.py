"""Parts that every benchmark's result has: the machine it was measured on, and tables of its page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from deepcait.runtime.environment import environment, num_cpus, processor


def conditions() -> dict[str, Any]:
    """Return the processor in words, and the versions and the machine, as plain JSON."""
    return {"cpu": f"{processor()}, {num_cpus()} threads", "environment": environment()}


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
