"""How the command ends: exit codes, and exceptions that mean one."""

from __future__ import annotations

DONE = 0
DEFECT = 1  # ours: a traceback is shown
MISTAKE = 2  # the user can mend it
REFUSED = 3  # a check said no
STOPPED = 75  # on request; the same command with --resume goes on


class Refused(Exception):  # noqa: N818 - it is no error
    """A check said no; the message says which."""
