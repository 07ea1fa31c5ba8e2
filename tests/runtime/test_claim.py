"""Claims: one owner at a time, whatever happens to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deepcait.runtime import claim as module
from deepcait.runtime.claim import claim, owner_of


def test_one_owner_at_a_time(tmp_path):
    lock = tmp_path / "a.lock"
    with claim(lock) as ours:
        assert ours
        assert owner_of(lock) == f"process {os.getpid()} on {module.platform.node()}"
        with claim(lock) as again:
            assert not again
        assert lock.exists(), "who did not get it takes it away"
    assert list(tmp_path.iterdir()) == []
    with claim(lock) as ours:
        assert ours


def test_given_back_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), claim(tmp_path / "a.lock"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


@pytest.mark.process
def test_a_dead_owner_on_this_machine_is_no_owner(tmp_path):
    lock = tmp_path / "a.lock"
    here = module._here() | {"token": "x"}
    lock.write_text(json.dumps(here | {"pid": dead_process(), "started": "1"}))
    with claim(lock) as ours:
        assert ours
    # A living process with the number of a dead one is another one.
    lock.write_text(json.dumps(here | {"started": "1"}))
    with claim(lock) as ours:
        assert ours
    # This very process lives, however long ago it touched the file.
    lock.write_text(json.dumps(here))
    os.utime(lock, (1, 1))
    with claim(lock) as ours:
        assert not ours


def test_an_owner_elsewhere_is_believed_until_it_is_silent_for_long(tmp_path):
    lock = tmp_path / "a.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "x"}))
    with claim(lock) as ours:
        assert not ours
    before = lock.stat().st_mtime - module.STALE_S - 1
    os.utime(lock, (before, before))
    with claim(lock) as ours:
        assert ours
        assert json.loads(lock.read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_an_unreadable_lock_is_believed_for_a_while(tmp_path, content):
    lock = tmp_path / "a.lock"
    lock.write_text(content)
    with claim(lock) as ours:
        assert not ours
    os.utime(lock, (1, 1))
    with claim(lock) as ours:
        assert ours


def test_the_owner_keeps_its_lock_alive(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    lock = tmp_path / "a.lock"
    with claim(lock):
        os.utime(lock, (1, 1))
        waited = threading.Event()
        for _ in range(500):
            waited.wait(0.01)
            if lock.stat().st_mtime > 1:
                return
    raise AssertionError("not touched")


def test_a_lock_that_another_took_is_neither_kept_alive_nor_given_back(tmp_path, monkeypatch):
    """We were silent for so long that somebody cleared ours away."""
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    lock = tmp_path / "a.lock"
    with claim(lock) as ours:
        assert ours
        aside = tmp_path / "aside"
        aside.write_text(json.dumps({"host": "elsewhere", "token": "theirs"}))
        os.utime(aside, (1, 1))
        os.replace(aside, lock)
        threading.Event().wait(0.2)
        assert lock.stat().st_mtime == 1
    assert json.loads(lock.read_text())["token"] == "theirs"


def test_a_lock_that_changed_hands_meanwhile_is_put_back(tmp_path, monkeypatch):
    """We judged a stale lock; before we cleared it, another had, and made its own."""
    lock = tmp_path / "a.lock"
    lock.write_text(json.dumps({"host": "elsewhere", "token": "old"}))
    os.utime(lock, (1, 1))
    real = module._is_stale

    def slow(path, owner):
        answer = real(path, owner)
        lock.write_text(json.dumps({"host": "elsewhere", "token": "new"}))
        return answer

    monkeypatch.setattr(module, "_is_stale", slow)
    with claim(lock) as ours:
        assert not ours
    assert json.loads(lock.read_text())["token"] == "new"


def test_a_disk_without_hard_links(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", refused)
    with claim(tmp_path / "a.lock") as ours:
        assert ours
        with claim(tmp_path / "a.lock") as again:
            assert not again


WORKER = """
import sys, time
from pathlib import Path
from deepcait.runtime.claim import claim
folder, name = Path(sys.argv[1]), sys.argv[2]
for number in range(40):
    with claim(folder / f"{number % 4}.lock") as ours:
        if ours:
            inside = folder / f"inside-{number % 4}"
            inside.touch(exist_ok=False)   # two at once would meet here
            time.sleep(0.002)
            inside.unlink()
print("fine")
"""


@pytest.mark.process
def test_processes_that_race_never_own_together(tmp_path):
    for number in range(4):  # stale ones, which all want to clear away
        lock = tmp_path / f"{number}.lock"
        lock.write_text(json.dumps({"host": "elsewhere", "token": "old"}))
        os.utime(lock, (1, 1))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, "-c", WORKER, str(tmp_path)]
    running = [
        subprocess.Popen([*words, str(n)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for n in range(4)
    ]
    for process in running:
        out, err = process.communicate(timeout=120)
        assert out == "fine\n", err
