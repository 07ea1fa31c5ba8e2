"""What validates: val, else a part held out of train; test only where it is asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deepcait.errors import ConfigError, DataError
from deepcait.training.data import open_training_data
from deepcait.training.journal import read_metrics
from deepcait.training.plan import plan
from deepcait.training.recipe import load_recipe, recipe_names
from deepcait.training.run import train
from tests.training.test_class_names import LETTERS, TINY, write


@pytest.fixture
def data(tmp_path) -> Path:
    """Class folders in train and test, no val."""
    root = Path(write(tmp_path / "data", "folder", LETTERS))
    (root / "val").rename(root / "test")
    return root


def opened(data: Path, *settings: str):
    recipe = load_recipe("scratch_32", [*TINY, f"data.source={data}", *settings])
    data_of_run = open_training_data(recipe)
    return data_of_run.train, data_of_run.validation, "\n".join(data_of_run.messages)


def test_the_test_set_never_chooses(tmp_path, data):
    samples, validation, said = opened(data)
    assert (len(samples), len(validation), validation.split) == (15, 3, "val")
    assert "validation: 3 images held out of train" in said
    assert sorted(validation.labels) == [0, 1, 2]
    recipe = load_recipe("scratch_32", [*TINY, f"data.source={data}"])
    train(recipe, tmp_path / "run")
    split = json.loads((tmp_path / "run/split.json").read_text())
    assert (split["train"], split["val"]) == (samples.names, validation.names)
    shutil.rmtree(data / "test")  # it was not read
    train(recipe, tmp_path / "again")
    assert read_metrics(tmp_path / "again") == read_metrics(tmp_path / "run")


@pytest.mark.parametrize(("validate_on", "num_train", "num_validation"), [("test", 18, 10), ("none", 18, 0)])
def test_other_choices_hold_nothing_out(data, validate_on, num_train, num_validation):
    samples, validation, said = opened(data, f"data.validate_on={validate_on}")
    assert (len(samples), len(validation), validation.split) == (num_train, num_validation, validate_on)
    assert {"test": "split test: 10 images", "none": "validation: none"}[validate_on] in said


def test_val_is_taken_where_there_is_one(tmp_path):
    root = Path(write(tmp_path / "data", "folder", LETTERS))
    shutil.copytree(root / "val", root / "test")
    for validate_on in ("auto", "val"):
        samples, validation, said = opened(root, f"data.validate_on={validate_on}")
        assert (len(samples), len(validation), validation.split) == (18, 10, "val")
        assert "validation: folder, split val: 10 images" in said


def test_a_split_that_is_not_there_is_an_error(data):
    with pytest.raises(DataError, match="there is no split val"):
        opened(data, "data.validate_on=val")
    shutil.rmtree(data / "test")
    with pytest.raises(DataError, match="there is no split test"):
        opened(data, "data.validate_on=test")
    with pytest.raises(ConfigError, match=r"data\.validate_on"):
        opened(data, "data.validate_on=train")


def test_without_validation_the_last_epoch_is_the_model(tmp_path, data):
    recipe = load_recipe("scratch_32", [*TINY, f"data.source={data}", "data.validate_on=none", "ema.decay=0.5"])
    assert plan(recipe)["train_images"] == 18
    outcome = train(recipe, tmp_path / "run")
    assert (outcome.best_top1, outcome.best_epoch) == (None, 3)
    assert not [row for row in read_metrics(tmp_path / "run") if row["kind"] == "eval"]
    split = json.loads((tmp_path / "run/split.json").read_text())
    assert (len(split["train"]), split["val"], split["test"]) == (18, [], [])
    best, last = (tmp_path / "run" / name / "model.safetensors" for name in ("best", "last"))
    assert best.read_bytes() == last.read_bytes()


def test_0_1_validated_on_test(data):
    samples, validation, _ = opened(data, "data.validate_on='0.1'")
    assert (len(samples), validation.split) == (18, "test")
    shutil.rmtree(data / "test")
    assert [len(source) for source in opened(data, "data.validate_on='0.1'")[:2]] == [15, 3]


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.startswith("transfer_")])
def test_transfer_trains_on_all_training_images(name):
    assert load_recipe(name).data.validate_on == "none"
