"""Cross-origin resource sharing (CORS): which pages of other origins may use the service; none by default."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Scope

from deepcait.errors import ConfigError
from deepcait.serve.refusal import SECURITY_HEADERS, Refusal, RequestError

ANY = "*"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")  # urlsplit has checked what is in brackets
_MAX_AGE_S = 600  # a browser repeats its preflight request after this


class Cors:
    """The allowed origins.

    Args:
        origins: such as "https://pets.example.org"; "*" allows all of them.

    Raises:
        ConfigError: one of them is not an origin.
    """

    def __init__(self, origins: Sequence[str] = ()) -> None:
        for origin in origins:
            _require_origin(origin)
        self.origins = frozenset(origin.lower() for origin in origins)

    def allows(self, origin: str) -> bool:
        """Whether pages of an origin may use the service; `origin` is empty if the request does not name one."""
        return ANY in self.origins or origin.lower() in self.origins

    def add_headers(self, message: Message, origin: str) -> Message:
        """Return the start of a response with what lets a page of an allowed origin read it."""
        if not self.origins or message["type"] != "http.response.start":
            return message
        headers = [(b"vary", b"origin")]
        if origin and self.allows(origin):
            headers.append((b"access-control-allow-origin", origin.encode("latin-1")))
            headers.append((b"access-control-expose-headers", b"retry-after, server-timing"))
        return {**message, "headers": [*message.get("headers", ()), *headers]}

    def preflight(self, scope: Scope, origin: str) -> ASGIApp | None:
        """Return the response to a preflight request, which a browser sends before another request; else None."""
        asked = dict(scope["headers"])
        if not self.origins or scope["method"] != "OPTIONS" or b"access-control-request-method" not in asked:
            return None
        if not origin or not self.allows(origin):
            problem = f"Origin: expected an allowed origin, got {origin[:100]!r}."
            return Refusal(RequestError(403, problem, remedy="Start the service with --cors-origin ORIGIN."))
        headers = {
            "access-control-allow-methods": "GET, POST",
            "access-control-allow-headers": "content-type",
            "access-control-max-age": str(_MAX_AGE_S),
        }
        if b"access-control-request-private-network" in asked:  # from a public page to this machine or its network
            headers["access-control-allow-private-network"] = "true"
        return Response(None, 204, {**SECURITY_HEADERS, **headers})


def _require_origin(origin: str) -> None:
    if origin == ANY:
        return
    remedy = "Give scheme and host as the browser names them, for example https://pets.example.org, or * for all."
    try:
        parts = urlsplit(origin)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if host is None or not _HOST.fullmatch(host) or parts.scheme not in _DEFAULT_PORTS or "@" in parts.netloc:
        raise ConfigError(f"--cors-origin: expected the origin of a page, got {origin!r}.", remedy=remedy)
    host = f"[{host}]" if ":" in host else host
    named = "" if port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{port}"
    canonical = f"{parts.scheme}://{host}{named}"
    if origin.lower() != canonical:
        raise ConfigError(
            f"--cors-origin: {origin!r} is not how a browser names this origin.", remedy=f"Give {canonical}."
        )
