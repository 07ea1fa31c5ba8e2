"""Loader workers when their main process ends."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest

from tests.processes.harness import ROOT, started

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("processes")]
HANGS = """
import signal, time

def hang(picture):
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


def test_workers_that_hang_end_with_their_main_process(tmp_path: Path) -> None:
    """They ignore SIGTERM, so the end that torch asks for must be a kill."""
    script = tmp_path / "hangs.py"
    script.write_text(HANGS, encoding="utf-8")
    environment = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with started([sys.executable, str(script)], tmp_path / "log", environment=environment) as process:
        assert process.wait_for(lambda: process.stdout.count("hangs") == 2), process.stderr
        process.process.send_signal(signal.SIGUSR1)
        assert process.wait(30) != 0
        end = time.monotonic() + 10  # the server that forked them sees a moment later that it is alone
        while process.pids() and time.monotonic() < end:
            time.sleep(0.05)
        assert process.pids() == []
