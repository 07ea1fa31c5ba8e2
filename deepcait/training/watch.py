"""Progress of a run: speed, and a bar on a terminal or occasional lines elsewhere.

A training step counts the mean probability that an image's target gives to the predicted class (`target_mass` in
metrics.jsonl). The trainer computes the accuracy from it; mixed images have two labels, so none is shown for them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from deepcait.runtime.messages import draws_bars, start_bar
from deepcait.runtime.processes import Processes, host_name
from deepcait.training.step import StepResult

_logger = logging.getLogger(__name__)


class Watch:
    """Measures and shows the speed of a run.

    Args:
        last_step: steps of the whole run.
        images_per_step: of all processes together.
    """

    def __init__(self, last_step: int, images_per_step: int) -> None:
        self.last_step = last_step
        self.images_per_step = images_per_step
        self._bar = start_bar(total=last_step, keep=True) if draws_bars() else None
        self._last_speed: dict[str, float] = {}
        self._validated = ""
        self._restart_clock()

    def timed(self, batches: Iterator) -> Iterator:
        """Pass batches on and count the time spent waiting for them."""
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited_s += time.perf_counter() - began
            yield batch

    def step(self, step: int, result: StepResult, lr: float, accuracy: float | None) -> None:
        """Count a step and update the bar; no accuracy is shown if it is None."""
        self._steps += 1
        if self._bar:
            speed = self._speed()
            text = f"loss {result.loss:.3f}{_shown(accuracy, 0)}  lr {lr:.1e}"
            text = f"{text}  {speed['images_per_s']:.0f} images/s  data wait {100 * speed['wait_share']:.0f} %"
            text += self._validated
            self._bar.update(step, text=text)

    def speed(self, processes: Processes) -> dict[str, float | str]:
        """Return the times since the last call, and restart the clock."""
        self._last_speed = self._speed()
        self._restart_clock()
        return {**self._last_speed, "time": time.time(), "host": host_name(), "processes": processes.world_size}

    def log(self, step: int, row: dict, accuracy: float | None) -> None:
        """Log a row of `metrics.jsonl` as a line, unless a bar shows it; no accuracy is shown if it is None."""
        if self._bar:
            return
        speed = self._last_speed
        left_s = (self.last_step - step) * self.images_per_step / max(1e-9, speed["images_per_s"])
        learned = "every step skipped"
        if row["loss"] is not None:
            learned = f"loss {row['loss']:.4f}{_shown(accuracy, 1)}"
        _logger.info(
            f"step {step}/{self.last_step}  epoch {row['epoch']:.2f}  {learned}  lr {row['lr']:.2e}  "
            f"{speed['images_per_s']:.1f} images/s  data wait {100 * speed['wait_share']:.0f} %  ETA {duration(left_s)}"
        )

    def evaluated(self, epoch: int, row: dict, better: bool) -> None:
        """Log the metrics of an evaluation; a non-finite loss is None."""
        self._validated = f"  validation top-1 {100 * row['top1']:.2f} %"
        loss = "not finite" if row["loss"] is None else f"{row['loss']:.4f}"
        text = f"epoch {epoch}: top-1 {100 * row['top1']:.2f} %, loss {loss}"
        for key in ("balanced_accuracy", "macro_f1"):
            text += f", {key.replace('_', ' ')} {100 * row[key]:.2f} %" if key in row else ""
        text += f" ({row['weights']} weights"
        others = [
            f"{key.removesuffix('_top1')} {100 * value:.2f} %" for key, value in row.items() if key.endswith("_top1")
        ]
        _logger.info(text + "".join(f"; {other}" for other in others) + ")" + ("  best so far" if better else ""))
        self._restart_clock()

    def close(self) -> None:
        """Close the bar."""
        if self._bar:
            self._bar.close()

    def _speed(self) -> dict[str, float]:
        passed_s = max(1e-9, time.perf_counter() - self._since)
        images_per_s = self._steps * self.images_per_step / passed_s
        return {"images_per_s": images_per_s, "wait_share": self._waited_s / passed_s, "seconds": passed_s}

    def _restart_clock(self) -> None:
        self._since, self._waited_s, self._steps = time.perf_counter(), 0.0, 0


def _shown(accuracy: float | None, decimals: int) -> str:
    return "" if accuracy is None else f"  accuracy {100 * accuracy:.{decimals}f} %"


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"
