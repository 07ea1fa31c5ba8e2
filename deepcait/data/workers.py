"""How loader workers start, and to which signals they listen."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.context import BaseContext
from typing import Any

_BASE: Any = multiprocessing.get_context("forkserver" if sys.platform.startswith("linux") else "spawn")


class Worker(_BASE.Process):
    """A process that ignores SIGTERM (see `start_worker`), so that ending it means killing it.

    torch ends workers that do not end by themselves, and Python all that are left when the main process ends.
    """

    @staticmethod
    def _Popen(process: Any) -> Any:  # noqa: N802 - the name that multiprocessing asks for
        popen = _BASE.Process._Popen(process)
        popen.terminate = popen.kill
        return popen


class _Context(type(_BASE)):  # pyrefly: ignore[invalid-inheritance]
    Process = Worker


def worker_context() -> BaseContext:
    """How loader workers start: never by forking a process that has threads (torch's pools deadlock there).

    On Linux a clean server process imports the data sets once and forks workers from itself;
    elsewhere they are spawned. Each worker runs torch with one thread: torch's loader sees to it.
    """
    context = _Context()
    context.set_forkserver_preload(["deepcait.data.dataset"])
    return context


def start_worker(_: int) -> None:
    """Leave Ctrl-C and SIGTERM to the main process.

    Both reach the whole process group, from a terminal, `timeout`, torchrun or a cluster. The main process decides
    when to stop, and the step that it finishes then needs its workers. Without it they end by themselves.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _outlive_signals() -> None:
    """Let the server outlive a SIGTERM for the group: its end would look like that of all workers.

    It ends with its main process. What it forks has the usual SIGTERM, whoever's process it is.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


# The server imports names and calls nothing, so that this is done on import, there alone.
if multiprocessing.parent_process() is None and any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    _outlive_signals()
