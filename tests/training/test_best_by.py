"""What chooses the best epoch: a measure of the validation images, by default loss where they are few."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

import deepcait
from deepcait.api import open_run
from deepcait.cli.main import main
from deepcait.data import Preprocessing, open_split
from deepcait.errors import ConfigError
from deepcait.report.record import read_run
from deepcait.training.best import best_row, chosen_measure, describe_choice, is_better, score_of
from deepcait.training.checkpoint import newest_checkpoint, read_checkpoint
from deepcait.training.journal import read_state
from deepcait.training.recipe import Recipe, load_recipe
from deepcait.training.settings import Keep
from deepcait.training.validation import Validation
from tests.training.test_class_names import LETTERS, TINY, write
from tests.training.tiny import Models, Scores, section, tiny_recipe, train

STORED = Path(__file__).parent / "run_0_1"
# Top-1 is best in epoch 2, the loss in epoch 4, balanced accuracy in epoch 3, F1 in epoch 1.
EPOCHS = [
    {"top1": 0.2, "loss": 1.4, "balanced_accuracy": 0.3, "macro_f1": 0.9},
    {"top1": 0.9, "loss": 1.6, "balanced_accuracy": 0.2, "macro_f1": 0.5},
    {"top1": 0.5, "loss": 1.3, "balanced_accuracy": 0.8, "macro_f1": 0.5},
    {"top1": 0.9, "loss": 1.2, "balanced_accuracy": 0.8, "macro_f1": 0.4},
    {"top1": 0.3, "loss": 1.2, "balanced_accuracy": 0.1, "macro_f1": 0.4},
]
BEST = {"loss": 4, "top1": 2, "balanced_accuracy": 3, "macro_f1": 1}


def trained(folder: Path, best_by: str, **keep):
    """A run whose evaluations give the rows of EPOCHS; and which models it saved."""
    rows, saved = iter(EPOCHS), []
    recipe = section(tiny_recipe(epochs=len(EPOCHS)), "keep", **keep)
    trainer = train(
        folder,
        recipe,
        validation=Scores(lambda net: {"top5": 1.0, **next(rows)}, best_by=best_by),
        models=Models(lambda name, model, average, facts: saved.append((name, facts["epoch"]))),
    )
    return trainer, [epoch for name, epoch in saved if name == "best"]


@pytest.mark.parametrize("best_by", BEST)
def test_the_measure_chooses_the_model(tmp_path, best_by):
    trainer, saved = trained(tmp_path, best_by)
    assert saved[-1] == BEST[best_by] == trainer.progress.best_step // 4
    assert trainer.progress.best_top1 == EPOCHS[BEST[best_by] - 1]["top1"]
    assert best_row(EPOCHS, best_by) == EPOCHS[BEST[best_by] - 1]
    assert read_state(tmp_path)["best_by"] == best_by


@pytest.mark.parametrize(("best_by", "ends"), [("loss", 5), ("top1", 4), ("macro_f1", 3)])
def test_early_stopping_follows_the_measure(tmp_path, best_by, ends):
    trainer, _ = trained(tmp_path, best_by, patience_epochs=2)
    assert trainer.progress.step == 4 * ends
    assert trainer.progress.stopped_early == (ends < len(EPOCHS))


def test_auto_is_the_loss_of_few_images_and_top1_of_many():
    assert [chosen_measure("auto", number) for number in (1, 499, 500, 50_000)] == ["loss", "loss", "top1", "top1"]
    assert chosen_measure("balanced_accuracy", 10) == "balanced_accuracy"
    line = "the best epoch is chosen by validation loss (cross-entropy): 120 validation images"
    assert describe_choice("auto", 120) == line
    assert describe_choice("auto", 5000).endswith("by validation top-1: 5,000 validation images")


def test_a_loss_that_is_not_finite_is_never_better():
    rows = [{"loss": loss, "num_images": 9} for loss in (None, 5.0, None, math.nan, math.inf, 4.0, 4.0)]
    assert best_row(rows, "auto") is rows[5]
    assert not is_better(score_of(rows[3], "loss"), -5.0)
    assert best_row(rows[:1], "auto") is rows[0]  # a run has a best model after its first evaluation
    assert best_row([], "auto") == {}


def test_another_word_is_an_error():
    with pytest.raises(ConfigError, match=r"keep\.best_by: expected auto or loss or top1"):
        load_recipe("finetune", ["keep.best_by=accuracy"])
    assert Recipe(keep=Keep(best_by="macro_f1")).keep.best_by == "macro_f1"


def test_a_run_of_0_1_keeps_top1():
    assert load_recipe(str(STORED / "run/config.yaml")).keep.best_by == "top1"
    path, _ = newest_checkpoint(STORED / "run" / "checkpoints")
    progress, _ = read_checkpoint(path)
    assert progress.best_score == progress.best_top1 > 0


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_measures_do_not_depend_on_the_batch_size(tmp_path, monkeypatch, batch_size):
    """Values from integer counts by hand: five images of each of two classes, all predicted as the first."""
    monkeypatch.setattr("deepcait.training.validation._BATCH_SIZE", batch_size)
    root = Path(write(tmp_path / "data", "folder", LETTERS))
    train_images = open_split(str(root), "train")
    source = open_split(str(root), "val", classes=train_images.classes)

    class Always(torch.nn.Module):
        def forward(self, images_BCHW):
            return torch.nn.functional.one_hot(torch.zeros(len(images_BCHW)).long(), 3).float()

    for best_by in ("balanced_accuracy", "macro_f1"):
        validation = Validation(
            source,
            train_images.classes,
            Preprocessing((16, 16)),
            best_by=best_by,
            num_workers=0,
            device=torch.device("cpu"),
        )
        found = validation.measure({"raw": Always()})["raw"]
        assert found[best_by] == pytest.approx({"balanced_accuracy": 1 / 2, "macro_f1": 1 / 3}[best_by])
        assert found["top1"] == 0.5


def test_the_command_says_what_chooses_and_resumes_to_the_same(tmp_path, capsys):
    data = write(tmp_path / "data", "folder", LETTERS)
    sets = [*TINY, "keep.best_by=macro_f1", "ema.decay=0.5", "ema.evaluated=true"]
    line = "the best epoch is chosen by validation macro F1: 10 validation images"
    command = ["train", "--data", data, "--recipe", "scratch_32", "--set", *sets]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    out = capsys.readouterr().out
    assert line in out
    assert "is the best by validation macro F1 (" in out
    assert main([*command, "--out", str(tmp_path / "dry"), "--dry-run"]) == 0
    assert line in capsys.readouterr().out
    run = open_run(tmp_path / "whole")
    assert run.settings["keep"]["best_by"] == "macro_f1"
    rows = [row for row in run.metrics if row["kind"] == "eval"]
    assert all({"macro_f1", "raw_macro_f1"} <= row.keys() for row in rows)
    assert run.best == max(rows, key=lambda row: row["macro_f1"])
    assert read_run(run.folder).best["epoch"] == run.best["epoch"]
    saved = json.loads((run.folder / "best/config.json").read_text())["deepcait"]["metrics"]
    assert saved["epoch"] == run.best["epoch"]
    assert "by validation macro F1" in (run.folder / "report.html").read_text()
    capsys.readouterr()
    assert main(["eval", str(run.folder), "--data", data, "--split", "val"]) == 0
    assert "chosen by validation macro F1" in capsys.readouterr().out


def test_a_resumed_run_keeps_what_was_best(tmp_path):
    """Stopped after the second of three epochs: the same rows and the same best model as without a stop."""
    data = write(tmp_path / "data", "folder", LETTERS)
    settings = dict(pair.split("=") for pair in TINY) | {"ema.decay": "0.5", "optimizer.lr": "0.5"}
    how = {"recipe": "scratch_32", "settings": {key: yaml.safe_load(value) for key, value in settings.items()}}
    whole = deepcait.train(data, tmp_path / "whole", **how)
    stop = lambda event: event.stop() if event.kind == "evaluation" and event.epoch == 2 else None  # noqa: E731
    assert deepcait.train(data, tmp_path / "run", callbacks=[stop], **how).state == "stopped"
    resumed = deepcait.train(None, tmp_path / "run", resume=True)
    assert resumed.metrics == whole.metrics
    assert resumed.best == whole.best == min(resumed.metrics, key=lambda row: row["loss"] if "top1" in row else 1e9)
    models = [(run.folder / "best/model.safetensors").read_bytes() for run in (resumed, whole)]
    assert models[0] == models[1]
    assert read_state(resumed.folder)["best_by"] == "loss"
