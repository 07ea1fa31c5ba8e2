"""Images by URL: downloaded over HTTP, limited in size and time."""

from __future__ import annotations

import http.client
import urllib.request
from urllib.error import HTTPError

from deepcait.data.image import MAX_BYTES
from deepcait.errors import ImageError

_TIMEOUT_S = 30.0


def is_url(text: str) -> bool:
    """Whether a text is a URL."""
    return text.lower().startswith(("http://", "https://"))


def fetch_image(url: str, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the bytes of a URL, not decoded.

    Args:
        url: http or https.
        max_bytes: a larger file is refused; no more than that is read.

    Raises:
        ImageError: it can't be fetched, or it is larger.
    """
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "deepcait"})
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            content = answer.read(max_bytes + 1)
            announced = int(answer.headers.get("Content-Length") or len(content))
    except HTTPError as error:
        raise ImageError(
            f"{url}: the server answered with HTTP status {error.code} ({error.reason}).", remedy="Check the URL."
        ) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ImageError(
            f"{url}: the server can't be reached: {getattr(error, 'reason', None) or error}.",
            remedy="Check the URL and the network; HTTPS_PROXY and HTTP_PROXY name a proxy.",
        ) from error
    if max(announced, len(content)) > max_bytes:
        raise ImageError(
            f"{url}: expected at most {max_bytes:,} bytes, got more.",
            remedy="Raise --max-bytes if you trust the server.",
        )
    if len(content) < announced:
        raise ImageError(
            f"{url}: expected {announced:,} bytes, got {len(content):,}.", remedy="The connection broke: try again."
        )
    return content
