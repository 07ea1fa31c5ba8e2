"""Start the service, say where it listens, and end it in good order."""

from __future__ import annotations

import ipaddress
import logging
import re
import signal
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import uvicorn
from PIL import Image

from deepcait.errors import ConfigError
from deepcait.serve.app import Service
from deepcait.serve.limits import Limits
from deepcait.serve.protocol import Protocol

if TYPE_CHECKING:
    from deepcait.classifier import Classifier

_BACKLOG = 512
_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?", re.IGNORECASE)


def serve(
    classifier: Classifier,
    *,
    name: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    threads: int | None = None,
    limits: Limits | None = None,
    allow_hosts: Sequence[str] = (),
    listening: Callable[[str], None] = print,
) -> None:
    """Answer HTTP requests until SIGINT or SIGTERM; what was let in by then is answered first.

    Args:
        classifier: the model that answers.
        name: what the page calls it.
        host: the address to listen on; the default is reached from this machine only.
        port: 0 takes a free one.
        threads: of the network; None leaves it to PyTorch.
        limits: see there.
        allow_hosts: further names that requests may call this service by, for a proxy in front. With an address that
            other machines reach, every name is answered unless some are given.
        listening: called with the address once connections are taken.

    Raises:
        ConfigError: an address that can't be listened on, or a name that no Host header has.
    """
    _require_host_names(allow_hosts)
    limits = limits or Limits()
    # Pillow warns of odd metadata; whoever sends such images shall not fill our log.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if threads is not None:
        torch.set_num_threads(threads)
    with listen_on(host, port) as listener:
        address = listener.getsockname()
        hosts = {*_LOOPBACK_NAMES, host, *allow_hosts} if is_loopback(address[0]) else set(allow_hosts) or None
        _warm_up(classifier, min(limits.max_batch, limits.max_queue))  # a larger batch never comes together
        service = Service(classifier, name=name, limits=limits, hosts=hosts)
        server = uvicorn.Server(server_config(service, limits))
        with _quiet_end(server):
            shown = f"[{address[0]}]" if ":" in address[0] else address[0]
            listening(f"http://{shown}:{address[1]}/")
            server.run(sockets=[listener])
            service.close()


def is_loopback(address: str) -> bool:
    """Whether an address is reached from this machine only."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def server_config(service: Service, limits: Limits) -> uvicorn.Config:
    """Settings of uvicorn: our protocol, its limits, and no log but of defects."""
    # The parser warns of each broken form that it meets; the counters have them.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    protocol = type("Protocol", (Protocol,), {"limits": limits, "counters": service.counters})
    return uvicorn.Config(
        service,
        http=protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=limits.max_header_bytes,
        timeout_keep_alive=limits.keep_alive_s,
        timeout_graceful_shutdown=round(limits.deadline_s) + 1,
    )


def listen_on(host: str, port: int) -> socket.socket:
    """Return a socket that takes connections.

    Raises:
        ConfigError: an address that can't be listened on.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port: expected 0 to 65535, got {port}.", remedy="Try 8000; 0 takes a free one.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:  # the latter where the name can be none: labels that are empty or too long
        raise ConfigError(
            f"{host}:{port}: expected a free address of this machine, got {getattr(error, 'strerror', None) or error}.",
            remedy="Choose another with --port (0 takes a free one), or another --host.",
        ) from error
    return listener


def _require_host_names(names: Sequence[str]) -> None:
    for name in names:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            if not _HOST_NAME.fullmatch(name):
                raise ConfigError(
                    f"--allow-host: expected the name of a host, got {name!r}.",
                    remedy="Give the name alone, without http://, port or path, for example pets.example.org.",
                ) from None


def _warm_up(classifier: Classifier, max_batch: int) -> None:
    """Pass a full batch and a single image through the network: the first client shall not pay for it."""
    height, width = classifier.preprocessing.img_size
    image_CHW = classifier.preprocessing(Image.new("RGB", (width, height)))
    for num_images in (max_batch, 1):
        classifier.logits(image_CHW.expand(num_images, -1, -1, -1))


@contextmanager
def _quiet_end(server: uvicorn.Server) -> Iterator[None]:
    """Let a signal end the service and nothing more: uvicorn raises it again once all is answered.

    It holds from before the address is told: whoever reads it may send the signal before uvicorn listens for any.
    """

    def end(number: int, frame: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
