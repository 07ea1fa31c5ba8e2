"""Shards behind URLs: a server on this machine is asked for the bytes of the images and for no others."""

from __future__ import annotations

import re
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deepcait.data import open_source
from deepcait.data.shards import read_range
from deepcait.errors import DataError, ImageError
from tests.data.forms import add_to_tar, write_parquet

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")


class Server:
    """Serves a folder, ranges too; `ranges` are the parts that were asked for."""

    def __init__(self, root: Path) -> None:
        self.sends_ranges, self.accepts, self.sent = True, "bytes", 0
        self.ranges: list[tuple[str, int, int]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def answer(self, *, body: bool) -> None:
                path = root / self.path.lstrip("/")
                data = path.read_bytes() if path.is_file() else b""
                asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                asked = asked if server.sends_ranges else None
                first, last = (int(asked[1]), min(int(asked[2]), len(data) - 1)) if asked else (0, len(data) - 1)
                self.send_response(404 if not path.is_file() else 206 if asked else 200)
                if server.accepts:
                    self.send_header("Accept-Ranges", server.accepts)
                self.send_header("ETag", f'"{path.stat().st_mtime_ns}"' if path.is_file() else '""')
                if asked:
                    self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
                self.send_header("Content-Length", str(last + 1 - first))
                self.end_headers()
                if body:
                    server.ranges.append((path.name, first, last + 1 - first))
                    self.wfile.write(data[first : last + 1])

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("deepcait.data.shards._SEND_RANGES", set())
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "root"
    root.mkdir()
    demo = open_source("builtin:demo", "test")
    samples = [demo.read(index) for index in range(0, 500, 25)]
    for shard in range(2):
        with tarfile.open(root / f"train-{shard:03d}.tar", "w") as archive:
            for sample in samples[10 * shard : 10 * shard + 10]:
                add_to_tar(archive, sample.name, sample.data)
                add_to_tar(archive, f"{sample.name.removesuffix('.png')}.cls", str(sample.label).encode())
    write_parquet(root / "all.parquet", [(s.name, s.data) for s in samples], [s.label for s in samples], demo.classes)
    server = Server(root)
    server.samples, server.root = samples, root
    thread = threading.Thread(target=server.http.serve_forever)
    thread.start()
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def test_tar_shards_are_read_in_place(server):
    spec = f"{server.url}/train-{{000..001}}.tar"
    source = open_source(spec, "train")
    assert [source.read(index) for index in range(20)] == server.samples
    again = open_source(spec, "train")  # the index was kept: not one request for the shards' contents
    server.ranges.clear()
    assert again.names == source.names
    assert server.ranges == []
    wanted = again.read(13)
    assert wanted == server.samples[13]
    assert server.ranges == [("train-001.tar", server.ranges[0][1], len(wanted.data))]


def test_a_shard_that_changed_is_read_again(server):
    spec = f"{server.url}/train-000.tar"
    open_source(spec, "train")
    content = (server.root / "train-000.tar").read_bytes()
    (server.root / "train-000.tar").write_bytes((server.root / "train-001.tar").read_bytes()[: len(content)])
    fresh = open_source(spec, "train")
    assert fresh.names == [sample.name for sample in server.samples[10:]]


def test_parquet(server):
    source = open_source(f"{server.url}/all.parquet")
    assert [source.read(index) for index in range(20)] == server.samples


def test_what_is_gone_is_an_error_of_ours(server):
    with pytest.raises(DataError, match="gone.tar"):
        open_source(f"{server.url}/gone.tar")
    source = open_source(f"{server.url}/train-000.tar")
    (server.root / "train-000.tar").unlink()
    with pytest.raises(ImageError, match=r"train-000\.tar"):
        source.read(3)


@pytest.mark.parametrize("accepts", ["bytes", "none", ""])
@pytest.mark.parametrize("name", ["train-{000..001}.tar", "all.parquet"])
def test_a_server_without_ranges_is_named_when_the_source_is_opened(server, accepts, name):
    server.sends_ranges, server.accepts = False, accepts
    spec = f"{server.url}/{name}"
    for _ in range(2):  # whatever was stored the first time
        with pytest.raises(DataError, match=r"does not send parts of a file \(Range requests\)") as caught:
            open_source(spec)
        assert "http.server" in caught.value.remedy
    assert len(server.ranges) <= 2


def test_a_server_is_asked_once(server):
    spec = f"{server.url}/train-{{000..001}}.tar"
    first = open_source(spec)
    asked = [one for one in server.ranges if one[1:] == (1, 1)]
    open_source(spec)
    open_source(f"{server.url}/all.parquet")
    assert len(first) == 20
    assert [one for one in server.ranges if one[1:] == (1, 1)] == asked == [("train-000.tar", 1, 1)]


def test_a_server_that_sends_the_whole_file_is_named_as_such(monkeypatch):
    class Whole:
        def cat_file(self, path, start, end):
            return bytes(100)

    monkeypatch.setattr("deepcait.data.shards._filesystem", lambda url: (Whole(), url))
    with pytest.raises(ImageError, match=r"does not send parts of a file \(Range requests\)"):
        read_range("http://example.org/x.tar", 10, 20)
