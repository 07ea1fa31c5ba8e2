"""Raw and JSON bodies: the same answers, limits and refusals as a form."""

from __future__ import annotations

import base64
import json

import pytest

from tests.serve.harness import form, live, part, picture_bytes, request
from tests.serve.test_refusals import TIGHT, assert_refused

PNG, JPEG = picture_bytes(0), picture_bytes(1, (90, 40), "JPEG")
TIFF = picture_bytes(2, format="TIFF")


def raw(data: bytes, kind: str | None = "image/png", path: str = "/predict") -> bytes:
    return request(path, data, headers={"Content-Type": kind})


def encoded(*files: bytes) -> dict:
    return {"images": [base64.b64encode(data).decode() for data in files]}


def as_json(value, path: str = "/predict", kind: str = "application/json") -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return request(path, body, headers={"Content-Type": kind})


@pytest.fixture(scope="module")
def tight(classifier):
    with live(classifier, **TIGHT) as running:
        yield running


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (PNG, "image/png"),
        (JPEG, "image/jpeg"),
        (JPEG, "IMAGE/JPEG; quality=1"),
        (JPEG, "image/png"),  # the content decides
        (TIFF, "image/tiff"),
        (PNG, "application/octet-stream"),
    ],
)
def test_a_raw_body(service, data, kind):
    (expected,) = service.ask(request(body=form(part(data)))).json
    reply = service.ask(raw(data, kind))
    assert (reply.status, reply.json) == (200, [expected | {"file": "image 1"}])


def test_a_raw_body_in_chunks(service):
    head = request(headers={"Content-Type": "image/png", "Content-Length": None, "Transfer-Encoding": "chunked"})
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(PNG[i : i + 700]), PNG[i : i + 700]) for i in range(0, len(PNG), 700))
    assert service.ask(head + chunks + b"0\r\n\r\n").json == service.ask(raw(PNG)).json


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8"])
def test_a_json_body(service, kind):
    expected = service.ask(request("/predict?topk=2", form(*(part(data) for data in (PNG, JPEG))))).json
    reply = service.ask(as_json(encoded(PNG, JPEG), "/predict?topk=2", kind))
    assert reply.status == 200
    assert [one["file"] for one in reply.json] == ["image 1", "image 2"]
    assert [one["predictions"] for one in reply.json] == [one["predictions"] for one in expected]


def test_json_as_other_languages_write_it(service):
    """PHP escapes every slash, JavaScript leaves out blanks."""
    text = json.dumps(encoded(PNG), separators=(",", ":")).replace("/", "\\/").encode()
    assert b"\\/" in text
    assert service.ask(as_json(text)).json == service.ask(raw(PNG)).json


def test_the_body_of_an_explanation(service):
    replies = [
        service.ask(data).json
        for data in (raw(PNG, path="/explain"), as_json(encoded(PNG), "/explain"), request("/explain", form(part(PNG))))
    ]
    assert replies[0] == replies[1] == replies[2] | {"file": "image 1"}
    assert len(replies[0]["attention"]) == 2
    assert_refused(service.ask(as_json(encoded(PNG, PNG), "/explain")), 400, "one image")


# name -> bytes on the wire, status, words of the answer
REFUSED = {
    "nothing": (raw(b""), 400, "empty"),
    "no image": (raw(b"words"), 400, "not an image"),
    "half an image": (raw(PNG[: len(PNG) // 2]), 400, "damaged"),
    "an SVG": (raw(b"<svg/>", "image/svg+xml"), 415, "image/svg+xml"),
    "text": (raw(b"words", "text/plain"), 415, "text/plain"),
    "what curl sends without a type": (raw(PNG, "application/x-www-form-urlencoded"), 415, "-H"),
    "a compressed body": (
        request(body=PNG, headers={"Content-Type": "image/png", "Content-Encoding": "gzip"}), 415, "gzip"),
    "a raw body over the limit": (raw(bytes(200_000)), 413, "100,000 bytes"),
    "no JSON": (as_json(b"images"), 400, "not valid JSON"),
    "half of a JSON body": (as_json(json.dumps(encoded(PNG)).encode()[:-9]), 400, "not valid JSON"),
    "JSON that is not UTF-8": (as_json(b'{"images": ["\xff"]}'), 400, "not valid JSON"),
    "an empty JSON body": (as_json(b""), 400, "not valid JSON"),
    "an integer of 9,999 digits": (as_json(9999 * b"7"), 400, "not valid JSON"),
    "a list": (as_json(["QUJD"]), 400, '"images"'),
    "null": (as_json(None), 400, '"images"'),
    "another key": (as_json({"image": ["QUJD"]}), 400, '"images"'),
    "a further key": (as_json(encoded(PNG) | {"topk": 3}), 400, '"images"'),
    "a string for the list": (as_json({"images": "QUJD"}), 400, "list"),
    "no images": (as_json({"images": []}), 400, "at least one"),
    "a number for an image": (as_json({"images": [7]}), 400, "image 1"),
    "null for an image": (as_json({"images": ["QUJD", None]}), 400, "image 2"),
    "deep nesting": (as_json(b'{"images": ' + 40_000 * b"[" + 40_000 * b"]" + b"}"), 400, "nested"),
    "a path": (as_json({"images": ["/etc/passwd"]}), 400, "base64"),
    "a URL": (as_json({"images": ["http://127.0.0.1/a.png"]}), 400, "base64"),
    "a data URL": (as_json({"images": ["data:image/png;base64,QUJD"]}), 400, "data URL"),
    "base64 without its end": (as_json({"images": ["QUJ"]}), 400, "base64"),
    "base64 in lines": (as_json({"images": ["QUJD\nQUJD"]}), 400, "line breaks"),
    "base64 of URLs": (as_json({"images": ["-_-_"]}), 400, "base64"),
    "letters that are not ASCII": (as_json({"images": ["äöüß"]}), 400, "base64"),
    "an empty image": (as_json({"images": [""]}), 400, "empty"),
    "base64 of words": (as_json(encoded(b"words")), 400, "not an image"),
    "one bad image among good ones": (as_json(encoded(PNG, b"x")), 400, "image 2"),
    "five images of at most four": (as_json({"images": 5 * ["QUJD"]}), 413, "at most 4"),
    "20,000 images": (as_json({"images": 20_000 * [""]}), 413, "at most 4"),
    "a JSON body over the limit": (as_json(encoded(bytes(99_000))), 413, "100,000 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tight, name):
    data, status, word = REFUSED[name]
    reply = tight.ask(data)
    assert_refused(reply, status, word)
    assert tight.ask(raw(PNG)).status == 200


def test_without_the_limits_it_is_another_answer(classifier):
    with live(classifier, **(TIGHT | {"max_images": 5, "max_body_bytes": 10**6})) as running:
        for name in ("five images of at most four", "a JSON body over the limit", "a raw body over the limit"):
            data, status, _ = REFUSED[name]
            assert running.ask(data).status != status
