"""A process that has imported deepcait and forks real training processes from itself, in 0.1 s instead of 7.

`python -m tests.processes.nursery` reads one JSON request a line: `{"argv", "environment", "log"}` forks a process
that leads a session of its own and runs `python argv...`; `{"poll": pid}` answers its exit code, or null. `Nursery` is
the other end. The soak tests start `python -m deepcait` itself.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path


class Nursery:
    """Starts the server and asks it."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.processes.nursery"]
        root = Path(__file__).parent.parent.parent
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, cwd=root
        )

    def start(self, argv: list[str], log: Path, environment: dict[str, str]) -> Child:
        return Child(self, self.ask({"argv": argv, "log": str(log), "environment": environment}))

    def ask(self, request: dict) -> int | None:
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait(20)


class Child:
    """One forked process, with the part of subprocess.Popen that is needed."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.nursery = nursery
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.nursery.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.005)
        return self.returncode

    def terminate(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


def _serve() -> None:
    for name in ("deepcait.cli.train", "deepcait.evaluation", "deepcait.training.run", "timm.data.mixup"):
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
            continue
        pid = os.fork()
        if not pid:
            _become(request)
        print(json.dumps(pid), flush=True)


def _become(request: dict) -> None:
    os.setsid()
    for number, (ending, flags) in enumerate(
        [("", os.O_RDONLY), (".out", os.O_WRONLY | os.O_CREAT), (".err", os.O_WRONLY | os.O_CREAT)]
    ):
        os.dup2(os.open(request["log"] + ending if ending else os.devnull, flags, 0o644), number)
    os.environ.update(request["environment"])
    match request["argv"]:
        case ["-m", "deepcait", *rest]:
            from deepcait.cli.main import main

            sys.exit(main(rest))
        case [script, *rest]:
            sys.argv = [script, *rest]
            runpy.run_path(script, run_name="__main__")
            sys.exit(0)


if __name__ == "__main__":
    _serve()
