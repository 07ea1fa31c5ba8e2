"""A run of deepcait 0.1, interrupted, ends with today's code as it ended with 0.1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from deepcait.backends import native, products
from deepcait.cli.main import main
from deepcait.errors import ConfigError
from deepcait.runtime.environment import processor_vendor
from deepcait.training.recipe import load_recipe
from tests.training.make_run_0_1 import digest

STORED = Path(__file__).parent / "run_0_1"


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The stored run beside its data, as the run's config.yaml names them."""
    shutil.copytree(STORED, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    return Path("run")


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_of_0_1_resumes_bit_exactly(stopped, capsys, monkeypatch):
    """With the products of 0.1; others round differently.

    Validation is on `test`, since 0.1 did so; nothing is held out of train, and the resumed run says so.
    """
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(products, "_has_fast_convolutions", lambda: torch.backends.mkldnn.is_available())
    expected = json.loads((STORED / "resumed.json").read_text())
    assert main(["train", "--resume", "--out", str(stopped)]) == 0
    assert "validation: folder, split test: 18 images" in capsys.readouterr().out
    split = json.loads((stopped / "split.json").read_text())
    assert (len(split["val"]), split["splits"]["val"], split["test"]) == (18, "test", [])
    same_machine = (torch.__version__, torch.backends.cpu.get_cpu_capability(), processor_vendor())
    if same_machine == (expected["torch"], expected["cpu_capability"], "AuthenticAMD"):
        assert rows(stopped) == expected["metrics"]
        assert {name: digest(stopped / name) for name in expected["sha256"]} == expected["sha256"]
    for row, of_0_1 in zip(rows(stopped), expected["metrics"], strict=True):
        assert row.keys() == of_0_1.keys()
        assert row["loss"] == pytest.approx(of_0_1["loss"], abs=1e-3)


def test_a_config_without_version_means_what_0_1_did():
    recipe = load_recipe(str(STORED / "run/config.yaml"))
    assert (recipe.version, recipe.data.validate_on, recipe.data.labels) == (1, "0.1", "0.1")
    assert recipe.compute.precision == "fp32"


def test_a_resumed_run_of_0_1_resumes_again(stopped):
    """What is written back says that the run is one of 0.1."""
    recipe = load_recipe(str(stopped / "config.yaml"))
    (stopped / "config.yaml").write_text(recipe.to_yaml())
    assert load_recipe(str(stopped / "config.yaml")) == recipe


def test_settings_beside_resume_are_laid_over_what_0_1_did(stopped):
    settings = json.loads((stopped / "best/config.json").read_text())["deepcait"]["recipe"]
    same = ["--set", f"epochs={settings['epochs']}", "data.num_workers=0"]
    assert main(["train", "--resume", "--out", str(stopped), *same]) == 0


def test_another_file_without_version_is_read_as_today(tmp_path):
    text = (STORED / "run/config.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text)
    assert load_recipe(str(tmp_path / "mine.yaml")).data.validate_on == "auto"
    (tmp_path / "config.yaml").write_text("version: 3\n" + text)
    with pytest.raises(ConfigError, match="version"):
        load_recipe(str(tmp_path / "config.yaml"))
