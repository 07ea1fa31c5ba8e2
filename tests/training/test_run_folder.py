"""A run as a folder: whatever file a kill was at, the folder can be started; other data are refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import pytest

from deepcait.data import Preprocessing, Subset
from deepcait.errors import RunError
from deepcait.training import run_folder as run_module
from deepcait.training.data import open_training_data
from deepcait.training.run_folder import require_startable, write_run_files
from deepcait.training.settings import Distillation
from deepcait.training.teacher import load_teacher
from tests.training.tiny import section, tiny_recipe


class Killed(BaseException):
    """Stands for a kill: nothing is tidied."""


@pytest.fixture(scope="module")
def recipe():
    return section(tiny_recipe(), "data", source="builtin:demo", limit=20, val_limit=10)


@pytest.fixture(scope="module")
def data(recipe):
    return open_training_data(recipe)


@pytest.fixture(scope="module")
def teacher(data):
    return load_teacher(Distillation(spec="builtin:nano"), Preprocessing((32, 32)), data.train.classes)


@pytest.mark.parametrize("whole", [0, 1, 2, 3])
@pytest.mark.parametrize("where", ["before", "within"])
def test_a_kill_at_any_file_leaves_a_startable_folder(tmp_path, monkeypatch, recipe, data, teacher, whole, where):
    folder, left, replace_text = tmp_path / "run", [whole], run_module.replace_text

    def killed(path, text):
        if not left[0]:
            if where == "within":
                path.with_name(f".{path.name}.0a1b.new").write_text(text[:5])
            raise Killed
        left[0] -= 1
        replace_text(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "replace_text", killed)
        with pytest.raises(Killed):
            write_run_files(folder, recipe, data, teacher)
    require_startable(folder, resume=True)
    (folder / ".best.0a1b.new").mkdir()  # of a later kill
    write_run_files(folder, recipe, data, teacher)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("config.yaml", "data.json", "environment.json", "split.json", "teacher.json"),
    ]
    assert json.loads((folder / "data.json").read_text())["num_train"] == 20


@pytest.mark.parametrize(
    ("kept", "startable"),
    [
        (None, True),
        ("checkpoints/step_00000003-0123456789abcdef.safetensors", False),
        ("checkpoints/stable/step_00000003-0123456789abcdef.safetensors", False),
        ("best/model.safetensors", False),
        ("last/model.safetensors", False),
        ("notes.txt", False),
        ("tensorboard/events", True),
        ("status.json", True),
    ],
)
def test_only_a_run_without_checkpoint_and_model_is_replaced(tmp_path, recipe, data, kept, startable):
    folder = tmp_path / "run"
    write_run_files(folder, recipe, data, None)
    (folder / "checkpoints").mkdir()
    if kept:
        (folder / kept).parent.mkdir(parents=True, exist_ok=True)
        (folder / kept).write_text("")
    before = sorted(folder.rglob("*"))
    with contextlib.nullcontext() if startable else pytest.raises(RunError, match="already contains a run"):
        require_startable(folder, resume=False)
    assert sorted(folder.rglob("*")) == before
    with contextlib.nullcontext() if startable else pytest.raises(RunError, match="already contains a run"):
        with run_module.held(folder, resume=False):
            assert [path.name for path in folder.iterdir()] == ["run.lock"]
    assert sorted(folder.rglob("*")) == ([] if startable else before)


def test_links_are_not_removed(tmp_path, recipe, data):
    folder = tmp_path / "run"
    write_run_files(folder, recipe, data, None)
    (tmp_path / "elsewhere").mkdir()
    (folder / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="already contains a run"):
        require_startable(folder, resume=False)


def test_other_data_than_the_run_began_with_are_refused(tmp_path, recipe, data):
    write_run_files(tmp_path, recipe, data, None)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_run_files(tmp_path, recipe, data, None)
    for part in ("data.limit=19", "data.val_limit=9"):
        name, value = part.removeprefix("data.").split("=")
        others = open_training_data(section(recipe, "data", **{name: int(value)}))
        with pytest.raises(RunError, match=r"the data have changed since the run began: 20 training and 10 validation"):
            write_run_files(tmp_path, recipe, others, None)
    swapped = Subset(data.train, range(len(data.train)), split="train")
    swapped.labels[0] = (swapped.labels[0] + 1) % len(swapped.classes)
    with pytest.raises(RunError, match="names or labels of the data have changed"):
        write_run_files(tmp_path, recipe, dataclasses.replace(data, train=swapped), None)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
