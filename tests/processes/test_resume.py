"""One process, stopped in every way we know: what is resumed ends with the bytes of what ran through."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager

import pytest

from deepcait.cli.main import main
from deepcait.training.journal import read_state
from tests.processes.harness import (
    CLASSES,
    FINISHED_ENTRIES,
    everything,
    finish,
    kill_at,
    newest_checkpoint_file,
    random_moment,
    result,
    save_under_way,
    started,
    steps_logged,
)

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("processes")]

STEPS = 45


def require_equal(run, straight):
    """The same bytes in everything that seed and step decide, and no litter of interrupted saves."""
    assert result(run) == result(straight)
    assert {entry.name for entry in run.iterdir()} == FINISHED_ENTRIES
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == sorted(
        path.name for path in (straight / "checkpoints").iterdir()
    )


def killed_and_resumed(bench, run, log, *, moments, workers=0, **how):
    """Kill a run at these moments, resume it each time, and let it end without workers; how many kills hit a save."""
    command = bench.command(run, "--resume", "--set", f"data.num_workers={workers}")
    in_save = 0
    for number, moment in enumerate(moments):
        with started(command, log.with_name(f"log{number}"), **how) as process:
            in_save += kill_at(process, run, **moment)
    finish(bench.command(run, "--resume"), log, **how)
    return in_save


@pytest.fixture(scope="session")
def stopped_once(bench, nursery, tmp_path_factory):
    """A run that SIGTERM stopped after about 12 steps."""
    folder = tmp_path_factory.mktemp("stopped")
    with started(bench.command(folder / "run"), folder / "log", nursery=nursery) as process:
        process.wait_for(lambda: steps_logged(folder / "run") >= 12)
        process.terminate()
        assert process.wait() == 75
    return folder / "run"


@pytest.fixture
def stopped_run(stopped_once, tmp_path):
    """A copy of it: a run may be moved."""
    return shutil.copytree(stopped_once, tmp_path / "stopped")


# -- kill -9 ----------------------------------------------------------------------------------------------------------


def test_kills_without_workers(bench, tmp_path, nursery, straight_run):
    moments = [random_moment(1, steps=12), random_moment(2, steps=8) | {"in_save": True}, random_moment(3, steps=12)]
    hits = killed_and_resumed(bench, tmp_path / "run", tmp_path / "log", moments=moments, nursery=nursery)
    require_equal(tmp_path / "run", straight_run)
    assert hits >= 1


def test_kills_with_two_workers(bench, tmp_path, nursery, straight_run):
    moments = [random_moment(4, steps=12), random_moment(5, steps=12)]
    killed_and_resumed(bench, tmp_path / "run", tmp_path / "log", moments=moments, workers=2, nursery=nursery)
    require_equal(tmp_path / "run", straight_run)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workers", [0, 2])
def test_twenty_kills_some_of_them_during_a_save(bench, tmp_path, workers):
    # Long enough that the kills spread over it: at most 7 steps and 3 lost steps a kill.
    longer = ("--set", "epochs=14")
    straight = finish(bench.command(tmp_path / "straight", *longer), tmp_path / "straight_log")
    assert straight.process.returncode == 0
    moments = [random_moment(100 + n, steps=7) | {"in_save": n % 3 == 0} for n in range(20)]
    command = bench.command(tmp_path / "run", "--resume", *longer, "--set", f"data.num_workers={workers}")
    hits = 0
    for number, moment in enumerate(moments):
        with started(command, tmp_path / f"log{number}") as process:
            hits += kill_at(process, tmp_path / "run", **moment)
    finish(command, tmp_path / "log")
    print(f"workers {workers}: 20 kills, {hits} of them during a save")
    require_equal(tmp_path / "run", tmp_path / "straight")
    assert hits >= 3


# -- asked to stop ----------------------------------------------------------------------------------------------------


def test_sigterm_and_ctrl_c_finish_the_step_and_save(bench, tmp_path, nursery, straight_run):
    run, log = tmp_path / "run", tmp_path / "log"
    with started(bench.command(run, "--resume"), log, nursery=nursery) as process:
        process.wait_for(lambda: steps_logged(run) >= 5)
        process.terminate()
        assert process.wait() == 75, process.stderr
    step = read_state(run)["step"]
    assert read_state(run)["state"] == "stopped"
    assert newest_checkpoint_file(run).name.startswith(f"step_{step:08d}-")
    assert "stopped after step" in process.stderr
    assert "Traceback" not in process.stderr

    # Ctrl-C reaches the workers too.
    command = bench.command(run, "--resume", "--set", "data.num_workers=2")
    with started(command, log, nursery=nursery) as process:
        goal = steps_logged(run) + 5
        process.wait_for(lambda: steps_logged(run) >= goal)
        assert len(process.pids()) >= 4  # main, the server that forks workers, two workers
        process.interrupt_group()
        assert process.wait() == 75, process.stderr
        assert "Traceback" not in process.stderr
    assert read_state(run)["state"] == "stopped"
    assert read_state(run)["step"] > step

    finish(bench.command(run, "--resume"), log, nursery=nursery)
    require_equal(run, straight_run)
    assert read_state(run) == {"state": "finished", "step": STEPS, "best_by": "loss"}


@pytest.mark.parametrize("steps", [2, 7])
def test_sigterm_for_the_workers_too_is_a_stop(bench, tmp_path, nursery, straight_run, steps):
    run, log = tmp_path / "run", tmp_path / "log"
    command = bench.command(run, "--resume", "--set", "data.num_workers=2")
    with started(command, log, nursery=nursery) as process:
        process.wait_for(lambda: steps_logged(run) >= steps)
        process.terminate_group()
        assert process.wait() == 75, process.stderr
    assert "Traceback" not in process.stderr
    assert read_state(run)["state"] == "stopped"
    finish(bench.command(run, "--resume"), log, nursery=nursery)
    require_equal(run, straight_run)


@pytest.mark.soak
@pytest.mark.parametrize("steps", [9, 45])
def test_a_stop_where_an_evaluation_is_due_leaves_it_to_the_resumed_run(bench, tmp_path, nursery, straight_run, steps):
    run, log = tmp_path / "run", tmp_path / "log"
    with started(bench.command(run), log, nursery=nursery) as process:
        process.wait_for(lambda: steps_logged(run) >= steps - 1, pause_s=0)
        process.terminate()
        code = process.wait()
    # The signal may have come a step early or during the evaluation; all of these end equal.
    assert code in (0, 75)
    finish(bench.command(run, "--resume"), log, nursery=nursery)
    assert result(run) == result(straight_run)


# -- --resume itself --------------------------------------------------------------------------------------------------


def test_resume_of_a_finished_run_changes_nothing(bench, straight_run, capsys):
    before = everything(straight_run)
    assert main(bench.train(straight_run, "--resume")) == 0
    assert "already finished" in capsys.readouterr().out
    assert everything(straight_run) == before


def test_an_existing_run_without_resume_is_an_error(bench, straight_run, capsys):
    before = everything(straight_run)
    assert main(bench.train(straight_run)) == 2
    assert "--resume" in capsys.readouterr().err
    assert everything(straight_run) == before


def test_another_learning_rate_is_named(bench, stopped_run, capsys):
    before = everything(stopped_run)
    assert main(bench.train(stopped_run, "--resume", "--set", "optimizer.lr=0.01")) == 2
    assert "optimizer.lr" in capsys.readouterr().err
    assert everything(stopped_run) == before


def test_a_truncated_checkpoint_is_passed_over_and_named(bench, stopped_run, tmp_path, nursery, straight_run):
    newest = newest_checkpoint_file(stopped_run)
    os.truncate(newest, newest.stat().st_size // 2)
    process = finish(bench.command(stopped_run, "--resume"), tmp_path / "log", nursery=nursery)
    assert f"skipped {newest.name}" in process.stdout
    require_equal(stopped_run, straight_run)


def test_a_run_goes_on_without_the_model_it_started_from(bench, stopped_run, straight_run, tmp_path, nursery):
    run = shutil.copytree(stopped_run, tmp_path / "run")
    aside = bench.model.rename(bench.model.with_name("moved"))
    try:
        finish(bench.command(run, "--resume"), tmp_path / "log", nursery=nursery)
    finally:
        aside.rename(bench.model)
    require_equal(run, straight_run)


def test_changed_data_is_refused(bench, stopped_run, capsys):
    before = everything(stopped_run)
    extra = bench.data / "train" / CLASSES[0] / "one_more.png"
    shutil.copy2(next(iter(extra.parent.iterdir())), extra)
    try:
        assert main(bench.train(stopped_run, "--resume")) == 2
    finally:
        extra.unlink()
    assert "the data have changed since the run began" in " ".join(capsys.readouterr().err.split())
    assert everything(stopped_run) == before


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("data.json", "", "data.json: the record of the run's data can't be read"),
        ("data.json", "{}", "data.json: the record of the run's data can't be read"),
        ("config.yaml", "", "config.yaml does not contain the settings of a run"),
        ("config.yaml", "a: [b", "config.yaml: not valid YAML"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(bench, stopped_run, capsys, name, content, problem):
    (stopped_run / name).write_text(content)
    before = everything(stopped_run)
    assert main(["train", "--out", str(stopped_run), "--resume"]) == 2
    answer = capsys.readouterr().err
    assert one_paragraph(answer)
    assert problem in " ".join(answer.split())
    assert everything(stopped_run) == before


@pytest.mark.parametrize(
    "left", [[".config.yaml.new"], [".config.yaml.0a1b.new"], ["config.yaml"], ["config.yaml", ".data.json.new"]]
)
def test_a_kill_in_the_first_moments_leaves_a_startable_folder(bench, stopped_run, tmp_path, nursery, left):
    run = tmp_path / "run"
    run.mkdir()
    for name in left:
        (run / name).write_bytes(b"" if name.startswith(".") else (stopped_run / name).read_bytes())
    with started(bench.command(run, "--resume"), tmp_path / "log", nursery=nursery) as process:
        assert process.wait_for(lambda: steps_logged(run) >= 1), process.stderr
        assert not list(run.glob(".*.new"))


# -- a disk that can't be written to ----------------------------------------------------------------------------------


@contextmanager
def mounted(folder, *options):
    """Mount something on a folder; skip where that is not permitted."""
    folder.mkdir(exist_ok=True)
    try:
        answer = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, timeout=20)
    except OSError as error:
        pytest.skip(f"no command mount: {error}")
    if answer.returncode:
        pytest.skip(f"mount is not permitted here: {answer.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)


def one_paragraph(stderr):
    lines = stderr.strip().splitlines()
    return lines[0].startswith("error: ") and "Traceback" not in stderr and len(lines) <= 8


@pytest.mark.parametrize("room", ["for one checkpoint", pytest.param("for no more rows", marks=pytest.mark.soak)])
def test_a_full_disk_keeps_the_previous_checkpoint(bench, tmp_path, nursery, straight_run, room):
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=64m", "tmpfs") as disk:
        run, log = disk / "run", tmp_path / "log"
        with started(bench.command(run), log, nursery=nursery) as process:
            process.wait_for(lambda: steps_logged(run) >= 7)
            os.kill(process.process.pid, signal.SIGSTOP)
            time.sleep(0.05)
            fill(disk, leave_bytes=200_000 if room == "for one checkpoint" else 0)
            os.kill(process.process.pid, signal.SIGCONT)
            assert process.wait() == 2, process.stderr
        assert one_paragraph(process.stderr), process.stderr
        assert "No space left" in process.stderr
        assert "--resume" in process.stderr
        assert newest_checkpoint_file(run).stat().st_size > 100_000
        assert not save_under_way(run)
        # Still full: resuming says so again, and loses nothing.
        with started(bench.command(run, "--resume"), log, nursery=nursery) as process:
            assert process.wait() == 2, process.stderr
        assert one_paragraph(process.stderr), process.stderr
        (disk / "filler").unlink()
        finish(bench.command(run, "--resume"), log, nursery=nursery)
        require_equal(run, straight_run)


def fill(disk, *, leave_bytes):
    """Fill a disk but for some bytes."""
    filler = os.open(disk / "filler", os.O_CREAT | os.O_WRONLY)
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    os.posix_fallocate(filler, 0, free - leave_bytes)
    os.close(filler)


@pytest.mark.soak
def test_a_disk_that_fills_up_by_itself(bench, tmp_path, nursery, straight_run):
    """The run needs more room than there is; after the disk is enlarged it goes on."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=1700k", "tmpfs") as disk:
        run, log = disk / "run", tmp_path / "log"
        with started(bench.command(run), log, nursery=nursery) as process:
            assert process.wait() == 2, process.stderr
        assert one_paragraph(process.stderr), process.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True, timeout=20)
        finish(bench.command(run, "--resume"), log, nursery=nursery)
        require_equal(run, straight_run)


def test_a_read_only_disk_is_one_paragraph(bench, stopped_run, tmp_path, capsys):
    before = everything(stopped_run)
    with mounted(tmp_path / "bound", "--bind", str(stopped_run)) as run:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(run)], check=True, timeout=20)
        assert main(bench.train(run, "--resume")) == 2
        assert one_paragraph(capsys.readouterr().err)
        assert main(bench.train(run / "new")) == 2
        assert one_paragraph(capsys.readouterr().err)
    assert everything(stopped_run) == before
