"""The Dockerfile: what it copies and installs exists, and where there is a daemon with the base image it builds."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from deepcait.cli import serve
from deepcait.cli.main import COMMANDS
from deepcait.cli.options import parse_options

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def can_build() -> bool:
    base = re.search(r"^ARG BASE=(\S+)", TEXT, re.MULTILINE)[1]
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "image", "inspect", base], capture_output=True, check=False).returncode == 0


def test_it_names_what_exists():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", TEXT, re.MULTILINE) for name in line.split()]
    assert copied
    assert all((ROOT / name).exists() and f"!{name}" in ignored for name in copied)
    extras = re.search(r'"\.\[([\w,]+)\]"', TEXT)[1].split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras) <= set(project["optional-dependencies"])


def test_its_command_can_be_typed():
    command, *rest = re.findall(r'"([^"]+)"', re.search(r"^CMD (.*)$", TEXT, re.MULTILINE)[1])
    assert command in COMMANDS
    assert parse_options(serve.Args, rest, command="serve", description="").port == 8000


@pytest.mark.slow
@pytest.mark.skipif(not can_build(), reason="needs a Docker daemon and the base image")
def test_it_builds_and_predicts():
    subprocess.run(["docker", "build", "-q", "-t", "deepcait-test", str(ROOT)], check=True, timeout=1800)
    done = subprocess.run(
        ["docker", "run", "--rm", "deepcait-test", "info", "builtin:nano"], check=True, capture_output=True, text=True
    )
    assert "1,803,170" in done.stdout
