"""What a run began with: it resumes where data and teacher were moved, and not where they were changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import deepcait
from deepcait.cli.main import main
from deepcait.errors import ConfigError, RunError
from tests.training.test_class_names import LETTERS, write

SETTINGS = {
    **{"start": "random", "seed": 3, "epochs": 2, "global_batch_size": 6, "replicas": 1, "img_size": [16, 16]},
    "shape": {"embed_dim": 12, "num_heads": 2, "depth": 1, "cls_depth": 1, "patch_size": 8},
    **{"compute.device": "cpu", "data.num_workers": 0, "keep.log_every_steps": 1, "ema.decay": 0.0},
}
CONTENT = ("metrics.jsonl", "best/model.safetensors", "last/model.safetensors")


def run(data: Path, out: Path, schedule: dict | None = None, **how) -> deepcait.Run:
    settings = SETTINGS | {"schedule": schedule or {}}
    return deepcait.train(data, out, recipe="scratch_32", settings=settings, **how)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A teacher's model, photographs, an uninterrupted run `whole`, and `cut`, stopped after its first step."""
    root = tmp_path_factory.mktemp("made")
    write(root / "photos", "folder", LETTERS)
    run(root / "photos", root / "teacher_run", schedule={"kind": "constant"})
    shutil.copytree(root / "teacher_run" / "best", root / "teacher")
    run(root / "photos", root / "whole", teacher=root / "teacher")
    run(root / "photos", root / "cut", teacher=root / "teacher", callbacks=[lambda event: event.stop()])
    return root


@pytest.fixture
def place(made, tmp_path) -> Path:
    """A copy of it: everything was moved."""
    shutil.copytree(made, tmp_path / "moved")
    return tmp_path / "moved"


def resume(place: Path, **how) -> deepcait.Run:
    return deepcait.train(how.pop("data", place / "photos"), place / "cut", resume=True, **how)


def same(place: Path) -> bool:
    return all((place / "cut" / file).read_bytes() == (place / "whole" / file).read_bytes() for file in CONTENT)


def test_a_run_resumes_exactly_with_its_data_and_teacher_in_another_place(made, place):
    shutil.move(made / "teacher", made / "hidden")  # so that the old place can't have been read
    try:
        resumed = resume(place, teacher=place / "teacher")
    finally:
        shutil.move(made / "hidden", made / "teacher")
    assert resumed.state == "finished"
    assert same(place)
    config = (place / "cut" / "config.yaml").read_text()
    assert str(place / "teacher") in config
    assert str(place / "photos") in config
    assert json.loads((place / "cut" / "teacher.json").read_text())["spec"] == str(place / "teacher")


def test_the_command_takes_both_too(place, capsys):
    words = ["--data", str(place / "photos"), "--out", str(place / "cut"), "--teacher", str(place / "teacher")]
    assert main(["train", *words, "--resume"]) == 0
    assert same(place)


def test_a_teacher_that_has_learnt_on_is_refused(place):
    deepcait.train(None, place / "teacher_run", resume=True, settings={"epochs": 3})
    shutil.rmtree(place / "teacher")
    shutil.copytree(place / "teacher_run" / "last", place / "teacher")
    before = (place / "cut" / "config.yaml").read_text()
    with pytest.raises(RunError, match="differs in weights, preprocessing or classes from that with which the run"):
        resume(place, teacher=place / "teacher")
    assert (place / "cut" / "config.yaml").read_text() == before


def test_a_teacher_that_sees_other_colours_is_refused(place):
    path = place / "teacher" / "config.json"
    section = json.loads(path.read_text())
    section["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
    path.write_text(json.dumps(section))
    with pytest.raises(RunError, match="differs in weights, preprocessing or classes"):
        resume(place, teacher=place / "teacher")


def test_other_images_are_refused(place):
    next((place / "photos" / "train" / "a").iterdir()).unlink()
    with pytest.raises(RunError, match="names or labels of the data have changed"):
        resume(place, teacher=place / "teacher")


@pytest.mark.parametrize("has_teacher", [True, False])
def test_no_run_gains_or_loses_its_teacher(made, place, has_teacher):
    own, other = (str(made / "teacher"), "''") if has_teacher else ("''", str(place / "teacher"))
    if not has_teacher:
        shutil.rmtree(place / "cut")
        run(place / "photos", place / "cut", callbacks=[lambda event: event.stop()])
        with pytest.raises(ConfigError, match=r"teacher\.spec"):
            resume(place, teacher=other)
    path = place / "cut" / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace(f"spec: {own}", f"spec: {other}"))
    assert path.read_text() != text
    with pytest.raises(RunError, match=r"settings were changed since the run began, from teacher\.spec"):
        deepcait.train(None, place / "cut", resume=True)


def test_a_run_of_a_version_without_the_record_resumes_in_place_only(made, place):
    (place / "cut" / "teacher.json").unlink()
    with pytest.raises(ConfigError, match=r"teacher\.spec"):
        resume(place, teacher=place / "teacher")
    assert resume(place).state == "finished"
    assert same(place)
    assert not (place / "cut" / "teacher.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"spec": "x"}'])
def test_a_damaged_record_is_named(place, text):
    (place / "cut" / "teacher.json").write_text(text)
    with pytest.raises(RunError, match=r"teacher\.json: the record of the run's teacher can't be read"):
        resume(place, teacher=place / "teacher")
