"""The report of a run: everything named is there, its figures are the model's."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import deepcait
from deepcait.cli.main import main
from deepcait.evaluation import Records, wilson
from deepcait.evaluation.counts import score
from deepcait.evaluation.records import join, record
from deepcait.report.parts import counted, repeat_command
from deepcait.report.record import read_run
from deepcait.report.results import choose_mistakes, measure_run, name_classes, thin_out
from tests.processes.harness import CLASSES
from tests.report.reading import SECTIONS, addresses, read_page, section

pytestmark = pytest.mark.xdist_group("report")


@pytest.fixture(scope="module")
def page(run):
    return read_page(run / "report.html")


@pytest.fixture(scope="module")
def answers(run, bench):
    """(label, answer, probability of the answer) of each validation picture, by `predict`."""
    classifier = deepcait.load(run)
    paths = sorted((bench.data / "val").rglob("*.png"))
    return {
        path.relative_to(bench.data / "val").as_posix(): (path.parent.name, best.label, best.probability)
        for path, (best, *_) in zip(paths, classifier.predict(paths), strict=True)
    }


# -- what it shows ----------------------------------------------------------------------------------------------------


def test_training_wrote_it_and_said_so(bench, tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(bench.train(folder, "--set", "epochs=1", "--json")) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["report"] == str(folder / "report.html")
    assert f"report:    {folder / 'report.html'}" in said.err
    assert (folder / "report.html").stat().st_size > 10_000


def test_every_section_is_there_and_nothing_is_fetched(page):
    assert [node.attributes["id"] for node in page.find("section")] == SECTIONS
    links = [node.attributes["href"] for node in page.find("nav")[0].find("a")]
    assert links == [f"#{name}" for name in SECTIONS]
    assert all(address.startswith(("data:image/", "#")) for address in addresses(page))
    assert page.find("script") == page.find("link") == page.find("iframe") == []
    (policy,) = page.find("meta", http_equiv="") or page.find("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in policy.attributes["content"]
    assert "url(" not in page.find("style")[0].text
    assert all(image.attributes["alt"] for image in page.find("img"))


def test_figures_are_those_of_the_model(page, answers, run):
    right = sum(label == answer for label, answer, _ in answers.values())
    (row,) = [row for row in section(page, "metrics").find("table")[0].rows() if row[0].startswith("best")]
    low, high = wilson(right, len(answers))
    assert row[1:3] == [f"{100 * right / len(answers):.2f} %", f"{100 * low:.2f} to {100 * high:.2f} %"]
    assert row[-2:] == [str(len(answers)), "chose the best epoch"]
    # Of three classes the right one is always among five answers: nothing is said of that.
    assert "top-5" not in page.find("main")[0].text.lower()
    assert "Top-5" not in page.find("header")[0].text
    assert "the same as during training" in section(page, "metrics").text
    matrix = section(page, "confusion").find("table")[0].rows()
    assert matrix[0][1:] == list(CLASSES)
    for label, *cells in matrix[1:]:
        counts = [sum((label, answer) == pair[:2] for pair in answers.values()) for answer in CLASSES]
        assert cells == [str(count) if count else "·" for count in counts]


def test_mistakes_are_the_worst_and_the_nearest(page, answers):
    wrong = {name: found for name, found in answers.items() if found[0] != found[1]}
    assert wrong
    cards = section(page, "mistakes").find("figure")
    names = [card.find("code")[0].text for card in cards]
    assert len(set(names)) == len(names)
    shown = [next(name for name in wrong if name.endswith(shown)) for shown in names]
    worst = max(wrong, key=lambda name: wrong[name][2])
    assert shown[0] == worst
    for card, name in zip(cards, shown, strict=True):
        label, answer, _ = wrong[name]
        assert card.find("strong")[0].text == f"{label} → {answer}"
        # Names that are read from right to left stay on their sides of the arrow.
        assert [name.text for name in card.find("bdi")] == [label, answer]
        frame, attention = card.find("img")
        assert "class attention" in attention.attributes["alt"]
        assert frame.attributes["src"] != attention.attributes["src"]
        (truth,) = [bar for bar in card.find("li") if "truth" in (bar.attributes.get("class") or "")]
        assert truth.text.startswith(label)


def test_curves_follow_the_journal(page, run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    charts = {chart.attributes["aria-label"].partition(":")[0]: chart for chart in section(page, "curves").find("svg")}
    assert set(charts) == {"Loss", "Accuracy", "Learning rate", "Gradient norm", "Speed"}
    evaluated = [row for row in rows if row["kind"] == "eval"]
    told = charts["Accuracy"].attributes["aria-label"]
    assert f"top-1 from {100 * evaluated[0]['top1']:.2f} % to {100 * evaluated[-1]['top1']:.2f} %" in told
    points = [dot.find("title")[0].text for dot in charts["Accuracy"].find("circle")]
    for row in evaluated:
        assert f"top-1, {row['epoch']:g}: {100 * row['top1']:.2f} %" in points
    for chart in charts.values():
        _, _, width, height = map(
            float, chart.attributes["viewBox" if "viewBox" in chart.attributes else "viewbox"].split()
        )
        for line in chart.find("polyline"):
            for x, y in (map(float, point.split(",")) for point in line.attributes["points"].split()):
                assert 0 <= x <= width
                assert 0 <= y <= height


def test_data_recipe_environment_and_how_to_repeat(page, run, bench):
    data = section(page, "data").text
    assert "72 images" in data
    assert "24 images" in data
    rows = section(page, "data").find("table")[1].rows()[1:]
    assert [row[0] for row in rows] == list(CLASSES)
    for row in rows:
        assert row[1:3] == ["24", "8"]
    facts = dict(section(page, "recipe").find("table")[0].rows())
    # The bench starts from a model's weights: the recipe's `start`, which speaks of names, is not what happened.
    assert facts["start"] == f"the weights of {bench.model}"
    assert facts["length"] == "5 epochs, 8 images per step"
    assert section(page, "recipe").find("pre")[0].text == " ".join((run / "config.yaml").read_text().split())
    environment = section(page, "environment").text
    for word in ("python", f"torch {torch.__version__.partition('+')[0]}", "threads", "commit"):
        assert word in environment
    assert f"deepcait train --recipe {run / 'config.yaml'} --out" in section(page, "repeat").text


@pytest.mark.process
@pytest.mark.slow
def test_the_command_to_repeat_repeats(page, run):
    """The printed line, run by a shell, makes a run with the same metrics."""
    line = section(page, "repeat").find("pre")[0].text
    command = line[line.index("deepcait train") :].removeprefix("deepcait")
    subprocess.run(f"{sys.executable} -m deepcait{command}", shell=True, check=True, capture_output=True)
    again = run.with_name(f"{run.name}-again")
    assert (again / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


def test_names_cannot_break_the_page(run, bench, tmp_path):
    """Class and file names that are HTML appear as text."""
    name = "<img src=x onerror=alert(1)> & \"so\" 'on'"
    for split in ("train", "val"):
        shutil.copytree(bench.data / split / CLASSES[0], tmp_path / "data" / split / name)
        shutil.copytree(bench.data / split / CLASSES[1], tmp_path / "data" / split / "b")
    options = ["--recipe", str(bench.recipe), "--model", "cait_nano_32", "--set", "epochs=1", "start=random"]
    options += ["model=cait_nano_32", "shape={patch_size: 8, depth: 1}"]
    out = tmp_path / "run <b>"
    assert main(["train", "--data", str(tmp_path / "data"), "--out", str(out), *options]) == 0
    page = read_page(out / "report.html")
    assert name in section(page, "data").text
    assert page.find("h1")[0].text == "run <b>"
    pictures = page.find("img")
    assert pictures
    assert all(image.attributes["src"].startswith("data:image/") for image in pictures)


# -- parts ------------------------------------------------------------------------------------------------------------


def test_choosing_mistakes():
    probabilities_NK = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.55, 0.45], [0.2, 0.8], [0.99, 0.01]]).double()

    def records(rows: slice) -> Records:
        logits_NK = probabilities_NK[rows].log()
        labels_N1 = torch.ones(len(logits_NK), 1, dtype=torch.long)
        part = record(torch.arange(len(logits_NK)), logits_NK, labels_N1, score(logits_NK, labels_N1), 2)
        return join([part], [str(row) for row in range(5)], None)

    assert choose_mistakes(records(slice(5)), count=2) == ([4, 0], [2, 1])
    assert choose_mistakes(records(slice(3, 4))) == ([], [])
    assert choose_mistakes(records(slice(1))) == ([0], [])


def test_names_of_classes():
    """Two pairs of ImageNet's classes share a name: with the wnid beside it a mistake between them can be read."""
    assert name_classes(["n02012849", "n03126707", "n02123045", "x"]) == [
        "crane (n02012849)",
        "crane (n03126707)",
        "tabby, tabby cat",
        "x",
    ]


