"""Start the service, report its address, and stop it."""

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
from deepcait.serve.cors import Cors
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
    cors_origins: Sequence[str] = (),
    listening: Callable[[str], None] = print,
) -> None:
    """Respond to HTTP requests until SIGINT or SIGTERM; accepted requests are completed first.

    Args:
        classifier: the model.
        name: name of the model on the page.
        host: the address to listen on; the default is reached from this machine only.
        port: 0 takes a free one.
        threads: of the network; None leaves it to PyTorch.
        limits: of requests.
        allow_hosts: further accepted names in the Host header, for a proxy in front. On an address that other machines
            reach, every name is accepted unless some are given.
        cors_origins: origins whose pages may use the service, such as "https://pets.example.org"; "*" for all.
        listening: called with the address once connections are accepted.

    Raises:
        ConfigError: an address that can't be listened on, a name that no Host header has, or something that is not an
            origin.
    """
    require_names(allow_hosts, cors_origins)
    limits = limits or Limits()
    # Pillow warns of unusual metadata; such images must not fill the log.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    if threads is not None:
        torch.set_num_threads(threads)
    with listen_on(host, port) as listener:
        address = listener.getsockname()
        hosts = {*_LOOPBACK_NAMES, host, *allow_hosts} if is_loopback(address[0]) else set(allow_hosts) or None
        service = Service(classifier, name=name, limits=limits, hosts=hosts, cors_origins=cors_origins)
        _warm_up(service)
        server = uvicorn.Server(server_config(service, limits))
        with _quiet_end(server):
            shown = f"[{address[0]}]" if ":" in address[0] else address[0]
            listening(f"http://{shown}:{address[1]}/")
            server.run(sockets=[listener])
            service.close()


def is_loopback(address: str) -> bool:
    """Whether an address can be reached from this machine only."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def server_config(service: Service, limits: Limits) -> uvicorn.Config:
    """Return the settings of uvicorn: our protocol and limits; only defects are logged."""
    # The parser warns of every broken form; the counters have them.
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
    """Return a socket that accepts connections.

    Raises:
        ConfigError: the address can't be used.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port: expected 0 to 65535, got {port}.", remedy="Try 8000; 0 chooses a free port.")
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
    except (OSError, UnicodeError) as error:  # UnicodeError for a name with labels that are empty or too long
        raise ConfigError(
            f"{host}:{port}: the service can't listen at this address: {getattr(error, 'strerror', None) or error}.",
            remedy="Choose another --port (0 chooses a free one), or another --host.",
        ) from error
    return listener


def require_names(allow_hosts: Sequence[str], cors_origins: Sequence[str]) -> None:
    """Check the names of `serve` before a model is loaded.

    Raises:
        ConfigError: a name that no Host header has, or something that is not an origin.
    """
    Cors(cors_origins)
    for name in allow_hosts:
        try:
            ipaddress.ip_address(name)
        except ValueError:
            if not _HOST_NAME.fullmatch(name):
                raise ConfigError(
                    f"--allow-host: expected the name of a host, got {name!r}.",
                    remedy="Give the name alone, without http://, port or path, for example pets.example.org.",
                ) from None


def _warm_up(service: Service) -> None:
    """Run the network on a full batch and a single image, and explain one, so that first requests are not slow.

    On a GPU every batch size has its own kernels, which are loaded at its first use.
    """
    classifier, limits = service.classifier, service.limits
    height, width = classifier.preprocessing.img_size
    image_1CHW = classifier.preprocessing(Image.new("RGB", (width, height)))[None]
    most = min(limits.max_batch, limits.max_queue)  # there is no larger batch
    for num_images in range(most, 0, -1) if classifier.device.type == "cuda" else (most, 1):
        classifier.logits(image_1CHW.expand(num_images, -1, -1, -1))
    if service.explainable is not None:
        classifier.logits_and_attention(image_1CHW)


@contextmanager
def _quiet_end(server: uvicorn.Server) -> Iterator[None]:
    """Let a signal stop the service only; uvicorn would raise it again at the end.

    Active before the address is reported, since a signal may arrive before uvicorn handles any.
    """

    def end(number: int, frame: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
