"""Trackers: one's own, wandb's arguments and id, and errors that are reported as what they are."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

import deepcait
from deepcait.errors import ConfigError

TINY = {
    "data": {"limit": 40, "val_limit": 20, "num_workers": 0},
    "epochs": 1,
    "global_batch_size": 20,
    "replicas": 1,
    "keep.log_every_steps": 1,
}
OWN = """
class Tracker:
    def __init__(self, folder, config, words="rows"):
        self.path, self.rows, self.config = folder / f"{words}.json", [], config

    def __call__(self, row):
        self.rows.append(row)

    def close(self):
        import json
        self.path.write_text(json.dumps([self.config["epochs"], self.rows]))

def plain():
    return print

def broken():
    import not_there_at_all

def later():
    def track(row):
        import not_there_at_all
    return track

number = lambda: 3
"""


def train(out: Path, tracker, **more) -> deepcait.Run:
    settings = TINY | {"keep.tracker": tracker} | more.pop("settings", {})
    return deepcait.train("builtin:demo", out, model="builtin:nano", recipe="demo", settings=settings, **more)


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    (tmp_path / "my_trackers.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "python:my_trackers"
    sys.modules.pop("my_trackers", None)


def test_ones_own_hears_every_row_and_is_closed(tmp_path, module, capsys):
    run = train(tmp_path / "run", f'{module}:Tracker(words="all")')
    epochs, rows = json.loads((run.folder / "all.json").read_text())
    assert epochs == 1
    assert rows == list(run.metrics)
    heard = []
    assert train(tmp_path / "object", heard.append).metrics == heard
    train(tmp_path / "plain", f"{module}:plain")
    assert capsys.readouterr().out.count("'kind': 'eval'") == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken", "broken failed with ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("later", "later failed with ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("number", "expected a callable of a row, got int"),
        ("missing", "has no attribute 'missing'"),
    ],
)
def test_errors_of_ones_own(tmp_path, module, name, words):
    with pytest.raises(ConfigError, match=words) as caught:
        train(tmp_path / "run", f"{module}:{name}")
    assert caught.value.remedy


class Wandb(types.ModuleType):
    """wandb as far as a run needs it."""

    def __init__(self, fail: Exception | None = None) -> None:
        super().__init__("wandb")
        self.inits, self.rows, self.finished, self.fail = [], [], 0, fail

    def init(self, **arguments):
        if self.fail:
            raise self.fail
        self.inits.append(arguments)
        return types.SimpleNamespace(id=arguments["id"] or "abc123", log=self.log, finish=self.finish)

    def log(self, numbers, step) -> None:
        self.rows.append((step, numbers))

    def finish(self) -> None:
        self.finished += 1


def test_wandb_gets_config_project_and_entity_and_keeps_its_id(tmp_path, monkeypatch):
    wandb = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    text = 'wandb(project="pets", entity="team")'
    run = train(tmp_path / "run", text, callbacks=[lambda event: event.stop() if event.step == 1 else None])
    assert run.state == "stopped"
    assert deepcait.train(None, run.folder, resume=True).state == "finished"
    first, second = wandb.inits
    assert (first["project"], first["entity"], first["name"], first["resume"]) == ("pets", "team", "run", "allow")
    assert (first["id"], second["id"]) == (None, "abc123")
    assert first["config"]["optimizer"]["lr"] == run.settings["optimizer"]["lr"]
    assert first["config"] == second["config"]
    assert json.loads((run.folder / "tracker.json").read_text()) == {"wandb": "abc123"}
    assert wandb.finished == 2
    assert [step for step, _ in wandb.rows] == [row["step"] for row in run.metrics]
    assert wandb.rows[-1][1]["eval/top1"] == run.best["top1"]


def test_errors_of_wandb_are_reported_as_what_they_are(tmp_path, monkeypatch):
    def error(tracker="wandb") -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            train(tmp_path / "run", tracker)
        return caught.value

    monkeypatch.setitem(sys.modules, "wandb", None)
    assert error().problem == "keep.tracker: the package wandb is not installed."
    monkeypatch.setitem(sys.modules, "wandb", Wandb(ImportError("libcrypto is too old")))
    assert "wandb.init failed with ImportError: libcrypto is too old" in error().problem
    monkeypatch.delitem(sys.modules, "wandb")
    (tmp_path / "wandb.py").write_text("import its_own_dependency")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = error()
    assert "is installed but can't be imported: No module named 'its_own_dependency'" in found.problem
    assert "expected wandb, trackio or python:" in error("mlflow").problem
    assert "NAME(key=value)" in error("wandb(pets)").problem