@pytest.mark.parametrize(("folder", "expected"), [("run", "run-again"), (".", "HERE-again"), ("..", "ABOVE-again")])
def test_the_command_to_repeat_of_any_folder(run, tmp_path, monkeypatch, folder, expected):
    here = tmp_path / "pets"
    (here / "run").mkdir(parents=True)
    monkeypatch.chdir(here)
    record = dataclasses.replace(read_run(run), folder=Path(folder), environment={})
    words = shlex.split(repeat_command(record))
    assert words[-1] == expected.replace("HERE", str(here)).replace("ABOVE", str(tmp_path))
    assert words[words.index("--recipe") + 1] == str(Path(words[-1].removesuffix("-again")) / "config.yaml")


def test_one_of_something_is_not_many():
    assert counted(1, "epoch") == "1 epoch"
    assert counted(2, "class", "classes") == "2 classes"
    assert counted(1_281_167, "image") == "1,281,167 images"


def test_thinned_out_at_even_distances(run):
    source = measure_run(read_run(run), max_images=6)
    assert (source.num_images, source.total) == (6, 24)
    assert source.per_class.support_K.tolist() == [2, 2, 2]
    assert thin_out(range(5), 5) == range(5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no run was given"),
        (["RUN", "RUN", "c"], "c: no such folder"),
        (["RUN", "RUN", "RUN"], "is given twice"),
        (["nowhere"], "no such folder"),
        (["RUN", "--images", "0"], "--images: expected 1 or more"),
        (["RUN", "--out", "no/such/folder/x.html"], "the folder no/such/folder does not exist"),
        (["RUN", "--data", "no/such/data", "--device", "tpu"], "tpu"),
        (["RUN", "--data", "no/such/data"], "no/such/data"),
        (["RUN", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_of_the_user(run, capsys, arguments, words):
    assert main(["report", *(str(run) if word == "RUN" else word for word in arguments)]) == 2
    said = capsys.readouterr().err
    assert words in " ".join(said.split())
    assert "remedy:" in said
    assert not re.search("Traceback", said)
