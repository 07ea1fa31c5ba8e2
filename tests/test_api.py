"""Training from Python: the same runs as the command's, callbacks, and what a run offers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import deepcait
from deepcait.api import assignments_of
from deepcait.cli import main
from deepcait.errors import ConfigError, RunError

ROOT = Path(__file__).parent.parent
TINY = {
    "data": {"limit": 40, "val_limit": 20, "num_workers": 0},
    "epochs": 2,
    "global_batch_size": 20,
    "replicas": 1,
    "keep.log_every_steps": 1,
}


def train(out, **more):
    settings = TINY | more.pop("settings", {})
    return deepcait.train("builtin:demo", out, model="builtin:nano", recipe="demo", settings=settings, **more)


def results(folder: Path) -> dict[str, bytes]:
    """What the same settings decide: metrics and weights."""
    names = ("metrics.jsonl", "best/model.safetensors", "last/model.safetensors")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> deepcait.Run:
    return train(tmp_path_factory.mktemp("python") / "run")


def test_the_command_trains_the_same_run(run, tmp_path):
    words = ["--data", "builtin:demo", "--model", "builtin:nano", "--recipe", "demo", "--set", *assignments_of(TINY)]
    assert main.main(["train", "--out", str(tmp_path / "run"), *words]) == 0
    assert results(tmp_path / "run") == results(run.folder)
    configs = [(folder / "config.yaml").read_text() for folder in (tmp_path / "run", run.folder)]
    assert configs[0] == configs[1]


def test_load_takes_the_model_by_its_name_and_by_its_former_name():
    assert deepcait.load(model="builtin:nano").classes == deepcait.load("builtin:nano").classes
    with pytest.warns(FutureWarning, match="called model now") as warned:
        assert deepcait.load(spec="builtin:nano").classes
    assert warned[0].filename == __file__
    with pytest.raises(ConfigError, match="is not a model name"):
        deepcait.load()


@pytest.mark.parametrize("first", ["python", "command"])
def test_each_side_resumes_the_other(run, tmp_path, first):
    out = tmp_path / "run"
    stopped = train(out, callbacks=[lambda event: event.stop() if event.step == 1 else None])
    assert stopped.state == "stopped"
    if first == "python":
        assert main.main(["train", "--out", str(out), "--resume"]) == 0
    else:
        assert deepcait.train(None, out, resume=True).state == "finished"
    assert results(out) == results(run.folder)


def test_callbacks_see_every_event(tmp_path):
    events = []
    run = train(tmp_path / "run", callbacks=[events.append])
    kinds = [event.kind for event in events]
    assert [kinds.count(kind) for kind in ("step", "evaluation", "checkpoint", "end")] == [4, 2, 2, 1]
    assert kinds[-1] == "end"
    steps = [event for event in events if event.kind == "step"]
    assert [event.step for event in steps] == [1, 2, 3, 4]
    rows = [row for row in run.metrics if row["kind"] == "train"]
    assert [event.values["loss"] for event in steps] == [row["loss"] for row in rows]
    evaluation = next(event for event in events if event.kind == "evaluation")
    assert evaluation.epoch == 1.0
    assert evaluation.values["best"] is True
    assert evaluation.values["top1"] == next(row for row in run.metrics if row["kind"] == "eval")["top1"]


def test_an_error_in_a_callback_ends_the_training(tmp_path):
    def fail(event) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        train(tmp_path / "run", callbacks=[fail])


def test_what_a_run_offers(run):
    again = deepcait.open_run(run.folder)
    assert again.state == "finished"
    assert again.settings["global_batch_size"] == 20
    assert again.report == run.folder / "report.html"
    assert again.best["top1"] == max(row["top1"] for row in again.metrics if row["kind"] == "eval")
    assert again.classifier.classes == again.last.classes
    assert repr(again).startswith(f"Run({run.folder}: finished, top-1 ")
    assert again._repr_html_().count("<tr>") == 3
    assert "&lt;" in deepcait.Run(Path("<b>"))._repr_html_()


def test_a_finished_run_is_returned_as_it_is(run):
    before = results(run.folder)
    assert deepcait.train(None, run.folder, resume=True).state == "finished"
    assert results(run.folder) == before


def test_mistakes(run, tmp_path):
    with pytest.raises(RunError, match="config.yaml"):
        deepcait.open_run(tmp_path)
    with pytest.raises(RunError, match="resume"):
        train(run.folder)
    with pytest.raises(ConfigError, match="epoch"):
        train(tmp_path / "run", settings={"epoch": 3})
    with pytest.raises(ConfigError, match="epochs"):
        deepcait.train(None, run.folder, resume=True, settings={"epochs": 9})
    assert not (tmp_path / "run").exists()


SCRIPT = """
import json, sys
import deepcait

print("started")
run = deepcait.train("builtin:demo", sys.argv[1], model="builtin:nano", recipe="demo", settings=json.loads(sys.argv[2]))
print(run.state)
"""


@pytest.mark.process
def test_a_script_without_a_main_guard_trains_with_workers(run, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    settings = json.dumps(TINY | {"data": TINY["data"] | {"num_workers": 2}})
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "run"), settings]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["started", "finished"]
    assert results(tmp_path / "run") == results(run.folder)


OWN_DATA = """
import sys
from deepcait.data import open_source
from deepcait.data.dataset import evaluation_loader

def transform(image):
    import torch
    return torch.zeros(3, 8, 8)

GUARD
    loader = evaluation_loader(open_source("builtin:demo", "test"), transform, batch_size=250, num_workers=1)
    print(sum(len(batch[0]) for batch in loader))
"""


@pytest.mark.process
def test_workers_import_a_script_only_if_they_need_it(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ends = []
    for guard in ('if __name__ == "__main__":', "if True:"):
        (tmp_path / "script.py").write_text(OWN_DATA.replace("GUARD", guard))
        command = [sys.executable, str(tmp_path / "script.py")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
        ends.append((done.returncode, done.stdout.strip(), "data.num_workers=0" in done.stderr))
    assert ends == [(0, "500", False), (1, "", True)]
