"""Several runs in one table: numbers of each, mean, standard deviation, folds together, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
from pathlib import Path

import pytest

import deepcait
from deepcait.cli.main import main
from deepcait.errors import RunError
from deepcait.report import compare_runs, results, several
from deepcait.report.record import read_run
from tests.training.test_class_names import TINY
from tests.training.test_held_out import write_flat

pytestmark = pytest.mark.xdist_group("several")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of 18 images with three folds."""
    root = tmp_path_factory.mktemp("several")
    data, out = write_flat(root / "data", "csv"), root / "folds.csv"
    assert main(["split", "--data", data, "--out", str(out), "--folds", "3", "--group", "patient"]) == 0
    return out


@pytest.fixture(scope="module")
def folds(table):
    return [trained(table, f"fold{fold}", f"data.fold={fold}") for fold in range(3)]


def trained(table, name: str, *settings: str) -> str:
    out = str(Path(table).parent / name)
    words = [word for setting in (*TINY, *settings) for word in ("--set", setting)]
    assert main(["train", "--data", str(table), "--out", out, "--recipe", "scratch_32", *words]) == 0
    return out


def test_folds_have_mean_deviation_and_are_counted_together(folds, tmp_path, capsys):
    capsys.readouterr()
    page = tmp_path / "folds.html"
    assert main(["report", *folds, "--out", str(page), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    best = [deepcait.open_run(run).best for run in folds]
    assert [row["top1"] for row in facts["rows"]] == [row["top1"] for row in best]
    assert [row["fold"] for row in facts["rows"]] == [0, 1, 2]
    for name in ("top1", "loss"):
        values = [row[name] for row in best]
        assert facts["mean"][name] == pytest.approx(statistics.fmean(values))
        assert facts["std"][name] == pytest.approx(statistics.stdev(values))
    correct = sum(row["correct1"] for row in best)
    assert facts["pooled"] == {"measure": "top1", "correct1": correct, "num_images": 18, "top1": correct / 18}
    assert facts["differing"].keys() == {"data.fold"}
    assert "Cross-validation over 3 folds: no validation image is evaluated in two of them." in facts["notes"]
    text = page.read_text()
    assert "standard deviation" in text
    assert "all together" in text
    assert "<script" not in text


def test_folds_of_two_tables_may_share_images(folds, table, tmp_path, capsys):
    other = trained(shutil.copy(table, table.with_name("other.csv")), "other_table", "data.fold=2")
    capsys.readouterr()
    assert main(["report", *folds[:2], other, "--out", str(tmp_path / "x.html"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["pooled"] is None
    assert "Cross-validation over 3 folds: some images may be evaluated in two of them." in facts["notes"]


def test_a_test_part_is_evaluated_once_and_says_how_much_of_it(table, tmp_path, capsys, monkeypatch):
    calls = []
    measure = results.measure
    monkeypatch.setattr(results, "measure", lambda *options: calls.append(len(options[2])) or measure(*options))
    data = str(table.parent / "data" / "list.csv")
    runs = []
    for name, fraction in (("chosen", "0.25"), ("unchosen", "0")):
        choose = f"data.validate_on={'auto' if name == 'chosen' else 'none'}"
        words = ["data.test_fraction=0.3", f"data.val_fraction={fraction}", choose]
        runs.append(trained(data, str(tmp_path / name), *words))
    calls.clear()
    for run in runs:
        assert main(["report", run, "--images", "2"]) == 0
        assert "2 of 6, evenly spaced" in (Path(run) / "report.html").read_text()
    assert calls == [2, 2, 2]
    assert "chosen: 2 of 6 images of the test part were evaluated." in compare_runs(runs, max_images=2).notes


def test_a_test_part_that_is_gone_is_not_replaced_by_other_images(table, tmp_path, monkeypatch):
    run = trained(str(table.parent / "data" / "list.csv"), str(tmp_path / "gone"), "data.test_fraction=0.3")
    found = dataclasses.replace(results.measure_run(read_run(run)), test=None)
    monkeypatch.setattr(several, "measure_if_possible", lambda record, **options: (found, ""))
    with pytest.raises(RunError, match="has no test part any more"):
        compare_runs([run, str(shutil.copytree(run, tmp_path / "copy"))])


def test_folds_that_choose_nothing_are_test_parts(table, tmp_path, capsys):
    runs = [trained(table, f"none{fold}", f"data.fold={fold}", "data.validate_on=none") for fold in range(3)]
    capsys.readouterr()
    assert main(["report", *runs, "--out", str(tmp_path / "none.html"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    metrics = [deepcait.evaluate(deepcait.open_run(run), table) for run in runs]
    assert [row["test_top1"] for row in facts["rows"]] == [one.top1 for one in metrics]
    pooled = facts["pooled"]
    assert (pooled["measure"], pooled["num_images"]) == ("test_top1", 18)
    assert pooled["correct1"] == sum(one.correct1 for one in metrics)
    assert not any("optimistic" in note for note in facts["notes"])


def test_seeds_share_the_test_part(table, tmp_path, capsys):
    data = str(table.parent / "data" / "list.csv")
    runs = []
    for seed in (0, 1, 2):
        words = [w for s in (*TINY, f"seed={seed}", "data.test_fraction=0.3") for w in ("--set", s)]
        runs.append(str(tmp_path / f"s{seed}"))
        assert main(["train", "--data", data, "--out", runs[-1], "--recipe", "scratch_32", *words]) == 0
    capsys.readouterr()
    assert main(["report", *runs, "--out", str(tmp_path / "seeds.html")]) == 0
    shown = capsys.readouterr().out
    assert "top-1 of the test part" in shown
    assert "standard deviation" in shown
    assert "The test parts differ." not in shown
    for run in runs:
        metrics = deepcait.evaluate(deepcait.open_run(run), data)
        assert f"{100 * metrics.top1:.2f} %" in next(line for line in shown.splitlines() if line.startswith(run[-2:]))


def test_what_differs_is_said_and_other_classes_are_refused(folds, table, tmp_path, capsys):
    other = trained(table, "other", "data.fold=0", "optimizer.lr=1e-3")
    capsys.readouterr()
    assert main(["report", *folds, other, "--out", str(tmp_path / "x.html")]) == 0
    assert (
        "The runs differ in optimizer.lr: the standard deviation is not that of one recipe." in capsys.readouterr().out
    )
    data = table.parent / "two"
    shutil.copytree(table.parent / "data" / "all", data)
    shutil.rmtree(data / "c")
    words = [word for setting in TINY for word in ("--set", setting)]
    two = str(table.parent / "run_two")
    assert main(["train", "--data", str(data), "--out", two, "--recipe", "scratch_32", *words]) == 0
    capsys.readouterr()
    for runs, said in (
        ([*folds, two], "have other classes (only one has c)"),
        ([*folds, folds[0]], "is given twice"),
        ([*folds, str(tmp_path)], "holds no run"),
    ):
        assert main(["report", *runs, "--out", str(tmp_path / "y.html")]) == 2
        assert said in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "y.html").exists()
    assert main(["report", folds[0], two, "--out", str(tmp_path / "y.html")]) == 0
    assert "can't be averaged" in " ".join(capsys.readouterr().out.split())
    assert main(["report"]) == 2
