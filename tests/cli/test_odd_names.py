"""Files whose names are no text, hold line breaks or commas: every verb prints and writes them, none breaks off."""

from __future__ import annotations

import csv
import os
import shutil

import pytest

ODD_NAMES = [b"\xff\xfe.png", b"new\nline.png", b"a, \"b\".png", "\N{SNOWMAN} \u00fc.png".encode()]


@pytest.fixture
def odd(photos):
    """The photographs, and four of odd names in one class."""
    for name in ODD_NAMES:
        shutil.copy(photos / "cat" / "0.png", photos / "dog" / os.fsdecode(name))
    return photos


def test_doctor(run, run_json, odd):
    code, out, _ = run("doctor", "--data", odd)
    assert code == 0
    assert "\\udcff\\udcfe.png" in out
    assert run_json("doctor", "--data", odd)["by_kind"] == {"two_labels": 1}


def test_predict(run, run_json, model_folder, odd, tmp_path):
    code, out, _ = run("predict", model_folder, odd / "dog")
    assert code == 0
    assert "\\udcff\\udcfe.png" in out
    assert run("predict", model_folder, odd / "dog", "--out", tmp_path / "out.csv", "--topk", 1)[0] == 0
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        written = {row["file"].rpartition("/")[2] for row in csv.DictReader(file)}
    assert written >= {"\\udcff\\udcfe.png", "new\nline.png", 'a, "b".png', "\N{SNOWMAN} \u00fc.png"}
    answers = run_json("predict", model_folder, odd / "dog")
    assert {os.fsencode(answer["file"].rpartition("/")[2]) for answer in answers} >= set(ODD_NAMES)


def test_eval(run, model_folder, odd, tmp_path):
    assert run("eval", model_folder, "--data", odd, "--per-image", tmp_path / "images.csv")[0] == 0
    assert "udcff" in (tmp_path / "images.csv").read_text(encoding="utf-8")


def test_explain(run, model_folder, odd, tmp_path):
    picture = odd / "dog" / os.fsdecode(ODD_NAMES[0])
    assert run("explain", model_folder, picture, "--out", tmp_path / "why")[0] == 0
    assert "udcff" in (tmp_path / "why" / "index.html").read_text(encoding="utf-8")
