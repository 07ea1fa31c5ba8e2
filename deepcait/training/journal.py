"""The log files of a run: numbers that depend on its seed, and a separate file with times.

`metrics.jsonl` holds only what seed and step decide, so an interrupted run ends with the same bytes.
`errors.jsonl` names the images that were skipped because they could not be read.
`timing.jsonl` holds whatever depends on the clock or the host. `metrics.csv` is the first as a table.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

from deepcait.errors import RunError, WriteError
from deepcait.runtime.files import write_bytes

REMEDY = "Free space or give write access, then --resume; the last checkpoint was not changed."
_CUT_FILES = ("metrics.jsonl", "errors.jsonl")  # what a resumed run writes again from its step on


class Journal:
    """The log files of one run; on every process but the main one it writes nothing.

    Args:
        folder: of the run.
        active: whether this process writes.
        listeners: called with every metrics row, for TensorBoard and its like.
    """

    def __init__(self, folder: Path, *, active: bool = True, listeners: list[Callable[[dict], None]] | None = None):
        self.folder = folder
        self.active = active
        self.listeners = listeners or []

    def cut(self, step: int, evaluated_step: int) -> None:
        """Delete the rows after a resumed step, which will be written again, and damaged rows."""
        if not self.active:
            return
        for name in _CUT_FILES:
            kept = []
            for line in self._lines(name):
                row = _row(line)
                if row and row["step"] <= (evaluated_step if row["kind"] == "eval" else step):
                    kept.append(line)
            if name == "metrics.jsonl" or (self.folder / name).exists():
                self._replace(name, "".join(line + "\n" for line in kept))

    def metrics(self, kind: str, step: int, **values: float | int | None) -> None:
        """Write one row: `kind` is train or eval."""
        # NaN and infinity are not JSON; a skipped step has such a gradient.
        finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
        row = {"kind": kind, "step": step, **finite}
        self._append("metrics.jsonl", row)
        for listener in self.listeners if self.active else []:
            listener(row)

    def unreadable(self, step: int, path: str, problem: str) -> None:
        """Write one row of `errors.jsonl`: an unreadable training image, at its first occurrence."""
        self._append("errors.jsonl", {"kind": "unreadable", "step": step, "path": path, "problem": problem})

    def timing(self, **values: float | int | str) -> None:
        """Write one row of times."""
        self._append("timing.jsonl", values)

    def state(self, state: str, step: int, **values: str | int | float) -> None:
        """Write the state to `status.json`: running, stopped, finished or failed."""
        if self.active:
            self._replace("status.json", json.dumps({"state": state, "step": step, **values}, indent=1) + "\n")

    def write_table(self) -> None:
        """Write `metrics.csv` again from `metrics.jsonl`."""
        if not self.active:
            return
        rows = [row for row in map(_row, self._lines("metrics.jsonl")) if row]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self._replace("metrics.csv", text.getvalue())

    def flush(self) -> None:
        """Wait until the rows are on the disk, before a checkpoint is written that relies on them."""
        for path in [self.folder / name for name in _CUT_FILES]:
            if self.active and path.exists():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())

    def _append(self, name: str, row: dict) -> None:
        if not self.active:
            return
        try:
            with open(self.folder / name, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise _write_error(self.folder / name, error) from error

    def _replace(self, name: str, text: str) -> None:
        replace_text(self.folder / name, text)

    def _lines(self, name: str) -> list[str]:
        path = self.folder / name
        # What a power cut left in place of a row is not a row, text or not.
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def replace_text(path: Path, text: str) -> None:
    """Replace a small file of a run atomically.

    Raises:
        RunError: the disk is full or can't be written to; the old file is still there.
    """
    try:
        write_bytes(path, text.encode("utf-8"))
    except WriteError as error:
        raise RunError(error.problem, remedy=REMEDY) from error


def read_metrics(folder: Path) -> list[dict]:
    """Return the rows of a run's `metrics.jsonl`."""
    return [row for row in map(_row, Journal(folder)._lines("metrics.jsonl")) if row]


def read_state(folder: Path) -> dict:
    """Return a run's `status.json`, or an empty dictionary if there is none."""
    try:
        state = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def _row(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "kind" in row and isinstance(row.get("step"), int) else None


def _write_error(path: Path, error: OSError) -> RunError:
    return RunError(
        f"{path}: cannot write: {error.strerror or error}.",
        remedy=REMEDY,
    )
