"""How loader workers start, and which signals they ignore."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from multiprocessing import connection, forkserver, queues, resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from deepcait.data.faults import fault
from deepcait.errors import ConfigError
from deepcait.runtime.signals import STOP_SIGNALS

# They reach the whole process group, from a terminal, `timeout`, torchrun or a cluster.
_SIGNALS = set(STOP_SIGNALS)
_SERVED = sys.platform.startswith("linux")
_BASE: Any = multiprocessing.get_context("forkserver" if _SERVED else "spawn")


class Worker(_BASE.Process):
    """A worker process that ends when its main process ends.

    It ignores SIGTERM (see `start_worker`), so that ending it means killing it: torch ends workers that do not end by
    themselves, and Python all that are left when the main process ends. That the main process was killed is noticed
    through a pipe; torch looks for another parent, which is always the server.
    """

    def run(self) -> None:
        """Do the work, and watch."""
        main = multiprocessing.parent_process()
        if main is not None:
            threading.Thread(target=_end_with, args=(main.sentinel,), daemon=True).start()
        super().run()

    def __reduce__(self) -> tuple:
        """Pickle so that the process ignores signals before it unpickles the data set, which may take long."""
        return _arrive, (), self.__dict__

    @staticmethod
    def _Popen(process: Any) -> Any:  # noqa: N802 - the name that multiprocessing requires
        popen = _BASE.Process._Popen(process)
        popen.terminate = popen.kill
        return popen


class _WithoutMain(Worker):
    """A worker that does not import the script that started it."""

    @staticmethod
    def _Popen(process: Any) -> Any:  # noqa: N802 - the name that multiprocessing requires
        main = sys.modules["__main__"]
        # By these two multiprocessing finds the script, which a worker would run again from its first line.
        hidden = {name: getattr(main, name) for name in ("__spec__", "__file__") if hasattr(main, name)}
        main.__spec__ = None
        vars(main).pop("__file__", None)
        try:
            return Worker._Popen(process)
        finally:
            vars(main).update(hidden)


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _arrive() -> Worker:
    start_worker()
    return Worker.__new__(Worker)


class _Queue(queues.Queue):
    """A queue that reports items it can't send instead of dropping them, since the receiver would wait forever."""

    def _on_queue_feeder_error(self, error: Exception, item: Any) -> None:
        if multiprocessing.parent_process() is None:  # it sends indices, which nothing but a broken interpreter refuses
            sys.excepthook(type(error), error, error.__traceback__)
            return
        number, _ = item  # as torch's workers send batches
        self.put((number, fault(error, "sent a batch")))


class _Context(type(_BASE)):  # pyrefly: ignore[invalid-inheritance]
    Process = Worker

    def Queue(self, maxsize: int = 0) -> _Queue:  # noqa: N802 - the name that multiprocessing requires
        """Return a queue between processes."""
        return _Queue(maxsize, ctx=self.get_context())


class _ContextWithoutMain(_Context):
    Process = _WithoutMain


def worker_context(dataset: Any = None) -> BaseContext:
    """The start method of loader workers: never a fork of a process with threads, in which torch's pools deadlock.

    On Linux a clean server process imports the data sets once and forks workers from itself; elsewhere they are
    spawned. Each worker runs torch with one thread: torch's loader sees to it. The script that started the process is
    imported by workers only if their data set needs it, so a script needs no `if __name__ == "__main__":`.

    Args:
        dataset: what workers receive.

    Raises:
        ConfigError: the data set is defined in a script that would start workers again when they import it.
    """
    if needs_main(dataset):
        _require_guard(dataset)
        context = _Context()
    else:
        context = _ContextWithoutMain()
    context.set_forkserver_preload(["deepcait.data.dataset"])
    if _SERVED:
        _start_server()
    return context


def needs_main(value: Any) -> bool:
    """Whether a value refers to a definition of the running script, so that workers have to import it."""
    found = _Mentions(b"__main__")
    try:
        pickle.Pickler(found).dump(value)
    except Exception:  # not for this pickler to report: multiprocessing has its own reducers
        return True
    return found.found


class _Mentions:
    """A file object that discards its content and records whether a text was written."""

    def __init__(self, text: bytes) -> None:
        self.text, self.found = text, False

    def write(self, data: Any) -> None:
        self.found |= self.text in bytes(data)


def _require_guard(dataset: Any) -> None:
    script = getattr(sys.modules["__main__"], "__file__", None)
    try:
        source = Path(script).read_text(encoding="utf-8") if script else ""
    except (OSError, UnicodeDecodeError):
        return
    if source and "__name__" not in source and multiprocessing.parent_process() is None:
        raise ConfigError(
            f"{script} defines what the data-loading workers need; they import it, and it would start them again.",
            remedy='Put the code that starts it below `if __name__ == "__main__":`, or set data.num_workers=0.',
        )


def _start_server() -> None:
    """Start the server, unless it runs, with signals blocked: it inherits that, and imports for a second or two."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        resource_tracker.ensure_running()  # which ignores Ctrl-C and SIGTERM, and unblocks them
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def start_worker(_: int = 0) -> None:
    """Ignore Ctrl-C, SIGTERM and similar signals: the main process handles them.

    The main process decides when to stop, and the step that it finishes then needs its workers. A process does it as it
    arrives; those of torch's loader again before they read, since torch's own handlers come in between.
    """
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)


def _outlive_signals() -> None:
    """Make the server ignore signals to the process group, since its end would end all workers.

    It ends with its main process. Processes that it forks receive signals as usual.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS))


# The server imports names and calls nothing, so that this is done on import, there alone.
if multiprocessing.parent_process() is None and any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    _outlive_signals()
