"""Claims: one owner at a time, whatever happens to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deepcait.errors import RunError
from deepcait.runtime import claim as module
from deepcait.runtime.claim import claim, hold, owner_of, require_free


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


def elsewhere(lock: Path, age_s: float = 0.0) -> None:
    """A lock of another machine, last touched so long ago."""
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 7, "token": "theirs", "since": 0}))
    os.utime(lock, (time.time() - age_s,) * 2)


def test_hold_names_the_process_that_writes(tmp_path):
    place = tmp_path / "report.html"
    with hold(place):
        assert [path.name for path in tmp_path.iterdir()] == [".report.html.lock"]
        with pytest.raises(RunError) as caught, hold(place):
            raise AssertionError
        with pytest.raises(RunError), hold(tmp_path / "other", tmp_path / ".report.html.lock"):
            raise AssertionError
    assert f"{place}: process {os.getpid()} on {module.platform.node()} is writing there, since 20" in str(caught.value)
    assert "--out" in caught.value.remedy
    with hold(place):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_hold_takes_over_from_a_dead_process_and_from_a_reused_number(tmp_path):
    lock = tmp_path / ".run.lock"
    for owner in ({"pid": dead_process(), "started": "1"}, {"started": "1"}):
        lock.write_text(json.dumps(module._here() | {"token": "x"} | owner))
        require_free(tmp_path / "run", lock)
        with hold(tmp_path / "run"):
            assert json.loads(lock.read_text())["token"] != "x"


def test_hold_waits_for_a_sign_of_another_machine(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "deepcait")
    monkeypatch.setattr(module, "BEAT_S", 0.01)
    lock = tmp_path / ".run.lock"
    elsewhere(lock, module.STALE_S - 0.2)  # it has ended: in 0.2 seconds it counts as dead
    with hold(tmp_path / "run"):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert f"{tmp_path / 'run'}: waiting for a sign of process 7 on elsewhere" in caplog.messages
    elsewhere(lock)  # it lives
    later = time.time() + 60  # an earlier time would look like a process that has ended
    alive = threading.Timer(0.2, os.utime, (lock, (later, later)))
    alive.start()
    with pytest.raises(RunError, match="process 7 on elsewhere is writing there"), hold(tmp_path / "run"):
        raise AssertionError
    alive.join()
    elsewhere(lock)  # it ends meanwhile
    ends = threading.Timer(0.2, lock.unlink)
    ends.start()
    with hold(tmp_path / "run"):
        ends.join()


def test_where_no_lock_can_be_made_the_writer_reports_why(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    done = []
    with hold(tmp_path / "file" / "out.html"):
        done.append("in a file")

    def full(path, *_, **__):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with hold(tmp_path / "out.html"):
        done.append("on a full disk")
    assert done == ["in a file", "on a full disk"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


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
