"""What `deepcait predict` takes as PATH, and what it does with images that can't be read."""

from __future__ import annotations

import csv
import io
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def server(photos) -> Iterator[str]:
    """Serves the photos on this machine."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = photos / self.path.lstrip("/").partition("?")[0]
            data = path.read_bytes() if path.is_file() else b""
            self.send_response(200 if data else 404)
            self.send_header("Content-Length", str(len(data) + 9 * self.path.endswith("?short")))
            self.end_headers()
            self.wfile.write(data)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()


class Stdin:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def names(results: list[dict]) -> list[str]:
    return ["/".join(Path(result["file"]).parts[-2:]) for result in results]


def test_patterns_and_lists(run, run_json, model_folder, photos, monkeypatch):
    (photos / "cat" / "readme.md").write_text("no image")
    assert names(run_json("predict", model_folder, photos / "c*" / "[12].png")) == ["cat/1.png", "cat/2.png"]
    assert len(run_json("predict", model_folder, photos / "**" / "*.png")) == 12
    assert len(run_json("predict", model_folder, photos / "*")) == 12  # folders that match are walked
    (photos / "names.txt").write_text("dog/3.png\r\n\n cat/0.png\n", encoding="utf-8-sig")
    listed = run_json("predict", model_folder, photos / "names.txt")
    assert names(listed) == ["dog/3.png", "cat/0.png"]
    monkeypatch.chdir(photos)
    monkeypatch.setattr(sys, "stdin", Stdin(b"dog/3.png\ncat/0.png\n"))
    for one, other in zip(run_json("predict", model_folder, "-"), listed, strict=True):
        assert one["predictions"] == other["predictions"]
    assert "left out 1 file (.md 1)" in run("predict", model_folder, "cat/*")[2]
    for place in (photos, "*"):
        assert "left out 2 files (.md 1, .txt 1)" in run("predict", model_folder, place)[2].splitlines()[0]


def test_standard_input_may_be_an_image(run_json, model_folder, photos, monkeypatch):
    path = photos / "cat" / "0.png"
    monkeypatch.setattr(sys, "stdin", Stdin(path.read_bytes()))
    (piped,) = run_json("predict", model_folder, "-")
    (named,) = run_json("predict", model_folder, path)
    assert piped == named | {"file": "-"}


def test_urls(run, run_json, model_folder, photos, server):
    (fetched,) = run_json("predict", model_folder, f"{server}/cat/0.png")
    (named,) = run_json("predict", model_folder, photos / "cat" / "0.png")
    assert fetched == named | {"file": f"{server}/cat/0.png"}
    for path, options, said in (
        ("gone.png", (), "answered with HTTP status 404"),
        ("cat/0.png", ("--max-bytes", "100"), "expected at most 100 bytes, got more"),
        ("cat/0.png?short", (), "bytes, got"),
    ):
        code, _, err = run("predict", model_folder, f"{server}/{path}", *options)
        assert code == 2
        assert said in " ".join(err.split())
    assert run("predict", model_folder, "http://127.0.0.1:1/a.png")[0] == 2


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["gone.png"], "no such file or folder"),
        (["gone*.png"], "no image matches this pattern"),
        (["*.md"], "no image matches this pattern, only 1 file (.md 1)"),
        (["empty.txt"], "the list is empty"),
    ],
)
def test_paths_without_images_are_errors_before_any_work(run, photos, monkeypatch, paths, said):
    monkeypatch.chdir(photos)
    (photos / "empty.txt").write_text("\n")
    (photos / "a.md").write_text("")
    code, out, err = run("predict", "no-such-model", *paths)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())


def test_images_that_cannot_be_read_are_skipped(run, model_folder, photos, tmp_path):
    (photos / "cat" / "2.png").write_bytes(b"broken")
    (photos / "dog" / "0.png").write_bytes(b"")
    code, out, err = run("predict", model_folder, photos, "--json", "--batch-size", 3)
    results = json.loads(out)
    assert code == 3
    assert len(results) == 12
    errors = [result for result in results if "error" in result]
    assert names(errors) == ["cat/2.png", "dog/0.png"]
    assert all(set(result) == {"file", "error"} for result in errors)
    assert "skipped 2 of 12 images" in err
    code, _, _ = run("predict", model_folder, photos, "--out", tmp_path / "a.csv", "--topk", 1)
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert code == 3
    assert len(rows) == 12
    assert [row["error"] != "" for row in rows] == ["error" in result for result in results]
    code, out, _ = run("predict", model_folder, photos, "--topk", 1)
    assert code == 3
    assert out.count("error: ") == 2
    code, _, _ = run("predict", model_folder, photos, "--embeddings", tmp_path / "e.npz")
    saved = np.load(tmp_path / "e.npz")
    assert code == 3
    assert names([{"file": name} for name in saved["files"]]) == [
        name for name in names(results) if name not in ("cat/2.png", "dog/0.png")
    ]
    assert len(saved["embeddings"]) == 10


def test_on_error_decides(run, model_folder, photos):
    broken = photos / "cat" / "2.png"
    broken.write_bytes(b"broken")
    assert run("predict", model_folder, photos, "--on-error", "stop")[0] == 2
    assert run("predict", model_folder, broken)[0] == 2
    code, out, _ = run("predict", model_folder, broken, "--on-error", "skip", "--json")
    assert code == 3
    assert names(json.loads(out)) == ["cat/2.png"]


def test_less_probable_classes_are_left_out(run, run_json, model_folder, photos, tmp_path):
    (whole,) = run_json("predict", model_folder, photos / "cat" / "0.png")
    least = whole["predictions"][1]["probability"]
    (short,) = run_json("predict", model_folder, photos / "cat" / "0.png", "--min-probability", least)
    assert short["predictions"] == whole["predictions"][:2]
    out = tmp_path / "a.csv"
    assert run("predict", model_folder, photos / "cat", "--min-probability", 1, "--out", out)[0] == 0
    assert [row["label"] for row in csv.DictReader(out.open())] == [""] * 4
    assert run("predict", model_folder, photos, "--min-probability", 50)[0] == 2


def test_the_device_and_the_mean_with_the_mirror_image(run, run_json, model_folder, photos):
    path = photos / "cat" / "0.png"
    (plain,) = run_json("predict", model_folder, path, "--device", "cpu")
    assert plain == run_json("predict", model_folder, path)[0]
    assert run("predict", model_folder, path, "--device", "nothing")[0] == 2
    (mean,) = run_json("predict", model_folder, path, "--tta", "flip")
    assert mean != plain
    assert run("predict", model_folder, path, "--tta", "flip", "--embeddings", "e.npz")[0] == 2
    flipped = run_json("eval", model_folder, "--data", photos, "--tta", "flip")
    assert flipped["tta"] == "flip"
    assert flipped["loss"] != run_json("eval", model_folder, "--data", photos)["loss"]
