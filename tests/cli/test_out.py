"""A place that can't be written to is refused before any work: before a model, an image or data is looked for."""

from __future__ import annotations

import os

import pytest

from deepcait.errors import ConfigError
from deepcait.runtime.files import require_folder

# What is asked for does not exist, so that an error about the place comes first or not at all.
FILES = {
    "export onnx": "export nothing --to onnx --out {}.onnx",
    "export openvino": "export nothing --to openvino --out {}.xml",
    "export pt2": "export nothing --to pt2 --out {}.pt2",
    "export official": "export nothing --to official --out {}.pth",
    "eval --out": "eval nothing --data nowhere --out {}.csv",
    "eval --per-image": "eval nothing --data nowhere --per-image {}.csv",
    "predict --out": "predict nothing nowhere.png --out {}.csv",
    "predict --embeddings": "predict nothing nowhere.png --embeddings {}.npz",
    "report": "report nothing --out {}.html",
    "doctor": "doctor --data nowhere --fix-list {}.txt",
}
FOLDERS = {
    "export timm": "export nothing --to timm --out {}",
    "eval --plots": "eval nothing --data nowhere --plots {}",
    "explain": "explain nothing nowhere.png --out {}",
    "bench": "bench nothing --out {}",
    "push": "push nothing me/pets --dry-run --out {}",
    "study": "study layerscale --data nowhere --out {}",
    "study --results": "study layerscale --data nowhere --out new --results {}",
    "demo": "demo --out {}",
    "train": "train --data nowhere --model builtin:nano --out {}",
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("content")
    return tmp_path


def option(words: str) -> str:
    return words.split()[-2]


@pytest.mark.parametrize("words", FILES.values(), ids=FILES)
@pytest.mark.parametrize("bad", ["missing/x", "file/x"])
def test_files(run, place, words, bad):
    code, _, err = run(*words.format(bad).split())
    assert code == 2
    assert option(words) in err
    assert f"the folder {bad.partition('/')[0]} does not exist" in " ".join(err.split())
    assert sorted(path.name for path in place.iterdir()) == ["file"]


@pytest.mark.parametrize("words", FOLDERS.values(), ids=FOLDERS)
@pytest.mark.parametrize("bad", ["file", "file/x/y"])
def test_folders(run, place, words, bad):
    code, _, err = run(*words.format(bad).split())
    assert code == 2
    assert option(words) in err
    assert "is a file, not a folder" in " ".join(err.split())
    assert sorted(path.name for path in place.iterdir()) == ["file"]
    assert (place / "file").read_text() == "content"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission(place):
    (place / "closed").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="can't be written to"):
        require_folder(place / "closed" / "new", "--out")


def test_permission_is_asked_of_the_folder_that_exists(place, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "access", lambda path, mode: asked.append(path))
    with pytest.raises(ConfigError, match="the folder .* can't be written to"):
        require_folder(place / "new" / "inner", "--out")
    assert asked == [place]
