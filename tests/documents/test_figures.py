"""README, the pages and docs/results say the same numbers."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = [
    page for page in sorted(DOCS.rglob("*.md")) if page.relative_to(DOCS).parts[0] not in ("results", "dev", "api")
]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUARANTEES = (DOCS / "dev" / "guarantees.md").read_text(encoding="utf-8")
_LINK = re.compile(r"\]\((?:docs/|\.\./)(results/[\w.-]+\.json)\)")
_NUMBER = re.compile(r"(?<![\w.,/-])\d[\d,]*(?:\.\d+)?(?![\w-])")


def leaves(found: Any) -> list[str | float]:
    """Every number and text of a results file, at any depth; lengths of lists too."""
    if isinstance(found, dict):
        return [leaf for key, value in found.items() for leaf in [str(key), *leaves(value)]]
    if isinstance(found, list):
        return [float(len(found)), *(leaf for value in found for leaf in leaves(value))]
    return [found] if isinstance(found, str | int | float) and not isinstance(found, bool) else []


def is_in(shown: str, found: list[str | float]) -> bool:
    """Whether a printed number is one of a file's: rounded alike, in percent, bytes as MiB, or written in its texts."""
    decimals = len(shown.partition(".")[2])
    numbers = [leaf for leaf in found if not isinstance(leaf, str)]
    texts = {f"{factor * leaf:.{decimals}f}" for leaf in numbers for factor in (1, 100, 2**-20)}
    plain = shown.replace(",", "")
    return plain in texts or any(isinstance(leaf, str) and shown in leaf for leaf in found)


def rows_with_results() -> list[tuple[str, str, list[Path]]]:
    """Each row of the guarantees and of README that leads to results: its line, its figures, the files."""
    rows = []
    for line in [*GUARANTEES.splitlines(), *README.splitlines()]:
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        files = [DOCS / name for name in _LINK.findall(line)]
        if line.startswith("|") and files:
            rows.append((cells[0], cells[2] if len(cells) == 4 else " ".join(cells[1:]), files))
    return rows


@pytest.mark.parametrize("row", rows_with_results(), ids=lambda row: row[2][0].name)
def test_a_guarantee_says_what_its_results_say(row):
    _, figure, files = row
    found = [leaf for path in files for leaf in leaves(json.loads(path.read_text(encoding="utf-8")))]
    words = re.sub(r"\[[^]]*\]\([^)]*\)", "", figure)
    decimals = [number for number in _NUMBER.findall(words) if "." in number or "," in number]
    assert [number for number in decimals if not is_in(number, found)] == []


def test_the_comparison_can_say_no():
    found = leaves({"top1": 0.5539, "counts": {"right": 5539}, "curve": [0.1, 0.2], "note": "1.76 times"})
    assert all(is_in(shown, found) for shown in ("55.39", "55.4", "5,539", "1.76", "0.55"))
    assert not any(is_in(shown, found) for shown in ("55.40", "5,540", "1.77", "0.56"))
    assert _NUMBER.findall("9,989 answers, p99 655 ms, 1.76 times, sha256 a1b2, v2.1") == ["9,989", "655", "1.76"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_accuracies_in_the_pages_were_measured(page):
    """Two decimals and a percent sign are ours; what others report has one."""
    found = [leaf for path in (DOCS / "results").glob("*.json") for leaf in leaves(json.loads(path.read_text()))]
    shown = re.findall(r"(\d+\.\d\d) %", page.read_text(encoding="utf-8"))
    assert [number for number in shown if not is_in(number, found)] == []


def test_every_result_says_how_it_was_got():
    for path in (DOCS / "results").glob("*.json"):
        facts = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(facts, dict), path.name
        assert facts.get("command"), f"{path.name}: no command"


def test_the_page_on_scaling_is_computed_from_the_measurement():
    path = DOCS / "results" / "scaling.py"
    spec = importlib.util.spec_from_file_location("scaling", path)
    assert spec is not None
    assert spec.loader is not None
    scaling = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scaling)
    facts = json.loads((DOCS / "results" / "scaling.json").read_text(encoding="utf-8"))
    page = (DOCS / "dev" / "scaling.md").read_text(encoding="utf-8")
    for row in [*scaling.machines_table(facts["images_per_s_alone"]), *scaling.speed_table()]:
        assert f"{row}\n" in page
    for seconds in [*facts["median_s"].values(), facts["computed_together_s"]]:
        assert f"| {seconds} |" in page
    # By hand: 2 processes send all of 4 bytes x 1,000,000 once, 8 of them 7/4 of it.
    assert scaling.exchange_s(1_000_000, 2, 32) == pytest.approx(1e-3 + 2 * 50e-6)
    assert scaling.exchange_s(1_000_000, 8, 32) == pytest.approx(1.75e-3 + 14 * 50e-6)
    assert scaling.exchange_s(1_000_000, 1, 32) == 0


