"""The table of studies, their plots and pages are those that docs/results/studies.py writes from the results."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from deepcait.study.grid import grid_names

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "docs" / "results"
studies = SimpleNamespace(**runpy.run_path(str(RESULTS / "studies.py")))


def file_of(name: str) -> Path:
    return RESULTS / f"{studies.stem(name)}.json"


def test_the_table_and_the_plots_are_those_of_the_results():
    found = studies.read_studies(RESULTS)
    page = (ROOT / "docs" / "guides" / "study.md").read_text(encoding="utf-8")
    assert f"<!-- studies -->\n\n{studies.table(found)}\n\n<!-- end of studies -->" in page
    assert f"<!-- plots -->\n\n{studies.plots(found)}\n\n<!-- end of plots -->" in page
    assert studies.table(found).count("\n") == len(found) + 1
    assert {path.stem for path in RESULTS.glob("study_*.json")} == {
        file_of(entry["study"]).stem for entry in [*found, *studies.read_others(RESULTS)]
    }


def test_the_pages_are_those_of_the_results():
    for found in [*studies.read_studies(RESULTS), *studies.read_others(RESULTS)]:
        assert (RESULTS / f"{studies.stem(found['study'])}.md").read_text(encoding="utf-8") == studies.page(found)


def test_the_seeds_of_distillation_on_the_page_are_those_of_the_results():
    found = json.loads(file_of("distillation").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "guides" / "study.md").read_text(encoding="utf-8")
    for title, place in zip(("labels only", "hard", "soft"), found["table"], strict=True):
        figures = [f"{100 * value:.2f}" for value in (*place["top1"], place["mean"])]
        (row,) = (row for row in page.splitlines() if row.startswith(f"| {title}") and row.count("|") == 6)
        assert [cell.strip() for cell in row.split("|")[2:6]] == figures


def test_every_study_of_the_package_has_its_question():
    assert sorted([*studies.QUESTIONS, *studies.OTHERS]) == grid_names()


def test_a_study_without_a_file_is_left_out_and_the_order_is_fixed(tmp_path):
    for name in ("resolution", "class-token"):
        shutil.copy(file_of(name), tmp_path)
    assert [found["study"] for found in studies.read_studies(tmp_path)] == ["class-token", "resolution"]


def test_a_study_of_another_scale_is_refused(tmp_path):
    text = file_of("resolution").read_text(encoding="utf-8")
    (tmp_path / "study_resolution.json").write_text(text.replace("2 seeds", "1 seeds"), encoding="utf-8")
    with pytest.raises(ValueError, match="resolution: expected a study of 2 seeds, got CIFAR-10"):
        studies.read_studies(tmp_path)


def test_each_place_of_a_line_says_what_came_of_it():
    found = json.loads(file_of("layerscale").read_text(encoding="utf-8"))
    line = studies.line(found)
    assert "; 24 blocks: baseline 37.59, ReZero 39.09 (+1.49), LayerScale 38.08 (n.s., +0.49) | " in line
    assert line.endswith("| 12 blocks: baseline 79.9, LayerScale 80.5; 24 blocks: baseline 81.0 |")
    reference, rezero, layerscale = found["table"][:3]
    rezero |= {"mean": None, "failed": 1, "compared": "failed"}
    layerscale |= {"mean": None, "open": 2, "compared": "not done yet"}
    assert "6 blocks: baseline 38.42, ReZero failed, LayerScale not done yet; " in studies.line(found)
    reference |= {"mean": None, "failed": 2}
    layerscale |= {"mean": 0.4, "compared": "the reference failed"}
    assert "baseline failed, ReZero failed, LayerScale 40.00 (the reference failed); " in studies.line(found)


def test_a_title_that_ends_with_a_number_is_parted_from_the_figure():
    found = json.loads(file_of("class-token").read_text(encoding="utf-8"))
    found |= {"study": "heads", "plan": found["plan"] | {"only": ["h1", "h3", "h8"]}}
    for place, percent in zip(found["table"], (76.8, 79.35, None), strict=True):
        place["paper_percent"] = percent
    line = studies.line(found)
    assert "| 6 epochs: 1: 38.52; 3: 36.41 (-2.12); 8: 35.38 (-3.14) |" in line
    assert line.endswith("| 1: 76.8; 3: 79.35 |")


def test_only_what_is_between_the_marks_is_written_anew():
    assert studies.put_between("a <1> old\n <2> b <2>", "<1>", "<2>", "new") == "a <1>\n\nnew\n\n<2> b <2>"
    with pytest.raises(ValueError, match="substring not found"):
        studies.put_between("a <1> b", "<1>", "<2>", "new")
