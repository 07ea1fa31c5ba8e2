"""What the service refuses: each wrong request gets its status and our JSON error, and the next good one is right."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import tempfile
import time
import zlib

import pytest
from starlette.datastructures import Headers

from deepcait.serve import app, protocol, refusal
from deepcait.serve.limits import Limits
from deepcait.serve.run import listen_on
from deepcait.serve.upload import Upload, read_form
from tests.serve import harness
from tests.serve.harness import BOUNDARY, form, live, part, picture_bytes, request, wait_until

GOOD = request(body=form(part(picture_bytes())))
TIGHT = {"max_body_bytes": 100_000, "max_images": 4, "max_pixels": 1_000_000, "max_header_bytes": 4000}
SLOW = {"header_timeout_s": 0.4, "body_timeout_s": 0.4, "keep_alive_s": 1}


@pytest.fixture(scope="module")
def tight(classifier):
    """A service with small limits."""
    with live(classifier, **TIGHT) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(classifier):
    """A service with short times, for what is slow for ever: on a busy machine a good request would be late too."""
    with live(classifier, **SLOW) as running:
        yield running


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A PNG of a few KB that says it is 900 megapixels, and holds a good part of them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(20_000_000))) + chunk(b"IEND", b"")


def assert_refused(reply, status: int, word: str) -> None:
    assert reply.status == status, reply
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["content-security-policy"]
    assert set(reply.json) == {"error", "remedy"}
    assert word in reply.json["error"] + reply.json["remedy"]


def breaks_off(connection) -> bool:
    """Whether the service ends the connection while a byte is sent now and then."""
    for _ in range(200):
        try:
            connection.send(b"x")
        except ConnectionError:
            return True
        time.sleep(0.05)
    return False


def ask_form(*parts: bytes, **headers):
    return request(body=form(*parts), headers=headers)


PICTURE = picture_bytes()
TYPE = "Content-Type"
# name -> bytes on the wire, status, a word of the answer
REFUSED = {
    "not an image": (ask_form(part(b"I am not an image")), 400, "not an image"),
    "an empty file": (ask_form(part(b"")), 400, "empty"),
    "a truncated picture": (ask_form(part(PICTURE[: len(PICTURE) // 2])), 400, "damaged"),
    "a bomb": (ask_form(part(bomb())), 400, "1,000,000 pixels"),
    "one bad picture among good ones": (ask_form(part(PICTURE), part(b"x", filename="bad")), 400, "bad"),
    "an SVG": (ask_form(part(b"<svg xmlns='http://www.w3.org/2000/svg'/>", kind="image/svg+xml")), 415, "svg"),
    "text as a part": (ask_form(part(PICTURE, kind="text/html")), 415, "text/html"),
    "a part of an empty type": (ask_form(part(PICTURE, kind="")), 415, "an image type"),
    "a part without a type that is not an image": (ask_form(part(b"words", kind=None)), 400, "not an image"),
    "another type": (request(body=b"<a/>", headers={TYPE: "application/xml"}), 415, "application/xml"),
    "no content type": (request(body=PICTURE, headers={TYPE: None}), 415, "none"),
    "another multipart": (
        request(body=form(part(PICTURE)), headers={TYPE: f"multipart/mixed; boundary={BOUNDARY}"}), 415, "mixed"),
    "a compressed body": (request(body=zlib.compress(form()), headers={"Content-Encoding": "gzip"}), 415, "gzip"),
    "no boundary": (request(body=form(), headers={TYPE: "multipart/form-data"}), 400, "boundary"),
    "a long boundary": (request(body=b"x", headers={TYPE: f"multipart/form-data; boundary={71 * 'b'}"}), 400, "71"),
    "another boundary": (
        request(body=form(part(PICTURE)), headers={TYPE: "multipart/form-data; boundary=other"}), 400, "broken"),
    "a form cut short": (request(body=form(part(PICTURE))[:-40]), 400, "closing boundary"),
    "an empty form": (request(body=form()), 400, "no image"),
    "an empty body": (request(), 400, "closing boundary"),
    "rubbish": (request(body=bytes(range(256)) * 9), 400, "broken"),
    "a field of another name": (ask_form(part(PICTURE, name="file")), 400, "'file'"),
    "a path as text": (ask_form(part(b"/etc/passwd", filename=None, kind="image/png")), 400, "text"),
    "no disposition": (request(body=form(b"Content-Type: image/png\r\n\r\n" + PICTURE)), 400, "Disposition"),
    "a header of a part twice": (
        request(body=form(b"Content-Type: image/png\r\n" + part(PICTURE))), 400, "twice"),
    "a huge header of a part": (ask_form(part(PICTURE, filename="a" * 9000)), 400, "header size"),
    "many headers of a part": (
        request(body=form(b"".join(b"A%d: b\r\n" % i for i in range(7)) + part(PICTURE))), 400, "header count"),
    "five pictures of at most four": (ask_form(*[part(PICTURE)] * 5), 413, "at most 4"),
    "a body over the limit": (ask_form(part(bytes(200_000))), 413, "100,000 bytes"),
    "a topk of nothing": (request("/predict?topk=0", form(part(PICTURE))), 400, "topk"),
    "a topk of a word": (request("/predict?topk=many", form(part(PICTURE))), 400, "topk"),
    "a topk of digits that are none": (request("/predict?topk=%C2%B2", form(part(PICTURE))), 400, "topk"),
    "an enormous topk": (request(f"/predict?topk={10**30}", form(part(PICTURE))), 400, "topk"),
    "an unknown parameter": (request("/predict?topk=1&path=/etc/passwd", form(part(PICTURE))), 400, "path"),
    "two pictures to explain": (request("/explain", form(part(PICTURE), part(PICTURE))), 400, "one image"),
    "GET of predict": (request("/predict", method="GET"), 405, "POST"),
    "PUT of a picture": (request("/predict", PICTURE, method="PUT"), 405, "PUT"),
    "DELETE of the page": (request("/", method="DELETE"), 405, "DELETE"),
    "an unknown method": (request("/predict", method="BREW"), 405, "BREW"),
    "an unknown path": (request("/admin", method="GET"), 404, "/admin"),
    "a path upwards": (request("/static/../../../../etc/passwd", method="GET"), 404, "passwd"),
    "an encoded path upwards": (request("/static/%2e%2e%2f%2e%2e%2fapp.py", method="GET"), 404, "app.py"),
    "a doubled slash": (request("//etc/passwd", method="GET"), 404, "passwd"),
    "a null byte": (request("/static/page.js%00.png", method="GET"), 404, "page.js"),
    "a line break at the end": (request("/static/page.js%0A", method="GET"), 404, "page.js"),
    "a line break after a path": (request("/healthz%0A", method="GET"), 404, "healthz"),
    "a line break after predict": (request("/predict%0A", form(part(PICTURE))), 404, "predict"),
    "a backslash": (request("/static\\..\\app.py", method="GET"), 404, "app.py"),
    "another host": (request("/", method="GET", headers={"Host": "evil.example"}), 421, "evil.example"),
    "a host that is none": (request("/", method="GET", headers={"Host": "[::1"}), 421, "[::1"),
    "a request of another site": (
        request(body=form(part(PICTURE)), headers={"Sec-Fetch-Site": "cross-site"}), 403, "another origin"),
    "a request of another port": (
        request(body=form(part(PICTURE)), headers={"Sec-Fetch-Site": "same-site"}), 403, "another origin"),
    "no host": (request("/", method="GET", headers={"Host": None}), 400, "Host"),
    "headers of 8 KB at once": (request("/", method="GET", headers={"X": "x" * 8000}), 431, "4,000 bytes"),
    "headers of 300 KB": (request("/", method="GET", headers={"X": "x" * 300_000}), 431, "4,000 bytes"),
    "a target of 20 KB": (request("/" + "a" * 20_000, method="GET"), 431, "4,000 bytes"),
    "a line without a colon": (b"GET / HTTP/1.1\r\nHost 127.0.0.1\r\n\r\n", 400, "header"),
    "a header that is folded first": (b"GET / HTTP/1.1\r\n folded\r\n\r\n", 400, "header"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40), 400, "HTTP/1.1"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "HTTP/1.1"),
    "no HTTP": (b"hello there\r\n\r\n", 400, "HTTP/1.1"),
    "two content lengths": (request(body=b"abc", headers={"content-length": "7"}), 400, "HTTP/1.1"),
    "a negative content length": (request(headers={"Content-Length": "-5"}), 400, "HTTP/1.1"),
    "a content length of a word": (request(headers={"Content-Length": "many"}), 400, "HTTP/1.1"),
    "a length of 10^15": (request(headers={"Content-Length": str(10**15)}), 413, "100,000 bytes"),
    "a broken chunk": (
        request(headers={"Content-Length": None, "Transfer-Encoding": "chunked"}) + b"zz\r\nabc\r\n", 400, "HTTP/1.1"),
    "a length and chunks": (
        request(headers={"Content-Length": "5", "Transfer-Encoding": "chunked"}) + b"0\r\n\r\n", 400, "not both"),
    "chunks in HTTP/1.0": (
        request(headers={"Content-Length": None, "Transfer-Encoding": "chunked"}).replace(b"/1.1", b"/1.0"),
        400, "1.1"),
    "an unknown transfer encoding": (
        request(headers={"Content-Length": None, "Transfer-Encoding": "gzip"}), 400, "HTTP/1.1"),
}  # fmt: skip
NEEDS_TIGHT_LIMITS = {"five pictures of at most four", "a body over the limit", "headers of 8 KB at once"}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tight, name):
    data, status, words = REFUSED[name]
    reply = tight.ask(data)
    assert_refused(reply, status, "")
    assert any(word in reply.json["error"] + reply.json["remedy"] for word in words.split("|")), reply.json
    assert tight.ask(GOOD).status == 200


def test_a_chunked_body_is_counted(tight):
    """No Content-Length says how much comes; the stream is cut at the limit."""
    head = request(headers={"Content-Length": None, "Transfer-Encoding": "chunked"})
    body = form(part(bytes(300_000)))
    data = b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + 9999]), body[i : i + 9999]) for i in range(0, len(body), 9999))
    assert_refused(tight.ask(head + data + b"0\r\n\r\n"), 413, "100,000 bytes")
    wait_until(lambda: tight.service._num_buffered_bytes == 0)
    good = form(part(PICTURE))
    assert tight.ask(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(good), good)).status == 200


def test_a_slow_body(impatient):
    with impatient.connect() as connection:
        connection.send(GOOD[:-9])
        assert_refused(connection.read(), 408, "within 0.4 s")


def test_slow_headers(impatient):
    with impatient.connect() as connection:
        for letter in b"GET / HTTP/1.1\r\nX-Slow: lo":  # a byte now and then resets no clock
            try:
                connection.send(bytes([letter]))
            except OSError:
                break
            time.sleep(0.03)
        assert_refused(connection.read(), 408, "within 0.4 s")


def test_slow_headers_after_an_answer(classifier):
    """The time is made short only when the good request cannot be late any more."""
    for together in (True, False):
        with live(classifier) as running, running.connect() as connection:
            if not together:
                connection.send(GOOD)
                assert connection.read().status == 200
            wait_until(lambda: running.num_connections == 1)
            running.change_limits(header_timeout_s=0.4)
            connection.send(GOOD + b"GET / HTT" if together else b"GET / HTT")
            if together:
                assert connection.read().status == 200
            assert_refused(connection.read(), 408, "within 0.4 s")


def test_a_silent_connection_ends(impatient):
    with impatient.connect(timeout=30) as connection:
        assert connection.read().status == 0


def test_a_body_that_no_client_reads_ends(classifier):
    """An answer was given at once; what trickles in afterwards does not hold the connection."""
    with live(classifier) as running, running.connect() as connection:
        wait_until(lambda: running.num_connections == 1)
        running.change_limits(header_timeout_s=0.4)
        connection.send(request("/healthz", b"", method="GET", headers={"Content-Length": "1000"}))
        assert connection.read().status == 200
        assert breaks_off(connection)


def test_an_answer_that_no_client_reads_ends(classifier):
    """Requests one after the other, no answer taken: the service lets go."""
    with live(classifier, write_timeout_s=0.3) as running:
        with running.connect(timeout=30) as connection:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.send(request("/static/page.js", method="GET") * 2000)  # 30 MB to take
            assert breaks_off(connection)
        assert running.ask(GOOD).status == 200


@pytest.fixture
def small_buffers(monkeypatch):
    """The system keeps little of an answer that nobody takes."""

    def with_small_buffer(host, port):
        listener = listen_on(host, port)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # those that it accepts have it too
        return listener

    monkeypatch.setattr(harness, "listen_on", with_small_buffer)


@pytest.mark.usefixtures("small_buffers")
def test_one_small_answer_that_no_client_reads_ends(classifier):
    """Less than the transport keeps before it calls for a pause: closing would wait for it without end."""
    with live(classifier, write_timeout_s=0.3, keep_alive_s=1) as running, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(("127.0.0.1", running.port))
        client.sendall(request("/static/page.js", method="GET"))  # 14 KB, of which the two buffers hold a half
        wait_until(lambda: running.num_connections == 1)
        wait_until(lambda: running.num_connections == 0, 30)


def test_a_refusal_is_reported_once(classifier):
    """Whatever still comes behind what was no HTTP, and though the time of its headers ends afterwards."""
    with live(classifier) as running, running.connect() as connection:
        connection.send(b"no HTTP\r\n\r\n" + 3 * (b"still none\r\n\r\n" + GOOD))
        assert_refused(connection.read(), 400, "HTTP/1.1")
        for open_one in list(running.server.server_state.connections):
            open_one.loop.call_soon_threadsafe(open_one._end_slow_headers)
        connection.send(3 * (b"still none\r\n\r\n" + GOOD))
        assert connection.read().status == 0
        wait_until(lambda: running.num_connections == 0)  # though the client keeps its end open
        assert running.service.counters.get("refused_connections_total") == 1


def test_a_body_that_breaks_off_ends_its_request_at_once(classifier, monkeypatch):
    monkeypatch.setattr(protocol, "DRAIN_S", 60.0)
    with live(classifier) as running, running.connect() as connection:
        chunked = request(headers={"Content-Length": None, "Transfer-Encoding": "chunked"})
        connection.send(chunked + b"3\r\n---\r\n")
        wait_until(lambda: running.service._num_requests == 1)
        connection.send(b"zz\r\n")
        assert_refused(connection.read(), 400, "HTTP/1.1")
        wait_until(
            lambda: running.service._num_requests == 0
        )  # long before the body's time, or the connection, is over


def test_what_is_no_http_behind_an_answer_gets_none(classifier):
    with live(classifier) as running, running.connect() as connection:
        connection.send(request("/healthz", method="GET", headers={"Transfer-Encoding": "chunked"}))
        assert connection.read().status == 200
        connection.send(b"zz\r\n")
        assert connection.read().status == 0


@pytest.mark.parametrize("framing", [{"Content-Length": "5"}, {"Content-Length": None, "Transfer-Encoding": "chunked"}])
def test_a_refusal_before_the_body_ends_the_connection(classifier, framing):
    """Soon, though the body that was announced never comes."""
    with live(classifier) as running, running.connect(timeout=30) as connection:
        connection.send(request("/nothing", headers=framing))
        reply = connection.read()
        assert_refused(reply, 404, "/nothing")
        assert reply.headers["connection"] == "close"
        assert connection.read().status == 0


def test_what_is_no_number_is_no_json():
    with pytest.raises(ValueError, match="JSON"):
        refusal.json_bytes([float("nan")])


@pytest.mark.usefixtures("small_buffers")
def test_a_client_that_took_its_answer_late_goes_on(classifier):
    """The clock of an answer that waits stops when it is taken."""
    with live(classifier, write_timeout_s=60, keep_alive_s=60) as running, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.settimeout(20)
        client.connect(("127.0.0.1", running.port))
        client.sendall(request("/static/page.js", method="GET"))
        wait_until(running.waits_for_a_reader)
        client.settimeout(0.1)  # the last byte may be here before the service knows that it was taken
        while running.waits_for_a_reader():
            with contextlib.suppress(TimeoutError):
                assert client.recv(65536)
        client.settimeout(20)
        client.sendall(request("/healthz", method="GET"))
        wait_until(lambda: b"ok" in client.recv(65536))
        assert running.num_connections == 1


def test_a_client_that_leaves(tight):
    for data in (GOOD[:-9], GOOD, GOOD[:30]):
        with tight.connect() as connection:
            connection.send(data)
    assert tight.ask(GOOD).status == 200
    wait_until(lambda: tight.service._num_requests == tight.service._num_buffered_bytes == 0)


def test_too_many_connections(classifier):
    with live(classifier, max_connections=2) as running, running.connect() as first, running.connect() as second:
        for connection in (first, second):
            connection.send(GOOD)
            assert connection.read().status == 200
        with running.connect() as third:
            reply = third.read()
            assert_refused(reply, 503, "2 connections")
            assert reply.headers["retry-after"] == "1"


def test_expect_100_continue(tight):
    """A client that asks first is told to go on, or refused before it sends."""
    with tight.connect() as connection:
        head, body = GOOD.split(b"\r\n\r\n", 1)
        connection.send(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert connection.read().status == 100
        connection.send(body)
        assert connection.read().status == 200
    with tight.connect() as connection:
        connection.send(request(headers={"Content-Length": "900000", "Expect": "100-continue"}))
        assert_refused(connection.read(), 413, "100,000")


def test_no_file_of_a_request_is_opened(tight, tmp_path):
    """The name of a file that exists comes back as a name; what counts is the content sent."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture_bytes(7))
    reply = tight.ask(ask_form(part(b"nothing", filename=str(secret))))
    assert_refused(reply, 400, str(secret))
    reply = tight.ask(ask_form(part(PICTURE, filename=str(secret))))
    assert reply.json[0]["predictions"] == tight.ask(GOOD).json[0]["predictions"]


