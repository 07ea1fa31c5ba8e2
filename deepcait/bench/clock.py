"""Time several programs in turns, so that a disturbance of the machine affects all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles

import torch

from deepcait.errors import ConfigError

# Threads of a library spin for a moment after its call; that must not slow the next lane.
PAUSE_S = 0.005
# Each turn lasts at least this long, so that short calls are timed several times.
TURN_S = 0.06


@dataclass
class Lane:
    """A program to be timed.

    Args:
        name: its name in the results.
        run: does the work once.
        turns: seconds of each timed call, per turn; filled by `take_turns`.
    """

    name: str
    run: Callable[[], object]
    turns: list[list[float]] = field(default_factory=list)

    @property
    def calls_s(self) -> list[float]:
        """The seconds of every timed call."""
        return [seconds for turn in self.turns for seconds in turn]

    @property
    def median_s(self) -> float:
        """Median over all calls."""
        return median(self.calls_s)

    @property
    def quartiles_s(self) -> list[float]:
        """Quartiles over all calls."""
        return quantiles(self.calls_s, n=4, method="inclusive") if len(self.calls_s) > 1 else self.calls_s * 3

    @property
    def p95_s(self) -> float:
        """95th percentile over all calls."""
        return quantiles(self.calls_s, n=20, method="inclusive")[-1] if len(self.calls_s) > 1 else self.calls_s[0]


def waited_for(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """Return the program, followed by waiting for the GPU if it computes there."""
    if device.type == "cpu":
        return run

    def run_and_wait() -> None:
        run()
        torch.accelerator.synchronize(device)

    return run_and_wait


def require_count(option: str, *counts: int | None, least: int = 1) -> None:
    """Raise if a count is too small; None means that it is chosen later.

    Raises:
        ConfigError: a count is below `least`, or there are no counts.
    """
    for count in counts or (0,):
        if count is not None and count < least:
            got = count if counts else "none"
            raise ConfigError(
                f"{option}: expected {least} or more, got {got}.", remedy=f"Use {option} {least} or more."
            )


def set_up(rounds: int, batches: Sequence[int] | None = None, threads: int | None = None) -> int:
    """Check the options that all benchmarks share, and set PyTorch's number of threads.

    Args:
        rounds: timed rounds, at least 2.
        batches: images per call, at least one number; None if the benchmark chooses them.
        threads: None keeps PyTorch's number.

    Returns:
        The number of threads.

    Raises:
        ConfigError: a number is out of range; the message names the option.
    """
    require_count("--rounds", rounds, least=2)
    if batches is not None:
        require_count("--batch", *batches)
    require_count("--threads", threads)
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def take_turns(
    lanes: Sequence[Lane],
    rounds: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    warm: bool = True,
) -> None:
    """Run lanes in turns: each once per round, in reverse order every second round.

    A turn begins with one call that is not timed, which warms up threads and caches, and lasts `TURN_S`. One extra
    round at the start is not timed.

    Args:
        lanes: to be timed; their `turns` are filled.
        rounds: timed rounds.
        progress: called with the rounds done and the rounds in total.
        warm: begin each turn with a call that is not timed; not needed for calls that take seconds.
    """
    for number in range(rounds + 1):
        for lane in lanes if number % 2 else lanes[::-1]:
            time.sleep(PAUSE_S)
            if warm:
                lane.run()
            times, end_s = [], time.perf_counter() + TURN_S
            while not times or time.perf_counter() < end_s:
                began_s = time.perf_counter()
                lane.run()
                times.append(time.perf_counter() - began_s)
            if number:
                lane.turns.append(times)
        progress(number, rounds)


def ratio(ours: Lane, peer: Lane) -> dict[str, float | list[float]]:
    """Return the speedup of `ours`: the ratio of the medians, and the quartiles of the ratios per round."""
    each = [median(theirs) / median(own) for own, theirs in zip(ours.turns, peer.turns, strict=True)]
    return {
        "ratio": peer.median_s / ours.median_s,
        "quartiles": quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3,
    }
