"""Two processes with one --out: the second gets an error that names the first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepcait.api import train as train_from_python
from deepcait.cli.main import main
from deepcait.errors import RunError, Stopped
from deepcait.runtime import claim
from deepcait.runtime.claim import hold
from deepcait.training.recipe import load_recipe
from deepcait.training.run import train
from tests.training.test_class_names import LETTERS, TINY, write

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path) -> str:
    return write(tmp_path / "data", "folder", LETTERS)


def recipe_of(data: str, *settings: str):
    return load_recipe("scratch_32", [*TINY, f"data.source={data}", *settings])


def test_a_run_is_locked_while_it_is_written(data, tmp_path):
    recipe, out = recipe_of(data), tmp_path / "run"
    output = []

    def second(event) -> None:
        if event.kind == "step" and event.step == 1:
            for resume in (False, True):
                with pytest.raises(RunError) as caught:
                    train(recipe, out, resume=resume)
                output.append(caught.value.problem)
            assert (out / "run.lock").is_file()

    train(recipe, out, callbacks=[second])
    assert len(output) == 2
    assert all(
        f"{out}: process {os.getpid()} on {claim.platform.node()} is writing there, since" in one for one in output
    )
    assert not [path for path in out.iterdir() if "lock" in path.name]


def test_the_lock_is_given_back_when_a_run_is_stopped_or_fails(data, tmp_path):
    stopped = train_from_python(
        data,
        tmp_path / "run",
        recipe="scratch_32",
        settings={"epochs": 2, "global_batch_size": 6, "replicas": 1, "data.num_workers": 0, "compute.device": "cpu"},
        callbacks=[lambda event: event.stop()],
    )
    assert stopped.state == "stopped"
    assert not (tmp_path / "run" / "run.lock").exists()
    recipe = recipe_of(data)

    def fails(event) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train(recipe, tmp_path / "other", callbacks=[fails])
    assert not (tmp_path / "other" / "run.lock").exists()
    train(recipe, tmp_path / "other", resume=True)


def test_what_a_killed_process_left_is_no_obstacle(data, tmp_path):
    """Killed before its first file, and in the middle of the run."""
    out = tmp_path / "run"
    out.mkdir()
    left = json.dumps(claim._here() | {"pid": 2**22 + 1, "started": "1", "token": "x"})
    (out / "run.lock").write_text(left)
    train(recipe_of(data), out)
    (out / "run.lock").write_text(left)
    train(recipe_of(data), out, resume=True)
    assert not (out / "run.lock").exists()


def test_two_that_start_at_once(data, tmp_path, monkeypatch):
    """The other one writes its run, and ends, after this one has looked whether the folder is free."""
    recipe, out = recipe_of(data), tmp_path / "run"
    from deepcait.training import run as module

    def held_up(folder, resume):
        monkeypatch.setattr(module, "held", real)
        train(recipe, out)
        return real(folder, resume)

    real = module.held
    monkeypatch.setattr(module, "held", held_up)
    with pytest.raises(RunError, match="already contains a run \\(finished\\)"):
        train(recipe, out)


@pytest.mark.process
def test_a_second_process_names_the_first_and_a_kill_frees_the_run(data, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "deepcait", "train", "--data", data, "--recipe", "scratch_32", "--out", "run"]
    command += ["--set", *TINY, "epochs=100000"]
    first = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if (tmp_path / "run" / "metrics.jsonl").exists():
                break
            time.sleep(0.1)
        second = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        output = " ".join(second.stderr.split())
        assert second.returncode == 2
        assert f"run: process {first.pid} on " in output
        assert "choose another --out" in output
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert (tmp_path / "run" / "run.lock").exists()
    with pytest.raises(Stopped):
        train(recipe_of(data, "epochs=100000"), tmp_path / "run", resume=True, callbacks=[lambda event: event.stop()])


@pytest.mark.parametrize(
    ("argv", "out"),
    [
        (["report", "run"], "run/report.html"),
        (["report", "run", "--out", "page.html"], "page.html"),
        (["report", "run", "run", "--out", "both.html"], "both.html"),
        (["export", "run", "--to", "official", "--out", "m.pth"], "m.pth"),
        (["export", "run", "--to", "timm", "--out", "m"], "m"),
        (["explain", "run", "image.png", "--out", "maps"], "maps"),
    ],
)
def test_other_outputs_are_locked_too(data, tmp_path, monkeypatch, capsys, argv, out):
    train(recipe_of(data, "epochs=1"), tmp_path / "run")
    next(Path(data).rglob("*.png")).rename(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    with hold(Path(out)):
        assert main(argv) == 2
        output = " ".join(capsys.readouterr().err.split())
        assert f"{out}: process {os.getpid()} on " in output
    assert main([*argv, "--json"]) in (0, 3)


def test_srun_without_torchrun_is_reported_before_anything_is_written(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SLURM_NTASKS", "2")
    argv = ["train", "--data", data, "--recipe", "scratch_32", "--out", str(tmp_path / "run"), "--set", *TINY]
    assert main(argv) == 2
    assert "SLURM runs 2 tasks" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()
