"""What `auto` chooses by device: precision and data-loading workers, said in one line and kept by the run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from deepcait.cli.main import main
from deepcait.data.order import Order
from deepcait.errors import ConfigError
from deepcait.runtime import device as devices
from deepcait.training import compute
from deepcait.training.compute import (
    choose_precision,
    choose_settings,
    choose_workers,
    describe_choices,
    tf32,
    uses_tf32,
)
from deepcait.training.notes import notes_of
from deepcait.training.plan import plan
from deepcait.training.recipe import Recipe, load_recipe
from deepcait.training.resume import resumed_recipe
from deepcait.training.run import train
from tests.training.test_class_names import LETTERS, TINY, write
from tests.training.tiny import section

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
STORED = Path(__file__).parent / "run_0_1"


@pytest.fixture
def data(tmp_path) -> str:
    return write(tmp_path / "data", "folder", LETTERS)


@pytest.fixture
def processors(monkeypatch):
    """A machine with so many processors, and a GPU that has bf16 or not."""

    def become(number: int, *, bf16: bool = True) -> None:
        monkeypatch.setattr(compute, "num_cpus", lambda: number)
        monkeypatch.setattr(compute, "has_bf16", lambda device: bf16)

    become(8)
    return become


@pytest.mark.parametrize(
    ("device", "bf16", "precision"), [(CPU, True, "fp32"), (GPU, True, "bf16"), (GPU, False, "fp16")]
)
def test_precision_by_device(processors, device, bf16, precision):
    processors(8, bf16=bf16)
    assert choose_precision("auto", device) == precision
    for asked in ("fp32", "fp32-strict", "bf16", "fp16"):
        assert choose_precision(asked, device) == asked


@pytest.mark.parametrize(
    ("number", "local", "cpu", "gpu"), [(1, 1, 1, 1), (2, 1, 1, 1), (8, 1, 4, 7), (64, 1, 4, 16), (64, 8, 4, 7)]
)
def test_workers_by_processors(processors, monkeypatch, number, local, cpu, gpu):
    processors(number)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    assert (choose_workers("auto", CPU), choose_workers("auto", GPU)) == (cpu, gpu)
    assert choose_workers(0, GPU) == 0


def test_one_line_says_what_and_why(processors):
    recipe = Recipe()
    line = lambda asked, device: describe_choices(asked, choose_settings(asked, device), device)  # noqa: E731
    assert line(recipe, CPU) == "cpu, fp32 (auto: cpu), 4 data-loading workers (auto: 8 processors)"
    expected = "cuda:0, bf16 (auto: this GPU has it), TF32 for what stays fp32, 7 data-loading workers"
    assert line(recipe, GPU) == f"{expected} (auto: 8 processors)"
    strict = section(section(recipe, "compute", precision="fp32-strict"), "data", num_workers=1)
    assert line(strict, GPU) == "cuda:0, fp32-strict, no TF32, 1 data-loading worker"
    processors(8, bf16=False)
    assert "fp16 (auto: this GPU has no bf16)" in line(recipe, GPU)
    assert "bf16, which this GPU only emulates" in line(section(recipe, "compute", precision="bf16"), GPU)


def test_a_run_says_it_and_keeps_its_precision(data, tmp_path, capsys, processors):
    processors(2)
    sets = [word for word in TINY if not word.startswith("data.num_workers")]
    argv = ["train", "--data", data, "--recipe", "scratch_32", "--out", str(tmp_path / "run"), "--set", *sets]
    assert main([*argv, "epochs=1"]) == 0
    assert "cpu, fp32 (auto: cpu), 1 data-loading worker (auto: 2 processors)" in capsys.readouterr().out
    kept = load_recipe(str(tmp_path / "run" / "config.yaml"))
    assert (kept.compute.precision, kept.data.num_workers) == ("fp32", "auto")
    given = load_recipe("scratch_32", [*sets, "epochs=1", f"data.source={data}"])
    assert given.compute.precision == "auto"
    assert resumed_recipe(tmp_path / "run", given).compute.precision == "fp32"
    other = section(given, "compute", precision="bf16")
    with pytest.raises(ConfigError, match=r"compute\.precision"):
        resumed_recipe(tmp_path / "run", other)
    assert main([*argv, "epochs=1", "--dry-run", "--json", "--out", str(tmp_path / "other")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["device"], facts["precision"], facts["num_workers"]) == ("cpu", "fp32", 1)


def test_auto_on_a_cpu_is_bitwise_fp32(data, tmp_path):
    for precision in ("auto", "fp32", "fp32-strict"):
        settings = [*TINY, f"data.source={data}", f"compute.precision={precision}", "epochs=1"]
        train(load_recipe("scratch_32", settings), tmp_path / precision)
    content = [(tmp_path / one / "best/model.safetensors").read_bytes() for one in ("auto", "fp32", "fp32-strict")]
    assert content[0] == content[1] == content[2]


def test_runs_of_0_1_keep_fp32_two_workers_and_no_tf32():
    recipe = load_recipe(str(STORED / "run/config.yaml"))
    assert recipe.compute.precision == "fp32"
    assert not uses_tf32(recipe)
    assert uses_tf32(dataclasses.replace(recipe, version=2))
    assert not uses_tf32(section(Recipe(), "compute", precision="fp32-strict"))


def test_tf32_is_allowed_inside_alone():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for allowed in (True, False):
        with tf32(GPU, allowed):
            inside = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
            assert inside == ("high" if allowed else "highest", allowed)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    with tf32(CPU, True):
        assert torch.get_float32_matmul_precision() == before[0]


def test_fp16_with_a_small_layer_scale_is_noted():
    recipe = load_recipe("pretrain", ["model=cait_m36_224", "compute.precision=fp16"])
    assert any(
        "compute.precision is fp16 and LayerScale begins at 1e-06" in note
        for note in notes_of(recipe, Order(64, 32), 1000)
    )
    for settings in (["compute.precision=bf16"], ["compute.precision=fp16", "layer_scale_init=0.1"]):
        other = load_recipe("pretrain", ["model=cait_m36_224", *settings])
        assert not any("fp16" in note for note in notes_of(other, Order(64, 32), 1000))


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "mps"])
@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--data", "builtin:demo", "--out", "OUT", "--model", "builtin:nano"],
        ["train", "--data", "builtin:demo", "--out", "OUT", "--model", "builtin:nano", "--dry-run"],
        ["eval", "builtin:nano", "--data", "builtin:demo"],
        ["explain", "builtin:nano", "IMAGE", "--out", "OUT"],
        ["predict", "builtin:nano", "IMAGE"],
        ["serve", "builtin:nano"],
    ],
)
def test_a_gpu_that_is_not_there_is_one_sentence(tmp_path, monkeypatch, capsys, argv, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    image = next((Path(devices.__file__).parent.parent / "assets" / "demo" / "test").rglob("*.png"))
    words = [{"OUT": str(tmp_path / "out"), "IMAGE": str(image)}.get(word, word) for word in argv]
    assert main([*words, "--device", device]) == 2
    told = " ".join(capsys.readouterr().err.split())
    sentence = f"error: device '{device}' is not available: PyTorch finds no "
    assert told.startswith(sentence)
    assert told.count("error:") == 1
    assert "http" not in told
    assert not (tmp_path / "out").exists()


def test_the_plan_measures_in_the_chosen_precision(data):
    facts = plan(load_recipe("scratch_32", [*TINY, f"data.source={data}", "compute.precision=bf16"]))
    assert facts["compute"] == "cpu, bf16, 0 data-loading workers"
