"""What every test gets: the same seeds, few threads, and no connection to another machine."""

from __future__ import annotations

import ipaddress
import os
import random
import socket

# Before anything imports the hub's client, which reads it once. Child processes inherit it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

from deepcait.runtime import messages  # noqa: E402

# The same examples in every run; a slow machine is no failure.
settings.register_profile("deepcait", deadline=None, derandomize=True)
settings.load_profile("deepcait")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


class NetworkRefusedError(RuntimeError):
    """A test tried to reach another machine (no OSError, so that no retry or fallback hides it)."""


def _require_here(host: object) -> None:
    """Raise unless the host is this machine."""
    text = host.decode() if isinstance(host, bytes) else host
    if text in (None, "", "localhost", "localhost.localdomain", socket.gethostname()):
        return
    try:
        address = ipaddress.ip_address(str(text).partition("%")[0])
    except ValueError:
        address = None
    if address is None or not (address.is_loopback or address.is_unspecified):
        raise NetworkRefusedError(
            f"Tests reach this machine only (127.0.0.0/8, ::1, unix sockets); this one asked for {text!r}. "
            "Serve what the test needs on 127.0.0.1."
        )


def _guarded(name: str):
    """Wrap a method of socket.socket so that it looks at the address first."""
    original = getattr(socket.socket, name)

    def method(self, *args):
        address = args[-1] if args else None  # sendto(data, [flags,] address); connect(address)
        if self.family in (socket.AF_INET, socket.AF_INET6) and isinstance(address, tuple):
            _require_here(address[0])
        return original(self, *args)

    return method


def _guarded_lookup():
    """Wrap socket.getaddrinfo so that no name of another machine is looked up."""
    original = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        _require_here(host)
        return original(host, *args, **kwargs)

    return getaddrinfo


def pytest_configure(config: pytest.Config) -> None:
    """Close the network in this process: for collection, fixtures and tests."""
    guard = pytest.MonkeyPatch()
    for name in ("connect", "connect_ex", "sendto"):
        guard.setattr(socket.socket, name, _guarded(name))
    guard.setattr(socket, "getaddrinfo", _guarded_lookup())
    config.add_cleanup(guard.undo)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Start every test from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    messages._LOGGED.clear()


@pytest.fixture(scope="module")
def browser():
    """One Chromium for a module, through playwright."""
    from tests.browser import CHROMIUM, FLAGS

    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()
