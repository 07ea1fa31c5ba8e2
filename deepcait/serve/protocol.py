"""HTTP connections: uvicorn's h11 protocol with our errors, and a time limit for everything that can be slow."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from deepcait.serve.refusal import DRAIN_S, SECURITY_HEADERS, RequestError, error_bytes, overloaded

if TYPE_CHECKING:
    from deepcait.serve.counters import Counters
    from deepcait.serve.limits import Limits


class Protocol(H11Protocol):
    """One connection.

    In addition to uvicorn's: what is not HTTP gets our JSON error; headers that do not arrive, responses that are not
    read, and bytes that arrive slowly without a request end the connection.
    """

    limits: Limits
    counters: Counters

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for the headers of a request; refuse a connection over the limit."""
        super().connection_made(transport)
        # Any unread byte calls `pause_writing`, which has a time limit: closing would wait for the client without one.
        transport.set_write_buffer_limits(high=0)
        self._refused = False
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.limits.max_connections:
            self._refuse(overloaded(f"{self.limits.max_connections} connections are open, the most at once."))
            return
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop every timer."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        for timer in (self._header_timer, self._write_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Receive bytes; outside a request they start a timer that only complete headers stop."""
        if self._refused or self.transport.is_closing():
            return
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before and self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
        if self._is_idle() and not self._refused and not self.transport.is_closing():
            if self._header_timer is None and self.timeout_keep_alive_task is None:
                self._wait_for_headers()

    def on_response_complete(self) -> None:
        """Continue with a request that was sent together with the one before."""
        before = self.cycle
        super().on_response_complete()
        if self.cycle is before and self._header_timer is None and not self.transport.is_closing():
            if self.conn.trailing_data[0] or self.conn.their_state is not h11.IDLE:
                self._wait_for_headers()  # the beginning of a request has arrived, or of a body that is not read

    def send_400_response(self, msg: str) -> None:
        """Respond to what is not HTTP; called by uvicorn while it handles the parser's error."""
        error = sys.exc_info()[1]
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        status = status if status < 500 else 400  # 501 for a transfer encoding: an error of the request
        if status == 431:
            problem = f"headers: expected at most {self.limits.max_header_bytes:,} bytes, got more."
            self._refuse(RequestError(431, problem, remedy="Send fewer and shorter headers."))
        else:
            problem = f"the request is not valid HTTP/1.1 ({error})."
            self._refuse(RequestError(status, problem, remedy="Use a client for HTTP/1.1."))

    def pause_writing(self) -> None:
        """Start waiting for a client that does not read its response."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.limits.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read its response."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_headers(self) -> None:
        self._header_timer = self.loop.call_later(self.limits.header_timeout_s, self._end_slow_headers)

    def _end_slow_headers(self) -> None:
        self._header_timer = None
        if self._refused or self.transport.is_closing() or not self._is_idle():
            return
        if self.conn.trailing_data[0] and self.conn.our_state is h11.IDLE:
            seconds = self.limits.header_timeout_s
            problem = f"the headers did not arrive within {seconds:g} s."
            self._refuse(RequestError(408, problem, remedy="Send the complete request at once."))
        else:
            self.transport.close()

    def _refuse(self, error: RequestError) -> None:
        """Respond outside a request and end the connection.

        For a moment, what the client still sends is read and dropped: closing at once would reset the connection before
        the client reads the response.
        """
        self._refused = True
        self.counters.add("refused_connections_total", status=error.status)
        if self.cycle is not None and not self.cycle.response_complete:
            # The body ended in the middle of a request, which stops without a separate response.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        self.transport.write(_raw_answer(error))
        try:
            self.transport.write_eof()
        except OSError:  # the client has gone already
            self.transport.abort()
            return
        self.loop.call_later(DRAIN_S, self.transport.abort)


def _raw_answer(error: RequestError) -> bytes:
    body = error_bytes(error.problem, error.remedy)
    headers: dict[str, Any] = {
        "content-type": "application/json",
        "content-length": len(body),
        "connection": "close",
        "cache-control": "no-store",
        **SECURITY_HEADERS,
        **error.headers,
    }
    lines = [f"HTTP/1.1 {error.status} {STATUS_PHRASES.get(error.status, b'').decode()}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body
