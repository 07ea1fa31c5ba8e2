"""Output of commands: results on stdout, everything else on stderr; with --json, one JSON value on stdout."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, TextIO

from deepcait.runtime.messages import is_main_process, print_nowhere, progress


def is_under_torchrun() -> bool:
    """Whether torchrun started this process; then only rank 0 prints."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def leave_for_torchrun(text: str, *, follows_another: bool = False) -> None:
    """Write this process's error to torchrun's error file, so that torchrun's summary shows it.

    Args:
        text: the error.
        follows_another: whether the error of another process came first. torchrun shows the error with the earliest
            whole second as the root cause, so this one is dated a second later.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and is_under_torchrun():
        timestamp = str(int(time.time()) + follows_another)
        record = {"message": {"message": text, "extraInfo": {"timestamp": timestamp}}}
        with suppress(OSError):
            Path(path).write_text(json.dumps(record), encoding="utf-8")


def print_any_character() -> None:
    """Let stdout print characters that its encoding lacks as \\u escapes, as stderr does."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


class Console:
    """Output of a command. Every method prints in the main process only.

    Args:
        json: whether --json was given: stdout has one JSON value and nothing else.
        narrates: whether the printed lines are only messages: the command continues if the reader of stdout exits
            (`deepcait train ... | head`). Other commands end.
    """

    def __init__(self, *, json: bool = False, narrates: bool = False) -> None:
        self.json = json
        self.narrates = narrates

    def say(self, text: str = "") -> None:
        """Print a line of the result: to stdout, or to stderr with --json."""
        if is_main_process():
            self._print(text, sys.stderr if self.json else sys.stdout)

    def note(self, text: str) -> None:
        """Print messages that are not results (progress, warnings) to stderr."""
        if is_main_process():
            self._print(text, sys.stderr)

    def _print(self, text: str, stream: TextIO) -> None:
        try:
            print(text, file=stream, flush=True)
        except BrokenPipeError:
            if not self.narrates:
                raise
            print_nowhere(stream)

    def result(self, value: Any) -> None:
        """Print the JSON value; does nothing without --json.

        Raises:
            ValueError: the value contains NaN or infinity, which JSON does not have.
        """
        if self.json and is_main_process():
            print(json.dumps(value, allow_nan=False), flush=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a plain-text table: columns of numbers right-aligned, None as a blank."""
        texts = [[_cell(value) for value in row] for row in rows]
        widths = [max(len(line[i]) for line in [list(columns), *texts]) for i in range(len(columns))]
        right = [all(line[i][:1].isdigit() or not line[i] for line in texts) for i in range(len(columns))]
        for line in [list(columns), ["-" * width for width in widths], *texts]:
            cells = [
                text.rjust(width) if to_right else text.ljust(width)
                for text, width, to_right in zip(line, widths, right, strict=True)
            ]
            self.say("  ".join(cells).rstrip())

    def progress(self, what: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Return a context with a function to call with (done, total); shown on stderr."""
        return progress(what)


def percent(fraction: float | None) -> str:
    """A fraction in percent: 0.865 as "86.50 %"; None as a blank."""
    return "" if fraction is None else f"{100 * fraction:.2f} %"


def _cell(value: object) -> str:
    return "" if value is None else str(value)
