"""Hostile requests in numbers: each a 4xx with our JSON error; the service lives and answers the next good one."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from deepcait.data import open_image
from tests.serve.harness import command, form, live, part, picture_bytes, request, wait_until
from tests.serve.hostile import hostile
from tests.serve.test_answers import assert_same

LIMITS = {"max_pixels": 1_000_000, "header_timeout_s": 0.5, "body_timeout_s": 0.5}
GOOD = picture_bytes(11)
EVERY = 10


def attack(running, seed: int, number: int, predictions) -> Counter:
    """Send hostile requests, a good one now and then, and slow ones among them; how each kind was answered."""
    draw = random.Random(seed)
    answered: Counter = Counter()
    open_ended = []
    for index in range(number):
        if index % 25 == 0:  # slow ones stay open while others come
            connection = running.open()
            data = request(body=form(part(GOOD)))
            connection.send(data[: draw.randrange(1, len(data) - 1)])
            open_ended.append(connection)
        kind, data, must_be_refused = hostile(draw)
        reply = running.ask(data)
        told = f"{kind} (seed {seed}, number {index}): {reply.status} {reply.body[:300]!r} to {data[:300]!r}"
        answered[kind, reply.status] += 1
        if must_be_refused or reply.status != 200:
            assert 400 <= reply.status < 500, told
            assert reply.headers["content-type"] == "application/json", told
            assert set(reply.json) == {"error", "remedy"}, told
        if index % EVERY == 0:
            assert_same(running.predict(GOOD).json[0], predictions)
    for connection in open_ended:
        # Each slow one was told 408 before its connection was ended.
        reply = connection.read()
        assert (reply.status, set(reply.json)) == (408, {"error", "remedy"})
        connection.close()
        answered["slow", reply.status] += 1
    return answered


def test_a_hundred_hostile_requests(classifier):
    (predictions,) = classifier.predict(open_image(GOOD))[:1]
    with live(classifier, **LIMITS) as running:
        answered = attack(running, 0, 120, predictions)
        assert {kind for kind, _ in answered} >= {"damaged", "mutated", "form", "path", "http", "known", "slow"}
        wait_until(lambda: running.service._num_requests == running.service._num_buffered_bytes == 0)
        assert running.service.pipeline.num_waiting == 0


@pytest.mark.soak
def test_five_thousand_hostile_requests(tmp_path):
    """Against the command, in a process of its own; its memory stays bounded, and it ends in good order."""
    import deepcait

    (predictions,) = deepcait.load("builtin:nano").predict(open_image(GOOD))[:1]
    with command("--max-megapixels", "1", "--deadline-s", "2") as running:
        first = attack(running, 1, 1000, predictions)
        resident_bytes = running.resident_bytes
        answered = first + attack(running, 2, 4000, predictions)
        assert sum(answered.values()) >= 5000
        assert running.resident_bytes < 1.1 * resident_bytes
        text = running.ask(request("/metrics", method="GET")).body.decode()
        assert re.search(r"^deepcait_requests_open 0$", text, re.MULTILINE)
        code, _, err = running.stop()
    assert (code, err) == (0, "")
    for (kind, status), number in sorted(answered.items()):
        print(f"{kind:<12} {status} {number:>6,}")
