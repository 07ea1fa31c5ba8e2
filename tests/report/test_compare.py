"""Two runs on one page: what differs, by how much, and whether chance could have done it."""

from __future__ import annotations

import json
import shutil

import pytest

import deepcait
from deepcait.cli.main import main
from deepcait.evaluation import mcnemar
from deepcait.report.intervals import difference
from tests.processes.harness import CLASSES
from tests.report.reading import addresses, read_page, section

SECTIONS = ["results", "images", "curves", "classes", "settings", "environment", "repeat"]
pytestmark = pytest.mark.xdist_group("report")


@pytest.fixture(scope="module")
def page(run, other_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "both.html"
    assert main(["report", str(run), str(other_run), "--out", str(out)]) == 0
    return read_page(out)


@pytest.fixture(scope="module")
def right(run, other_run, bench):
    """By run, which validation pictures it has right, by `predict`."""
    paths = sorted((bench.data / "val").rglob("*.png"))
    return [
        [
            best.label == path.parent.name
            for path, (best, *_) in zip(paths, deepcait.load(one).predict(paths), strict=True)
        ]
        for one in (run, other_run)
    ]


def test_sections(page):
    assert [node.attributes["id"] for node in page.find("section")] == SECTIONS
    assert page.find("h1")[0].text == "first and second"
    assert all(address.startswith(("data:image/", "#")) for address in addresses(page))


def test_results_and_their_difference(page, right):
    first, second = map(sum, right)
    assert first != second or right[0] != right[1]  # else nothing is compared
    low, high = difference((first, 24), (second, 24))
    row = section(page, "results").find("table")[0].rows()[1]
    assert row == [
        "top-1",
        f"{100 * first / 24:.2f} %",
        f"{100 * second / 24:.2f} %",
        f"{100 * (second - first) / 24:+.2f}",
        f"{100 * low:+.2f} to {100 * high:+.2f}",
    ]


def test_the_same_images(page, right):
    pairs = list(zip(*right, strict=True))
    counts = [pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
    rows = section(page, "images").find("table")[0].rows()[1:]
    assert [int(row[1]) for row in rows] == counts
    assert f"p = {mcnemar(counts[1], counts[2]):.2g}" in section(page, "images").text


def test_settings_that_differ_and_only_those(page):
    rows = {row[0]: row[1:] for row in section(page, "settings").find("table")[0].rows()[1:]}
    assert rows == {"epochs": ["5", "3"], "optimizer.lr": ["0.001", "0.003"], "seed": ["0", "3"]}
    assert section(page, "environment").text == "Environment that differs None."


def test_curves_are_laid_over_each_other(page):
    charts = section(page, "curves").find("svg")
    assert len(charts) == 5
    for chart in charts:
        assert "first: " in chart.attributes["aria-label"]
        assert "second: " in chart.attributes["aria-label"]
        colours = {line.attributes["class"] for line in chart.find("polyline")}
        assert len(colours) == len(chart.find("polyline"))  # no two lines look alike


def test_class_by_class(page, right, bench):
    labels = [path.parent.name for path in sorted((bench.data / "val").rglob("*.png"))]
    rows = {row[0]: row[1:3] for row in section(page, "classes").find("table")[0].rows()[1:]}
    for name in CLASSES:
        shares = [sum(ok for ok, label in zip(one, labels, strict=True) if label == name) / 8 for one in right]
        assert rows[name] == [f"{100 * share:.2f} %" for share in shares]


def test_other_data_is_not_compared_image_by_image(run, other_run, bench, tmp_path):
    moved = shutil.copytree(other_run, tmp_path / "moved")
    facts = json.loads((moved / "data.json").read_text())
    (moved / "data.json").write_text(json.dumps(facts | {"fingerprint": "another"}))
    out = tmp_path / "both.html"
    assert main(["report", str(run), str(moved), "--out", str(out)]) == 0
    page = read_page(out)
    assert "different data" in section(page, "images").text
    assert section(page, "results").find("table")


def test_a_run_without_pictures_and_one_of_the_same_name(run, bench, tmp_path):
    gone = shutil.copytree(run, tmp_path / "first")
    config = gone / "config.yaml"
    config.write_text(config.read_text().replace(str(bench.data), str(tmp_path / "nowhere")))
    out = tmp_path / "both.html"
    assert main(["report", str(run), str(gone), "--out", str(out)]) == 0
    page = read_page(out)
    assert page.find("h1")[0].text == f"{run} and {gone}"
    assert "nowhere" in section(page, "images").text
    assert section(page, "results").find("table")[0].rows()[1][3] == "+0.00"
    assert section(page, "curves").find("svg")


def test_the_default_place(run, other_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run), str(other_run), "--images", "6", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == "comparison.html"
    assert (tmp_path / "comparison.html").exists()
