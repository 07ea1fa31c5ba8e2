"""`deepcait split`: a table that every command takes, wherever it is; folds, groups, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from deepcait.data import open_source
from deepcait.data.doctor import examine
from deepcait.data.holding import Holding, open_parts
from deepcait.data.roles import HELD_OUT


def fill(root: Path, names: tuple[str, ...], num: int = 10) -> Path:
    """Class folders of these names with different images of one colour."""
    import numpy as np
    from PIL import Image

    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for index in range(num):
            pixels = np.random.default_rng([label, index]).integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tmp_path) -> Path:
    return fill(tmp_path / "data", ("007", "012", "100"))


def test_the_table_is_read_as_the_folder_is(tmp_path, folder, run, run_json):
    facts = run_json("split", "--data", folder, "--out", tmp_path / "split.csv", "--val", 0.1, "--test", 0.2)
    assert {key: facts[key] for key in ("train", "val", "test", "classes", "folds")} == {
        "train": 21, "val": 3, "test": 6, "classes": 3, "folds": [],
    }  # fmt: skip
    rows = rows_of(tmp_path / "split.csv")
    assert rows[0].keys() == {"path", "label", "split"}
    assert all(row["path"].startswith(f"data/{row['label']}/") for row in rows)
    for split in ("train", "val", "test"):
        source = open_source(tmp_path / "split.csv", split)
        assert (source.classes, len(source)) == (["007", "012", "100"], facts[split])
        assert source.read(0).data == (tmp_path / source.names[0]).read_bytes()
    drawn = open_parts(folder, Holding(val_fraction=0.1, test_fraction=0.2))
    assert {f"data/{name}" for name in drawn.test.names} == {row["path"] for row in rows if row["split"] == "test"}
    assert {f"data/{name}" for name in drawn.val.names} == {row["path"] for row in rows if row["split"] == "val"}
    assert (
        "next       deepcait train --data"
        in run("split", "--data", folder, "--out", tmp_path / "b.csv", "--val", 0.2)[1]
    )


def test_the_table_may_be_anywhere(tmp_path, folder, run):
    (tmp_path / "lists").mkdir()
    out = tmp_path / "lists" / "split.csv"
    assert run("split", "--data", folder, "--out", out, "--test", 0.2)[0] == 0
    (tmp_path / "other").mkdir()
    moved = shutil.move(out, tmp_path / "other" / "moved.csv")
    source = open_source(moved, "test")
    assert source.read(0).data == Path(source.names[0]).read_bytes()
    # A table is data again, and its own splits stay.
    assert run("split", "--data", moved, "--out", tmp_path / "again.csv", "--val", 0.2)[0] == 0
    again = {Path(row["path"]).name + row["label"]: row["split"] for row in rows_of(tmp_path / "again.csv")}
    assert Counter(again.values()) == {"train": 18, "val": 6, "test": 6}
    assert {key for key, split in again.items() if split == "test"} == {
        name.split("/")[-1] + name.split("/")[-2] for name in source.names
    }


def test_every_command_takes_it(tmp_path, folder, run, run_json):
    table = tmp_path / "split.csv"
    assert run("split", "--data", folder, "--out", table, "--val", 0.2, "--test", 0.2)[0] == 0
    assert run("doctor", "--data", table, "--strict")[0] == 0
    settings = ("epochs=1", "data.num_workers=0", "global_batch_size=6", "replicas=1")
    argv = ("train", "--data", table, "--out", tmp_path / "run", "--model", "builtin:nano", "--set", *settings)
    assert run(*argv)[0] == 0
    shown = run_json("eval", tmp_path / "run", "--data", table)
    assert (shown["num_images"], shown["split"], shown["images_of_run"]["role"]) == (6, "test", HELD_OUT)
    shown = run_json("eval", tmp_path / "run", "--data", folder, "--split", "all")
    assert {name: num for name, num in shown["images_of_run"].items() if isinstance(num, int) and num} == {
        "trained_on": 18, "chose_the_best_epoch": 6, "held_out": 6,
    }  # fmt: skip
    assert shown["num_images"] == 30


def test_folds_and_groups(tmp_path, folder, run, run_json):
    paths = sorted(path.relative_to(tmp_path) for path in folder.rglob("*.png"))
    lines = [f"{path},{path.parent.name},p{i // 3},{i}\n" for i, path in enumerate(paths)]
    table = tmp_path / "visits.csv"
    table.write_text("path,label,patient,age\n" + "".join(lines))
    out = tmp_path / "folds.csv"
    facts = run_json("split", "--data", table, "--out", out, "--folds", 3, "--test", 0.2, "--group", "patient")
    rows = rows_of(out)
    assert rows[0].keys() == {"path", "label", "split", "fold", "patient"}
    sides = {(row["patient"], row["split"], row["fold"]) for row in rows}
    assert len(sides) == len({row["patient"] for row in rows}) == facts["groups"] == 10
    assert {row["fold"] for row in rows if row["split"] == "test"} == {""}
    assert sum(facts["folds"]) == facts["train"]
    parts = open_parts(out, Holding(fold=1))
    assert len(parts.val) == facts["folds"][1]
    assert len(parts.train) == facts["train"] - facts["folds"][1]
    assert not [finding for finding in examine(out).findings if finding.kind == "split_group"]
    spoilt = out.read_text().replace("p0\n", "p9\n", 1)
    out.write_text(spoilt)
    (finding,) = [finding for finding in examine(out).findings if finding.kind == "split_group"]
    assert "patient p9 is in" in finding.text
    assert run("doctor", "--data", out, "--group", "doctor")[0] == 2


def test_near_duplicates_across_folds_are_a_leak(tmp_path, folder, run):
    out = tmp_path / "folds.csv"
    assert run("split", "--data", folder, "--out", out, "--folds", 3)[0] == 0
    rows = rows_of(out)
    first = next(row for row in rows if row["fold"] == "0")
    other = next(row for row in rows if row["fold"] == "1" and row["label"] == first["label"])
    shutil.copy(tmp_path / first["path"], tmp_path / other["path"])
    text = next(finding.text for finding in examine(out).findings if finding.kind == "leak")
    assert "fold 0, fold 1" in text or "fold 1, fold 0" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to draw"),
        (["--val", "1.5"], "--val: expected a number in"),
        (["--test", "-0.1"], "--test: expected a number in"),
        (["--test", "0.6", "--val", "0.5"], "leave no image to train on"),
        (["--folds", "1"], "expected 2 to 30"),
        (["--folds", "31"], "expected 2 to 30"),
        (["--folds", "-2"], "--folds: expected 2 or more"),
        (["--folds", "3", "--val", "0.1"], "each fold validates once"),
        (["--test", "0.2", "--group", "patient"], "no column 'patient'"),
    ],
)
def test_what_is_refused(tmp_path, folder, run, words, said):
    code, out, err = run("split", "--data", folder, "--out", tmp_path / "x.csv", *words)
    assert (code, out) == (2, "")
    assert said in " ".join(err.split())
    assert "remedy:" in err
    assert not list(tmp_path.glob("*.csv"))


def test_classes_that_are_integers_are_names(tmp_path, run):
    root = fill(tmp_path / "data", ("1", "2", "3"))
    assert run("split", "--data", root, "--out", tmp_path / "split.csv", "--test", 0.2)[0] == 0
    for split in ("train", "test"):
        source = open_source(tmp_path / "split.csv", split)
        assert source.classes == ["1", "2", "3"]
        assert [source.classes[label] for label in source.labels] == [Path(name).parent.name for name in source.names]
    # In a split that is kept, too: 0 is not the first class.
    rows = [f"data/{name}/{i}.png,{name}x,train\n" for name in "12" for i in range(4)]
    (tmp_path / "t.csv").write_text("path,label,split\n" + "".join(rows) + "data/3/0.png,0,test\n")
    code, _, err = run("split", "--data", tmp_path / "t.csv", "--out", tmp_path / "x.csv", "--val", 0.2)
    assert code == 2
    assert "unknown class '0'" in " ".join(err.split())


def test_images_without_a_class_are_refused(tmp_path, folder, run):
    paths = [f"data/007/{i}.png" for i in range(4)]
    for text in ("path\n" + "\n".join(paths), "path,label\n" + ",\n".join(paths[:3]) + f",\n{paths[3]},a\n"):
        (tmp_path / "t.csv").write_text(text)
        for words in (["--test", "0.2"], ["--folds", "2"]):
            code, _, err = run("split", "--data", tmp_path / "t.csv", "--out", tmp_path / "x.csv", *words)
            assert code == 2
            assert "Every image needs a class" in " ".join(err.split())
    assert not (tmp_path / "x.csv").exists()


def test_data_that_a_table_can_not_hold(tmp_path, folder, run):
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    odd = fill(tmp_path / "odd", ("5", "-1"))
    table = tmp_path / "t.csv"
    table.write_text("path,label\n" + "".join(f"data/007/{i}.png,a\n" for i in range(5)))
    before = table.read_bytes()
    for data, out, said in (
        (archive, "x.csv", "the images are inside a"),
        (odd, "x.csv", "can't hold this path or class name"),
        ("builtin:demo", "x.csv", "has a split test already"),
        (table, "t.csv", "is the data itself"),
        (folder, "x.txt", "must end in .csv"),
        (folder, "none/x.csv", "does not exist"),
    ):
        code, _, err = run("split", "--data", data, "--out", tmp_path / out, "--test", 0.2)
        assert code == 2, data
        assert said in " ".join(err.split())
    assert table.read_bytes() == before
    assert not (tmp_path / "x.csv").exists()
    assert json.loads(run("split", "--data", folder, "--out", "x.txt", "--test", 0.2, "--json")[1])["remedy"]
