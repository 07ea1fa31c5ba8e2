"""Errors that a user can fix: each states the problem and a remedy."""

from __future__ import annotations

from collections.abc import Sequence


class DeepcaitError(ValueError):
    """An error that the user can fix; the command prints it as one paragraph and exits with code 2.

    Args:
        problem: what is wrong, in one or two sentences.
        remedy: what to do now, one sentence.
    """

    def __init__(self, problem: str, *, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self):
        # Loader workers send exceptions as pickles; the keyword argument must be kept.
        return _rebuild, (type(self), self.problem, self.remedy)


def _rebuild(kind: type[DeepcaitError], problem: str, remedy: str) -> DeepcaitError:
    return kind(problem, remedy=remedy)


class ConfigError(DeepcaitError):
    """A setting, a name or an option is not valid."""


class SettingsError(ConfigError):
    """Several settings are not valid; `errors` has the error of each."""

    def __init__(self, problem: str, *, remedy: str, errors: Sequence[DeepcaitError] = ()) -> None:
        super().__init__(problem, remedy=remedy)
        self.errors = tuple(errors)


def together(errors: Sequence[DeepcaitError]) -> DeepcaitError:
    """Return several errors as one, numbered; a single one as it is.

    >>> print(together([ConfigError("a.", remedy="A."), ConfigError("b.", remedy="B.")]))
    2 settings are not valid. (1) a. (2) b. (1) A. (2) B.
    """
    every: list[DeepcaitError] = []
    for error in errors:
        every += error.errors if isinstance(error, SettingsError) else [error]
    different = list({error.problem: error for error in every}.values())
    if len(different) == 1:
        return different[0]
    problems = " ".join(f"({number}) {error.problem}" for number, error in enumerate(different, 1))
    remedies = " ".join(f"({number}) {error.remedy}" for number, error in enumerate(different, 1))
    return SettingsError(f"{len(different)} settings are not valid. {problems}", remedy=remedies, errors=different)


class ShapeError(DeepcaitError):
    """A tensor's shape is not the one that the model was built for."""


class WeightsError(DeepcaitError):
    """A weights file is damaged, unsafe or belongs to another model."""


class DataError(DeepcaitError):
    """A data set's folders, classes or labels are not valid."""


class ImageError(DataError):
    """An image can't be read; the message names the file."""


class RunError(DeepcaitError):
    """A run can't be started, resumed or read."""


class WriteError(WeightsError, RunError):
    """A file or folder can't be written; existing files are not changed."""


class LostProcessError(RunError):
    """Another process of the run ended or could not be reached: its error came first."""


class DivergedError(RunError):
    """A run diverged: its weights, or losses and gradients for too many steps in a row, are not finite."""


class DeepcaitWarning(UserWarning):
    """Something the user should know; the command prints it as one line and continues."""


class EvaluationWarning(DeepcaitWarning):
    """An evaluation may be wrong: a sign of a wrong preprocessing, class order, labels or weights."""


def some(names: Sequence[str], most: int = 5) -> str:
    """Return a list for a message, truncated after `most` names."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")


class Stopped(Exception):  # noqa: N818 - it is not an error
    """A run was stopped on request and saved; the command exits with code 75, and `--resume` resumes it."""
