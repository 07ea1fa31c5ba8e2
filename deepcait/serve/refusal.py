"""Responses in JSON, and errors of requests: a status, a problem and a remedy."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

# The page loads from this service only: no inline script or style, no other host, no frame.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
SECURITY_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
# How long, and how much of, a refused body is still read: a client that is still sending would otherwise get a
# connection error in place of the response.
DRAIN_S, DRAIN_BYTES = 1.0, 64 * 2**20
BODY_READ = "deepcait.body_read"


class RequestError(Exception):
    """A request that is refused.

    Args:
        status: of the HTTP response.
        problem: what is wrong.
        remedy: what to do now.
        headers: further headers of the response.
    """

    def __init__(self, status: int, problem: str, *, remedy: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{status}: {problem} {remedy}")
        self.status = status
        self.problem = problem
        self.remedy = remedy
        self.headers = dict(headers or {})


def overloaded(problem: str, *, retry_after_s: int = 1) -> RequestError:
    """Return a refusal for a limited time: 503, and when to try again."""
    return RequestError(
        503,
        problem,
        remedy=f"Send the request again in {retry_after_s} s (Retry-After).",
        headers={"retry-after": str(retry_after_s)},
    )


def json_bytes(value: Any) -> bytes:
    """Return compact JSON.

    Raises:
        ValueError: the value contains NaN or infinity, which are not JSON.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def error_bytes(problem: str, remedy: str) -> bytes:
    """Return the body of a refusal, with the keys that the command prints with --json."""
    return json_bytes({"error": problem, "remedy": remedy})


class Answer(Response):
    """A JSON response with the security headers; it is never cached."""

    media_type = "application/json"

    def __init__(self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json_bytes(value)
        super().__init__(content, status, {**SECURITY_HEADERS, "cache-control": "no-store", **(headers or {})})


class Refusal(Answer):
    """The response to a refused request; closes the connection if the body has not been read."""

    def __init__(self, error: RequestError) -> None:
        super().__init__(error_bytes(error.problem, error.remedy), error.status, error.headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, then read a little more of the body before the connection closes."""
        unread = has_body(scope) and not scope.get(BODY_READ)
        if not unread:
            await super().__call__(scope, receive, send)
            return
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await _drain(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def has_body(scope: Scope) -> bool:
    """Whether the request announces a body."""
    for name, value in scope["headers"]:
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0")):
            return True
    return False


async def _drain(receive: Receive) -> None:
    num_bytes = 0
    try:
        async with asyncio.timeout(DRAIN_S):
            while num_bytes < DRAIN_BYTES:
                message = await receive()
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
                num_bytes += len(message.get("body", b""))
    except TimeoutError:
        return
