"""Programs that do the same, timed in turns: what disturbs one disturbs the others too."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles

import torch

from deepcait.errors import ConfigError

# Threads of one library go on spinning for a moment after its call; the next lane shall not pay for that.
PAUSE_S = 0.005
# A lane's turn is at least this long, so that short calls are timed more than once.
TURN_S = 0.06


@dataclass
class Lane:
    """One program under the clock.

    Args:
        name: what it is called in the results.
        run: does the work once.
        turns: seconds of each timed call, turn by turn; filled by `take_turns`.
    """

    name: str
    run: Callable[[], object]
    turns: list[list[float]] = field(default_factory=list)

    @property
    def calls_s(self) -> list[float]:
        """Seconds of every timed call."""
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


def require_count(option: str, *counts: int | None, least: int = 1) -> None:
    """Pass for counts that a measurement can work with; None leaves one to be chosen.

    Raises:
        ConfigError: one below `least`, or none at all.
    """
    for count in counts or (0,):
        if count is not None and count < least:
            got = count if counts else "none"
            raise ConfigError(
                f"{option}: expected {least} or more, got {got}.", remedy=f"Give {option} {least}, or more."
            )


def set_up(rounds: int, batches: Sequence[int] | None = None, threads: int | None = None) -> int:
    """Check the options that measurements share, and set PyTorch's threads.

    Args:
        rounds: counted rounds, at least 2.
        batches: images per call, at least one number; None if the measurement chooses them.
        threads: None keeps PyTorch's number.

    Returns:
        The number of threads.

    Raises:
        ConfigError: a number out of range; its option is named.
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
    """Run lanes in turns: each once a round, the order reversed every second round.

    A turn begins with a call that is not counted, which brings threads and caches back from the lane before, and goes
    on for `TURN_S`. One round more, the first, is not counted.

    Args:
        lanes: their `turns` are filled.
        rounds: counted rounds.
        progress: called with rounds done and to do.
        warm: begin a turn with the call that is not counted; not worth it for calls of seconds.
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
    """How many times faster `ours` is: of the medians over all rounds, and quartiles of the rounds' own ratios."""
    each = [median(theirs) / median(own) for own, theirs in zip(ours.turns, peer.turns, strict=True)]
    return {
        "ratio": peer.median_s / ours.median_s,
        "quartiles": quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3,
    }
