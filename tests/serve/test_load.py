"""Many clients at once: every answer right or 503; memory stands still; faster than a plain server."""

from __future__ import annotations

import asyncio
import statistics

import pytest

import deepcait
from tests.serve.harness import command, live
from tests.serve.load import compare, growth, make_cases, measure, run_clients

THREADS = ("--threads", "1")


@pytest.fixture(scope="module")
def cases():
    return make_cases(16)


@pytest.mark.process
def test_many_clients_for_a_moment(cases):
    with command(*THREADS) as running:
        # By number, not by time: on a busy machine it takes longer.
        outcome = asyncio.run(
            run_clients(running, cases, clients=64, seconds=200.0, enough=lambda found: found.statuses[200] >= 128)
        )
        assert running.stop()[0] == 0
    assert outcome.faults == []
    assert set(outcome.statuses) <= {200, 503}
    assert outcome.statuses[200] >= 128


def test_a_small_queue_refuses_some_and_answers_the_others_right(cases):
    with live(deepcait.load("builtin:nano"), max_queue=8, max_requests=8, max_images=1) as running:
        outcome = asyncio.run(
            run_clients(running, cases, clients=64, seconds=200.0, enough=lambda found: found.statuses[200] >= 64)
        )
    assert outcome.faults == []
    assert outcome.statuses[503] > 0
    assert outcome.statuses[200] > 0


def test_a_wrong_answer_would_be_noticed(cases):
    first, second = cases[:2]
    body = b'[{"predictions":[%s]}]' % b",".join(
        b'{"label":"%s","probability":%r}' % (label.encode(), probability)
        for label, probability in zip(first.labels, first.probabilities, strict=True)
    )
    assert first.difference(body) == 0
    assert second.difference(body) > 1e-3


@pytest.mark.soak
def test_64_clients_for_60_seconds():
    outcome = measure(make_cases(), clients=64, seconds=61.0, options=THREADS)
    assert outcome.faults == []
    assert set(outcome.statuses) <= {200, 503}
    assert growth(outcome.resident_bytes) < 0.05


@pytest.mark.soak
def test_faster_than_a_plain_server():
    rates = compare(make_cases(), rounds=3, seconds=5.0, clients=64)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    assert medians.pop("ours") >= 1.5 * max(medians.values())
