"""What a program has set in PyTorch around a call, and a fork of its process, must not change what is returned."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_log = logging.getLogger(__name__)
_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")
_first_pid: int | None = None


@contextmanager
def undisturbed() -> Iterator[None]:
    """Context manager and decorator: inside, inference mode, autocast and the default device of the caller are off.

    They belong to the thread, so other threads notice nothing. The default dtype belongs to the whole process: instead
    of setting it, code names its dtypes. Gradients are left as they are, except that inference mode is their end.
    """
    _compute_after_fork()
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for kind in _AUTOCAST_DEVICES:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def _compute_after_fork() -> None:
    """Let PyTorch compute with one thread in a fork of a process that computed: its other threads would hang."""
    global _first_pid
    pid, before = os.getpid(), _first_pid
    if pid == before:
        return
    _first_pid = pid
    if before is not None and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        _log.warning(
            "this process was forked from one that had computed; PyTorch computes with one thread here. Load models "
            "after the fork to use more: `deepcait help forked-process`."
        )
