"""The real trackers: wandb without a connection, and TensorBoard's files."""

from __future__ import annotations

import json

import pytest

import deepcait

TINY = {
    "data": {"limit": 40, "val_limit": 20, "num_workers": 0},
    "epochs": 1,
    "global_batch_size": 20,
    "replicas": 1,
    "keep.log_every_steps": 1,
}


def train(out, **more) -> deepcait.Run:
    return deepcait.train("builtin:demo", out, model="builtin:nano", recipe="demo", settings=TINY | more)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(tmp_path / "run", **{"keep.tensorboard": True})
    events = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    (scalar,) = events.Scalars("eval/top1")
    assert scalar.value == pytest.approx(run.best["top1"])
    assert [one.step for one in events.Scalars("train/loss")] == [1, 2]


@pytest.mark.process
def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train(tmp_path / "run", **{"keep.tracker": 'wandb(project="pets", entity="team")'})
    assert run.state == "finished"
    known = json.loads((run.folder / "tracker.json").read_text())["wandb"]
    (offline,) = (run.folder / "wandb").glob("offline-run-*")
    assert offline.name.endswith(known)
    assert list(offline.glob("*.wandb"))
