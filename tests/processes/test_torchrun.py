"""Two processes compute what one computes, and end with the same bytes however they are stopped."""

from __future__ import annotations

import json
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepcait.data import open_split
from deepcait.runtime.processes import Processes
from deepcait.training.data import build_order
from deepcait.training.journal import read_state
from deepcait.training.recipe import load_recipe
from tests.processes.float64_worker import Part, run_part, write_plan
from tests.processes.harness import (
    FINISHED_ENTRIES,
    RECIPE,
    finish,
    finish_pair,
    free_port,
    newest_checkpoint_file,
    result,
    started,
    started_pair,
    steps_logged,
)

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("processes")]

WORKER = Path(__file__).parent / "float64_worker.py"
NARROW = ("optimizer.clip_norm=0.0", "compute.precision=bf16")


def distance(one, other, prefix):
    """Greatest difference over all tensors with this prefix, and the norms of difference and tensors."""
    names = sorted(name for name in one if name.startswith(prefix))
    assert names
    assert names == sorted(name for name in other if name.startswith(prefix))
    differences = torch.cat([(one[n].double() - other[n].double()).flatten() for n in names])
    values = torch.cat([one[n].double().flatten() for n in names])
    return float(differences.abs().max()), float(differences.norm()), float(values.norm())


# -- the same function ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def parts(bench, tmp_path_factory):
    """Recipes with four replicas for two processes: each accumulates over two."""
    folder = tmp_path_factory.mktemp("parts")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("replicas: 2", "replicas: 4").replace("batch_size: 8", "batch_size: 16"))

    def part(name, last_step, **other):
        common = {"data": str(bench.data), "recipe": str(recipe), "model": str(bench.model)}
        return Part(folder=str(folder / name), last_step=last_step, **common, **other)

    return part


@pytest.fixture(scope="session")
def shared(parts, nursery, tmp_path_factory):
    """What two processes made of the parts that the tests below compare with one process."""
    torch.set_num_threads(1)
    run_part(parts("one_then_two", 10), Processes())
    plan = tmp_path_factory.mktemp("plan") / "plan.json"
    gradients = parts("two_float32", 1, float64=False, settings=("optimizer.clip_norm=0.0",))
    narrow = parts("two_bf16", 1, float64=False, settings=(*NARROW, "compute.memory=small"))
    todo = [parts("two", 20), parts("one_then_two", 20), parts("two_then_one", 10), gradients, narrow]
    write_plan(plan, todo)
    first, second = finish_pair([sys.executable, str(WORKER), str(plan)], plan.with_name("log"), nursery)
    assert first.stdout.count("resuming from") == 1  # one part resumes
    assert second.stdout == second.stderr == ""
    return {part.folder: load_file(f"{part.folder}/after_{part.last_step}.safetensors") for part in todo}


@pytest.fixture(scope="session")
def alone(parts):
    """Twenty steps of one process in float64."""
    torch.set_num_threads(1)
    return run_part(parts("one", 20), Processes())


def test_two_processes_compute_what_one_computes(parts, shared, alone):
    for prefix in ("model/", "ema/"):
        far, *_ = distance(alone, shared[parts("two", 20).folder], prefix)
        print(f"float64, 20 steps, 2 against 1 process, {prefix} differs by at most {far:.1e}")
        assert far < 1e-10
    # The test can fail: a step trained otherwise is far away.
    moved, *_ = distance(alone, run_part(parts("nine", 19), Processes()), "model/")
    assert moved > 1e-6


def test_one_process_becomes_two(parts, shared, alone):
    far, *_ = distance(alone, shared[parts("one_then_two", 20).folder], "model/")
    print(f"float64, 10 steps on 1 and 10 on 2 processes differ by at most {far:.1e}")
    assert far < 1e-10


def test_two_processes_become_one(parts, shared, alone):
    resumed = run_part(parts("two_then_one", 20), Processes())
    for prefix in ("model/", "ema/"):
        far, *_ = distance(alone, resumed, prefix)
        print(f"float64, 10 steps on 2 and 10 on 1 processes, {prefix} differs by at most {far:.1e}")
        assert far < 1e-10


def test_the_order_of_data_stays(parts, shared, alone):
    """What was really read, step by step, against the order as a function of the step."""
    two_then_one = parts("two_then_one", 20)
    if not (Path(two_then_one.folder) / "read_0_of_1.json").exists():
        run_part(two_then_one, Processes())
    recipe = load_recipe(two_then_one.recipe)
    order = build_order(recipe, open_split(two_then_one.data, "train"))

    def expected(replicas, steps):
        return [list(slot) for step in steps for replica in replicas for slot in order.slots(step, replica)]

    def read(part, name):
        return json.loads((Path(part.folder) / f"read_{name}.json").read_text())

    assert read(parts("one", 20), "0_of_1") == expected(range(4), range(20))
    for rank, replicas in enumerate([(0, 1), (2, 3)]):
        assert read(parts("two", 20), f"{rank}_of_2") == expected(replicas, range(20))
        assert read(two_then_one, f"{rank}_of_2") == expected(replicas, range(10))
    assert read(two_then_one, "0_of_1") == expected(range(4), range(10, 20))


