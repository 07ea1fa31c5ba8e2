"""How a script among the tests ends: its figures with where and with what they were measured, as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "pillow")


def finish(what: str, command: str, figures: dict[str, Any], out: Path | None, packages: Sequence[str] = ()) -> None:
    """Print the figures, and write them where `out` says so.

    Args:
        what: what was measured, one line.
        command: what writes the file again.
        figures: of the measurement.
        out: a file of docs/results, or None.
        packages: whose versions matter, beside PACKAGES.
    """
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    processor = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    names = (*PACKAGES, *packages)
    facts = {
        "what": what,
        "command": command,
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "hardware": f"{processor.partition(': ')[2]}, {os.cpu_count()} logical processors",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
    }
    text = json.dumps(facts | figures, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
