"""Schedules, and longer runs: a prolonged run ends bit-identical to one with all epochs from the start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import deepcait
from deepcait import api
from deepcait.cli import main
from deepcait.errors import ConfigError, RunError
from deepcait.training.checkpoint import newest_checkpoint
from deepcait.training.recipe import Recipe, load_recipe
from deepcait.training.schedule import LearningRate, Schedule
from tests.training.tiny import SMALL_RUN

TINY = SMALL_RUN | {"ema.decay": 0.9, "schedule.warmup_epochs": 0.5}
CONSTANT = {"schedule.kind": "constant"}
DECAY = {"schedule.kind": "warmup_stable_decay", "schedule.decay_epochs": 0.5, "schedule.min_lr": 0.0}


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    """Half of the time of so small a run, and not what these tests are about."""
    monkeypatch.setattr(api, "write_at_end", lambda *_, **__: None)


def train(out: Path, epochs: int, *more: dict, **how) -> deepcait.Run:
    settings = {key: value for one in (TINY, *more) for key, value in one.items()} | {"epochs": epochs}
    return deepcait.train("builtin:demo", out, model="cait_nano_32", recipe="demo", settings=settings, **how)


def prolong(out: Path, epochs: int) -> deepcait.Run:
    return deepcait.train(None, out, resume=True, settings={"epochs": epochs})


def results(run: deepcait.Run) -> dict[str, bytes]:
    """Everything that seed and step decide, the state of the optimizer among it."""
    names = ["metrics.jsonl", "metrics.csv", "best/model.safetensors", "last/model.safetensors"]
    (newest, _) = newest_checkpoint(run.folder / "checkpoints")
    return {name: (run.folder / name).read_bytes() for name in names} | {"checkpoint": newest.read_bytes()}


@pytest.mark.parametrize("schedule", [CONSTANT, DECAY], ids=["constant", "warmup_stable_decay"])
def test_a_prolonged_run_is_the_longer_run(tmp_path, schedule):
    whole = train(tmp_path / "whole", 3, schedule)
    short = train(tmp_path / "short", 2, schedule)
    early = {name: (short.folder / name / "model.safetensors").read_bytes() for name in ("best", "last")}
    longer = prolong(short.folder, 3)
    assert longer.state == "finished"
    assert longer.settings["epochs"] == 3
    assert results(longer) == results(whole)
    if schedule is DECAY:
        kept = {name: (short.folder / "epoch_2" / name / "model.safetensors").read_bytes() for name in early}
        assert kept == early
    # Once more, and a finished run of that length is returned as it is.
    before = results(longer)
    assert results(prolong(short.folder, 3)) == before


def test_a_prolonged_run_is_resumed_where_it_was_stopped(tmp_path):
    whole = train(tmp_path / "whole", 3, DECAY)
    short = train(tmp_path / "short", 2, DECAY)
    (end, _) = newest_checkpoint(short.folder / "checkpoints")

    def stop(event) -> None:
        if event.kind == "step" and event.step == 4:
            event.stop()

    stopped = deepcait.train(None, short.folder, resume=True, settings={"epochs": 3}, callbacks=[stop])
    assert stopped.state == "stopped"
    assert not end.exists()
    assert main.main(["train", "--out", str(short.folder), "--resume"]) == 0
    assert results(stopped) == results(whole)


def test_a_stopped_run_may_be_prolonged_before_its_decay(tmp_path):
    whole = train(tmp_path / "whole", 3, DECAY)
    short = train(tmp_path / "short", 2, DECAY, callbacks=[lambda event: event.stop() if event.step == 2 else None])
    assert short.state == "stopped"
    assert results(prolong(short.folder, 3)) == results(whole)
    assert not (short.folder / "epoch_2").exists()


def test_a_kill_between_config_and_first_step_prolongs_again(tmp_path):
    whole, short = train(tmp_path / "whole", 3, CONSTANT), train(tmp_path / "short", 2, CONSTANT)
    config = short.folder / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 2\n", "epochs: 3\n"))
    assert results(deepcait.train(None, short.folder, resume=True)) == results(whole)


def test_what_cannot_be_prolonged(tmp_path, capsys):
    cosine = train(tmp_path / "cosine", 1)
    with pytest.raises(ConfigError, match="can't be prolonged: its learning rate .*cosine") as caught:
        prolong(cosine.folder, 2)
    assert "--model" in caught.value.remedy
    assert "constant" in caught.value.remedy
    assert main.main(["train", "--out", str(cosine.folder), "--resume", "--set", "epochs=2"]) == 2
    assert "can't be prolonged" in " ".join(capsys.readouterr().err.split())
    command = ["train", "--resume", "--set", "epochs=2", "--out"]
    assert main.main([*command, str(cosine.folder), "--dry-run"]) == 2
    assert "can't be prolonged" in " ".join(capsys.readouterr().err.split())
    gone = train(tmp_path / "gone", 1, CONSTANT, {"keep.optimizer": False})
    assert not (gone.folder / "checkpoints").exists()
    assert prolong(gone.folder, 1).state == "finished"
    with pytest.raises(RunError, match=r"no checkpoint to continue from \(keep.optimizer was false\)"):
        prolong(gone.folder, 2)
    assert main.main([*command, str(gone.folder), "--dry-run"]) == 2
    assert "no checkpoint to continue from" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(ConfigError, match="epochs"):  # shorter
        deepcait.train(None, train(tmp_path / "two", 2, CONSTANT).folder, resume=True, settings={"epochs": 1})
    early = train(tmp_path / "early", 4, CONSTANT, {"keep.patience_epochs": 1, "optimizer.lr": 0.0})
    assert json.loads((early.folder / "status.json").read_text())["step"] < 8
    with pytest.raises(RunError, match="stopped early"):
        prolong(early.folder, 5)


def rate(epochs: float = 4, **schedule) -> LearningRate:
    return LearningRate(Schedule(warmup_lr=0.1, **schedule), 1.0, epochs, 10)


def test_the_rates():
    constant = rate(kind="constant", warmup_epochs=1, min_lr=5.0)
    assert [constant(step) for step in (0, 5, 10, 39)] == [0.1, pytest.approx(0.55), 1.0, 1.0]
    decay = rate(kind="warmup_stable_decay", warmup_epochs=1, decay_epochs=2, min_lr=0.2)
    assert decay.decay_start == 20
    expected = [0.1, 1.0, 1.0, pytest.approx(0.6), pytest.approx(0.24), pytest.approx(0.2)]
    assert [decay(step) for step in (0, 10, 20, 30, 38, 40)] == [*expected[:4], pytest.approx(0.28), expected[-1]]
    # Before the decay the rate does not depend on the number of epochs, to the bit.
    longer = rate(epochs=7, kind="warmup_stable_decay", warmup_epochs=1, decay_epochs=2, min_lr=0.2)
    assert [decay(step) for step in range(21)] == [longer(step) for step in range(21)]
    none = rate(kind="warmup_stable_decay", warmup_epochs=0, decay_epochs=0, min_lr=0.2)
    assert [none(step) for step in range(40)] == [1.0] * 40


def test_mistakes():
    for settings, words in (
        ("schedule.kind=linear", "expected cosine or constant or warmup_stable_decay, got 'linear'"),
        ("schedule.decay_epochs=-1", "schedule.decay_epochs: expected 0 or more, got -1"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_recipe("finetune", [settings])
    with pytest.raises(ConfigError, match=r"take 1 \+ 4 epochs, more than the 4"):
        rate(kind="warmup_stable_decay", warmup_epochs=1, decay_epochs=4)
    assert Recipe().schedule.kind == "cosine"
