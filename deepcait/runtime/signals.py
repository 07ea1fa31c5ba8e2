"""Requests to stop: SIGTERM and SIGINT, deferred until the work can be saved."""

from __future__ import annotations

import signal
import threading
from typing import Any


class StopRequest:
    """Defer SIGTERM and SIGINT; a second SIGINT interrupts at once.

    The work inside checks `asked` regularly. A signal that was not handled (it came during the last evaluation) is
    passed on to the Python handler that was installed before.
    """

    def __init__(self) -> None:
        self.asked = False
        self._number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        before = self._before.get(self._number)
        if self.asked and kind is None and callable(before) and before is not signal.default_int_handler:
            before(self._number, None)

    def _ask(self, number: int, _: object) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked, self._number = True, number