def test_a_defect_is_reported_as_json(classifier, monkeypatch):
    def fail(seen):
        raise RuntimeError("ours")

    monkeypatch.setattr(app, "_as_result", fail)
    with live(classifier) as running:
        assert_refused(running.ask(GOOD), 500, "defect")
        monkeypatch.undo()
        assert running.ask(GOOD).status == 200


# -- each safeguard can say no: without it the tests above fail -------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("a bomb", {"max_pixels": 10**9}),
        ("five pictures of at most four", {"max_images": 5}),
        ("a body over the limit", {"max_body_bytes": 10**6}),
        ("headers of 8 KB at once", {"max_header_bytes": 10**5}),
    ],
)
def test_without_the_limit_it_is_another_answer(classifier, name, limits):
    data, status, word = REFUSED[name]
    with live(classifier, **(TIGHT | limits)) as running:
        reply = running.ask(data)
        assert reply.status != status or word not in reply.json["error"]


def test_headers_just_within_the_limit_are_taken(classifier):
    """More than the parser's own limit, and than what comes at once."""
    with live(classifier, max_header_bytes=300_000) as running:
        assert running.ask(request("/healthz", method="GET", headers={"X": "x" * 200_000})).status == 200


def test_without_the_timer_a_silent_connection_stays(classifier, monkeypatch):
    monkeypatch.setattr(protocol.Protocol, "_wait_for_headers", lambda self: None)
    with live(classifier, **SLOW) as running, running.connect(timeout=1.5) as connection:
        connection.send(b"GET / HT")
        with pytest.raises(TimeoutError):
            connection.read()


