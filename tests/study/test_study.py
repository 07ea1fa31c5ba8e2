"""Whole small studies: stopped and gone on with, failing cells, several machines, what is written and what is said."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from deepcait.cli.main import main
from deepcait.errors import ConfigError, DivergedError
from deepcait.study import plan as plan_module
from deepcait.study import run as run_module
from deepcait.study.grid import load_grid
from deepcait.study.plan import Cost, StudyPlan, fit_to_budget
from deepcait.training.trainer import Trainer
from tests.study.tiny import SETTINGS, command

ROOT = Path(__file__).parents[2]
FILES = ("table.md", "results.json")


def run(*words: str) -> int:
    return main(list(words))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A small study that nothing disturbed: two rows, two seeds."""
    out = tmp_path_factory.mktemp("whole") / "study"
    assert run(*command(out)) == 0
    return out


def output(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def same_table(one: Path, other: Path) -> None:
    """Byte for byte; the machine is not compared, a child process may count its threads otherwise."""
    assert (one / "table.md").read_bytes() == (other / "table.md").read_bytes()
    a, b = output(one), output(other)
    a.pop("environment"), b.pop("environment")
    assert a == b


def test_what_a_study_writes(whole):
    found = output(whole)
    assert [cell["state"] for cell in found["cells"]] == ["finished"] * 4
    for place in found["table"]:
        cells = [c for c in found["cells"] if c["row"] == place["row"]]
        assert place["top1"] == [c["metrics"]["top1"] for c in cells]
        assert place["mean"] == pytest.approx(sum(place["top1"]) / 2)
        assert all(c["metrics"]["num_images"] == 50 and c["metrics"]["step"] == 6 for c in cells)
    page = (whole / "table.md").read_text()
    title = page.splitlines()[0]
    assert "48 training images" in title
    assert "2 epochs" in title
    assert "2 seeds" in title
    assert (whole / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert torch.__version__.startswith(found["environment"]["versions"]["torch"])
    assert not any((whole / "locks").iterdir())
    assert len({cell["metrics"]["loss"] for cell in found["cells"]}) == 4, "a table of equal cells proves little"
    assert len({cell["metrics"]["top1"] for cell in found["cells"]}) > 1
    # Each cell is an ordinary run.
    assert main(["eval", str(whole / "cells" / "off--top1--seed0"), "--data", "builtin:demo"]) == 0


def test_the_command_on_the_page_computes_the_table_anew(whole, tmp_path):
    words = output(whole)["command"].split()
    assert words[0] == "deepcait"
    words = [{"DATA": "builtin:demo", "FOLDER": str(tmp_path / "again")}.get(word, word) for word in words[1:]]
    assert run(*words) == 0
    same_table(whole, tmp_path / "again")


def test_no_path_of_this_machine_is_published(whole):
    for name in FILES:
        assert str(whole.parent) not in (whole / name).read_text()


def test_stopped_in_the_middle_it_goes_on_to_the_same_table(whole, tmp_path, monkeypatch, capsys):
    step, steps = Trainer._step, []

    def stopping(self, batches, request):
        steps.append(self.progress.step)
        if len(steps) == 9:  # the middle of the second cell
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batches, request)

    with monkeypatch.context() as context:
        context.setattr(Trainer, "_step", stopping)
        assert run(*command(tmp_path / "cut")) == 75
    assert "..." in (tmp_path / "cut" / "table.md").read_text()
    assert not any((tmp_path / "cut" / "locks").iterdir())
    counted = count_steps(monkeypatch)
    assert run(*command(tmp_path / "cut")) == 0
    assert len(counted) == 4 * 6 - 9, "it did a part anew"
    same_table(whole, tmp_path / "cut")
    # Once more: nothing is left to do.
    counted.clear()
    assert run(*command(tmp_path / "cut")) == 0
    assert counted == []


def count_steps(monkeypatch) -> list:
    step, counted = Trainer._step, []

    def counting(self, batches, request):
        counted.append(1)
        return step(self, batches, request)

    monkeypatch.setattr(Trainer, "_step", counting)
    return counted


@pytest.mark.parametrize("moment", ["between", "evaluating"])
def test_a_stop_between_two_cells_or_in_the_last_evaluation_is_heard(whole, tmp_path, monkeypatch, moment):
    """The run itself is over by then, or has not begun: the study has to listen."""
    owner, name = (Trainer, "_evaluate") if moment == "evaluating" else (run_module, "cell_recipe")
    real = getattr(owner, name)

    def disturbed(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    with monkeypatch.context() as context:
        context.setattr(owner, name, disturbed)
        assert run(*command(tmp_path / "cut")) == 75
    assert len(list((tmp_path / "cut" / "cells").iterdir())) == (moment == "evaluating")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert run(*command(tmp_path / "cut")) == 0
    same_table(whole, tmp_path / "cut")


def child(*words: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    words = (sys.executable, "-m", "deepcait", *words)
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    for _ in range(6000):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"{path} never came")


@pytest.mark.process
def test_killed_in_the_middle_it_goes_on_to_the_same_table(whole, tmp_path):
    out = tmp_path / "killed"
    process = child(*command(out))
    wait_for(out / "cells" / "uniform-10--top1--seed0" / "metrics.jsonl", process)
    process.kill()
    process.communicate()
    assert any((out / "locks").iterdir()), "killed too late to test anything"
    assert run(*command(out)) == 0
    same_table(whole, out)


@pytest.mark.process
@pytest.mark.slow
def test_two_processes_share_the_cells(whole, tmp_path):
    out = tmp_path / "shared"
    running = [child(*command(out)) for _ in range(2)]
    texts = [process.communicate(timeout=240) for process in running]
    assert [process.returncode for process in running] == [0, 0], texts
    same_table(whole, out)
    begun = [text.count("\ncell ") for text, _ in texts]
    assert sum(begun) == 4, texts


def test_a_cell_that_diverges_is_a_result(tmp_path, monkeypatch):
    step = Trainer._step

    def diverging(self, batches, request):
        if self.recipe.drop_path_rate == 0.1 and self.recipe.seed == 1:
            raise DivergedError("step 3: expected a finite loss", remedy="x")
        return step(self, batches, request)

    monkeypatch.setattr(Trainer, "_step", diverging)
    out = tmp_path / "study"
    assert run(*command(out)) == 0
    assert "failed (1 of 2)" in (out / "table.md").read_text()
    places = {place["row"]: place for place in output(out)["table"]}
    assert (places["uniform-10"]["mean"], places["uniform-10"]["failed"]) == (None, 1)
    assert places["off"]["mean"] is not None
    counted = count_steps(monkeypatch)
    assert run(*command(out)) == 0
    assert counted == [], "a failed cell is not tried again"


def test_a_follow_up_starts_from_its_run_and_fails_with_it(tmp_path, monkeypatch):
    out = tmp_path / "study"
    words = command(out, "--seeds", "1", name="resolution", only="up48", epochs=4)
    assert run(*words) == 0
    cells = {cell["row"]: cell for cell in output(out)["cells"]}
    assert [cells[row]["epochs"] for row in ("base", "same", "up48")] == [4, 1, 1]
    section = json.loads((out / "cells" / "up48--top1--seed0" / "best" / "config.json").read_text())["deepcait"]
    assert section["config"]["img_size"] == [48, 48]
    assert section["provenance"]["started_from"].endswith("base--top1--seed0")
    assert section["provenance"]["trained_on"] == "builtin:demo"

    def diverging(*_):
        raise DivergedError("step 3: expected a finite loss", remedy="x")

    monkeypatch.setattr(Trainer, "_step", diverging)
    assert run(*command(tmp_path / "bad", "--seeds", "1", name="resolution", only="up48")) == 0
    assert [cell["state"] for cell in output(tmp_path / "bad")["cells"]] == ["failed"] * 3


def test_distillation_with_a_teacher_of_another_kind(whole, tmp_path):
    teacher = str(whole / "cells" / "off--top1--seed0")
    out = tmp_path / "study"
    assert run(*command(out, "--teacher", teacher, "--seeds", "1", name="distillation", only="hard")) == 0
    assert output(out)["plan"]["teacher"]["name"] == "off--top1--seed0"
    assert "Teacher: off--top1--seed0, top-1" in (out / "table.md").read_text()
    config = (out / "cells" / "hard--top1--seed0" / "config.yaml").read_text()
    assert teacher in config
    assert teacher not in (out / "cells" / "off--top1--seed0" / "config.yaml").read_text()


def test_published_beside_the_others(whole, tmp_path):
    assert run(*command(whole, "--results", str(tmp_path / "results"))) == 0
    names = sorted(path.name for path in (tmp_path / "results").iterdir())
    assert names == ["study_drop_path.json", "study_drop_path.md", "study_drop_path.png"]
    assert (tmp_path / "results" / "study_drop_path.md").read_bytes() == (whole / "table.md").read_bytes()


def test_without_matplotlib_the_table_is_there_all_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(*command(tmp_path / "study", "--seeds", "1")) == 0
    assert 'pip install "deepcait[explain]"' in capsys.readouterr().out
    assert (tmp_path / "study" / "table.md").exists()


# -- the budget -------------------------------------------------------------------------------------------------------


def budget_of(hours: float, monkeypatch, *, seeds: int = 2, train_s: float = 0.01) -> StudyPlan:
    """The plan for cells that cost 10 ms an image each, instead of a measurement."""
    grid = load_grid("drop-path")
    costs = {cell.name: Cost(train_s, train_s / 4) for cell in plan_module.cells_of(grid, 1)}
    monkeypatch.setattr(plan_module, "measure", lambda *_: costs)
    wished = StudyPlan(study="x", data="builtin:demo", data_name="x", seeds=seeds, epochs=20, images=500, val_images=0)
    return fit_to_budget(grid, wished, hours)[0]


@pytest.mark.parametrize("hours", [0.06, 0.1, 0.2, 0.5, 1.0, 5.0])
def test_a_budget_is_kept_and_used(hours, monkeypatch):
    plan = budget_of(hours, monkeypatch)
    cells = 2 * 5
    spent_s = cells * (plan.epochs * plan.images * 0.01 + plan.val_images * 0.0025)
    assert spent_s <= hours * 3600
    assert plan.epochs <= 20
    assert plan.images <= 500
    everything = (plan.epochs, plan.images, plan.val_images) == (20, 500, 100)
    assert everything or spent_s > 0.6 * hours * 3600 or plan.epochs * 2 > 20
    assert (hours < 5) or everything
    # Images go down only when epochs are at a quarter.
    assert plan.images == 500 or plan.epochs == 5


def test_more_hours_are_never_less(monkeypatch):
    sizes = [budget_of(hours, monkeypatch) for hours in (0.06, 0.1, 0.2, 0.5, 1.0)]
    seen = [plan.epochs * plan.images for plan in sizes]
    assert seen == sorted(seen)
    assert seen[0] < seen[-1]


def test_too_few_hours_say_how_many(monkeypatch):
    with pytest.raises(ConfigError, match="at least") as caught:
        budget_of(0.001, monkeypatch)
    hours = float(caught.value.problem.split("at least ")[1].split()[0])
    assert budget_of(1.05 * hours, monkeypatch).images >= 100


def test_the_speed_is_measured_in_the_cells_own_shape():
    from deepcait.data import open_split

    grid = load_grid("resolution").only(["up48"])
    plan = StudyPlan(
        study="x", data="builtin:demo", data_name="x", seeds=1, epochs=1, images=100, val_images=0, set=tuple(SETTINGS)
    )
    costs = plan_module.measure(grid, plan, open_split("builtin:demo", "train"), steps=1)
    assert set(costs) == {"base--top1--seed0", "same--top1--seed0", "up48--top1--seed0"}
    assert all(cost.train_s > 0 and cost.validate_s > 0 for cost in costs.values())


# -- the command ------------------------------------------------------------------------------------------------------


def test_a_dry_run_touches_nothing(tmp_path, capsys):
    assert run(*command(tmp_path / "study", "--dry-run", "--json")) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [cell["row"] for cell in facts["cells"]] == ["off", "uniform-10"]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_the_images_and_classes_of_its_data(tmp_path, capsys):
    # Without --data it takes the photographs of the package.
    words = ["study", "drop-path", "--out", str(tmp_path / "study"), "--only", "off", "--dry-run", "--json"]
    assert run(*words) == 0
    ten = json.loads(capsys.readouterr().out)
    assert ten["images"] == 900  # a tenth of the 1,000 is held out; the recipe asks for 10,000
    for name in ("cat", "dog"):
        shutil.copytree(ROOT / "deepcait" / "assets" / "demo" / "test" / name, tmp_path / "two" / name)
    assert run(*words, "--data", str(tmp_path / "two"), "--images", "60") == 0
    two = json.loads(capsys.readouterr().out)
    assert two["images"] == 60
    width = 96
    assert ten["cells"][0]["params"] - two["cells"][0]["params"] == (10 - 2) * (width + 1)


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--seeds", "0"], "--seeds"),
        (["--budget", "1"], "--budget"),
        (["--set", "epochs=3"], "--epochs"),
        (["--set", "data={limit: 3}"], "--images"),
        (["--set", "seed=3"], "--seeds"),
        (["--teacher", "builtin:nano"], "--teacher"),
        (["--results", __file__], "--results"),
        (["--only", "of"], "--only"),
        (["--set", "shape.dept=3"], "dept"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_paragraph(more, problem, tmp_path, capsys):
    assert run(*command(tmp_path / "study", *more)) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize("hours", ["nan", "inf", "0"])
def test_hours_that_are_none(hours, tmp_path, capsys):
    words = ["study", "heads", "--data", "builtin:demo", "--out", str(tmp_path / "study"), "--budget", hours]
    assert run(*words, "--dry-run") == 2
    assert "--budget must be hours above 0" in capsys.readouterr().err


def test_blanks_between_the_names_of_rows(tmp_path, capsys):
    assert run(*command(tmp_path / "study", "--dry-run", "--json", only=" off, uniform-10 ")) == 0
    assert [cell["row"] for cell in json.loads(capsys.readouterr().out)["cells"]] == ["off", "uniform-10"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("speed.json", "[]", "speed.json: the speeds measured at the start can't be read"),
        ("speed.json", "", "speed.json: the speeds measured at the start can't be read"),
        ("cells/off--top1--seed0/metrics.jsonl", "", "off--top1--seed0: the cell is finished, but"),
    ],
)
def test_a_damaged_file_of_a_study_is_named(name, content, problem, whole, tmp_path, capsys):
    study = shutil.copytree(whole, tmp_path / "study")
    (study / name).write_text(content)
    assert run(*command(study)) == 2
    assert problem in " ".join(capsys.readouterr().err.split())


def test_distillation_needs_a_teacher(tmp_path, capsys):
    assert run(*command(tmp_path / "study", name="distillation", only="")) == 2
    assert "teacher_32" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("more", [["--seeds", "3"], ["--epochs", "3"], ["--images", "47"], ["--only", "linear-10"]])
def test_another_study_in_the_same_folder(more, whole, capsys):
    before = (whole / "table.md").read_bytes()
    assert run(*command(whole, *more)) == 2
    assert "other settings for" in " ".join(capsys.readouterr().err.split())  # lines are wrapped
    assert (whole / "table.md").read_bytes() == before


def test_a_folder_that_holds_something_else(tmp_path, capsys):
    (tmp_path / "photo.png").touch()
    assert run(*command(tmp_path)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]
