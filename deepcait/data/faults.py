"""Failures of data-loading workers other than unreadable images, as errors with their cause and a remedy."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path

from deepcait.errors import DataError

_SHARED_MEMORY = Path("/dev/shm")
_FEWER = "use fewer worker processes (data.num_workers, --workers; 0 needs none)"
# Messages of PyTorch and Python for the same exhausted resource.
_TOO_MANY_FILES = ("Too many open files", "ancdata")
_NO_SHARED_MEMORY = ("shared memory", "</torch_", "Bus error")
_NO_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
# For the semaphores of a few queues.
_LEAST_SHARED_BYTES = 2**18
# Handles that a process opens in addition to those of its workers, and for each worker.
_SPARE_HANDLES, _HANDLES_OF_WORKER = 16, 8


def fault(error: BaseException, doing: str) -> DataError:
    """Return the error for an exception that a worker raised outside reading an image.

    Args:
        error: any exception.
        doing: for the message, "collated a batch".
    """
    said = " ".join(str(error).split())[:300]
    problem = f"A data-loading worker failed while it {doing}: {type(error).__name__}: {said.rstrip('.')}."
    return lack(error) or DataError(
        problem, remedy="data.num_workers=0 (--workers 0) shows where the error comes from."
    )


def lack(error: BaseException) -> DataError | None:
    """Return an error with a remedy if an exception reports an exhausted resource; else None."""
    text, number = str(error), getattr(error, "errno", None)
    if number in (errno.EMFILE, errno.ENFILE) or any(words in text for words in _TOO_MANY_FILES):
        return too_many_files()
    # Semaphores are files there too; an image that can't be stored has a name.
    unnamed = number == errno.ENOSPC and not getattr(error, "filename", None)
    if unnamed or any(words in text for words in _NO_SHARED_MEMORY):
        return _no_shared_memory()
    if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
        return DataError(
            "A data-loading worker ran out of memory.",
            remedy=f"Use smaller batches, or {_FEWER}. More: `deepcait help out-of-memory`.",
        )
    if isinstance(error, BlockingIOError):
        return DataError(
            "The system starts no more processes for this user.",
            remedy=f"Raise the limit (`ulimit -u`), or {_FEWER}.",
        )
    return None


def too_many_files() -> DataError:
    """Return the error of a process that has reached its limit of open files."""
    return DataError(
        f"Too many open files: a process may open {_handles() or 'no more'} here.",
        remedy=f"Raise the limit with `ulimit -n 4096`, or {_FEWER}.",
    )


def require_means(num_workers: int) -> None:
    """Raise unless workers can be started: enough shared memory, and enough open files allowed.

    Raises:
        DataError: one of them is missing; the processes that start the workers would end without a message.
    """
    free = shared_memory()
    if free is not None and free < _LEAST_SHARED_BYTES:
        raise _no_shared_memory()
    limit = _handles()
    if not limit or not sys.platform.startswith("linux"):
        return
    if len(os.listdir("/proc/self/fd")) + _SPARE_HANDLES + _HANDLES_OF_WORKER * num_workers > limit:
        raise too_many_files()


def killed(places: list[str]) -> DataError:
    """Return the error of a worker that ended without an exception.

    Args:
        places: what it, or they, were reading; empty if that is not known.
    """
    reading = f" while it read {', '.join(places)}" if places else ""
    return DataError(
        f"A data-loading worker was killed{reading}.",
        remedy="The usual cause is lack of memory: use fewer workers or smaller images. "
        "`deepcait doctor` finds out whether a file crashes its reader. More: `deepcait help out-of-memory`.",
    )


def shared_memory() -> int | None:
    """Return the free bytes of shared memory; None if the system does not report them."""
    try:
        return shutil.disk_usage(_SHARED_MEMORY).free
    except OSError:
        return None


def _no_shared_memory() -> DataError:
    return DataError(
        f"The data-loading workers need more shared memory than there is ({_SHARED_MEMORY}{_size()}).",
        remedy=f"In Docker start the container with --shm-size=2g; else use smaller batches, or {_FEWER}.",
    )


def _handles() -> int:
    """Largest number of open files of a process; 0 if there is no limit."""
    if os.name != "posix":
        return 0
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if soft == resource.RLIM_INFINITY else soft


def _size() -> str:
    try:
        total = shutil.disk_usage(_SHARED_MEMORY).total
    except OSError:
        return ""
    return f", {total / 2**20:,.1f} MiB in all"
