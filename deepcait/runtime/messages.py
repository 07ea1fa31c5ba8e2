"""Messages through Python's logging, and progress bars on stderr.

Every module logs to a logger with its name, `deepcait....`. Users of the library configure these loggers as usual; if
they do not, Python prints warnings on stderr. The command shows all messages, and progress bars, through `shown`.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from deepcait import display

_PLAIN_LINE_EVERY_S = 10.0
_REDRAW_EVERY_S = 0.25
_ROOT = logging.getLogger("deepcait")
_LOGGED: set[tuple[str, str]] = set()


def is_main_process() -> bool:
    """Whether this process prints: the only one, or rank 0 of several."""
    # A rank without a world size is a leftover in the environment: this is the only process.
    return os.environ.get("RANK", "0") == "0" or "WORLD_SIZE" not in os.environ


def size_text(num_bytes: int) -> str:
    """Return a number of bytes as people read it.

    >>> size_text(3 << 19), size_text(5 << 30)
    ('1.5 MiB', '5.00 GiB')
    """
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def log_once(logger: logging.Logger, level: int, text: str) -> None:
    """Log a message that holds for several copies of a model, as a training makes them, once in this process."""
    if (logger.name, text) not in _LOGGED:
        _LOGGED.add((logger.name, text))
        logger.log(level, "%s", text)


def print_nowhere(stream: TextIO) -> None:
    """Discard further output of a stream and its buffer: its reader has exited."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def shown(*, on_stdout: bool = False) -> Iterator[None]:
    """Context manager: print messages and draw progress bars, in the main process only.

    Args:
        on_stdout: print messages on stdout, for commands whose messages are their output; else on stderr.
    """
    # Without a handler, Python prints warnings on stderr.
    handler, level = _Handler(on_stdout) if is_main_process() else logging.NullHandler(), _ROOT.level
    _ROOT.addHandler(handler)
    _ROOT.setLevel(logging.INFO)
    try:
        yield
    finally:
        _ROOT.removeHandler(handler)
        _ROOT.setLevel(level)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook, which shows HTML."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def draws_bars() -> bool:
    """Whether progress is shown as a bar: in a notebook, or where messages are shown and stderr is a terminal."""
    return (_is_shown() and sys.stderr.isatty()) or (in_notebook() and is_main_process())


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


class NotebookBar:
    """The same in a notebook: one HTML output that is updated. Without ipywidgets, so that every viewer shows it."""

    def __init__(self, text: str = "", *, total: int | None = None, keep: bool = False) -> None:
        self.shown = importlib.import_module("IPython.display")
        self.done, self.total, self.text, self.keep = 0, total, text, keep
        self.began_s = self.last_s = time.monotonic()
        self.handle = self.shown.display(self._html(), display_id=True)

    def update(self, done: int, total: int | None = None, text: str | None = None) -> None:
        """Update the bar; None keeps a value."""
        self.done, self.total = done, self.total if total is None else total
        self.text = self.text if text is None else text
        if time.monotonic() - self.last_s >= _REDRAW_EVERY_S:
            self.last_s = time.monotonic()
            self.handle.update(self._html())

    def close(self) -> None:
        """Remove the bar, or keep its final state."""
        self.handle.update(self._html() if self.keep else self.shown.HTML(""))

    def _html(self) -> Any:
        passed_s, left = time.monotonic() - self.began_s, ""
        if self.total and 0 < self.done < self.total:
            left = f"({passed_s * (self.total - self.done) / self.done:.0f} s left)"
        return self.shown.HTML(display.progress(self.done, self.total, self.text, left))


def start_bar(text: str = "", *, total: int | None = None, keep: bool = False) -> Bar | NotebookBar:
    """Return a new bar for where this process runs."""
    return (NotebookBar if in_notebook() else Bar)(text, total=total, keep=keep)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function to call with (done, total): a bar on a terminal, else occasional lines on stderr."""
    if draws_bars():
        bar = start_bar(what)
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
