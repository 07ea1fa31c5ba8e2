"""Counters of the service as plain text, in the format of Prometheus."""

from __future__ import annotations

import threading
from collections import defaultdict

_HELP = {
    "requests_total": "Responses, by path and status.",
    "refused_connections_total": "Connections refused before a request was complete, by status.",
    "images_total": "Images that the network computed.",
    "batches_total": "Batches that the network computed.",
    "body_bytes_total": "Bytes of request bodies.",
    "request_seconds_total": "Time from headers to response, summed over requests.",
    "decode_seconds_total": "Time in decoding and preprocessing, summed over images.",
    "queue_seconds_total": "Time in the queue, summed over images.",
    "network_seconds_total": "Time in the network, summed over batches.",
}


class Counters:
    """Sums that only grow; any thread may add to them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: defaultdict[tuple[str, str], float] = defaultdict(int)

    def add(self, name: str, value: float = 1, **labels: object) -> None:
        """Add to a counter; labels distinguish counters of one name."""
        text = ",".join(f'{key}="{label}"' for key, label in labels.items())
        with self._lock:
            self._sums[name, f"{{{text}}}" if text else ""] += value

    def get(self, name: str) -> float:
        """Return a counter's sum over all its labels."""
        with self._lock:
            return sum(value for (known, _), value in self._sums.items() if known == name)

    def text(self, gauges: dict[str, tuple[str, float]]) -> str:
        """Return all counters, and current values (name -> help and value), one per line."""
        with self._lock:
            sums = sorted(self._sums.items())
        lines = []
        for name, help_text in _HELP.items():
            lines += [f"# HELP deepcait_{name} {help_text}", f"# TYPE deepcait_{name} counter"]
            own = [(labels, value) for (known, labels), value in sums if known == name]
            lines += [f"deepcait_{name}{labels} {_number(value)}" for labels, value in own or [("", 0)]]
        for name, (help_text, value) in gauges.items():
            lines += [f"# HELP deepcait_{name} {help_text}", f"# TYPE deepcait_{name} gauge"]
            lines.append(f"deepcait_{name} {_number(value)}")
        return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6f}"
