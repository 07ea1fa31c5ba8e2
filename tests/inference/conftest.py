"""Tests of engines whose packages are not installed are skipped, with the reason."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

MISSING = [name for name in ("onnx", "onnxruntime", "onnxscript", "openvino") if find_spec(name) is None]
_NEEDS = ("onnx", "openvino", "test_a_changed_file_does_not_pass")


def pytest_collection_modifyitems(items):
    """Skip what asks for a package of the extras export and openvino where one is missing."""
    for item in items:
        if MISSING and "/inference/" in item.nodeid and any(word in item.name for word in _NEEDS):
            item.add_marker(pytest.mark.skip(reason=f"not installed: {', '.join(MISSING)}"))
