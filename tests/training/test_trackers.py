"""Trackers: one's own, wandb's arguments and id, and errors that are reported as what they are."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path

import pytest

import deepcait
from deepcait.errors import ConfigError, RunError
from tests.training.tiny import SMALL_RUN

TINY = SMALL_RUN | {"epochs": 1}
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

class Failing:
    def __call__(self, row):
        import not_there_at_all

    def close(self):
        raise OSError("no connection")

class Closing:
    def __call__(self, row):
        pass

    def close(self):
        raise OSError("no connection")

number = lambda: 3
"""


def train(out: Path, tracker, **more) -> deepcait.Run:
    settings = TINY | {"keep.tracker": tracker} | more.pop("settings", {})
    return deepcait.train("builtin:demo", out, model="cait_nano_32", recipe="demo", settings=settings, **more)


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
        ("number", "expected a callable of a row, got int"),
        ("missing", "has no attribute 'missing'"),
    ],
)
def test_errors_of_ones_own(tmp_path, module, name, words):
    with pytest.raises(ConfigError, match=words) as caught:
        train(tmp_path / "run", f"{module}:{name}")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Failing", "Failing failed with ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("Closing", "Closing failed with OSError: no connection"),
    ],
)
def test_a_tracker_that_fails_is_logged_once_and_ends_no_training(tmp_path, module, caplog, name, words):
    assert train(tmp_path / "run", f"{module}:{name}").state == "finished"
    (line,) = [line for line in caplog.messages if "keep.tracker" in line]
    assert words in line
    assert "my_trackers.py:" in line


def test_trackers_are_opened_when_the_run_may_write(tmp_path, monkeypatch):
    """Not where the disk is too small; and one that fails leaves a folder in which the run can be started again."""
    opened = []

    def tracker(folder, config):
        opened.append(sorted(path.name for path in folder.iterdir()))
        (folder / "tensorboard").mkdir()
        raise OSError("no connection")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda place: types.SimpleNamespace(free=1000))
        with pytest.raises(RunError, match="the run's files take up to"):
            train(tmp_path / "run", (tracker, {}))
    assert opened == []
    with pytest.raises(ConfigError, match="no connection"):
        train(tmp_path / "run", (tracker, {}))
    assert opened == [["run.lock"]]
    (tmp_path / "run" / "tracker.json").write_text("{}")
    assert train(tmp_path / "run", "").state == "finished"


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


def test_trackio_continues_its_run(tmp_path, monkeypatch):
    """It finds a run by its name, which it may have changed."""
    inits = []
    run = types.SimpleNamespace(name="run-2", log=lambda numbers, step: None, finish=lambda: None)
    trackio = types.ModuleType("trackio")
    trackio.init = lambda **arguments: inits.append(arguments) or run
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    stopped = train(tmp_path / "run", "trackio", callbacks=[lambda event: event.stop() if event.step == 1 else None])
    assert deepcait.train(None, stopped.folder, resume=True).state == "finished"
    assert [(one["name"], one.get("resume")) for one in inits] == [("run", None), ("run-2", "allow")]


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
