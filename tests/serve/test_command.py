"""`deepcait serve`: its mistakes are told before anything listens."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import threading

import pytest
import torch
import uvicorn

from deepcait.cli.main import main
from deepcait.errors import ConfigError
from deepcait.serve.limits import Limits
from deepcait.serve.run import listen_on, serve
from tests.serve.conftest import small_classifier, without_attention


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--port", "65536"], "--port"),
        (["--port", "-1"], "--port"),
        (["--port", "80 80"], "--port"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid"),
        (["--host", "a..b"], "a..b"),
        (["--host", 70 * "a"], 70 * "a"),
        (["--allow-host", "https://pets.example.org"], "--allow-host"),
        (["--allow-host", "pets.example.org:8000"], "--allow-host"),
        (["--allow-host", "pets.example.org", "*"], "'*'"),
        (["--threads", "0"], "--threads"),
        (["--max-batch", "0"], "max_batch"),
        (["--max-queue", "3"], "max_queue"),
        (["--deadline-s", "0"], "deadline_s"),
        (["--max-megapixels", "-1"], "--max-megapixels"),
    ],
)
def test_mistakes(capsys, monkeypatch, options, word):
    monkeypatch.setattr(socket, "getaddrinfo", _refuse_names(socket.getaddrinfo))
    assert main(["serve", "builtin:nano", *options, "--json"]) == 2
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"error", "remedy"}
    assert word in printed["error"]


def _refuse_names(original):
    """Names are looked up without a network: none is known."""

    def getaddrinfo(host, *args, **kwargs):
        host.encode("idna")  # as the original does: a name that is none is a UnicodeError
        if not host.replace(".", "").isdigit():
            raise socket.gaierror(-2, "Name or service not known")
        return original(host, *args, **kwargs)

    return getaddrinfo


def test_a_port_that_is_taken():
    with listen_on("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}: the service can't listen"):
            listen_on("127.0.0.1", port)


def test_a_signal_right_after_the_address_ends_the_service(classifier):
    """Whoever reads the line may send it before the event loop runs: it must not be lost."""
    late = []
    again = threading.Timer(100, lambda: (late.append(True), os.kill(os.getpid(), signal.SIGTERM)))
    before = signal.getsignal(signal.SIGTERM)

    def listening(address: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        again.start()

    serve(classifier, name="test", port=0, listening=listening)
    again.cancel()
    assert late == []
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("host", "local"), [("127.0.0.2", True), ("::1", True), ("0.0.0.0", False)])
def test_an_address_that_others_reach_is_reported(capsys, monkeypatch, host, local):
    """By the address listened on, not by what its name begins with."""
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    assert main(["serve", "builtin:nano", "--host", host, "--port", "0"]) == 0
    assert ("no password" in "".join(capsys.readouterr())) != local


@pytest.mark.parametrize(
    ("options", "answered"),
    [
        ([], {"127.0.0.1", "localhost", "::1"}),
        (["--allow-host", "Pets.example.org"], {"127.0.0.1", "localhost", "::1", "pets.example.org"}),
        (["--host", "127.0.0.2"], {"127.0.0.1", "localhost", "::1", "127.0.0.2"}),
        (["--host", "0.0.0.0"], None),
        (["--host", "0.0.0.0", "--allow-host", "pets.example.org"], {"pets.example.org"}),
    ],
)
def test_the_names_that_are_answered(monkeypatch, options, answered):
    """A page of another host must not be able to speak to the service of one machine by a changed DNS entry."""
    seen = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: seen.append(self.config.app.hosts))
    assert main(["serve", "builtin:nano", *options, "--port", "0"]) == 0
    assert seen == [answered]


def test_a_name_that_only_begins_like_this_machine(capsys, monkeypatch):
    every = socket.getaddrinfo("0.0.0.0", 0, type=socket.SOCK_STREAM)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: every)
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    assert main(["serve", "builtin:nano", "--host", "localhost.example.org", "--port", "0"]) == 0
    assert "no password" in "".join(capsys.readouterr())


def test_the_first_batch_is_no_larger_than_the_queue(classifier, monkeypatch):
    """A batch that can't come together is not tried either: its size might be more than the memory."""
    sizes = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    monkeypatch.setattr(classifier, "logits", lambda images: sizes.append(len(images)))
    serve(classifier, name="test", port=0, limits=Limits(max_batch=10**9, max_queue=40), listening=lambda _: None)
    assert sizes == [40, 1]


def test_on_a_gpu_every_size_of_a_batch_is_warmed_up(classifier, monkeypatch):
    sizes = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    monkeypatch.setattr(classifier, "logits", lambda images: sizes.append(len(images)))
    monkeypatch.setattr(classifier, "logits_and_attention", lambda images: None)
    monkeypatch.setattr(classifier, "device", torch.device("cuda"))
    serve(classifier, name="test", port=0, limits=Limits(max_batch=4), listening=lambda _: None)
    assert sizes == [4, 3, 2, 1]


@pytest.mark.parametrize("has_attention", [True, False])
def test_explaining_is_warmed_up_if_it_is_offered(monkeypatch, has_attention):
    classifier, sizes = small_classifier() if has_attention else without_attention(), []
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    monkeypatch.setattr(classifier, "logits_and_attention", lambda images: sizes.append(len(images)))
    serve(classifier, name="test", port=0, listening=lambda _: None)
    assert sizes == [1] * has_attention


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "python_multipart"])
def test_without_the_extra(capsys, monkeypatch, package):
    for name in [name for name in sys.modules if name.startswith("deepcait.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["serve", "builtin:nano", "--json"]) == 2
    printed = json.loads(capsys.readouterr().out)
    assert package in printed["error"]
    assert printed["remedy"] == 'pip install "deepcait[serve]"'
    monkeypatch.undo()
    importlib.import_module("deepcait.serve.run")


def test_help_has_examples(capsys):
    assert main(["serve", "--help"]) == 0
    assert "Examples:\n    deepcait serve builtin:nano" in capsys.readouterr().out
