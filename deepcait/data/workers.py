"""How loader workers start, and to which signals they listen."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import BaseContext
from typing import Any

# Both reach the whole process group, from a terminal, `timeout`, torchrun or a cluster.
_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_SERVED = sys.platform.startswith("linux")
_BASE: Any = multiprocessing.get_context("forkserver" if _SERVED else "spawn")


class Worker(_BASE.Process):
    """A process that ends with its main process, and not before.

    It ignores SIGTERM (see `start_worker`), so that ending it means killing it: torch ends workers that do not end by
    themselves, and Python all that are left when the main process ends. Of a main process that was killed it hears
    through a pipe; torch looks for another parent, which is always the server.
    """

    def run(self) -> None:
        """Do the work, and watch."""
        main = multiprocessing.parent_process()
        if main is not None:
            threading.Thread(target=_end_with, args=(main.sentinel,), daemon=True).start()
        super().run()

    def __reduce__(self) -> tuple:
        """Travel so that the process ignores signals before it reads the data set, which may take long."""
        return _arrive, (), self.__dict__

    @staticmethod
    def _Popen(process: Any) -> Any:  # noqa: N802 - the name that multiprocessing asks for
        popen = _BASE.Process._Popen(process)
        popen.terminate = popen.kill
        return popen


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _arrive() -> Worker:
    start_worker()
    return Worker.__new__(Worker)


class _Context(type(_BASE)):  # pyrefly: ignore[invalid-inheritance]
    Process = Worker


def worker_context() -> BaseContext:
    """How loader workers start: never by forking a process that has threads (torch's pools deadlock there).

    On Linux a clean server process imports the data sets once and forks workers from itself;
    elsewhere they are spawned. Each worker runs torch with one thread: torch's loader sees to it.
    """
    context = _Context()
    context.set_forkserver_preload(["deepcait.data.dataset"])
    if _SERVED:
        _start_server()
    return context


def _start_server() -> None:
    """Start the server, unless it runs, with signals blocked: it inherits that, and imports for a second or two."""
    resource_tracker.ensure_running()  # which unblocks them
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def start_worker(_: int = 0) -> None:
    """Leave Ctrl-C and SIGTERM to the main process.

    The main process decides when to stop, and the step that it finishes then needs its workers. A process does it as it
    arrives; those of torch's loader again before they read, since torch's own handlers come in between.
    """
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def _outlive_signals() -> None:
    """Let the server outlive a signal for the group: its end would look like that of all workers.

    It ends with its main process. What it forks hears signals as usual, whoever's process it is.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS))


# The server imports names and calls nothing, so that this is done on import, there alone.
if multiprocessing.parent_process() is None and any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    _outlive_signals()
