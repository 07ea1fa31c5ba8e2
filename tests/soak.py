"""A plugin of pytest that keeps what the soak tests came to: a row a test, with its commit, in one JSON file.

    pytest -p tests.soak --soak docs/results/soak.json -m soak

What passed at the same commit is not run again, so hours of tests may be spread over many evenings.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

WHAT = "The soak tests, the newest outcome of each"
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The file to keep the rows in."""
    parser.addoption("--soak", type=Path, metavar="FILE", help="keep the outcome of each test in FILE, and go on there")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to watch, where a file is named and this process runs the tests itself."""
    file = config.getoption("--soak")
    if file is not None:
        config.pluginmanager.register(Keeper(file, _commit(config.rootpath)), "soak keeper")


def _commit(root: Path) -> str:
    """The commit of the tree; with a plus behind it where something other than results was changed since."""

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    if not commit:  # pytest takes a FILE elsewhere for a place of tests, and looks for its root above both
        raise pytest.UsageError(f"expected a git checkout at {root}; run in one, with --rootdir=. for a FILE elsewhere")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/results")
    return commit + "+" * bool(changed)


class Keeper:
    """Watches the tests and writes a row when one is over.

    Args:
        file: JSON; made where there is none.
        commit: of the tree that is tested.
    """

    def __init__(self, file: Path, commit: str) -> None:
        self.file, self.commit = file, commit
        rows = json.loads(file.read_text(encoding="utf-8"))["tests"] if file.exists() else []
        self.rows: dict[str, dict[str, Any]] = {row["test"]: row for row in rows}
        self.seconds: dict[str, float] = {}

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leave out what passed at this commit."""
        done = {test for test, row in self.rows.items() if row["outcome"] == "passed" and row["commit"] == self.commit}
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
        items[:] = [item for item in items if item.nodeid not in done]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Set-up, test and tear-down of a test come here in turn; the worst of them is its outcome."""
        test = report.nodeid
        self.seconds[test] = self.seconds.get(test, 0.0) + report.duration
        begins = report.when == "setup"
        if begins or not report.passed:
            row = {"test": test, "outcome": "not ended" if begins and report.passed else report.outcome}
            if report.skipped and isinstance(report.longrepr, tuple):
                row["why"] = report.longrepr[2].removeprefix("Skipped: ")
            self.rows[test] = row | {"seconds": None, "commit": self.commit, "date": date.today().isoformat()}
        if report.when == "teardown":
            row = self.rows[test]
            row["outcome"] = "passed" if row["outcome"] == "not ended" else row["outcome"]
            row["seconds"] = round(self.seconds.pop(test), 1)
        self._write()

    def _write(self) -> None:
        """Write all rows, at once or not at all."""
        outcomes = [row["outcome"] for row in self.rows.values()]
        found = {
            "what": WHAT,
            "command": "make soak",
            "hardware": f"{platform.machine()}, {os.cpu_count()} logical processors",
            "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
            "counts": {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
            "tests": [self.rows[test] for test in sorted(self.rows)],
        }
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        part.replace(self.file)
