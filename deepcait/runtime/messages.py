"""What is printed on the way: messages through Python's logging, and progress bars on stderr.

Every module logs to a logger of its own name, `deepcait....`. A library user configures these loggers as usual; the
command shows them, and bars, through `shown`.
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
    # A rank without the number of processes was left over in the environment: no other process would print.
    return os.environ.get("RANK", "0") == "0" or "WORLD_SIZE" not in os.environ


def print_nowhere(stream: TextIO) -> None:
    """Discard what is still printed to a stream, and what waits in it: its reader has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def shown(*, on_stdout: bool = False) -> Iterator[None]:
    """Print messages and draw progress bars meanwhile, in the main process only.

    Args:
        on_stdout: print messages there, where they are what the user waits for; else on stderr.
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
    """Whether progress is a bar: messages are shown, on a terminal."""
    return _is_shown() and sys.stderr.isatty()


class Bar:
    """A progress bar on stderr; lines that are printed meanwhile appear above it.

    Args:
        text: beside the bar.
        total: steps; None where it is not known yet.
        keep: leave the bar on the terminal when it is closed.
    """

    def __init__(self, text: str = "", *, total: int | None = None, keep: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        # Lines for a file or a pipe go there, and not to the terminal.
        above = {"redirect_stdout": sys.stdout.isatty(), "transient": not keep}
        self.progress = Progress(*columns, console=Console(stderr=True), **above)
        self.task = self.progress.add_task(text, total=total)
        self.progress.start()

    def update(self, done: int, total: int | None = None, text: str | None = None) -> None:
        """Show how much is done; the rest stays where it is None."""
        self.progress.update(self.task, completed=done, total=total, description=text)

    def close(self) -> None:
        """Take the bar away, or leave it as it is."""
        self.progress.stop()


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function to call with (done, total): a bar on a terminal, else a line on stderr now and then."""
    if draws_bars():
        bar = Bar(what)
        try:
            yield bar.update
        finally:
            bar.close()
    else:
        yield _plain_lines(what) if _is_shown() else lambda done, total: None


class _Handler(logging.Handler):
    """Prints messages as lines; a warning begins with "note"."""

    def __init__(self, on_stdout: bool) -> None:
        super().__init__()
        self.on_stdout = on_stdout

    def emit(self, record: logging.LogRecord) -> None:
        text = f"note: {self.format(record)}" if record.levelno >= logging.WARNING else self.format(record)
        # Looked up each time: a bar stands in for the streams while it is drawn.
        stream = sys.stdout if self.on_stdout else sys.stderr
        try:
            print(text, file=stream, flush=True)
        except BrokenPipeError:
            # Messages are no results: `deepcait train ... | head` continues training.
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
