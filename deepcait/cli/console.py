"""What goes where: results to stdout, everything else to stderr; one JSON value alone where --json is asked for."""

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
    """Whether torchrun started this process: then rank 0 tells what all of them found."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def leave_for_torchrun(text: str) -> None:
    """Leave what ended this process where torchrun looks for it: its summary shows it, whichever process it was."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and is_under_torchrun():
        told = {"message": {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with suppress(OSError):
            Path(path).write_text(json.dumps(told), encoding="utf-8")


def print_any_character() -> None:
    """Let stdout show what its encoding lacks (in names of files, classes) as \\u escapes; stderr does so already."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


class Console:
    """Where a verb prints. Every method prints in the main process only.

    Args:
        json: the verb was called with --json: stdout carries one JSON value and nothing else.
        narrates: what counts is what the verb makes, not its lines: it goes on where nobody reads them any more
            (`deepcait train ... | head`). Elsewhere that ends the command.
    """

    def __init__(self, *, json: bool = False, narrates: bool = False) -> None:
        self.json = json
        self.narrates = narrates

    def say(self, text: str = "") -> None:
        """Print a line of the result: to stdout, or to stderr where stdout belongs to JSON."""
        if is_main_process():
            self._print(text, sys.stderr if self.json else sys.stdout)

    def note(self, text: str) -> None:
        """Print what is no result (progress, warnings) to stderr."""
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
            ValueError: NaN or infinity in the value: they are not JSON.
        """
        if self.json and is_main_process():
            print(json.dumps(value, allow_nan=False), flush=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table of plain text: columns of numbers to the right, None as a blank."""
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
        """Return a context that gives a function to call with (done, total); shown on stderr."""
        return progress(what)


def percent(fraction: float | None) -> str:
    """A fraction for people: 0.865 as "86.50 %"; None as a blank."""
    return "" if fraction is None else f"{100 * fraction:.2f} %"


def _cell(value: object) -> str:
    return "" if value is None else str(value)
