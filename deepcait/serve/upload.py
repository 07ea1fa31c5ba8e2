"""Request bodies to images in memory: a multipart form, raw bytes, or JSON. Nothing is written, no name is opened."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from deepcait.serve.limits import Limits
from deepcait.serve.refusal import RequestError

FIELD = "image"
FORM, JSON, BYTES = "multipart/form-data", "application/json", "application/octet-stream"
# Media types that a client may declare; the content decides the format. Clients declare unknown files as BYTES.
IMAGE_TYPES = (
    *("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff", "image/avif", "image/heic"),
    *("image/heif", "image/jpg", "image/x-ms-bmp", BYTES),
)
_BODY_REMEDY = (
    "Send an image as the body with its type, for example: "
    'curl --data-binary @image.jpg -H "Content-Type: image/jpeg" URL; or a form: curl -F "image=@image.jpg" URL'
)
_FORM_REMEDY = 'Send multipart/form-data with the field "image", for example: curl -F "image=@image.jpg" URL'
_JSON_REMEDY = 'Send {"images": ["..."]} with one string per image: the base64 of its file, without line breaks.'


@dataclass(frozen=True)
class Upload:
    """One file of a request: its bytes, and the client's name of it, which only appears in the response."""

    name: str
    data: bytes


class _Parser(MultiPartParser):
    """Starlette's parser; large files stay in memory, and `ended` is set at the closing boundary."""

    spool_max_size = 2**62  # the service counts the bytes of all bodies as they arrive
    ended = False

    def on_end(self) -> None:
        self.ended = True


def require_body_type(content_type: str) -> str:
    """Return the media type of a request, before its body is read: FORM, JSON, or an image's.

    Raises:
        RequestError: 415 if it is something else, 400 if a form lacks its boundary.
    """
    parsed, options = parse_options_header(content_type)
    kind = parsed.decode("utf-8", "replace")
    if kind not in (FORM, JSON, *IMAGE_TYPES):
        got = repr(content_type[:80]) if content_type else "none"
        problem = f"Content-Type: expected an image type, {FORM} or {JSON}, got {got}."
        raise RequestError(415, problem, remedy=_BODY_REMEDY)
    boundary = options.get(b"boundary", b"")
    if kind == FORM and not 0 < len(boundary) <= 70:  # RFC 2046, 5.1.1
        raise _broken(f"its boundary must have 1 to 70 characters, got {len(boundary)}")
    return kind


async def read_images(headers: Headers, stream: AsyncGenerator[bytes, None], limits: Limits) -> list[Upload]:
    """Return the images of a body.

    Args:
        headers: of the request; its type has passed `require_body_type`.
        stream: its body; what it raises is passed on.
        limits: of the number of images.

    Raises:
        RequestError: the body is not complete, has no image, too many, or something else.
    """
    kind = require_body_type(headers.get("content-type", ""))
    if kind == FORM:
        return await read_form(headers, stream, limits)
    body = b"".join([chunk async for chunk in stream])
    if kind == JSON:
        return _read_json(body, limits)
    if not body:
        raise RequestError(400, "the body is empty.", remedy=_BODY_REMEDY)
    return [Upload("image 1", body)]


async def read_form(headers: Headers, stream: AsyncGenerator[bytes, None], limits: Limits) -> list[Upload]:
    """Return the images of a form.

    Args:
        headers: of the request; see `require_body_type`.
        stream: its body; what it raises is passed on.
        limits: of the number of images.

    Raises:
        RequestError: the form is not complete, has no image, too many, or something else.
    """
    # One text field is accepted, to name it in the error.
    parser = _Parser(headers, stream, max_files=limits.max_images, max_fields=1)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise _too_many(f"images: expected at most {limits.max_images}, got more.") from error
        raise _broken(f"it is broken ({error.__cause__ or error.message})") from error
    try:
        if not parser.ended:
            raise _broken("it ends before its closing boundary")
        if not form:
            raise _broken("it has no image")
        items = enumerate(form.multi_items(), start=1)
        return [_read_part(name, content, number) for number, (name, content) in items]
    finally:
        await form.close()


def _read_json(body: bytes, limits: Limits) -> list[Upload]:
    # Counted before it is parsed: a body of brackets or commas would take many times its size in memory.
    if body.count(b"{") > 1 or body.count(b"[") > 1:
        raise _wrong_json("the JSON has nested objects or lists.")
    if body.count(b",") > 2 * limits.max_images:
        raise _too_many(f"images: expected at most {limits.max_images}, got more.")
    try:
        value = json.loads(body)
    except ValueError as error:
        raise _wrong_json(f"the body is not valid JSON ({str(error)[:80]}).") from error
    if not isinstance(value, dict) or value.keys() != {"images"}:
        raise _wrong_json('the JSON is not an object with the key "images" and no other.')
    images = value["images"]
    if not isinstance(images, list) or not images:
        raise _wrong_json("images: expected a list of at least one string.")
    if len(images) > limits.max_images:
        raise _too_many(f"images: expected at most {limits.max_images}, got {len(images)}.")
    return [Upload(f"image {number}", _decode(text, number)) for number, text in enumerate(images, start=1)]


def _decode(text: object, number: int) -> bytes:
    if not isinstance(text, str):
        raise _wrong_json(f"image {number}: expected a string, got {type(text).__name__}.")
    if text.startswith("data:"):
        raise _wrong_json(f"image {number} is a data URL, not base64: leave out everything up to the comma.")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise _wrong_json(f"image {number} is not valid base64 ({error}).") from error


def _read_part(name: str, content: UploadFile | str, number: int) -> Upload:
    if name != FIELD:
        raise _broken(f"unknown field {name[:60]!r}")
    if isinstance(content, str):
        raise _broken(f'the field "{FIELD}" has text, not a file')
    for header in content.headers:
        if len(content.headers.getlist(header)) > 1:
            raise _broken(f"a part has the header {header[:60]!r} twice")
    if parse_options_header(content.headers["content-disposition"])[0] != b"form-data":
        raise _broken("a part has no `Content-Disposition: form-data; name=...`")
    # Some clients send no type, such as Python's requests; the content decides the format anyway.
    part_type = parse_options_header(content.headers.get("content-type", BYTES))[0].decode("utf-8", "replace")
    if part_type not in IMAGE_TYPES:
        raise RequestError(
            415,
            f"Content-Type of a part: expected an image type, got {part_type[:60]!r}.",
            remedy=f"Declare the type of the image, such as image/jpeg, or {BYTES}.",
        )
    return Upload(content.filename or f"image {number}", content.file.read())


def _broken(problem: str) -> RequestError:
    return RequestError(400, f"form: {problem}.", remedy=_FORM_REMEDY)


def _wrong_json(problem: str) -> RequestError:
    return RequestError(400, problem, remedy=_JSON_REMEDY)


def _too_many(problem: str) -> RequestError:
    return RequestError(413, problem, remedy="Send them in several requests.")
