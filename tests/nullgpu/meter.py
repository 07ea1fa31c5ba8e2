"""Counts what a piece of code asks of the pretended GPU, and names the lines that make the host wait."""

from __future__ import annotations

import ctypes
import os
import sys
from collections import Counter
from dataclasses import dataclass, field

KINDS = (
    "launch", "gemm", "copy_on_device", "fill", "to_device_pageable", "to_device_pinned", "to_host", "sync",
    "event_sync",
)  # fmt: skip
_HOOK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p)


@dataclass
class Meter:
    """A context that counts.

    Args:
        lines: also record the line of deepcait that caused each wait or copy from or to the host (slow).
        names: also record the names of kernels.

    counts: number of events by kind. causes: (event, "file:line function") to number. kernels: name to number.
    """

    lines: bool = False
    names: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    causes: Counter[tuple[str, str]] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)

    @property
    def launches(self) -> int:
        """Kernels of every sort: products, copies and fills on the device included."""
        return sum(self.counts[kind] for kind in ("launch", "gemm", "copy_on_device", "fill"))

    @property
    def waits(self) -> int:
        """How often the host waits for the device."""
        return self.counts["sync"] + self.counts["event_sync"]

    def __enter__(self) -> Meter:
        library = ctypes.CDLL(os.environ["NULLGPU"])
        self._counters = (ctypes.c_long * len(KINDS)).in_dll(library, "nullgpu_counts")
        self._hook = ctypes.c_void_p.in_dll(library, "nullgpu_hook")
        self._before = list(self._counters)
        self._callback = _HOOK(self._note)  # kept alive while C may call it
        if self.lines or self.names:
            self._hook.value = ctypes.cast(self._callback, ctypes.c_void_p).value
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.value = None
        differences = zip(KINDS, self._counters, self._before, strict=True)
        self.counts = {kind: now - before for kind, now, before in differences}

    def _note(self, kind: int, name: bytes | None) -> None:
        text = name.decode() if name else "?"
        if self.names and KINDS[kind] in ("launch", "gemm"):
            self.kernels[text] += 1
        if self.lines and KINDS[kind] in ("to_device_pageable", "to_host", "sync", "event_sync"):
            self.causes[text, _line_of_deepcait()] += 1


def _line_of_deepcait() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if "/deepcait/" in path:
            return f"{path.rpartition('/deepcait/')[2]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "outside of deepcait"