def test_float32_gradients_of_one_step(parts, shared):
    settings = ("optimizer.clip_norm=0.0",)
    alone = run_part(parts("one_float32", 1, float64=False, settings=settings), Processes())
    _, difference, norm = distance(alone, shared[parts("two_float32", 1).folder], "grad/")
    print(f"float32, gradients of one step, 2 against 1 process: {difference / norm:.1e} of their norm")
    assert difference < 1e-5 * norm


def test_bfloat16_gradients_of_one_step_with_little_kept(parts, shared):
    """Two processes that keep only the residual stream against one that keeps the default: the same sums."""
    alone = run_part(parts("one_bf16", 1, float64=False, settings=NARROW), Processes())
    _, difference, norm = distance(alone, shared[parts("two_bf16", 1).folder], "grad/")
    assert difference < 1e-5 * norm
    _, rounding, _ = distance(alone, shared[parts("two_float32", 1).folder], "grad/")
    assert rounding > 1e-5 * norm  # it was bfloat16


def test_four_processes_gone_on_with_add_up_in_the_same_order(parts, nursery, tmp_path):
    """From three processes on a sum over them depends on how DistributedDataParallel groups the gradients."""
    plan = tmp_path / "plan.json"
    once, stopped, resumed = parts("four", 8), parts("four_resumed", 4), parts("four_resumed", 8)
    todo = [replace(part, float64=False) for part in (once, stopped, resumed)]
    write_plan(plan, todo)
    first, *_ = finish_pair([sys.executable, str(WORKER), str(plan)], tmp_path / "log", nursery, size=4)
    assert first.stdout.count("resuming from") == 1
    straight, again = (load_file(f"{part.folder}/after_8.safetensors") for part in (once, resumed))
    assert all(torch.equal(straight[name], again[name]) for name in straight)


def test_a_value_that_is_not_finite_on_one_process_stops_both(parts, nursery, tmp_path):
    settings = ("keep.max_skipped_steps=0", "keep.checkpoint_every_steps=3")
    part = parts("poisoned", 20, settings=settings, poisoned_step=7)
    plan, run = tmp_path / "plan.json", Path(part.folder)
    write_plan(plan, [part])
    with started_pair([sys.executable, str(WORKER), str(plan)], tmp_path / "log", nursery) as pair:
        pair[0].wait_for(lambda: steps_logged(run) >= 7)
        began = time.monotonic()
        assert [process.wait() for process in pair] == [2, 2]
        print(f"both stopped {time.monotonic() - began:.1f} s after the step before")
    for rank in (0, 1):
        error = (tmp_path / f"error_{rank}.txt").read_text(encoding="utf-8")
        assert error.startswith("step 8: expected a finite loss and gradient, got loss nan")
    assert newest_checkpoint_file(run).name.startswith("step_00000006-")
    assert read_state(run)["state"] == "failed"


# -- stopped and gone on with -----------------------------------------------------------------------------------------


def test_only_the_first_process_prints(straight_pair):
    first, second = (straight_pair.with_name(f"log_{rank}.out").read_text(encoding="utf-8") for rank in (0, 1))
    assert "2 replicas of 4, 1 on each of 2 processes" in first
    assert first.count("step 45/45") == 1
    assert second == ""


def test_an_error_of_one_process_alone_is_in_the_summary(bench, tmp_path):
    """A folder that the second machine lacks: nobody else meets it."""
    for rank, data in enumerate((bench.data, tmp_path / "nowhere")):
        (tmp_path / f"data{rank}").symlink_to(data)
    train = " ".join(bench.train(tmp_path / "run")).replace(str(bench.data), f"{tmp_path}/data$RANK")
    launcher = ["--nproc-per-node", "2", "--master-port", str(free_port()), "--no-python"]
    worker = ["sh", "-c", f"exec {sys.executable} -m deepcait {train}"]
    with started([sys.executable, "-m", "torch.distributed.run", *launcher, *worker], tmp_path / "log") as process:
        assert process.wait() == 1
    root_cause = process.stderr.partition("Root Cause")[2]
    assert "error: " in root_cause
    assert f"{tmp_path}/data1" in root_cause
    assert "remedy: " in root_cause


