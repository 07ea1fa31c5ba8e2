"""Many clients at once against `deepcait serve builtin:nano`: answers checked, memory watched, a plain server beside.

`python -m tests.serve.load --out docs/results/serve.json` writes the figures; the tests run the same for a few seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import deepcait
from deepcait.data import open_image
from tests.results import finish
from tests.serve.harness import DEMO, Live, command, form, part, request

SERVICE = ("starlette", "uvicorn", "h11", "python-multipart")  # whose versions decide the figures

TOLERANCE = 1e-5
NUM_PICTURES = 64
PLAIN = ("-m", "tests.serve.plain_server")


@dataclass
class Outcome:
    """What the clients saw, and what the process took, second by second."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    largest_difference: float = 0.0
    resident_bytes: list[int] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return self.statuses[200] / self.seconds

    def percentile_ms(self, percent: int) -> float:
        return 1000 * statistics.quantiles(self.latencies_s, n=100)[percent - 1]


class Case:
    """A picture as a request, and what the model says of it alone."""

    def __init__(self, path: Path, predictions) -> None:
        data = path.read_bytes()
        self.request = request(body=form(part(data, filename=path.name)))
        self.labels = [prediction.label for prediction in predictions]
        self.probabilities = [prediction.probability for prediction in predictions]

    def difference(self, body: bytes) -> float:
        """Largest difference of a probability; 1 where a label is another."""
        (result,) = json.loads(body)
        if [answer["label"] for answer in result["predictions"]] != self.labels:
            return 1.0
        pairs = zip(result["predictions"], self.probabilities, strict=True)
        return max(abs(answer["probability"] - expected) for answer, expected in pairs)


def make_cases(number: int = NUM_PICTURES) -> list[Case]:
    """Photographs of the package in all classes, each classified alone."""
    paths = sorted(DEMO.glob("*/*.png"))
    paths = [paths[index * len(paths) // number] for index in range(number)]
    classifier = deepcait.load("builtin:nano")
    return [Case(path, classifier.predict(open_image(path))[0]) for path in paths]


async def run_clients(
    running: Live, cases: list[Case], *, clients: int, seconds: float, enough=lambda outcome: False
) -> Outcome:
    """Each client keeps its connection and sends one request after the other, for a time or until it is enough."""
    outcome = Outcome()
    began_s = time.perf_counter()
    end_s = began_s + seconds

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        index = number
        while (sent_s := time.perf_counter()) < end_s and not enough(outcome):
            case = cases[index % len(cases)]
            index += 1
            writer.write(case.request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            body = await reader.readexactly(int(length))
            status = int(head[9:12])
            outcome.statuses[status] += 1
            if status == 200:
                outcome.latencies_s.append(time.perf_counter() - sent_s)
                difference = case.difference(body)
                outcome.largest_difference = max(outcome.largest_difference, difference)
                if difference > TOLERANCE:
                    outcome.faults.append(body.decode()[:300])
            elif status == 503:
                await asyncio.sleep(0.05)
                if b"connection: close" in head.lower():
                    writer.close()
                    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            else:
                outcome.faults.append(f"{status} {body.decode()[:300]}")
        writer.close()

    async def watch() -> None:
        while True:
            outcome.resident_bytes.append(running.resident_bytes)
            await asyncio.sleep(1.0)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(client(number) for number in range(clients)))
    watching.cancel()
    outcome.seconds = time.perf_counter() - began_s
    return outcome


def measure(
    cases: list[Case], *, clients: int, seconds: float, script: tuple[str, ...] | None = None, options=()
) -> Outcome:
    """Start a server, warm it up, let the clients at it, and end it."""
    named = {} if script is None else {"script": script}
    with command(*options, **named) as running:
        asyncio.run(run_clients(running, cases, clients=clients, seconds=1.0))
        outcome = asyncio.run(run_clients(running, cases, clients=clients, seconds=seconds))
        running.stop()
    return outcome


def growth(resident_bytes: list[int], first_s: int = 15, last_s: int = 60) -> float:
    """Share by which memory has grown from one second to another."""
    last = min(last_s, len(resident_bytes) - 1)
    return resident_bytes[last] / resident_bytes[min(first_s, last)] - 1


def compare(cases: list[Case], *, rounds: int, seconds: float, clients: int) -> dict[str, list[float]]:
    """Answers per second of ours and of both plain servers, in turn."""
    rates: dict[str, list[float]] = {"ours": [], "plain, in the event loop": [], "plain, in a pool of threads": []}
    for _ in range(rounds):
        for name, script, options in (
            ("ours", None, ("--threads", "1")),
            ("plain, in the event loop", PLAIN, ()),
            ("plain, in a pool of threads", PLAIN, ("--pool",)),
        ):
            outcome = measure(cases, clients=clients, seconds=seconds, script=script, options=options)
            assert outcome.faults == [], outcome.faults[:3]
            rates[name].append(outcome.per_second)
    return rates


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=61.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-seconds", type=float, default=6.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    cases = make_cases()
    load = measure(cases, clients=args.clients, seconds=args.seconds, options=("--threads", "1"))
    assert load.faults == [], load.faults[:3]
    rates = compare(cases, rounds=args.rounds, seconds=args.round_seconds, clients=args.clients)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best_plain = max(value for name, value in medians.items() if name != "ours")
    figures = {
        "load": {
            "seconds": round(load.seconds, 1),
            "answers": load.statuses[200],
            "refused_503": load.statuses[503],
            "wrong": len(load.faults),
            "largest_difference_of_a_probability": load.largest_difference,
            "per_second": round(load.per_second, 1),
            "p50_ms": round(load.percentile_ms(50), 1),
            "p99_ms": round(load.percentile_ms(99), 1),
            "resident_mb_by_second": [round(value / 2**20, 1) for value in load.resident_bytes],
            "growth_second_15_to_60": round(growth(load.resident_bytes), 4),
        },
        "against_plain": {
            "rounds": args.rounds,
            "seconds_a_round": args.round_seconds,
            "per_second": {name: [round(value, 1) for value in values] for name, values in rates.items()},
            "median_per_second": {name: round(value, 1) for name, value in medians.items()},
            "ratio_to_the_better_plain": round(medians["ours"] / best_plain, 3),
        },
    }
    what = f"{args.clients} clients beside it, one request of one 32 x 32 PNG after the other, builtin:nano, one thread"
    finish(what, "python -m tests.serve.load --out docs/results/serve.json", figures, args.out, SERVICE)


if __name__ == "__main__":
    main()
