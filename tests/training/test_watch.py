"""What is shown of a run while it goes: on a terminal, in plain lines, and of steps that were skipped."""

from __future__ import annotations

import re

from deepcait.training import watch as watch_module
from deepcait.training.journal import read_metrics
from deepcait.training.step import StepResult
from deepcait.training.watch import Watch
from tests.training.tiny import Pixels, section, tiny_recipe, train


def test_the_bar_shows_loss_accuracy_rate_speed_waiting_and_the_time_left(monkeypatch):
    monkeypatch.setattr(watch_module, "draws_bars", lambda: True)
    watch = Watch(9, 8)
    try:
        watch.step(1, StepResult(loss=1.25, correct=0.375, grad_norm=1.0, updated=True, stop=False), 5e-4)
        (task,) = watch._bar.progress.tasks
        kinds = [type(column).__name__ for column in watch._bar.progress.columns]
    finally:
        watch.close()
    assert (task.completed, task.total) == (1, 9)
    assert re.fullmatch(r"loss 1\.250  accuracy 38 %  lr 5\.0e-04  \d+ images/s  data wait \d+ %", task.description)
    assert "TimeRemainingColumn" in kinds


def test_a_line_shows_the_same(tmp_path, caplog):
    caplog.set_level("INFO", "deepcait")
    train(tmp_path, tiny_recipe(epochs=1))
    row = next(row for row in read_metrics(tmp_path) if row["kind"] == "train")
    words = f"loss {row['loss']:.4f}  accuracy {100 * row['target_mass']:.1f} %  lr {row['lr']:.2e}"
    line = caplog.messages[0]
    assert words in line
    assert re.search(r"images/s  data wait \d+ %  ETA \d+:\d\d:\d\d$", line)


def test_where_every_step_was_skipped_no_loss_is_logged(tmp_path, caplog):
    """As at the start of fp16, when the scaler looks for its scale; a loss of 0 would be the best there is."""
    caplog.set_level("INFO", "deepcait")
    recipe = section(tiny_recipe(epochs=1), "keep", max_skipped_steps=9, log_every_steps=2)
    train(tmp_path, recipe, samples=Pixels(poisoned=tuple(range(32))))
    rows = [row for row in read_metrics(tmp_path) if row["kind"] == "train"]
    assert [(row["loss"], row["target_mass"], row["skipped"]) for row in rows] == [(None, None, 2), (None, None, 4)]
    assert "every step skipped" in caplog.messages[0]
