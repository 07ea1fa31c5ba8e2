"""All limits of the service: on requests, clients, time and memory."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from deepcait.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the service. A request over a limit is refused: with 503 if it may succeed later, else with a 4xx.

    Args:
        max_batch: images per batch.
        max_wait_s: how long a batch that is not full waits for further requests.
        max_queue: images in the queue; more get 503.
        max_requests: open predict and explain requests; more get 503.
        max_images: images in one request.
        max_body_bytes: a request body, checked by Content-Length and while it arrives.
        max_buffered_bytes: the bodies of all requests together, until their images are decoded; more get 503.
        max_pixels: an image, by its header, before it is decoded.
        max_header_bytes: request line and headers.
        max_connections: open connections; more get 503.
        num_decoders: threads that decode images.
        header_timeout_s: from connecting, or from the first byte of a further request, to the end of its headers.
        deadline_s: from the end of the headers to the response.
        body_timeout_s: from the end of the headers to the end of the body.
        write_timeout_s: how long a client may leave a response unread.
        keep_alive_s: how long an idle connection stays open.

    Raises:
        ConfigError: a limit that is not positive.
    """

    max_batch: int = 16
    max_wait_s: float = 0.002
    max_queue: int = 128
    max_requests: int = 128
    max_images: int = 32
    max_body_bytes: int = 20 * 2**20
    max_buffered_bytes: int = 256 * 2**20
    max_pixels: int = 40_000_000
    max_header_bytes: int = 16 * 2**10
    max_connections: int = 512
    num_decoders: int = 2
    header_timeout_s: float = 10.0
    deadline_s: float = 30.0
    body_timeout_s: float = 20.0
    write_timeout_s: float = 20.0
    keep_alive_s: int = 5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not value > 0 and not (field.name == "max_wait_s" and value == 0):
                raise ConfigError(
                    f"{field.name}: expected a positive number, got {value!r}.",
                    remedy="Use 1 or more.",
                )
        if self.max_images > self.max_queue:
            raise ConfigError(
                f"max_queue: expected at least the {self.max_images} images of one request, got {self.max_queue}.",
                remedy="Raise --max-queue, or lower --max-images.",
            )
