"""What a user can mend: every such error says what was expected, what came, and the remedy."""

from __future__ import annotations

from collections.abc import Sequence


class DeepcaitError(ValueError):
    """An error of the user's to mend; the command prints it as one paragraph and exits with 2.

    Args:
        problem: what was expected and what came instead, one or two sentences.
        remedy: what to do now, one sentence.
    """

    def __init__(self, problem: str, *, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self):
        # Loader workers send exceptions as pickles; the keyword must survive the trip.
        return _rebuild, (type(self), self.problem, self.remedy)


def _rebuild(kind: type[DeepcaitError], problem: str, remedy: str) -> DeepcaitError:
    return kind(problem, remedy=remedy)


class ConfigError(DeepcaitError):
    """A setting, a name or an option that does not fit."""


class ShapeError(DeepcaitError):
    """A tensor of another shape than the model was built for."""


class WeightsError(DeepcaitError):
    """A weights file that is broken, unsafe or made for another model."""


class DataError(DeepcaitError):
    """A data set whose folders, classes or labels do not fit."""


class ImageError(DataError):
    """One image that can't be read; the message names the file."""


class RunError(DeepcaitError):
    """A run folder that can't be started, resumed or read."""


class WriteError(WeightsError, RunError):
    """A file or folder that can't be written, of a model, a run or a result; what was there before is untouched."""


class DivergedError(RunError):
    """A run whose weights are not finite, or its losses or gradients more often in a row than its recipe allows."""


class DeepcaitWarning(UserWarning):
    """What a user should know although the work can be done; the command prints it as one line."""


class EvaluationWarning(DeepcaitWarning):
    """A sign that an evaluation does not measure what was meant: its preprocessing, class order, labels or weights."""


def some(names: Sequence[str], most: int = 5) -> str:
    """Write a list into a message, cut short after `most` names."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")


class Stopped(Exception):  # noqa: N818 - it is no error
    """A run stopped on request after saving itself; the command exits with 75 and `--resume` continues."""
