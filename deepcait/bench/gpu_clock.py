"""A session of measurements on a GPU: results as JSON lines, parts that may fail, and programs timed in turns."""

from __future__ import annotations

import gc
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

_logger = logging.getLogger(__name__)


@dataclass
class Session:
    """The call's options, and its results.

    Args:
        out: folder of `gpu.jsonl`.
        end_s: time at which no further part begins.
        quick: tiny sizes, without compiled forms: a test of this program.
        device: the GPU.
        rows: what was recorded.
    """

    out: Path
    end_s: float
    quick: bool
    device: torch.device
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rounds(self) -> int:
        """Timed rounds per comparison."""
        return 2 if self.quick else 20

    def record(self, kind: str, **facts: Any) -> None:
        """Append a result to the file, and log it."""
        row = {"kind": kind, **facts}
        self.rows.append(row)
        with (self.out / "gpu.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        _logger.info("%s", "  ".join(f"{key} {value}" for key, value in row.items()))

    def attempt(self, name: str, work: Callable[[], None]) -> bool:
        """Do a part of the work unless the time is over; a failure is recorded. Returns whether it succeeded."""
        if time.monotonic() > self.end_s:
            self.record("skipped", part=name, reason="the time is over")
            return False
        began_s = time.monotonic()
        try:
            work()
        except Exception as error:  # one part must not end the others
            message = (str(error).strip().splitlines() or [""])[0][:300]
            self.record("failed", part=name, error=f"{type(error).__name__}: {message}")
            return False
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        self.record("done", part=name, seconds=round(time.monotonic() - began_s, 1))
        return True


@dataclass
class Timed:
    """A program that is timed on the GPU: milliseconds of the GPU and of the host, per call."""

    name: str
    call: Callable[[], object]
    gpu_ms: list[float] = field(default_factory=list)
    host_ms: list[float] = field(default_factory=list)

    def time_once(self) -> None:
        """Call it between two events of the GPU."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began_s = time.perf_counter()
        start.record()
        self.call()
        end.record()
        self.host_ms.append(1e3 * (time.perf_counter() - began_s))
        end.synchronize()
        self.gpu_ms.append(start.elapsed_time(end))

    def facts(self) -> dict[str, float]:
        """The medians."""
        return {"gpu_ms": round(median(self.gpu_ms), 4), "host_ms": round(median(self.host_ms), 4)}


def take_turns(programs: list[Timed], rounds: int, warm: int = 3) -> None:
    """Time programs in alternating rounds, after some calls that are not timed."""
    for program in programs:
        for _ in range(warm):
            program.call()
    torch.cuda.synchronize()
    for number in range(rounds):
        for program in programs if number % 2 else programs[::-1]:
            program.time_once()
