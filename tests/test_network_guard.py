"""Errors: a test that reaches for another machine is refused; this machine is let through."""

from __future__ import annotations

import socket

import pytest


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "somewhere.invalid"])
def test_the_network_guard_refuses_other_machines(host):
    # The sockets are closed: were the guard gone, nothing would be sent either.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as closed:
        pass
    for call in (closed.connect, closed.connect_ex, lambda address: closed.sendto(b"", address)):
        with pytest.raises(RuntimeError, match=r"127\.0\.0\.1"):
            call((host, 9))


def test_the_network_guard_lets_this_machine_through():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()
