"""What a run began with: it resumes where data and teacher were moved, and not where they were changed."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

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


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry"])
@pytest.mark.parametrize(("moved", "option"), [("teacher", "--teacher"), ("photos", "--data")])
def test_the_error_about_a_moved_folder_names_the_option(made, place, capsys, moved, option, dry):
    config = place / "cut" / "config.yaml"
    config.write_text(config.read_text().replace(str(made / moved), str(place / "gone")))
    assert main(["train", "--out", str(place / "cut"), "--resume", *dry]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"{place / 'gone'}" in error
    assert f"was moved, add the new place: {option} NEW." in error


@pytest.mark.parametrize("exclude", ["gone.txt", "here.txt"])
def test_a_moved_fix_list_is_asked_for_too(place, capsys, exclude):
    (place / "here.txt").write_text("")
    config = place / "cut" / "config.yaml"
    text = config.read_text()
    assert "exclude: ''\n" in text
    config.write_text(text.replace("exclude: ''\n", f"exclude: {place / exclude}\n"))
    code = main(["train", "--out", str(place / "cut"), "--resume"])
    asked = "was moved, add the new place: --set data.exclude=NEW." in " ".join(capsys.readouterr().err.split())
    assert (code, asked) == ((2, True) if exclude == "gone.txt" else (0, False))


@pytest.mark.parametrize("damaged", ["teacher", "photos"])
def test_the_error_about_a_damaged_one_does_not(place, capsys, damaged):
    shutil.rmtree(place / damaged)
    (place / damaged).mkdir()
    words = ["--data", str(place / "photos"), "--teacher", str(place / "teacher"), "--out", str(place / "cut")]
    assert main(["train", *words, "--resume"]) == 2
    assert "was moved" not in capsys.readouterr().err


def test_the_error_of_a_new_run_does_not(place, capsys):
    assert main(["train", "--data", str(place / "gone"), "--out", str(place / "new"), "--resume"]) == 2
    assert "was moved" not in capsys.readouterr().err


def test_a_teacher_that_has_learnt_on_is_refused(place):
    deepcait.train(None, place / "teacher_run", resume=True, settings={"epochs": 3})
    shutil.rmtree(place / "teacher")
    shutil.copytree(place / "teacher_run" / "last", place / "teacher")
    before = (place / "cut" / "config.yaml").read_text()
    with pytest.raises(RunError, match="differs in weights, preprocessing, classes or architecture"):
        resume(place, teacher=place / "teacher")
    assert (place / "cut" / "config.yaml").read_text() == before


def test_a_teacher_that_sees_other_colours_is_refused(place):
    path = place / "teacher" / "config.json"
    section = json.loads(path.read_text())
    section["pretrained_cfg"]["mean"] = [0.1, 0.2, 0.3]
    path.write_text(json.dumps(section))
    with pytest.raises(RunError, match="differs in weights, preprocessing, classes or architecture"):
        resume(place, teacher=place / "teacher")


@pytest.mark.parametrize(("factor", "same"), [(1.0001, True), (1.05, False)])
def test_a_teacher_of_another_architecture_is_refused(place, factor, same):
    """Its weights may be the same: its logits for one image are compared, but for what machines round."""
    path = place / "cut" / "teacher.json"
    record = json.loads(path.read_text())
    assert len(record["logits"]) == len(LETTERS)
    path.write_text(json.dumps(record | {"logits": [factor * logit for logit in record["logits"]]}))
    with contextlib.nullcontext() if same else pytest.raises(RunError, match="classes or architecture"):
        resume(place, teacher=place / "teacher")


@pytest.mark.parametrize("dry", [False, True])
def test_missing_images_are_refused(place, dry):
    next((place / "photos" / "train" / "a").iterdir()).unlink()
    words = ["--data", str(place / "photos"), "--teacher", str(place / "teacher"), "--out", str(place / "cut")]
    before = (place / "cut" / "config.yaml").read_bytes()
    assert main(["train", *words, "--resume", *["--dry-run"] * dry]) == 2
    assert (place / "cut" / "config.yaml").read_bytes() == before


@pytest.mark.parametrize("dry", [False, True])
def test_other_images_of_the_same_names_are_refused(place, capsys, dry):
    for path in (place / "photos").rglob("*.png"):
        Image.new("RGB", (16, 16), (1, 2, 3)).save(path)
    words = ["--data", str(place / "photos"), "--teacher", str(place / "teacher"), "--out", str(place / "cut")]
    assert main(["train", *words, "--resume", *["--dry-run"] * dry]) == 2
    assert "has other images of the same names than the data that the run began with" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_finished_run_stays_with_its_places(made, place):
    with pytest.raises(ConfigError, match=r"settings differ.*data\.source"):
        deepcait.train(place / "photos", made / "whole", resume=True)
    with pytest.raises(ConfigError, match=r"settings differ.*teacher\.spec"):
        deepcait.train(None, made / "whole", teacher=place / "teacher", resume=True)


def test_a_finished_run_is_prolonged_with_its_images_in_another_place(place):
    longer = deepcait.train(place / "photos", place / "teacher_run", resume=True, settings={"epochs": 4})
    assert longer.state == "finished"
    assert str(place / "photos") in (place / "teacher_run" / "config.yaml").read_text()


@pytest.mark.parametrize("spec", ["timm:resnet18", "python:their_teacher:build", "hf-hub:someone/teacher"])
def test_only_a_folder_or_file_of_a_teacher_can_be_in_another_place(place, spec):
    with pytest.raises(ConfigError, match=r"settings differ.*teacher\.spec"):
        resume(place, teacher=spec)


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


def test_a_removed_record_of_the_data_does_not_free_the_teacher(place):
    """The remedy of a damaged record is to remove it."""
    (place / "cut" / "data.json").unlink()
    before = (place / "cut" / "teacher.json").read_bytes()
    deepcait.train(None, place / "teacher_run", resume=True, settings={"epochs": 3})
    with pytest.raises(RunError, match="differs in weights"):
        deepcait.train(None, place / "cut", teacher=place / "teacher_run", resume=True)
    assert (place / "cut" / "teacher.json").read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"spec": "x"}'])
def test_a_damaged_record_is_named(place, text):
    (place / "cut" / "teacher.json").write_text(text)
    with pytest.raises(RunError, match=r"teacher\.json: the record of the run's teacher can't be read"):
        resume(place, teacher=place / "teacher")
