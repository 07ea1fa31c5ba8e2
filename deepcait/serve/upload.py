"""A multipart body to pictures in memory: counted while it streams, nothing written, no name ever opened."""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from deepcait.serve.limits import Limits
from deepcait.serve.refusal import RequestError

FIELD = "image"
# What a part may call itself; what it is, its content decides. Clients name unknown files octet-stream.
PART_TYPES = frozenset(
    b"image/jpeg image/jpg image/png image/webp image/gif image/bmp image/x-ms-bmp image/tiff "
    b"application/octet-stream".split()
)
_EXAMPLE = 'Send multipart/form-data with the field "image", for example: curl -F "image=@picture.jpg" URL'
_MAX_PART_HEADERS, _MAX_PART_HEADER_BYTES = 8, 4096


@dataclass
class Picture:
    """One file of a request: the name that the client gave it, which only comes back in the answer, and its bytes."""

    name: str
    data: bytearray = field(default_factory=bytearray)


class Form:
    """Reads a body as it comes in.

    Args:
        content_type: the request's header.
        limits: of the number of pictures.

    Raises:
        RequestError: 415 where the request is no multipart form, 400 where it lacks its boundary.
    """

    def __init__(self, content_type: str, limits: Limits) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data":
            got = f"{content_type[:80]!r}" if content_type else "none"
            raise RequestError(415, f"Content-Type: expected multipart/form-data, got {got}.", remedy=_EXAMPLE)
        boundary = options.get(b"boundary", b"")
        if not 0 < len(boundary) <= 70:  # RFC 2046, 5.1.1
            raise _broken(f"a boundary of 1 to 70 characters, got {len(boundary)}")
        self.pictures: list[Picture] = []
        self._limits = limits
        self._ended = False
        self._headers: dict[bytes, bytes] = {}
        self._header = [b"", b""]
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_end": self._on_end,
            },
            max_header_count=_MAX_PART_HEADERS,
            max_header_size=_MAX_PART_HEADER_BYTES,
        )

    def write(self, chunk: bytes) -> None:
        """Take in a part of the body.

        Raises:
            RequestError: it is no multipart form, or holds what is not expected.
        """
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _broken(f"a whole multipart form, got a broken one ({error})") from error

    def finish(self) -> list[Picture]:
        """Return the pictures of a body that is complete.

        Raises:
            RequestError: it ends before its closing boundary, or holds no picture.
        """
        if not self._ended:
            raise _broken("a multipart form with its closing boundary, got one that ends before it")
        if not self.pictures:
            raise _broken("at least one picture, got none")
        return self.pictures

    def _on_part_begin(self) -> None:
        self._headers = {}
        if len(self.pictures) >= self._limits.max_images:
            raise RequestError(
                413,
                f"form: expected at most {self._limits.max_images} pictures, got more.",
                remedy="Send them in several requests.",
            )

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0] += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1] += data[start:end]

    def _on_header_end(self) -> None:
        name, value = self._header[0].lower(), self._header[1]
        if name in self._headers:
            raise _broken(f"each header of a part once, got {_show(name)} twice")
        self._headers[name] = value
        self._header = [b"", b""]

    def _on_headers_finished(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name")
        if kind != b"form-data" or name is None:
            raise _broken("parts with `Content-Disposition: form-data; name=...`, got one without")
        if name != FIELD.encode():
            raise _broken(f'only the field "{FIELD}", got {_show(name)}')
        if b"filename" not in options:
            raise _broken(f'a file in the field "{FIELD}", got text')
        # Some clients give no type, Python's requests among them: the bytes decide, as they do for any.
        part_type = parse_options_header(self._headers.get(b"content-type", b"application/octet-stream"))[0]
        if part_type not in PART_TYPES:
            raise RequestError(
                415,
                f"Content-Type of a part: expected an image type, got {_show(part_type)}.",
                remedy="Send JPEG, PNG, WEBP, GIF, BMP or TIFF under its own type, or application/octet-stream.",
            )
        file = options[b"filename"].decode("utf-8", "replace")
        self.pictures.append(Picture(file or f"image {len(self.pictures) + 1}"))

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.pictures[-1].data += memoryview(data)[start:end]

    def _on_end(self) -> None:
        self._ended = True


def _broken(expected_and_got: str) -> RequestError:
    return RequestError(400, f"form: expected {expected_and_got}.", remedy=_EXAMPLE)


def _show(value: bytes) -> str:
    return repr(value[:60].decode("utf-8", "replace"))
