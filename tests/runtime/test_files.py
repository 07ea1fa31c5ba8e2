"""Old or new, never half: with failures at every step, readers beside, and kills in between."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from deepcait.errors import WriteError
from deepcait.runtime import files
from tests.disk import inode, things_in, watch_disk


def fill_with(text: str):
    def fill(place):
        (place / "one").write_text(text)
        (place / "sub").mkdir()
        (place / "sub" / "two").write_text(text)

    return fill


def read(folder) -> tuple[str, str]:
    return (folder / "one").read_text(), (folder / "sub" / "two").read_text()


def test_a_file_is_replaced_and_nothing_is_left_beside(tmp_path):
    path = tmp_path / "f.json"
    for data in (b"old", b"new"):
        files.write_bytes(path, data)
        assert path.read_bytes() == data
    assert os.listdir(tmp_path) == ["f.json"]


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    """A power cut after the renaming must not leave an empty file under the name."""
    done = watch_disk(monkeypatch)
    files.write_bytes(tmp_path / "f.json", b"new")
    new = inode(tmp_path / "f.json")
    assert done == [("sync", new), ("move", new), ("sync", inode(tmp_path))]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch, exchange):
    folder, swap = tmp_path / "m", files._exchange
    files.replace_folder(folder, fill_with("old"))
    done = watch_disk(monkeypatch)

    def seen_swap(one, other):
        done.append(("move", inode(one)))
        return swap(one, other)

    monkeypatch.setattr(files, "_exchange", seen_swap if exchange else lambda *_: False)
    files.replace_folder(folder, fill_with("new"))
    moved = done.index(("move", inode(folder)))
    before, after = done[:moved], done[moved + 1 :]
    assert {number for kind, number in before if kind == "sync"} == things_in(folder)
    assert after == [("sync", inode(tmp_path))]


def test_a_file_behind_a_link_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "f.json").write_bytes(b"old")
    (tmp_path / "link.json").symlink_to(tmp_path / "real" / "f.json")
    files.write_bytes(tmp_path / "link.json", b"new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real" / "f.json").read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("ours"), BrokenPipeError(), KeyboardInterrupt()])
def test_an_error_of_the_block_is_passed_on_and_leaves_the_old_file(tmp_path, error):
    """A pipe that closes is not the file's: the block printed to it."""
    path = tmp_path / "f.json"
    path.write_bytes(b"old")

    def print_and_fail():
        with files.replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)):
        print_and_fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f.json"]


def test_a_reader_sees_the_old_file_until_the_block_ends(tmp_path):
    path = tmp_path / "f.json"
    path.write_bytes(b"old")
    with files.replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.parent == path.parent
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "f.json"
    files.write_bytes(path, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, step, full)
    with pytest.raises(WriteError, match=r"f\.json.*No space left.*Free space"):
        files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f.json"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no full device")
def test_a_really_full_device_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "m"
    files.replace_folder(folder, fill_with("old"))

    def fill(place):
        with open("/dev/full", "wb") as file:
            file.write(b"x" * 100_000)

    with pytest.raises(WriteError, match="not changed"):
        files.replace_folder(folder, fill)
    assert read(folder) == ("old", "old")
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_whole(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    folder = tmp_path / "deep" / "m"
    for text in ("old", "new"):
        files.replace_folder(folder, fill_with(text))
        assert read(folder) == (text, text)
    assert os.listdir(tmp_path / "deep") == ["m"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_folders_change_places_in_one_call(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "who").write_text(name)
    assert files._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "who").read_text() == "b"
    with pytest.raises(OSError, match="No such file"):
        files._exchange(tmp_path / "a", tmp_path / "none")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EACCES])
def test_a_disk_that_cannot_exchange_folders(tmp_path, monkeypatch, code):
    """Two renamings do it there; another failure is reported, and the old folder stays."""
    folder = tmp_path / "m"
    files.replace_folder(folder, fill_with("old"))

    def refused(*_):
        ctypes.set_errno(code)
        return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace(renameat2=refused))
    if code == errno.EACCES:
        with pytest.raises(WriteError, match="Permission denied"):
            files.replace_folder(folder, fill_with("new"))
    else:
        files.replace_folder(folder, fill_with("new"))
    text = "old" if code == errno.EACCES else "new"
    assert read(folder) == (text, text)
    assert os.listdir(tmp_path) == ["m"]


def test_what_a_kill_after_both_renames_left_is_cleared_away(tmp_path):
    files.replace_folder(tmp_path / "m", fill_with("new"))
    (tmp_path / ".m.old").mkdir()
    assert files.current(tmp_path / "m") == tmp_path / "m"
    files.replace_folder(tmp_path / "m", fill_with("newer"))
    assert read(tmp_path / "m") == ("newer", "newer")
    assert os.listdir(tmp_path) == ["m"]


def test_a_link_keeps_pointing(tmp_path):
    files.replace_folder(tmp_path / "real", fill_with("old"))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files.replace_folder(tmp_path / "link", fill_with("new"))
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "real") == ("new", "new")


def test_a_failure_while_filling_leaves_the_old_folder(tmp_path):
    folder = tmp_path / "m"
    files.replace_folder(folder, fill_with("old"))

    def fill(place):
        (place / "one").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.replace_folder(folder, fill)
    assert read(folder) == ("old", "old")
    assert os.listdir(tmp_path) == ["m"]


def test_a_kill_between_two_renames_loses_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "m"
    files.replace_folder(folder, fill_with("old"))
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    rename = os.rename

    def killed(source, place):
        if os.path.realpath(place) == str(folder):
            raise KeyboardInterrupt  # as near to a kill as a test in one process comes
        rename(source, place)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            files.replace_folder(folder, fill_with("new"))
    assert not folder.exists()
    assert read(files.current(folder)) == ("old", "old")
    files.replace_folder(folder, fill_with("new"))
    assert read(files.current(folder)) == ("new", "new")
    assert os.listdir(tmp_path) == ["m"]


WRITER = """
import sys, itertools
from pathlib import Path
from deepcait.runtime.files import replace_folder
def fill(place):
    (place / "one").write_text(str(number)); (place / "two").write_text(str(number))
for number in itertools.count():
    replace_folder(sys.argv[1], fill)
    if number == 0:
        print("ready", flush=True)
"""


@pytest.mark.process
def test_a_killed_writer_never_leaves_half_a_folder(tmp_path):
    folder = tmp_path / "m"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"ready\n"
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            assert folder.is_dir()
        writer.send_signal(signal.SIGKILL)
    assert (folder / "one").read_text() == (folder / "two").read_text() != ""