def speed_rows() -> list[str]:
    """The table of the notes on speed: deepcait over timm on each engine, best over best, share of the limit."""
    rows = []
    for path in sorted((DOCS / "results").glob("bench_cait_*_224_b*.json"), key=lambda path: "_s24_" in path.name):
        facts = json.loads(path.read_text(encoding="utf-8"))
        for row in facts["batches"]:
            ratios = [f"{row['engines'][name]['ratio']:.2f}" for name in ("eager", "compile", "onnx", "openvino")]
            best = [f"{row['best_ratio']:.2f} ({row['best_ours'].split()[0]}, {row['best_peer'].split()[0]})"]
            cells = [facts["model"].split("_")[1].upper(), str(row["batch"]), *ratios, *best, f"{row['of_limit']:.2f}"]
            rows.append(" ".join(("|", " | ".join(cells), f"| [results](../results/{path.stem}.md) |")))
    return rows


def script(name: str) -> Any:
    """A script beside the results, as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "results" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_precisions_are_those_of_the_results():
    page, precisions = (DOCS / "concepts" / "speed.md").read_text(encoding="utf-8"), script("precisions")
    amx = "precisions_amx_cait_*_t*.json"
    tables = precisions.speed_table(), precisions.speed_table(amx), precisions.error_table(), precisions.bf16_table()
    for table in tables:
        assert len(table) >= 4
        assert "\n".join(table) in page
    table = script("int8_libraries").table(DOCS / "results" / "int8_builtin_nano.json")
    assert "\n".join(table) in (DOCS / "dev" / "speed.md").read_text(encoding="utf-8")


def test_the_table_of_training_steps_is_that_of_the_results():
    table = script("train_steps").table()
    assert len(table) == 22
    assert "\n".join(table) in (DOCS / "concepts" / "speed.md").read_text(encoding="utf-8")


def test_the_losses_with_and_without_layerscale_are_those_of_the_results():
    facts = json.loads((DOCS / "results" / "deep_layerscale.json").read_text(encoding="utf-8"))
    table = script("deep_layerscale").table(facts)
    assert len(table) == 6
    assert "\n".join(table) in (DOCS / "guides" / "study.md").read_text(encoding="utf-8")


def test_the_table_of_speed_is_that_of_the_results():
    page = (DOCS / "dev" / "speed.md").read_text(encoding="utf-8")
    rows = speed_rows()
    assert [line for line in page.splitlines() if "](../results/bench_cait_" in line and line.startswith("|")] == rows
    assert len(rows) >= 4


def test_the_table_of_fine_tuning_is_that_of_the_results():
    """Every row of the guide is one of the page, and the page is computed from the figures."""
    spec = importlib.util.spec_from_file_location("finetuning", DOCS / "results" / "finetuning.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    computed = script.table(json.loads((DOCS / "results" / "finetuning.json").read_text())["rows"]).splitlines()
    shown = [
        line for line in (DOCS / "guides" / "finetune.md").read_text().splitlines() if " ± " in line and "|" in line
    ]
    assert len(shown) >= 2
    assert [line for line in shown if line not in computed] == []
