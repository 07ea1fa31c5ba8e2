"""Loader workers when their main process ends."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from tests.processes.harness import DEMO, PATIENCE_S, ROOT, Started, started

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("processes")]
WORKS = """
import time

def slow(image):
    time.sleep(0.05)
    return 0

if __name__ == "__main__":
    import works
    from deepcait.data import evaluation_loader, open_split

    for _ in evaluation_loader(open_split("builtin:demo", "train"), works.slow, batch_size=1, num_workers=2):
        print("works", flush=True)
"""
HANGS = """
import signal, time

def hang(image):
    print("hangs", flush=True)
    time.sleep(600)

def give_up(*_):
    raise KeyboardInterrupt

if __name__ == "__main__":
    import hangs
    from deepcait.data import evaluation_loader, open_split

    signal.signal(signal.SIGUSR1, give_up)
    for _ in evaluation_loader(open_split("builtin:demo", "val"), hangs.hang, batch_size=1, num_workers=2):
        pass
"""


@pytest.mark.parametrize("verb", ["loader", "doctor"])
def test_no_worker_outlives_a_killed_main_process(verb, tmp_path: Path) -> None:
    """torch's own look at the parent does not help: the parent of all is the server, which waits for them."""
    (tmp_path / "works.py").write_text(WORKS, encoding="utf-8")
    data = tmp_path / "data" / "class"
    data.mkdir(parents=True)
    for path in (DEMO / "test").glob("*/*.png"):
        for number in range(50):
            (data / f"{path.stem}-{path.parent.name}-{number}.png").symlink_to(path)
    doctor = [sys.executable, "-m", "deepcait", "doctor", "--data", str(data.parent), "--workers", "2"]
    command = {"loader": [sys.executable, str(tmp_path / "works.py")], "doctor": doctor}[verb]
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with started(command, tmp_path / "log", environment=environment) as process:
        # The main process, the tracker of resources, the server, two workers.
        assert process.wait_for(lambda: len(process.pids()) == 5), process.stderr
        process.kill_only(process.process.pid)
        process.wait()
        require_nothing_left(process)


@pytest.mark.parametrize("wait_s", [0.0, 0.5])
def test_a_signal_for_all_while_workers_start_ends_none_of_them(wait_s, tmp_path: Path) -> None:
    """The main process is asked to stop, and goes on with its workers until it has finished its step."""
    script = tmp_path / "works.py"
    script.write_text(f"import signal\nsignal.signal(signal.SIGTERM, lambda *_: None)\n{WORKS}", encoding="utf-8")
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with started([sys.executable, str(script)], tmp_path / "log", environment=environment) as process:
        assert process.wait_for(lambda: len(process.pids()) >= 3), process.stderr  # the server was started just now
        time.sleep(wait_s)
        process.terminate_group()
        assert process.wait_for(lambda: process.stdout.count("works") >= 3), process.stderr


def test_workers_that_hang_end_with_their_main_process(tmp_path: Path) -> None:
    """They ignore SIGTERM, so the end that torch asks for must be a kill."""
    script = tmp_path / "hangs.py"
    script.write_text(HANGS, encoding="utf-8")
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with started([sys.executable, str(script)], tmp_path / "log", environment=environment) as process:
        assert process.wait_for(lambda: process.stdout.count("hangs") == 2), process.stderr
        process.process.send_signal(signal.SIGUSR1)
        assert process.wait() != 0
        require_nothing_left(process)


def require_nothing_left(process: Started) -> None:
    end = time.monotonic() + PATIENCE_S  # the server that forked them sees a moment later that it is alone
    while process.pids() and time.monotonic() < end:
        time.sleep(0.05)
    assert process.pids() == []
