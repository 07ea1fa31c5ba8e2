"""A multipart body to images in memory, by Starlette's parser: nothing is written, and no name is ever opened."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from deepcait.serve.limits import Limits
from deepcait.serve.refusal import RequestError

FIELD = "image"
# What a part may call itself; what it is, its content decides. Clients name unknown files octet-stream.
PART_TYPES = frozenset(
    b"image/jpeg image/jpg image/png image/webp image/gif image/bmp image/x-ms-bmp image/tiff "
    b"application/octet-stream".split()
)
_EXAMPLE = 'Send multipart/form-data with the field "image", for example: curl -F "image=@image.jpg" URL'


@dataclass(frozen=True)
class Upload:
    """One file of a request: the name that the client gave it, which only comes back in the answer, and its bytes."""

    name: str
    data: bytes


class _Parser(MultiPartParser):
    """Starlette's, which keeps large files in memory too and knows whether the closing boundary came."""

    spool_max_size = 2**62  # the service counts the bytes of all bodies as they come
    ended = False

    def on_end(self) -> None:
        self.ended = True


def require_form(content_type: str) -> None:
    """Check the header of a request before its body is read.

    Raises:
        RequestError: 415 if it is no multipart form, 400 if it lacks its boundary.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        got = f"{content_type[:80]!r}" if content_type else "none"
        raise RequestError(415, f"Content-Type: expected multipart/form-data, got {got}.", remedy=_EXAMPLE)
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 70:  # RFC 2046, 5.1.1
        raise _broken(f"a boundary of 1 to 70 characters, got {len(boundary)}")


async def read_form(headers: Headers, stream: AsyncGenerator[bytes, None], limits: Limits) -> list[Upload]:
    """Return the images of a form.

    Args:
        headers: of the request; see `require_form`.
        stream: its body; what it raises is passed on.
        limits: of the number of images.

    Raises:
        RequestError: it is no complete form, holds no image, too many, or something else.
    """
    # One field of text is let in, to name it in the refusal.
    parser = _Parser(headers, stream, max_files=limits.max_images, max_fields=1)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            problem = f"form: expected at most {limits.max_images} images, got more."
            raise RequestError(413, problem, remedy="Send them in several requests.") from error
        raise _broken(f"a whole multipart form, got a broken one ({error.__cause__ or error.message})") from error
    try:
        if not parser.ended:
            raise _broken("a multipart form with its closing boundary, got one that ends before it")
        if not form:
            raise _broken("at least one image, got none")
        items = enumerate(form.multi_items(), start=1)
        return [_read_part(name, content, number) for number, (name, content) in items]
    finally:
        await form.close()


def _read_part(name: str, content: UploadFile | str, number: int) -> Upload:
    if name != FIELD:
        raise _broken(f'only the field "{FIELD}", got {name[:60]!r}')
    if isinstance(content, str):
        raise _broken(f'a file in the field "{FIELD}", got text')
    for header in content.headers:
        if len(content.headers.getlist(header)) > 1:
            raise _broken(f"each header of a part once, got {header[:60]!r} twice")
    if parse_options_header(content.headers["content-disposition"])[0] != b"form-data":
        raise _broken("parts with `Content-Disposition: form-data; name=...`, got one without")
    # Some clients give no type, Python's requests among them: the bytes decide, as they do for any.
    part_type = parse_options_header(content.headers.get("content-type", "application/octet-stream"))[0]
    if part_type not in PART_TYPES:
        got = part_type[:60].decode("utf-8", "replace")
        raise RequestError(
            415,
            f"Content-Type of a part: expected an image type, got {got!r}.",
            remedy="Send JPEG, PNG, WEBP, GIF, BMP or TIFF under its own type, or application/octet-stream.",
        )
    return Upload(content.filename or f"image {number}", content.file.read())


def _broken(expected_and_got: str) -> RequestError:
    return RequestError(400, f"form: expected {expected_and_got}.", remedy=_EXAMPLE)
