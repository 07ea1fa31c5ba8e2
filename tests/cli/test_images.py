"""Limits on images have one name in every command, recipe and error; the range of deep images goes with the model."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deepcait
from deepcait.cli.main import COMMANDS, main
from deepcait.data import ImageOptions
from deepcait.data.source import options_of, with_options
from deepcait.training.keys import recipe_keys

PACKAGE = Path(deepcait.__file__).parent
LIMITS = {field.name for field in dataclasses.fields(ImageOptions)}


def options() -> set[str]:
    """Every option of every command."""
    modules = [importlib.import_module(f"deepcait.cli.{verb}") for verb in COMMANDS]
    names = {field.name for module in modules if hasattr(module, "Args") for field in dataclasses.fields(module.Args)}
    return {f"--{name.rstrip('_').replace('_', '-')}" for name in names} | {"--help", "--version"}


def remedies() -> list[tuple[str, str]]:
    """Every text in the package that is a remedy, with the file that it is in."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "remedy":
                texts = [part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant)]
                found.append((path.name, " ".join(str(text) for text in texts)))
    return found


# Of torchrun, srun, pip, docker, tar, gunicorn.
FOREIGN = {
    "--shm-size",
    "--nproc-per-node",
    "--nnodes",
    "--rdzv-endpoint",
    "--index-url",
    "--dereference",
    "--ntasks",
    "--ntasks-per-node",
    "--force-reinstall",
    "--preload",
}


def test_every_option_named_in_a_remedy_exists():
    known = options() | FOREIGN
    named = [(file, option) for file, text in remedies() for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)]
    assert len(named) > 50
    assert [(file, option) for file, option in named if option not in known] == []


def test_every_key_named_in_a_remedy_exists():
    keys = {key.key for key in recipe_keys()}
    sections = {key.partition(".")[0] for key in keys if "." in key}
    pattern = re.compile(rf"(?<![\w./-])(?:{'|'.join(sections)})\.[a-z_]+(?![\w(/.])")
    named = [(file, key) for file, text in remedies() for key in pattern.findall(text)]
    assert len(named) > 10
    assert [(file, key) for file, key in named if key not in keys] == []


@pytest.mark.parametrize("verb", ["predict", "explain", "eval", "doctor"])
def test_every_command_that_reads_images_has_the_limits(verb):
    own = {field.name for field in dataclasses.fields(importlib.import_module(f"deepcait.cli.{verb}").Args)}
    assert own >= LIMITS
    assert {f"data.{name}" for name in LIMITS} <= {key.key for key in recipe_keys()}


@pytest.fixture
def deep(tmp_path) -> Path:
    """Two classes of 16-bit images with 12 bits in use."""
    ramp = np.tile(np.arange(0, 4096, 64, dtype=np.uint16), (64, 1))
    tmp_path /= "deep"
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(4):
            values = (ramp if name == "cat" else ramp.T)[: 40 + number]
            Image.fromarray(np.ascontiguousarray(values)).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_limits_reach_the_images_of_predict_eval_and_doctor(deep, capsys):
    image = str(deep / "cat" / "0.png")
    assert main(["predict", "builtin:nano", image, "--max-pixels", "100"]) == 2
    assert "at most 100 pixels" in " ".join(capsys.readouterr().err.split())
    assert main(["eval", "builtin:nano", "--data", str(deep), "--max-bytes", "10"]) == 2
    assert "at most 10 bytes" in " ".join(capsys.readouterr().err.split())
    assert main(["doctor", "--data", str(deep), "--strict", "--max-pixels", "100"]) == 3
    assert "bomb" in capsys.readouterr().out
    assert main(["doctor", "--data", str(deep)]) == 0
    assert "16 of 256 levels" in capsys.readouterr().out
    assert main(["doctor", "--data", str(deep), "--max-value", "4095"]) == 0
    assert "levels remain" not in capsys.readouterr().out


def test_the_range_goes_with_the_model(deep, tmp_path):
    settings = ["epochs=1", "global_batch_size=4", "replicas=1", "data.num_workers=0", "data.max_value=4095"]
    run = str(tmp_path / "run")
    assert main(["train", "--data", str(deep), "--out", run, "--model", "builtin:nano", "--set", *settings]) == 0
    loaded = deepcait.load(run, device="cpu")
    assert loaded.image_options.max_value == 4095
    assert np.asarray(loaded.open(str(deep / "cat" / "0.png"))).max() == 252
    assert deepcait.load("builtin:nano", device="cpu").image_options == ImageOptions()


def test_options_belong_to_the_source_that_reads(deep):
    from deepcait.data import open_split

    source = with_options(open_split(deep, "train"), ImageOptions(max_value=4095))
    assert options_of(source).max_value == 4095
    assert options_of(open_split(deep, "train")) == ImageOptions()
