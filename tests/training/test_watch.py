"""What is shown of a run while it goes: on a terminal, in plain lines, and of steps that were skipped."""

from __future__ import annotations

import re

import pytest
import torch

from deepcait.data.mixing import Mix, smooth_targets
from deepcait.training import watch as watch_module
from deepcait.training.journal import read_metrics
from deepcait.training.step import StepResult
from deepcait.training.watch import Watch
from tests.training.tiny import Pixels, section, tiny_recipe, train


def test_the_bar_shows_loss_accuracy_rate_speed_waiting_and_the_time_left(monkeypatch):
    monkeypatch.setattr(watch_module, "draws_bars", lambda: True)
    watch = Watch(9, 8)
    try:
        watch.step(1, StepResult(loss=1.25, correct=0.375, grad_norm=1.0, updated=True, stop=False), 5e-4, 0.375)
        (task,) = watch._bar.progress.tasks
        kinds = [type(column).__name__ for column in watch._bar.progress.columns]
    finally:
        watch.close()
    assert (task.completed, task.total) == (1, 9)
    assert re.fullmatch(r"loss 1\.250  accuracy 38 %  lr 5\.0e-04  \d+ images/s  data wait \d+ %", task.description)
    assert "TimeRemainingColumn" in kinds


def test_a_line_shows_the_same(tmp_path, caplog):
    caplog.set_level("INFO", "deepcait")
    recipe = section(tiny_recipe(epochs=1), "mix", label_smoothing=0.5)
    train(tmp_path, recipe)
    row = next(row for row in read_metrics(tmp_path) if row["kind"] == "train")
    line = caplog.messages[0]
    accuracy = (row["target_mass"] - 0.5 / 7) / 0.5  # of seven classes
    assert f"loss {row['loss']:.4f}  accuracy {100 * accuracy:.1f} %  lr {row['lr']:.2e}" in line
    assert re.search(r"images/s  data wait \d+ %  ETA \d+:\d\d:\d\d$", line)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_smoothed_targets_do_not_lower_the_accuracy(smoothing):
    """7 of 8 predictions are correct; the mean target of the predicted classes is less."""
    mix, labels_B = Mix(mixup=0, cutmix=0, label_smoothing=smoothing), torch.arange(8) % 5
    predicted_B = labels_B.clone()
    predicted_B[3] = 0
    targets_BK = smooth_targets(labels_B, 5, smoothing)
    mass = targets_BK.gather(1, predicted_B[:, None]).mean().item()
    assert mix.accuracy_of(mass, 5) == pytest.approx(0.875)


def test_no_accuracy_is_shown_for_mixed_images(tmp_path, caplog):
    """An image of two classes has no label that a prediction could meet."""
    caplog.set_level("INFO", "deepcait")
    train(tmp_path, section(tiny_recipe(epochs=1), "mix", mixup=0.8))
    assert re.search(r"  loss \d\.\d{4}  lr ", caplog.messages[0])
    assert Mix(mixup=0.8).accuracy_of(0.7, 5) is None
    assert Mix(mixup=0.8, probability=0, label_smoothing=0).accuracy_of(0.7, 5) == 0.7


def test_where_every_step_was_skipped_no_loss_is_logged(tmp_path, caplog):
    """As at the start of fp16, when the scaler looks for its scale; a loss of 0 would be the best there is."""
    caplog.set_level("INFO", "deepcait")
    recipe = section(tiny_recipe(epochs=1), "keep", max_skipped_steps=9, log_every_steps=2)
    train(tmp_path, recipe, samples=Pixels(poisoned=tuple(range(32))))
    rows = [row for row in read_metrics(tmp_path) if row["kind"] == "train"]
    assert [(row["loss"], row["target_mass"], row["skipped"]) for row in rows] == [(None, None, 2), (None, None, 4)]
    assert "every step skipped" in caplog.messages[0]
