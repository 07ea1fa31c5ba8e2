"""A server on 127.0.0.1 that speaks as much of the hub's protocol as its real client needs: files out, commits in."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import timm
import torch

COMMIT = "c" * 40
# The hub keeps large files elsewhere: it answers with their sha256, their size and another address.
LARGE = (".safetensors", ".bin", ".data-00000-of-00001")


@dataclass
class Hub:
    """What the server holds, what it was asked, and how it shall fail.

    Args:
        repositories: `owner/name` -> folder with its files.
        faults: file name -> "wrong bytes", "truncated" (the connection ends half way, each time), "cut once",
            "stalled", or a status to answer.
        private: repositories that ask for the token.
    """

    repositories: dict[str, Path]
    faults: dict[str, str | int] = field(default_factory=dict)
    private: tuple[str, ...] = ()
    token: str = "hf_secret_of_the_test"
    endpoint: str = ""
    storage: str = ""  # the same server by another name: the client follows no redirect to another host on its own
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    commits: list[dict] = field(default_factory=list)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    connections: list[socket.socket] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def find(self, path: str) -> tuple[str, Path | None]:
        """The repository that a path asks for, and the file."""
        parts = unquote(path).strip("/").split("/")
        if len(parts) < 5 or parts[2] != "resolve":
            return "", None
        name = "/".join(parts[:2])
        folder = self.repositories.get(name)
        file = folder / "/".join(parts[4:]) if folder else None
        return name, file if file and file.is_file() else None


@functools.lru_cache
def _sha256(file: Path, _changed_ns: int) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@contextmanager
def serve_hub(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve folders as repositories; yields the endpoint and a list that every request is added to."""
    with run_hub(Hub(repositories)) as hub:
        yield hub.endpoint, hub.requests


@contextmanager
def run_hub(hub: Hub) -> Iterator[Hub]:
    """Serve a hub until the block ends; its endpoint is filled in."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    hub.storage = hub.endpoint.replace("127.0.0.1", "localhost")
    try:
        yield hub
    finally:
        hub.stop.set()
        server.shutdown()
        server.server_close()
        thread.join()
        for connection in hub.connections:  # those that a client keeps open, too
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.connections.append(self.connection)

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve_file(body=False)

    def do_GET(self) -> None:
        self._serve_file(body=True)

    # -- files out ----------------------------------------------------------------------------------------------------

    def _serve_file(self, *, body: bool) -> None:
        hub = self.hub
        path = urlsplit(self.path).path  # through a proxy the whole address comes
        hub.requests.append(f"{self.command} {self.path}")
        if path.startswith("/storage/"):
            self._send(Path("/" + unquote(path.removeprefix("/storage/"))), body=body)
            return
        repository, file = hub.find(path)
        known = "/".join(unquote(path).strip("/").split("/")[:2]) in hub.repositories
        allowed = repository not in hub.private or self.headers.get("Authorization") == f"Bearer {hub.token}"
        if not known or not allowed:
            self._answer(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return
        name = unquote(path).rpartition("/")[2]
        fault = hub.faults.get(name)
        if isinstance(fault, int):
            code = {401: "", 404: "EntryNotFound", 403: "GatedRepo"}.get(fault, "")
            self._answer(fault, {"X-Error-Code": code} if code else {})
        elif file is None:
            self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        elif name.endswith(LARGE):
            self._answer(
                302,
                {
                    "X-Repo-Commit": COMMIT,
                    "X-Linked-ETag": f'"{_sha256(file, file.stat().st_mtime_ns)}"',
                    "X-Linked-Size": str(file.stat().st_size),
                    "Location": f"{hub.storage}/storage{file.resolve()}",
                },
            )
        else:
            self._send(file, body=body)

    def _send(self, file: Path, *, body: bool) -> None:
        """The bytes of a file, all or from where it is asked, as faulty as they shall be."""
        hub, data = self.hub, file.read_bytes()
        fault = hub.faults.get(file.name) if body else None
        etag = hashlib.sha1(b"blob %d\0" % len(data) + data[:100_000]).hexdigest()  # the client compares nothing
        start, asked = 0, self.headers.get("Range")
        if asked:
            hub.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        if fault == "wrong bytes":
            data = data[:-1] + bytes((data[-1] ^ 1,))
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(data) - start)}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._answer(206 if asked else 200, headers)
        if not body:
            return
        part = data[start:]
        if fault in ("truncated", "cut once", "stalled"):
            part = part[: len(part) // 2]
            if fault == "cut once":
                del hub.faults[file.name]
        try:
            self.wfile.write(part)
            self.wfile.flush()
        except OSError:
            return  # whoever asked is gone
        if fault == "stalled":
            hub.stop.wait(60)
        if fault in ("truncated", "cut once", "stalled"):
            self.close_connection = True

    # -- commits in ---------------------------------------------------------------------------------------------------

    def do_POST(self) -> None:
        hub = self.hub
        hub.requests.append(f"POST {self.path}")
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.authorizations.append(self.headers.get("Authorization") or "")
        path = urlsplit(self.path).path
        if path == "/api/validate-yaml":
            self._answer_json(200, {"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._answer_json(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            asked = json.loads(content)
            name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
            self._answer_json(200, {"url": f"{hub.endpoint}/{name}", "id": name})
        elif "/preupload/" in path:
            files = json.loads(content)["files"]
            modes = {file["path"]: "lfs" if file["path"].endswith(LARGE) else "regular" for file in files}
            answers = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
            self._answer_json(200, {"files": answers})
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                one | {"actions": {"upload": {"href": f"{hub.endpoint}/upload/{one['oid']}"}}}
                for one in json.loads(content)["objects"]
            ]
            self._answer_json(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self._commit(path.split("/commit/")[0].removeprefix("/api/models/"), content)
        else:
            self._answer_json(404, {"error": f"this server does not know {path}"})

    def do_PUT(self) -> None:
        self.hub.requests.append(f"PUT {self.path}")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.uploaded[hashlib.sha256(content).hexdigest()] = content
        self._answer(200, {})

    def _commit(self, repository: str, content: bytes) -> None:
        """Write a commit's files into the repository's folder."""
        lines = [json.loads(line) for line in content.splitlines()]
        self.hub.commits.append(
            {"repository": repository, "header": lines[0]["value"], "paths": [x["value"]["path"] for x in lines[1:]]}
        )
        folder = self.hub.repositories[repository]
        for line in lines[1:]:
            value = line["value"]
            data = base64.b64decode(value["content"]) if line["key"] == "file" else self.hub.uploaded[value["oid"]]
            (folder / value["path"]).parent.mkdir(parents=True, exist_ok=True)
            (folder / value["path"]).write_bytes(data)
        url = f"{self.hub.endpoint}/{repository}/commit/{COMMIT}"
        self._answer_json(200, {"commitUrl": url, "commitOid": COMMIT})

    # -- answers ------------------------------------------------------------------------------------------------------

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": "0"} | headers).items():
            self.send_header(key, value)
        self.end_headers()

    def _answer_json(self, status: int, value: dict) -> None:
        data = json.dumps(value).encode()
        self._answer(status, {"Content-Type": "application/json", "Content-Length": str(len(data))})
        self.wfile.write(data)


def timm_repository(
    folder: Path, random_weights: Callable[[torch.nn.Module], torch.nn.Module], name: str, **sizes
) -> torch.nn.Module:
    """A repository with random weights, saved by timm itself as it saves what it uploads."""
    with torch.device("meta"):
        model = timm.create_model(name, **sizes)
    random_weights(model.to_empty(device="cpu"))
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    return model.eval()
