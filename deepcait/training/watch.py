"""Watching a run: a live bar on a terminal, plain lines elsewhere, and adapters for dashboards.

The accuracy of training steps is the mean share that an image's target gives to the class answered (`target_mass` in
metrics.jsonl): the share of right answers for plain labels, less than it with mixing or smoothing.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from deepcait.errors import ConfigError
from deepcait.optional import require
from deepcait.runtime.processes import Processes, host_name
from deepcait.training.step import StepResult

TRACKERS = ("wandb", "trackio")


class Watch:
    """What one process shows of a run.

    Args:
        last_step: steps of the whole run.
        images_per_step: of all processes together.
        say: prints a line; None keeps silent.
        live: draw a progress bar.
        tensorboard: write TensorBoard files too.
        tracker: name of a package in wandb's form, one of TRACKERS; empty for none.
    """

    def __init__(
        self,
        last_step: int,
        images_per_step: int,
        *,
        say: Callable[[str], None] | None = print,
        live: bool | None = None,
        tensorboard: bool = False,
        tracker: str = "",
    ) -> None:
        self.last_step = last_step
        self.images_per_step = images_per_step
        self.tensorboard = tensorboard
        self.tracker = tracker
        self._say = say
        live = sys.stderr.isatty() if live is None else live
        self._bar = _Bar(last_step) if say and live else None
        self._last_speed: dict[str, float] = {}
        self._restart_clock()

    def say(self, text: str) -> None:
        """Print one line, above the bar where there is one."""
        if self._bar:
            self._bar.print(text)
        elif self._say:
            self._say(text)

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

    def step(self, step: int, result: StepResult, lr: float) -> None:
        """Take note of a step."""
        self._steps += 1
        if self._bar:
            speed = self._speed()
            text = f"loss {result.loss:.3f}  accuracy {result.correct:.0%}  lr {lr:.1e}"
            self._bar.update(step, f"{text}  {speed['images_per_s']:.0f} images/s  waiting {speed['wait_share']:.0%}")

    def speed(self, processes: Processes) -> dict[str, float | str]:
        """Return the times since the last call, and start counting anew."""
        self._last_speed = self._speed()
        self._restart_clock()
        return {**self._last_speed, "time": time.time(), "host": host_name(), "processes": processes.world_size}

    def log(self, step: int, row: dict) -> None:
        """Show a row of the log, where there is no bar."""
        if self._bar or not self._say:
            return
        speed = self._last_speed
        left_s = (self.last_step - step) * self.images_per_step / max(1e-9, speed["images_per_s"])
        told = "every step skipped"
        if row["loss"] is not None:
            told = f"loss {row['loss']:.4f}  accuracy {row['target_mass']:.1%}"
        self._say(
            f"step {step}/{self.last_step}  epoch {row['epoch']:.2f}  {told}  lr {row['lr']:.2e}  "
            f"{speed['images_per_s']:.1f} images/s  waiting {speed['wait_share']:.0%}  left {duration(left_s)}"
        )

    def evaluated(self, epoch: int, row: dict, better: bool) -> None:
        """Show the accuracies of an evaluation; a loss that is not finite comes as None."""
        loss = "not finite" if row["loss"] is None else f"{row['loss']:.4f}"
        text = f"epoch {epoch}: top-1 {row['top1']:.2%}, loss {loss} ({row['weights']} weights"
        others = [f"{key.removesuffix('_top1')} {value:.2%}" for key, value in row.items() if key.endswith("_top1")]
        self.say(text + "".join(f"; {other}" for other in others) + ")" + ("  best so far" if better else ""))
        self._restart_clock()

    def resumed(self, name: str, step: int, last_step: int) -> None:
        """Say where a run goes on."""
        self.say(f"goes on from {name}: step {step} of {last_step}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.close()

    def listeners(self, folder: Path) -> list[Callable[[dict], None]]:
        """Return who else wants to hear every row of metrics."""
        heard: list[Callable[[dict], None]] = []
        if self.tracker:
            heard.append(_tracker(self.tracker, folder))
        if self.tensorboard:
            heard.append(_tensorboard(folder))
        return heard

    def _speed(self) -> dict[str, float]:
        passed_s = max(1e-9, time.perf_counter() - self._since)
        images_per_s = self._steps * self.images_per_step / passed_s
        return {"images_per_s": images_per_s, "wait_share": self._waited_s / passed_s, "seconds": passed_s}

    def _restart_clock(self) -> None:
        self._since, self._waited_s, self._steps = time.perf_counter(), 0.0, 0


class _Bar:
    """rich's progress bar, on stderr."""

    def __init__(self, last_step: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self.progress = Progress(*columns, console=Console(stderr=True))
        self.task = self.progress.add_task("", total=last_step)
        self.progress.start()

    def update(self, step: int, text: str) -> None:
        self.progress.update(self.task, completed=step, description=text)

    def print(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self.progress.stop()


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def _numbers(row: dict) -> dict[str, float]:
    return {f"{row['kind']}/{key}": v for key, v in row.items() if key != "step" and isinstance(v, int | float)}


def _tracker(name: str, folder: Path) -> Callable[[dict], None]:
    # By name only: a recipe from somewhere else must not choose which code runs.
    if name not in TRACKERS:
        raise ConfigError(f"keep.tracker: expected {' or '.join(TRACKERS)}, got {name!r}.", remedy="Choose one.")
    try:
        run = importlib.import_module(name).init(project="deepcait", name=folder.name)
    except ImportError:
        raise ConfigError(
            f"keep.tracker: expected the package {name}, got none.", remedy=f"pip install {name}"
        ) from None
    return lambda row: run.log(_numbers(row), step=row["step"])


def _tensorboard(folder: Path) -> Callable[[dict], None]:
    tensorboard = require("torch.utils.tensorboard", asked="keep.tensorboard", extra="track")
    writer = tensorboard.SummaryWriter(str(folder / "tensorboard"))

    def write(row: dict) -> None:
        for name, value in _numbers(row).items():
            writer.add_scalar(name, value, row["step"])
        writer.flush()

    return write
