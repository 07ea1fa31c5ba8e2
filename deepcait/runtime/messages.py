"""Messages through Python's logging, and progress bars on stderr.

Every module logs to a logger of its own name, `deepcait....`. Users of the library configure these loggers as usual;
the command shows them, and progress bars, through `shown`.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

_PLAIN_LINE_EVERY_S = 10.0
_ROOT = logging.getLogger("deepcait")


def is_main_process() -> bool:
    """Whether this process prints: the only one, or rank 0 of several."""
    # A rank without a world size is a leftover in the environment: this is the only process.
    return os.environ.get("RANK", "0") == "0" or "WORLD_SIZE" not in os.environ


def print_nowhere(stream: TextIO) -> None:
    """Discard further output of a stream and its buffer: its reader has exited."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def shown(*, on_stdout: bool = False) -> Iterator[None]:
    """Context manager: print messages and draw progress bars, in the main process only.

    Args:
        on_stdout: print messages on stdout, for commands whose messages are their output; else on stderr.
    """
    if not is_main_process():
        yield
        return
    handler, level = _Handler(on_stdout), _ROOT.level
    _ROOT.addHandler(handler)
    _ROOT.setLevel(logging.INFO)
    try:
        yield
    finally:
        _ROOT.removeHandler(handler)
        _ROOT.setLevel(level)


def draws_bars() -> bool:
    """Whether progress is shown as a bar: messages are shown, and stderr is a terminal."""
    return _is_shown() and sys.stderr.isatty()


class Bar:
    """A progress bar on stderr; lines printed meanwhile appear above it.

    Args:
        text: the bar's label.
        total: number of steps; None if not known yet.
        keep: keep the bar on the terminal after it is closed.
    """

    def __init__(self, text: str = "", *, total: int | None = None, keep: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        # Lines for a file or a pipe are written there, not to the terminal.
        above = {"redirect_stdout": sys.stdout.isatty(), "transient": not keep}
        self.progress = Progress(*columns, console=Console(stderr=True), **above)
        self.task = self.progress.add_task(text, total=total)
        self.progress.start()

    def update(self, done: int, total: int | None = None, text: str | None = None) -> None:
        """Update the bar; None keeps a value."""
        self.progress.update(self.task, completed=done, total=total, description=text)

    def close(self) -> None:
        """Remove the bar, or keep its final state."""
        self.progress.stop()


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function to call with (done, total): a bar on a terminal, else occasional lines on stderr."""
    if draws_bars():
        bar = Bar(what)
        try:
            yield bar.update
        finally:
            bar.close()
    else:
        yield _plain_lines(what) if _is_shown() else lambda done, total: None


class _Handler(logging.Handler):
    """Prints messages as lines; a warning starts with "note"."""

    def __init__(self, on_stdout: bool) -> None:
        super().__init__()
        self.on_stdout = on_stdout

    def emit(self, record: logging.LogRecord) -> None:
        text = f"note: {self.format(record)}" if record.levelno >= logging.WARNING else self.format(record)
        # Looked up each time: a bar replaces the streams while it is drawn.
        stream = sys.stdout if self.on_stdout else sys.stderr
        try:
            print(text, file=stream, flush=True)
        except BrokenPipeError:
            # Messages are not results: `deepcait train ... | head` must not end training.
            print_nowhere(stream)


def _is_shown() -> bool:
    return any(isinstance(handler, _Handler) for handler in _ROOT.handlers)


def _plain_lines(what: str) -> Callable[[int, int], None]:
    last_s = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= _PLAIN_LINE_EVERY_S and done < total:
            last_s = time.monotonic()
            print(f"{what}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    return update
