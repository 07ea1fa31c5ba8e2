"""Requests to stop: signals, deferred until the work can be saved, and what ends a process that does not get there."""

from __future__ import annotations

import _thread
import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

# SIGHUP is a closed terminal, and what torchrun passes on; SIGUSR1 is how clusters announce the end of a job's time.
STOP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)
)
# One request may arrive twice: `timeout` and clusters signal a process and its whole group.
_SAME_REQUEST_S = 1.0
# How long a requested stop waits for worker processes, and a second request for the main thread to react.
_PATIENCE_S = 5.0
_INSIST_S = 2.0


class WaitedTooLongError(BaseException):
    """Raised in the main thread where it waits for worker processes and a stop was requested some seconds ago."""


class StopRequest:
    """Defer the signals that request a stop; a second one ends the process at once.

    The work inside checks `asked` regularly. A signal that was not handled (it came during the last evaluation) is
    passed on to the Python handler that was installed before. A signal that was ignored before (`nohup`) stays ignored.
    The second request raises KeyboardInterrupt; a process that has not ended two seconds later, for example because of
    its cleanup, is ended (not an interactive one). A main thread that waits for worker processes gets
    `WaitedTooLongError` some seconds after the first request.
    """

    def __init__(self) -> None:
        self.asked = False
        self.waits = False
        self._number = 0
        self._since = 0.0
        self._insisted = False
        self._before: dict[int, Any] = {}
        self._guard: _Guard | None = None

    def __enter__(self) -> StopRequest:
        global _current
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._ask)
            self._guard, _current = _Guard(self), self
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        global _current
        if self._guard is not None:
            # After a second request what is cleaned up below has little time: workers that hang are waited for.
            if not (self._insisted and kind is KeyboardInterrupt):
                self._guard.close()
            self._guard, _current = None, None
        for number, handler in self._before.items():
            signal.signal(number, handler)
        before = self._before.get(self._number)
        if self.asked and kind is None and callable(before) and before is not signal.default_int_handler:
            before(self._number, None)

    def _ask(self, number: int, _: object) -> None:
        now = time.monotonic()
        if not self._number:
            self.asked, self._number, self._since = True, number, now
        elif self._guard is not None and self._guard.knocked:
            self._guard.knocked = False
            if self.waits:
                raise WaitedTooLongError
        elif number == signal.SIGINT or now - self._since > _SAME_REQUEST_S:
            self._insisted = True
            raise KeyboardInterrupt


_current: StopRequest | None = None


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Mark a wait for worker processes, which a requested stop ends after some seconds."""
    request = _current if threading.current_thread() is threading.main_thread() else None
    if request is None:
        yield
        return
    request.waits = True
    try:
        yield
    finally:
        request.waits = False


class _Guard:
    """A thread that receives signals as they arrive, whatever the main thread is doing, and enforces them.

    Args:
        request: whose signals these are.
    """

    def __init__(self, request: StopRequest) -> None:
        self.request = request
        self.knocked = False
        self._knocks = 0
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        self._before = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        self._main = threading.get_ident()
        threading.Thread(target=self._listen, daemon=True, name="stop requests").start()

    def close(self) -> None:
        """Stop listening."""
        signal.set_wakeup_fd(self._before)
        self._mouth.close()  # which the other end reads as the end

    def _listen(self) -> None:
        first = second = 0.0
        insisting = signal.SIGTERM
        while True:
            ready, _, _ = select.select([self._ear], [], [], 0.5 if first else None)
            numbers = self._ear.recv(64) if ready else b""
            if ready and not numbers:
                self._ear.close()
                return
            now = time.monotonic()
            for number in numbers:
                if self._knocks:  # our own
                    self._knocks -= 1
                elif number in STOP_SIGNALS:
                    if first and not second and (number == signal.SIGINT or now - first > _SAME_REQUEST_S):
                        second, insisting = now, number
                    first = first or now
            if second and now - second > _INSIST_S and not _is_interactive():
                os._exit(128 + insisting)
            if first and now - first > _PATIENCE_S and self.request.waits and not self.knocked:
                self._knock()

    def _knock(self) -> None:
        """Interrupt the main thread's wait: its handler runs."""
        self.knocked, self._knocks = True, self._knocks + 1
        if hasattr(signal, "pthread_kill"):
            signal.pthread_kill(self._main, self.request._number)
        else:
            _thread.interrupt_main(signal.Signals(self.request._number))


def _is_interactive() -> bool:
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules
