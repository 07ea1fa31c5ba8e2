"""The library, built once; without what it needs, the tests of this folder are skipped with the reason."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from tests.nullgpu.library import build, missing


@pytest.fixture(scope="session")
def nullgpu() -> Path:
    """The library that pretends a GPU."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    return build(Path(tempfile.gettempdir()) / f"nullgpu-{os.getuid()}")
