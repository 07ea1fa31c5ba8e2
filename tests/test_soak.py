"""The file of soak results: every outcome with its commit, and going on leaves out what passed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = """
import os, pytest

def test_good(): pass
def test_bad(): assert os.environ["HEALED"] == "yes"
def test_left_out(): pytest.skip("no such thing here")

@pytest.fixture
def rubble():
    yield
    assert os.environ["HEALED"] == "yes"

def test_tidies_badly(rubble): pass
def test_dies(): os.environ["HEALED"] == "yes" or os._exit(9)
"""


def soak(folder: Path, healed: str) -> str:
    """Run the tests of `folder` with the plugin; what pytest printed."""
    argv = [sys.executable, "-m", "pytest", "-p", "tests.soak", "-p", "no:cacheprovider", "--soak", "soak.json"]
    done = subprocess.run(
        [*argv, "test_it.py"],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HEALED": healed},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.process
def test_each_outcome_is_kept_and_only_the_rest_runs_again(tmp_path: Path) -> None:
    for command in ("git init -q .", "git add .", "git -c user.name=a -c user.email=a@b.c commit -q -m one"):
        (tmp_path / "test_it.py").write_text(TESTS)
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    soak(tmp_path, healed="no")
    found = json.loads((tmp_path / "soak.json").read_text())
    rows = {row["test"].rpartition("::")[2]: row for row in found["tests"]}
    assert {name: row["outcome"] for name, row in rows.items()} == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_left_out": "skipped",
        "test_tidies_badly": "failed",
        "test_dies": "not ended",
    }
    ask = ["git", "rev-parse", "--short", "HEAD"]
    head = subprocess.run(ask, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()
    assert {row["commit"] for row in rows.values()} == {head}
    assert rows["test_left_out"]["why"] == "no such thing here"
    assert "3 passed, 1 skipped, 1 deselected" in soak(tmp_path, healed="yes")
    assert json.loads((tmp_path / "soak.json").read_text())["counts"] == {"passed": 4, "skipped": 1}
    (tmp_path / "test_it.py").write_text(TESTS + "\n")
    assert "4 passed, 1 skipped" in soak(tmp_path, healed="yes"), "a changed tree is tested whole"
    rows = json.loads((tmp_path / "soak.json").read_text())["tests"]
    assert {row["commit"] for row in rows} == {head + "+"}


@pytest.mark.process
def test_without_a_checkout_there_is_no_commit_to_keep(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    assert "expected a git checkout" in soak(tmp_path, healed="yes")
    assert not (tmp_path / "soak.json").exists()
