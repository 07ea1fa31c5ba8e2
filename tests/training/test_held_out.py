"""A test part that nothing chooses by: the same in every form of data, kept by resuming, and taken by `eval`."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

import deepcait
from deepcait.cli.main import main
from deepcait.errors import ConfigError, DataError, EvaluationWarning
from deepcait.training.data import open_training_data
from deepcait.training.recipe import load_recipe
from tests.data.forms import add_to_tar, write_parquet
from tests.training.test_class_names import TINY, images

FORMS = ("folder", "csv", "tar", "zip", "parquet")
PART = "data.test_fraction=0.3"


def write_flat(root: Path, form: str) -> str:
    """18 images of three classes, without splits; returns the DATA argument."""
    import tarfile
    import zipfile

    made = [("abc"[label], file, data) for split, label, file, data in images() if split == "train"]
    root.mkdir(parents=True)
    for label, file, data in made:
        (root / "all" / label).mkdir(parents=True, exist_ok=True)
        (root / "all" / label / file).write_bytes(data)
    if form == "csv":
        rows = [f"all/{label}/{file},{label},p{i // 2}\n" for i, (label, file, _) in enumerate(made)]
        (root / "list.csv").write_text("path,label,patient\n" + "".join(rows))
        return str(root / "list.csv")
    if form == "zip":
        with zipfile.ZipFile(root / "images.zip", "w") as packed:
            for label, file, data in made:
                packed.writestr(f"{label}/{file}", data)
        return str(root / "images.zip")
    if form == "tar":
        with tarfile.open(root / "images.tar", "w") as shard:
            for label, file, data in made:
                add_to_tar(shard, f"{label}/{file}", data)
        return str(root / "images.tar")
    if form == "parquet":
        files = [(f"{label}/{file}", data) for label, file, data in made]
        write_parquet(root / "images.parquet", files, [label for label, _, _ in made], None)
        return str(root / "images.parquet")
    return str(root / "all")


def run_of(data: str, out: Path, *settings: str) -> deepcait.Run:
    words = [word for setting in (*TINY, *settings) for word in ("--set", setting)]
    assert main(["train", "--data", data, "--out", str(out), "--recipe", "scratch_32", *words]) == 0
    return deepcait.open_run(out)


def kept(run: deepcait.Run) -> dict[str, list[str]]:
    split = json.loads((run.folder / "split.json").read_text())
    return {part: split[part] for part in ("train", "val", "test")}


@pytest.mark.parametrize("form", FORMS)
def test_eval_takes_the_test_part_in_every_form(tmp_path, capsys, form):
    data = write_flat(tmp_path / "data", form)
    run = run_of(data, tmp_path / "run", PART, "data.val_fraction=0.25")
    assert "validation: 3 images held out of train; test: 6 images held out of both" in capsys.readouterr().out
    parts = kept(run)
    assert [len(parts[part]) for part in ("train", "val", "test")] == [9, 3, 6]
    assert Counter(name.split("/")[-2] for name in parts["test"]) == {"a": 2, "b": 2, "c": 2}
    assert main(["eval", str(run.folder), "--data", data]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert "test part of the run: 6 images, 3 classes" in first
    assert first.endswith("; held out: used neither for training nor to choose the epoch")
    for name, role, part in (("val", "chose the best epoch", "val"), ("train", "trained on", "train")):
        assert main(["eval", str(run.folder), "--data", data, "--split", name, "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert (shown["num_images"], shown["split"]) == (len(parts[part]), name)
        assert (shown["images_of_run"]["role"], shown["images_of_run"]["part"]) == (role, part)
        assert any("trained on 9 of these 9 images" in text for text in shown["warnings"]) == (name == "train")


def test_the_part_is_the_same_for_every_seed_and_the_rest_is_not(tmp_path):
    data = write_flat(tmp_path / "data", "folder")
    parts = []
    for seed in (0, 1, 2):
        recipe = load_recipe("scratch_32", [*TINY, f"data.source={data}", PART, f"seed={seed}"])
        opened = open_training_data(recipe)
        parts.append((opened.test.names, opened.validation.names))
        assert not set(opened.train.names) & {*opened.validation.names, *opened.test.names}
    assert parts[0][0] == parts[1][0] == parts[2][0]
    assert len({tuple(names) for _, names in parts}) > 1


def test_the_recorded_split_is_what_resuming_uses(tmp_path, monkeypatch):
    data = write_flat(tmp_path / "data", "folder")
    run = run_of(data, tmp_path / "run", PART)
    before = kept(run)
    from deepcait.data import holding

    monkeypatch.setattr(holding, "_draw", lambda *args: pytest.fail("the split was drawn again"))
    recipe = load_recipe(str(run.folder / "config.yaml"))
    opened = open_training_data(recipe, run.folder)
    assert [opened.train.names, opened.validation.names, opened.test.names] == list(before.values())
    (Path(data) / "a" / "new.png").write_bytes((Path(data) / "a" / "0_0.png").read_bytes())
    with pytest.raises(DataError, match="not those of the recorded split: there are new ones"):
        open_training_data(recipe, run.folder)


def test_without_a_test_part_the_validation_part_counts_and_never_what_trained(tmp_path, capsys):
    data = write_flat(tmp_path / "data", "folder")
    run = run_of(data, tmp_path / "run")
    capsys.readouterr()
    assert main(["eval", str(run.folder), "--data", data]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert "validation part of the run: 3 images, 3 classes; these images chose the best epoch" in first
    assert main(["eval", str(run.folder), "--data", data, "--split", "all", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["images_of_run"] == {
        "role": "mixed", "trained_on": 15, "chose_the_best_epoch": 3, "held_out": 0, "part": None, "left_out": 0,
    }  # fmt: skip
    assert any("trained on 15 of these 18 images" in text for text in shown["warnings"])
    # A folder with some of the images and new ones: those of the training are left out, and it says so.
    shutil.copytree(Path(data) / "a", tmp_path / "mixed" / "a")
    for number in range(2):
        (tmp_path / "mixed" / "a" / f"n{number}.png").write_bytes((Path(data) / "b" / f"1_{number}.png").read_bytes())
    for name in kept(run)["val"]:
        (tmp_path / "mixed" / name).unlink(missing_ok=True)
    assert main(["eval", str(run.folder), "--data", str(tmp_path / "mixed")]) == 0
    assert "2 images, 1 classes; held out: used neither" in (output := capsys.readouterr().out.splitlines()[0])
    assert "; 5 others that the run trained on are left out" in output
    nothing = run_of(data, tmp_path / "all", "data.validate_on=none")
    capsys.readouterr()
    assert main(["eval", str(nothing.folder), "--data", data]) == 2
    assert "all 18 images have names and labels of images that the run" in " ".join(capsys.readouterr().err.split())


def test_roles_follow_moved_files_and_not_names_alone(tmp_path):
    data = write_flat(tmp_path / "data", "folder")
    run = run_of(data, tmp_path / "run", PART)
    shutil.copytree(data, tmp_path / "moved" / "photos")
    shutil.move(run.folder, tmp_path / "elsewhere")
    run = deepcait.open_run(tmp_path / "elsewhere")
    metrics = deepcait.evaluate(run, tmp_path / "moved" / "photos")
    assert (metrics.num_images, metrics.roles.part, metrics.roles.name) == (6, "test", "held out")
    lines = [f"photos/{name},{name[0]}\n" for part in kept(run).values() for name in part]
    (tmp_path / "moved" / "list.csv").write_text("path,label\n" + "".join(lines))
    assert deepcait.evaluate(run.classifier, tmp_path / "moved" / "list.csv").roles == metrics.roles
    with pytest.warns(EvaluationWarning, match="trained on 9 of these 18 images"):
        deepcait.evaluate(run, data, split="all")
    # Other images with the same names are other images.
    for path in Path(data).rglob("*.png"):
        path.write_bytes((tmp_path / "moved" / "photos" / "b" / "1_0.png").read_bytes())
    other = deepcait.evaluate(run, data)
    assert (other.num_images, other.roles.name, other.roles.left_out) == (18, "held out", 0)


def test_splits_of_the_data_are_named_too(tmp_path, capsys):
    """As of imagenet:ROOT, which has no test: val chose the epoch, also where only val is left."""
    root = tmp_path / "root"
    data = Path(write_flat(tmp_path / "data", "folder"))
    for name in "abc":
        for number in range(6):
            part = "val" if number < 2 else "train"
            (root / part / name).mkdir(parents=True, exist_ok=True)
            file = data / name / f"{'abc'.index(name)}_{number}.png"
            (root / part / name / file.name).write_bytes(file.read_bytes())
    run = run_of(str(root), tmp_path / "run")
    shutil.rmtree(root / "train")
    (tmp_path / "wnids").mkdir()
    for place in (root, root / "val"):
        capsys.readouterr()
        assert main(["eval", str(run.folder), "--data", str(place), "--json"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert (shown["num_images"], shown["images_of_run"]["role"]) == (6, "chose the best epoch")


def test_groups_and_folds(tmp_path, capsys):
    data = write_flat(tmp_path / "data", "csv")
    run = run_of(data, tmp_path / "run", PART, "data.val_fraction=0.3", "data.group_column=patient")
    assert "by patient" in capsys.readouterr().out
    patient = dict(line.split(",")[::2] for line in Path(data).read_text().splitlines()[1:])
    sides = [{patient[name] for name in names} for names in kept(run).values()]
    assert all(sides)
    assert sum(map(len, sides)) == len(set.union(*sides)) == 9
    text = Path(data).read_text().splitlines()
    folded = [f"{line},{i % 3 if i else 'fold'}" for i, line in enumerate(text)]
    Path(data).write_text("\n".join(folded) + "\n")
    folds = [run_of(data, tmp_path / f"fold{fold}", f"data.fold={fold}") for fold in range(3)]
    assert sorted(name for run in folds for name in kept(run)["val"]) == sorted(patient)
    with pytest.raises(DataError, match="group_column=patient: 'p.' is in train and in val"):
        open_training_data(
            load_recipe("scratch_32", [*TINY, f"data.source={data}", "data.fold=0", "data.group_column=patient"])
        )
    last = run_of(data, tmp_path / "none", "data.fold=1", "data.validate_on=none")
    assert kept(last)["test"] == kept(folds[1])["val"]
    assert deepcait.evaluate(last, data).roles.name == "held out"


@pytest.mark.parametrize(
    ("form", "settings", "error", "said"),
    [
        ("folder", ["data.group_column=patient"], DataError, "no column 'patient'.*`deepcait split`"),
        ("csv", ["data.group_column=pateint"], DataError, "no column 'pateint'.*the other columns are patient"),
        ("csv", ["data.fold=0"], DataError, "no column 'fold'"),
        ("csv", ["data.fold=0", PART], ConfigError, "data.test_fraction can't be set too"),
        ("folder", ["data.test_fraction=1"], ConfigError, "data.test_fraction: expected a number in"),
        ("folder", ["data.test_fraction=-0.1"], ConfigError, "data.test_fraction: expected a number in"),
        ("demo", [PART], ConfigError, "has a split test already"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, form, settings, error, said):
    data = "builtin:demo" if form == "demo" else write_flat(tmp_path / "data", form)
    with pytest.raises(error, match=said):
        open_training_data(load_recipe("scratch_32", [*TINY, f"data.source={data}", *settings]))


def test_the_dry_run_says_what_is_held_out(tmp_path, capsys):
    data = write_flat(tmp_path / "data", "folder")
    words = ["--recipe", "scratch_32", "--dry-run", "--json", *(w for s in (*TINY, PART) for w in ("--set", s))]
    assert main(["train", "--data", data, "--out", str(tmp_path / "run"), *words]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["train_images"], facts["val_images"], facts["test_images"]) == (9, 3, 6)
    assert not (tmp_path / "run").exists()
