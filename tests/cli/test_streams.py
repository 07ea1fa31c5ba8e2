"""What is printed where a terminal knows few characters, nobody reads, or names are no text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

DEEPCAIT = [sys.executable, "-m", "deepcait"]


def start(*words: object, **how) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **how.pop("env", {})}
    return subprocess.run([*DEEPCAIT, *map(str, words)], env=environment, timeout=240, **how)


@pytest.mark.process
def test_a_terminal_that_lacks_the_characters_shows_escapes(model_folder, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "grün-猫.png")
    done = start("predict", model_folder, tmp_path, capture_output=True, env={"PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0, done.stderr
    assert "grün-\\u732b.png" in done.stdout.decode("latin-1")


def test_names_that_are_no_utf_8_are_shown_by_escapes(run, model_folder, tmp_path):
    name = os.fsencode(tmp_path) + b"/k\xfftze.png"
    try:
        Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
        os.rename(tmp_path / "a.png", name)
    except OSError:
        pytest.skip("this file system takes no such names")
    code, out, _ = run("predict", model_folder, tmp_path)
    assert code == 0
    assert "k\\udcfftze.png" in out
    for out in ("a.csv", "a.jsonl"):
        code, _, err = run("predict", model_folder, tmp_path, "--out", tmp_path / out)
        assert code == 0, err
        assert "k\\udcfftze.png" in (tmp_path / out).read_text(encoding="utf-8")
    (tmp_path / "data" / "cat").mkdir(parents=True)
    os.rename(name, os.fsencode(tmp_path) + b"/data/cat/k\xfftze.png")
    code, _, err = run("eval", model_folder, "--data", tmp_path / "data", "--per-image", tmp_path / "images.csv")
    assert code == 0, err
    assert "k\\udcfftze.png" in (tmp_path / "images.csv").read_text(encoding="utf-8")


def test_names_that_are_no_utf_8_are_one_paragraph_elsewhere(run, monkeypatch):
    monkeypatch.setattr("deepcait.cli.models.run", lambda args: "runs/k\udcfftze".encode())
    code, _, err = run("models")
    assert code == 2
    assert "UTF-8" in err
    assert "k\\udcfftze" in err
    assert "Traceback" not in err


@pytest.mark.process
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_utf_8_names_where_python_reads_others(photos, tmp_path, encoding):
    (photos / "cat").rename(photos / "猫")
    away = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": encoding}
    command = ["train", "--data", photos, "--out", tmp_path / "run", "--model", "builtin:nano", "--set", "epochs=1"]
    done = start(*command, capture_output=True, env=away)
    told = " ".join(done.stderr.decode(encoding).split())
    assert done.returncode == 2, told
    assert "\\u732b/" in told
    assert "Python reads file names as ascii here, this one is UTF-8." in told
    assert "remedy: Set PYTHONUTF8=1" in told
    assert "Traceback" not in told
    assert start(*command[:3], "--dry-run", *command[3:], capture_output=True, env={"LC_ALL": "C"}).returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.process
def test_a_full_stdout_is_reported_on_stderr_with_json_too():
    with open("/dev/full", "w") as full:
        done = start("models", "--json", stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert b"the disk is full" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.process
def test_a_mistake_that_is_not_read_keeps_its_exit_code():
    reader, writer = os.pipe()
    os.close(reader)
    assert start("info", "nothing", stderr=writer, stdout=subprocess.PIPE).returncode == 2
    os.close(writer)


@pytest.mark.process
def test_a_training_continues_where_its_lines_are_not_read(photos, tmp_path):
    """0 means done: a run that ends with its reader would say so too early."""
    reader, writer = os.pipe()
    os.close(reader)
    words = ("train", "--data", photos, "--out", tmp_path / "run", "--model", "builtin:nano", "--set", "epochs=1")
    done = start(*words, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "finished"
