"""Unreadable training pictures that a run passes over: told, written down and counted once each, up to a budget."""

from __future__ import annotations

from collections.abc import Callable

from deepcait.data.loader import Unreadable, too_many_unreadable
from deepcait.runtime.processes import Processes
from deepcait.training.checkpoint import Progress
from deepcait.training.journal import Journal


class Skips:
    """Keeps the count of one run, the same on every process.

    Args:
        max_errors: different pictures that may be passed over.
        journal: where they are written down.
        processes: all that read pictures.
        say: prints a line.
    """

    def __init__(self, max_errors: int, journal: Journal, processes: Processes, say: Callable[[str], None]) -> None:
        self.max_errors = max_errors
        self.journal = journal
        self.processes = processes
        self.say = say
        self._heard: list[Unreadable] = []

    def hear(self, unreadable: Unreadable) -> None:
        """Take note of a picture that this process passed over in the step under way."""
        self._heard.append(unreadable)

    def settle(self, step: int, progress: Progress) -> None:
        """After a step, on all processes together: add what is new to `progress.unreadable`.

        Raises:
            RunError: more than the budget; the message names the pictures.
        """
        heard, self._heard = self._heard, []
        for one in [one for share in self.processes.gather(heard) for one in share]:
            if one.path not in progress.unreadable:
                progress.unreadable.append(one.path)
                self.journal.unreadable(step, one.path, one.problem)
                self.say(f"passed over, {len(progress.unreadable)} of at most {self.max_errors}: {one.problem}")
        if len(progress.unreadable) > self.max_errors:
            raise too_many_unreadable(progress.unreadable, self.max_errors)
