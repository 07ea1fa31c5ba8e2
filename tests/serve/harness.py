"""A running service, in a thread or as the command, and a client that sends exactly the bytes it is told to."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvicorn
from PIL import Image

from deepcait.serve.app import Service
from deepcait.serve.limits import Limits
from deepcait.serve.run import listen_on, server_config

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "deepcait" / "assets" / "demo" / "test"
BOUNDARY = "----a-boundary-of-the-tests"
PATIENCE = {
    "header_timeout_s": 60.0, "body_timeout_s": 60.0, "write_timeout_s": 60.0, "deadline_s": 60.0, "keep_alive_s": 60,
}  # fmt: skip


def picture_bytes(seed: int = 0, size: tuple[int, int] = (48, 40), format: str = "PNG", **options) -> bytes:
    """Smooth random colours, different for every seed."""
    pixels = np.random.default_rng(seed).integers(1, 255, (5, 6, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, format, **options)
    return buffer.getvalue()


def part(data: bytes, *, name: str = "image", filename: str | None = "a.png", kind: str | None = "image/png") -> bytes:
    """One part of a form, without its boundary."""
    file = "" if filename is None else f'; filename="{filename}"'
    lines = [f'Content-Disposition: form-data; name="{name}"{file}'.encode()]
    lines += [] if kind is None else [f"Content-Type: {kind}".encode()]
    return b"\r\n".join([*lines, b"", data])


def form(*parts: bytes, boundary: str = BOUNDARY) -> bytes:
    """The body of a multipart form."""
    mark = f"--{boundary}".encode()
    return b"".join(mark + b"\r\n" + one + b"\r\n" for one in parts) + mark + b"--\r\n"


def request(
    path: str = "/predict",
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: dict[str, str | None] | None = None,
) -> bytes:
    """A whole request; a header of None is left out."""
    lines: dict[str, str | None] = {"Host": "127.0.0.1"}
    if body or method == "POST":
        lines |= {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}", "Content-Length": str(len(body))}
    lines |= headers or {}
    head = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items() if value is not None)]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


@dataclass
class Reply:
    """An answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Connection:
    """A TCP connection to the service."""

    def __init__(self, port: int, timeout: float = 60.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> Reply:
        """The next answer; status 0 where the connection ends without one."""
        first = self.file.readline()
        if not first:
            return Reply(0, {}, b"")
        headers = {}
        while (line := self.file.readline().rstrip(b"\r\n")) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        body = self.file.read(int(headers.get("content-length", 0)))
        return Reply(int(first.split()[1]), headers, body)

    def close(self) -> None:
        self.file.close()
        self.socket.close()


class Live:
    """A service that can be asked."""

    def __init__(self, port: int, service: Service | None = None, server: uvicorn.Server | None = None) -> None:
        self.port = port
        self.service = service
        self.server = server

    @property
    def num_connections(self) -> int:
        """Connections that the service holds, those included that it is closing."""
        return len(self.server.server_state.connections)

    def change_limits(self, **changes) -> None:
        """Give the connections other limits; timers that run already are not changed."""
        protocol = self.server.config.http_protocol_class
        protocol.limits = dataclasses.replace(protocol.limits, **changes)

    def waits_for_a_reader(self) -> bool:
        """Whether an answer waits to be taken by a client."""
        # A copy, since the service's thread changes the set; a connection is in it before its timers exist.
        return any(getattr(one, "_write_timer", None) for one in list(self.server.server_state.connections))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def pid(self) -> int:
        """The process that answers."""
        return os.getpid()

    @property
    def resident_bytes(self) -> int:
        """Its memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])

    def ask(self, data: bytes, timeout: float = 60.0) -> Reply:
        """Send bytes on a connection of their own; what the service answers, though it may refuse to read them all."""
        with self.connect(timeout) as connection:
            try:
                connection.send(data)
            except (BrokenPipeError, ConnectionResetError):
                pass  # it has answered already
            return connection.read()

    def predict(self, *files: bytes, path: str = "/predict") -> Reply:
        return self.ask(request(path, form(*(part(data, filename=f"{i}.png") for i, data in enumerate(files)))))

    def open(self, timeout: float = 60.0) -> Connection:
        """A connection that the caller closes."""
        return Connection(self.port, timeout)

    @contextmanager
    def connect(self, timeout: float = 60.0):
        connection = self.open(timeout)
        try:
            yield connection
        finally:
            connection.close()


@contextmanager
def live(classifier, *, hosts=("127.0.0.1", "localhost"), cors_origins=(), **limits):
    """The service in a thread of this process; on a busy machine nothing is too late unless a limit is given."""
    chosen = Limits(**(PATIENCE | limits))
    service = Service(classifier, name="test", limits=chosen, hosts=hosts, cors_origins=cors_origins)
    server = uvicorn.Server(server_config(service, chosen))
    with listen_on("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Live(port, service, server)
        finally:
            server.should_exit = True
            thread.join(90)
            service.close()
            assert not thread.is_alive()
        assert_idle(service)


def assert_idle(service: Service) -> None:
    """Whatever was asked, and however it was refused: nothing is counted any more as being on its way."""
    pipeline = service.pipeline
    assert (service._num_requests, service._num_buffered_bytes) == (0, 0)
    assert (pipeline._num_coming, pipeline.num_waiting, pipeline.num_bytes, len(pipeline._placed)) == (0, 0, 0, 0)


class Command(Live):
    """`deepcait serve` as a process of its own."""

    def __init__(self, *options: str, script: tuple[str, ...] = ("-m", "deepcait", "serve", "builtin:nano")) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *script, "--port", "0", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip
        self.first_line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", self.first_line)
        assert found, self.first_line + self.process.stderr.read()
        super().__init__(int(found[1]))

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self) -> tuple[int, str, str]:
        """Ask it to end; exit code and what it had still to say."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=40)
        return self.process.returncode, out, err


@contextmanager
def command(*options: str, **named):
    """The command, ended at last."""
    process = Command(*options, **named)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
            process.process.communicate()


def wait_until(condition, seconds: float = 60.0) -> None:
    """Wait for something to become so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.005)
