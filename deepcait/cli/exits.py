"""Exit codes of the command."""

from __future__ import annotations

DONE = 0
DEFECT = 1  # a bug in deepcait: a traceback is shown
MISTAKE = 2  # the user can fix it
REFUSED = 3  # a check failed
STOPPED = 75  # on request; the same command with --resume resumes


class Refused(Exception):  # noqa: N818 - it is not an error
    """A check failed; the message says which."""