def test_without_the_list_every_host_is_answered(classifier):
    data, _, _ = REFUSED["another host"]
    with live(classifier, hosts=None) as running:
        assert running.ask(data).status == 200


def test_without_draining_the_answer_is_lost(classifier, monkeypatch):
    """A client that is still sending sees a broken connection where what it sends is not taken in."""

    async def drain_nothing(receive):
        return

    monkeypatch.setattr(refusal, "_drain", drain_nothing)
    body = form(part(bytes(30_000_000)))
    with live(classifier, **TIGHT) as running, running.connect() as connection:
        with pytest.raises(ConnectionError):
            connection.send(request(body=body))


def read_in_steps(data: bytes, step: int) -> list[Upload]:
    async def stream():
        for start in range(0, len(data), step):
            yield data[start : start + step]

    headers = Headers({"content-type": f"multipart/form-data; boundary={BOUNDARY}"})
    return asyncio.run(read_form(headers, stream(), Limits()))


def test_the_form_keeps_its_parts_apart():
    """Whole or byte by byte, a form gives the same pictures."""
    data = form(part(b"\r\n--" + BOUNDARY.encode()[:5], filename="a"), part(PICTURE, filename=""))
    for step in (1, 7, len(data)):
        first, second = read_in_steps(data, step)
        assert (first.name, first.data) == ("a", b"\r\n--" + BOUNDARY.encode()[:5])
        assert (second.name, second.data) == ("image 2", PICTURE)


def test_a_large_file_stays_in_memory(monkeypatch):
    """The parser would move files of more than 1 MB to the disk."""
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: pytest.fail("written to the disk"))
    data = bytes(3_000_000)
    (only,) = read_in_steps(form(part(data)), 2**16)
    assert only.data == data
