"""The file of a class mask: names or indices, however an editor wrote it; anything else is one paragraph."""

from __future__ import annotations

import pytest

from deepcait.errors import ConfigError
from deepcait.evaluation import read_mask


@pytest.mark.parametrize(
    "content", [b"cat\ndog\n", b"\xef\xbb\xbfcat\r\ndog\r\n", b"\n  cat  \n\n dog"], ids=["plain", "windows", "blanks"]
)
def test_one_class_a_line(tmp_path, content):
    path = tmp_path / "mask.txt"
    path.write_bytes(content)
    assert read_mask(str(path)) == ["cat", "dog"]
    assert read_mask("data") == "data"


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\x89PNG\r\n\xff"], ids=["empty", "blank", "a picture"])
def test_what_is_no_mask(tmp_path, content):
    path = tmp_path / "mask.txt"
    path.write_bytes(content)
    for place in (path, tmp_path, tmp_path / "gone"):
        with pytest.raises(ConfigError, match="one class a line, got"):
            read_mask(str(place))
