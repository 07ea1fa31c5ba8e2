"""Hostile requests in numbers: each a 4xx with our JSON error; the service lives and answers the next good one."""

from __future__ import annotations

import random

import pytest

from deepcait.data import open_image
from tests.serve.harness import live, wait_until
from tests.serve.hostile import GOOD, Outcome, attack, siege

# Good requests must arrive in time on a busy machine; the slow ones wait together, at the end.
LIMITS = {"max_pixels": 1_000_000, "header_timeout_s": 3.0, "body_timeout_s": 3.0}


def test_a_hundred_hostile_requests(classifier):
    (predictions,) = classifier.predict(open_image(GOOD))[:1]
    outcome = Outcome()
    with live(classifier, **LIMITS) as running:
        attack(running, random.Random(0), 120, predictions, outcome)
        kinds = {kind for kind, _ in outcome.answered}
        assert kinds >= {"damaged", "mutated", "form", "json", "raw", "path", "http", "known", "slow"}
        wait_until(lambda: running.service._num_requests == running.service._num_buffered_bytes == 0)
        assert running.service.pipeline.num_waiting == 0


@pytest.mark.soak
def test_five_thousand_hostile_requests():
    found = siege()
    assert found["hostile_requests"] >= 5000
    accounted = found["refused_with_4xx_and_our_json"] + found["mutated_that_were_still_pictures_200"]
    assert accounted == found["hostile_requests"]
