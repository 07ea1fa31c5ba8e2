"""Hostile requests without end: each is wrong in one way or several, and must get a 4xx with our JSON error.

`python -m tests.serve.hostile --out docs/results/serve_hostile.json` sends 5,000 to the command and writes the figures.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import re
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import deepcait
from deepcait.data import open_image
from tests.results import finish
from tests.serve.harness import BOUNDARY, Live, command, form, part, picture_bytes, request
from tests.serve.load import SERVICE
from tests.serve.test_answers import assert_same
from tests.serve.test_refusals import NEEDS_TIGHT_LIMITS, REFUSED, bomb

GOOD = picture_bytes(11)
EVERY = 10  # after so many hostile requests a good one is sent

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_PICTURES = [picture_bytes(seed, format=name) for seed, name in enumerate(_FORMATS)]
_PATHS = "etc/passwd .. %2e%2e ..%2f ..\\ %00 ~root proc/self/environ C:\\x static %ff page.js".split()
_TYPES = ["text/plain", "application/json", "image/x-xcf", "*/*", "", "multipart", "a" * 300, "image/svg+xml"]


def damaged_picture(draw: random.Random) -> bytes:
    """A picture that no decoder takes: cut, or its magic number gone, or only its beginning and noise."""
    data = bytearray(draw.choice(_PICTURES))
    match draw.randrange(4):
        case 0:
            data[: draw.randint(2, 8)] = draw.randbytes(8)
        case 1:
            del data[draw.randint(0, min(20, len(data) - 1)) :]
        case 2:
            data = data[:12] + draw.randbytes(draw.randint(1, 400))
        case _:
            data = bytearray(draw.randbytes(draw.randint(1, 3000)))
    return bytes(data)


def mutated_picture(draw: random.Random) -> bytes:
    """A picture with a few bytes changed anywhere: it may still be one."""
    data = bytearray(draw.choice(_PICTURES))
    for _ in range(draw.randint(1, 6)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def broken_form(draw: random.Random) -> bytes:
    """A form that is cut, or has lost its beginning, its names or everything."""
    good = form(part(draw.choice(_PICTURES)))
    match draw.randrange(4):
        case 0:
            return good[: draw.randrange(len(good) - len(BOUNDARY) - 4)]
        case 1:
            return good[draw.randint(1, 40) :]
        case 2:
            return good.replace(b"Content-Disposition", draw.randbytes(6).replace(b"\n", b" ") + b"Disposition", 1)
        case _:
            return draw.randbytes(draw.randint(0, 2000))


def wrong_type(draw: random.Random) -> bytes:
    """A body under another type than a form's, or a part under another than a picture's."""
    kind = draw.choice(_TYPES)
    if draw.random() < 0.5:
        return request(body=draw.choice(_PICTURES), headers={"Content-Type": kind})
    return request(body=form(part(draw.choice(_PICTURES), kind=kind)))


def broken_json(draw: random.Random) -> bytes:
    """JSON with a damaged picture, or that is cut, or has a few bytes or its shape changed."""
    body = json.dumps({"images": [base64.b64encode(data).decode() for data in draw.sample(_PICTURES, 2)]}).encode()
    match draw.randrange(4):
        case 0:
            body = json.dumps({"images": [base64.b64encode(damaged_picture(draw)).decode()]}).encode()
        case 1:
            body = body[: draw.randrange(len(body) - 1)]
        case 2:
            at = draw.randrange(12, len(body) - 4)
            body = body[:at] + draw.choice([b'"', b"\\", b"\0", b"[", b"{", b"]", b"\xff", b"-", b"="]) + body[at + 1 :]
        case _:
            shapes = (b"[]", b"{}", b"null", b"7", 9999 * b"7", b'{"images": {}}', b'{"images": "QUJD"}', 99 * b"[")
            body = draw.choice(shapes)
    return request(body=body, headers={"Content-Type": "application/json"})


def broken_raw(draw: random.Random) -> bytes:
    """A damaged picture as the body."""
    kind = draw.choice(["image/png", "image/jpeg", "application/octet-stream"])
    return request(draw.choice(["/predict", "/explain"]), damaged_picture(draw), headers={"Content-Type": kind})


def path_trick(draw: random.Random) -> bytes:
    """A path that wants a file, in the request line or as the name of a file that is none."""
    path = "/" + "/".join(draw.choice(_PATHS) for _ in range(draw.randint(1, 6)))
    if draw.random() < 0.5:
        return request(path, method=draw.choice(["GET", "POST", "HEAD", "PUT"]).replace("HEAD", "GET"))
    name = path.replace('"', "")
    return request(body=form(part(b"", filename=name), part(b"x", filename=name, name=draw.choice(["image", "path"]))))


def huge_headers(draw: random.Random) -> bytes:
    """More headers than anyone needs: one long, or many short."""
    if draw.random() < 0.5:
        return request("/", method="GET", headers={"X-Long": "x" * draw.randint(17_000, 400_000)})
    return request("/", method="GET", headers={f"X-{i}": "y" * 20 for i in range(draw.randint(800, 3000))})


def broken_http(draw: random.Random) -> bytes:
    """Bytes that are no request, or one with a piece knocked out of its head."""
    if draw.random() < 0.4:
        return draw.randbytes(draw.randint(1, 300)).replace(b"\n", b"") + b"\r\n\r\n"
    head, _, body = request(body=form(part(_PICTURES[0]))).partition(b"\r\n\r\n")
    at = draw.randrange(len(b"POST /predict HTTP/1.1"))
    return head[:at] + bytes([draw.choice(b"\x00\x01\x7f\xff \t")]) * 2 + head[at:] + b"\r\n\r\n" + body


def large_picture(draw: random.Random) -> bytes:
    """A bomb: few bytes that would be an enormous picture."""
    side = draw.randint(8_000, 60_000)
    return request(body=form(part(bomb(side, side))))


def compressed(draw: random.Random) -> bytes:
    """A good form that says it is compressed."""
    body = zlib.compress(form(part(_PICTURES[0])))
    return request(body=body, headers={"Content-Encoding": draw.choice(["gzip", "deflate", "br", "zstd"])})


def known(draw: random.Random) -> bytes:
    """One of the refusals that have a test of their own."""
    names = [name for name in REFUSED if name not in NEEDS_TIGHT_LIMITS]
    return REFUSED[draw.choice(names)][0]


def hostile(draw: random.Random) -> tuple[str, bytes, bool]:
    """Kind, bytes on the wire, and whether it must be refused: a mutated picture may have stayed one."""
    kind = draw.choices(
        ["damaged", "mutated", "form", "json", "raw", "type", "path", "headers", "http", "bomb", "compressed", "known"],
        [20, 20, 12, 12, 8, 8, 10, 4, 10, 2, 2, 12],
    )[0]
    match kind:
        case "damaged":
            return kind, request(body=form(part(damaged_picture(draw)))), True
        case "mutated":
            return kind, request(draw.choice(["/predict", "/explain"]), form(part(mutated_picture(draw)))), False
        case "form":
            return kind, request(body=broken_form(draw)), True
    makers = {
        "json": broken_json, "raw": broken_raw, "type": wrong_type,
        "path": path_trick, "headers": huge_headers, "http": broken_http, "bomb": large_picture,
        "compressed": compressed, "known": known,
    }  # fmt: skip
    return kind, makers[kind](draw), True


@dataclass
class Outcome:
    """How each kind was answered, and how many good requests in between were answered right."""

    answered: Counter = field(default_factory=Counter)
    good: int = 0

    @property
    def total(self) -> int:
        return sum(self.answered.values())


def attack(running: Live, draw: random.Random, number: int, predictions, outcome: Outcome) -> None:
    """Send hostile requests, a good one now and then, and slow ones among them; each answer is checked."""
    open_ended = []
    for index in range(number):
        if index % 25 == 0:  # slow ones stay open while others come
            connection = running.open()
            data = request(body=form(part(GOOD)))
            connection.send(data[: draw.randrange(1, len(data) - 1)])
            open_ended.append(connection)
        kind, data, must_be_refused = hostile(draw)
        reply = running.ask(data)
        printed = f"{kind} (number {index}): {reply.status} {reply.body[:300]!r} to {data[:300]!r}"
        outcome.answered[kind, reply.status] += 1
        if must_be_refused or reply.status != 200:
            assert 400 <= reply.status < 500, printed
            assert reply.headers["content-type"] == "application/json", printed
            assert set(reply.json) == {"error", "remedy"}, printed
        if index % EVERY == 0:
            assert_same(running.predict(GOOD).json[0], predictions)
            outcome.good += 1
    for connection in open_ended:
        # Each slow one was told 408 before its connection was ended.
        reply = connection.read()
        assert (reply.status, set(reply.json)) == (408, {"error", "remedy"})
        connection.close()
        outcome.answered["slow", reply.status] += 1


def siege(number: int = 5000) -> dict:
    """Attack the command in a process of its own; its memory stays bounded, and it ends in good order."""
    (predictions,) = deepcait.load("builtin:nano").predict(open_image(GOOD))[:1]
    draw, outcome, began_s = random.Random(1), Outcome(), time.perf_counter()
    with command("--max-megapixels", "1", "--deadline-s", "2") as running:
        attack(running, draw, number // 5, predictions, outcome)
        after_a_fifth = running.resident_bytes
        attack(running, draw, number - number // 5, predictions, outcome)
        at_the_end = running.resident_bytes
        text = running.ask(request("/metrics", method="GET")).body.decode()
        assert re.search(r"^deepcait_requests_open 0$", text, re.MULTILINE)
        code, _, err = running.stop()
    assert (code, err) == (0, "")
    assert at_the_end < 1.1 * after_a_fifth
    by_kind: dict[str, dict[str, int]] = {}
    for (kind, status), count in sorted(outcome.answered.items()):
        by_kind.setdefault(kind, {})[str(status)] = count
    return {
        "hostile_requests": outcome.total,
        "refused_with_4xx_and_our_json": sum(n for (_, status), n in outcome.answered.items() if 400 <= status < 500),
        "mutated_that_were_still_pictures_200": outcome.answered["mutated", 200],
        "good_requests_in_between_answered_right": outcome.good,
        "seconds": round(time.perf_counter() - began_s),
        "resident_mb": {"after_a_fifth": after_a_fifth >> 20, "at_the_end": at_the_end >> 20},
        "exit_code_at_the_end": code,
        "answers_by_kind_and_status": by_kind,
    }


def main() -> None:
    """Attack and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=5000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    what = "hostile requests one after the other, slow ones open beside them, against deepcait serve builtin:nano"
    again = "python -m tests.serve.hostile --out docs/results/serve_hostile.json"
    finish(what, again, siege(args.number), args.out, SERVICE)


if __name__ == "__main__":
    main()