def test_a_pair_killed_then_asked_to_stop_then_resumed(bench, tmp_path, nursery, straight_pair):
    run = tmp_path / "run"
    command = bench.command(run, "--resume")
    with started_pair(command, tmp_path / "log0", nursery) as pair:
        pair[0].wait_for(lambda: steps_logged(run) >= 8)
        for process in pair:
            process.kill()
    assert read_state(run)["state"] == "running"
    with started_pair(command, tmp_path / "log1", nursery) as pair:
        goal = steps_logged(run) + 8
        pair[0].wait_for(lambda: steps_logged(run) >= goal)
        pair[1].terminate()  # one is asked, both stop after the same step
        assert [process.wait() for process in pair] == [75, 75]
    assert read_state(run)["state"] == "stopped"
    with started_pair(command, tmp_path / "log2", nursery) as pair:
        goal = steps_logged(run) + 4
        pair[0].wait_for(lambda: steps_logged(run) >= goal)
        pair[1].kill()  # nobody starts it anew: the other ends too, and says why in one paragraph
        assert pair[0].wait() == 2, pair[0].stderr
    assert "One of the 2 processes was lost" in " ".join(pair[0].stderr.split())
    assert "Traceback" not in pair[0].stderr
    finish_pair(command, tmp_path / "log3", nursery)
    require_equal(run, straight_pair)


def test_sigterm_for_the_loader_workers_too_is_a_stop_of_both(bench, tmp_path, nursery, straight_pair):
    """As schedulers of clusters send it: the step is finished with the workers that were signalled."""
    run = tmp_path / "run"
    command = bench.command(run, "--resume", "--set", "data.num_workers=2")
    with started_pair(command, tmp_path / "log0", nursery) as pair:
        pair[0].wait_for(lambda: steps_logged(run) >= 5)
        for process in pair:
            assert len(process.pids()) >= 4  # main, the server that forks workers, two workers
            process.terminate_group()
        assert [process.wait() for process in pair] == [75, 75], pair[0].stderr + pair[1].stderr
    assert read_state(run)["state"] == "stopped"
    finish_pair(bench.command(run, "--resume"), tmp_path / "log1", nursery)
    require_equal(run, straight_pair)


def test_a_killed_worker_restarts_and_ends_with_the_same_bytes(bench, tmp_path, straight_pair):
    require_restarts(bench, tmp_path, straight_pair, [(random.Random(0).randint(0, 1), 7)])


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_workers_killed_again_and_again(bench, tmp_path, straight_pair):
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        kills = [(number % 2, 3 + 2 * number), (1 - number % 2, 4)]
        require_restarts(bench, tmp_path / str(number), straight_pair, kills)
    print("6 workers killed, 6 restarts, 3 runs equal")


def require_restarts(bench, folder, straight_pair, kills):
    """Kill workers (local rank, after so many steps more); torchrun starts all anew, and the end is the same."""
    run = folder / "run"
    launcher = ("--nproc-per-node", "2", "--master-port", str(free_port()), "--max-restarts", "2")
    with started(bench.torchrun(run, "--resume", launcher=launcher), folder / "log") as process:
        for rank, steps in kills:
            goal = steps_logged(run) + steps
            process.wait_for(lambda goal=goal: steps_logged(run) >= goal)
            [victim] = process.workers(rank)
            process.kill_only(victim)
        assert process.wait() == 0, process.stderr
    assert process.stdout.count("plan: ") == 1 + len(kills)
    require_equal(run, straight_pair)


def require_equal(run, straight):
    assert result(run) == result(straight)
    assert {entry.name for entry in run.iterdir()} == FINISHED_ENTRIES


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_torchrun_killed_then_asked_to_stop_then_resumed(bench, tmp_path, straight_pair):
    run = tmp_path / "run"
    with started(bench.torchrun(run, "--resume"), tmp_path / "log0") as process:
        process.wait_for(lambda: steps_logged(run) >= 8)
        process.kill()  # torchrun and both workers
        process.wait()
    assert read_state(run)["state"] == "running"
    with started(bench.torchrun(run, "--resume"), tmp_path / "log1") as process:
        goal = steps_logged(run) + 8
        process.wait_for(lambda: steps_logged(run) >= goal)
        process.terminate()
        assert process.wait() != 0
    assert read_state(run)["state"] == "stopped"
    assert "defect" not in process.stderr
    command = bench.torchrun(run, "--resume", "--set", "data.num_workers=1")
    with started(command, tmp_path / "log2") as process:
        goal = steps_logged(run) + 8
        process.wait_for(lambda: steps_logged(run) >= goal)
        process.terminate_all()  # torchrun, which asks both workers once more, they, and their loaders
        assert process.wait() != 0
    assert read_state(run)["state"] == "stopped"
    finish(bench.torchrun(run, "--resume"), tmp_path / "log3")
    require_equal(run, straight_pair)
