"""Unreadable training images that a run skips: logged, recorded and counted once each, up to a limit."""

from __future__ import annotations

import logging

from deepcait.data.loader import Unreadable, too_many_unreadable
from deepcait.runtime.processes import Processes
from deepcait.training.checkpoint import Progress
from deepcait.training.journal import Journal

_logger = logging.getLogger(__name__)


class Skips:
    """Counts the skipped images of one run, equally on every process.

    Args:
        max_errors: different images that may be skipped.
        journal: where they are written down.
        processes: all that read images.
    """

    def __init__(self, max_errors: int, journal: Journal, processes: Processes) -> None:
        self.max_errors = max_errors
        self.journal = journal
        self.processes = processes
        self._unreadable: list[Unreadable] = []

    def record(self, unreadable: Unreadable) -> None:
        """Note an image that this process skipped in the current step."""
        self._unreadable.append(unreadable)

    def sync(self, step: int, progress: Progress) -> None:
        """After a step, on all processes: add new paths to `progress.unreadable`.

        Raises:
            RunError: more than the budget; the message names the images.
        """
        own, self._unreadable = self._unreadable, []
        for one in [one for share in self.processes.gather(own) for one in share]:
            if one.path not in progress.unreadable:
                progress.unreadable.append(one.path)
                self.journal.unreadable(step, one.path, one.problem)
                number = len(progress.unreadable)
                _logger.warning("skipped, %d of at most %d: %s", number, self.max_errors, one.problem)
        if len(progress.unreadable) > self.max_errors:
            raise too_many_unreadable(progress.unreadable, self.max_errors)
