"""Exit codes of the command, and the end of its process."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from typing import NoReturn

DONE = 0
DEFECT = 1  # a bug in deepcait: a traceback is shown
MISTAKE = 2  # the user can fix it
REFUSED = 3  # a check failed
STOPPED = 75  # on request; the same command with --resume resumes


class Refused(Exception):  # noqa: N818 - it is not an error
    """A check failed; the message names it."""


def leave(code: int) -> NoReturn:
    """End the process with an exit code: as Python does, but without taking the interpreter down.

    Threads that libraries leave behind (pyarrow, aiohttp, OpenVINO, ONNX Runtime) may need the interpreter while it is
    taken down, and then abort the process: its exit code would be 134 instead of this one.
    """
    # Waits for threads that are not daemons, and ends executors.
    threading._shutdown()  # pyrefly: ignore[missing-attribute]
    atexit._run_exitfuncs()
    # A program that is started without a terminal may have no streams.
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        pass  # no process reads it
    except OSError as error:
        code = code or MISTAKE
        print(f"error: the output can't be written: {error.strerror}.", file=sys.stderr, flush=True)
    os._exit(code)
