"""What `auto` chooses by device: precision and data-loading workers, said in one line and kept by the run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import types
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
import torch._functorch.config as functorch

from deepcait.cli.main import main
from deepcait.data.order import Order
from deepcait.errors import ConfigError
from deepcait.runtime import device as devices
from deepcait.runtime.processes import Processes
from deepcait.training import compute
from deepcait.training.compute import (
    choose_compile,
    choose_precision,
    choose_settings,
    choose_workers,
    compiled_memory,
    describe_choices,
    not_compiled,
    set_compute,
    tf32,
    uses_tf32,
    wrap,
)
from deepcait.training.notes import notes_of
from deepcait.training.plan import plan
from deepcait.training.recipe import Recipe, load_recipe
from deepcait.training.resume import resumed_recipe
from deepcait.training.run import train
from deepcait.training.settings import Compute
from tests.training.test_class_names import LETTERS, TINY, write
from tests.training.tiny import section, tiny_model

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
        monkeypatch.setattr(compute, "why_not_compiled", lambda device: "")

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


@pytest.mark.parametrize(
    ("settings", "device", "expected"),
    [
        ({}, GPU, "blocks"),
        ({}, CPU, False),
        ({"backend": "reference"}, GPU, "blocks"),
        ({"backend": "lean"}, GPU, False),
        ({"grad_checkpointing": True}, GPU, False),
        ({"compile": True}, CPU, True),
        ({"compile": False}, GPU, False),
        ({"compile": "blocks"}, CPU, "blocks"),
    ],
)
def test_blocks_are_compiled_on_a_gpu(processors, settings, device, expected):
    assert choose_compile(Compute(**settings), device) == expected


def test_without_a_compiler_the_steps_are_not_compiled(processors, monkeypatch):
    monkeypatch.setattr(compute, "why_not_compiled", lambda device: "no C compiler")
    chosen = choose_settings(Recipe(), GPU)
    assert chosen.compute.compile is False
    assert "not compiled (no C compiler)" in describe_choices(Recipe(), chosen, GPU)


def test_an_unknown_way_to_compile_is_refused():
    with pytest.raises(ConfigError, match="compute.compile: expected auto or blocks or true or false, got 'all'"):
        load_recipe("demo", ["compute.compile=all"])


def test_all_blocks_are_compiled_once_and_validation_not_at_all(monkeypatch):
    """Patch blocks share one graph; class blocks have two, as the first one's token is an expanded view.

    Numbers and state-dict keys are those of the plain model.
    """
    counter = torch._dynamo.testing.CompileCounter()
    # The real method, with a compiler that counts in the place of one that takes a minute.
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compile_module(self, backend=counter))
    model, plain = (tiny_model(torch.float32, drop_path_rate=0.3, depth=3).train() for _ in range(2))
    for one in (model, plain):
        set_compute(one, Compute(backend="reference"))
    net = wrap(model, Compute(compile="blocks"), Processes())
    assert list(net.state_dict()) == list(plain.state_dict())
    images_BCHW = torch.randn(4, 3, 16, 16)
    logits = []
    for one in (plain, net):
        torch.manual_seed(0)
        logits.append(one(images_BCHW))
        logits[-1].square().sum().backward()
    torch.testing.assert_close(*logits)
    for own, other in zip(plain.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)
    assert counter.frame_count == 3
    with not_compiled(Compute(compile="blocks")), torch.inference_mode():
        net.eval()(images_BCHW[:3])
    assert counter.frame_count == 3


def test_what_is_not_chosen_yet_is_not_compiled(monkeypatch):
    """A trainer that gets a recipe as it is, on a CPU."""
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    model = tiny_model(torch.float32)
    assert wrap(model, Compute(), Processes()) is model
    assert isinstance(not_compiled(Compute()), contextlib.nullcontext)


def test_the_compiler_saves_less_only_where_memory_is_small():
    for settings, budget in (({"memory": "small"}, 0.2), ({}, 1.0), ({"memory": "small", "compile": False}, 1.0)):
        with compiled_memory(Compute(**{"compile": "blocks"} | settings)):
            assert functorch.activation_memory_budget == budget
    assert functorch.activation_memory_budget == 1.0


def test_one_line_says_what_and_why(processors, monkeypatch):
    recipe = Recipe()
    line = lambda asked, device: describe_choices(asked, choose_settings(asked, device), device)  # noqa: E731
    assert line(recipe, CPU) == "cpu, fp32 (auto: cpu), 4 data-loading workers (auto: 8 processors)"
    expected = "cuda:0, bf16 (auto: this GPU has it), TF32 for what stays fp32, compiled blocks (auto), "
    expected += "7 data-loading workers"
    assert line(recipe, GPU) == f"{expected} (auto: 8 processors)"
    strict = section(section(recipe, "compute", precision="fp32-strict"), "data", num_workers=1)
    assert line(strict, GPU) == "cuda:0, fp32-strict, no TF32, compiled blocks (auto), 1 data-loading worker"
    processors(8, bf16=False)
    assert "fp16 (auto: this GPU has no bf16)" in line(recipe, GPU)
    bf16 = section(recipe, "compute", precision="bf16")
    assert "bf16, which this GPU only emulates" in line(bf16, GPU)
    assert "bf16, which this processor only emulates (fp32 is several times faster)" in line(bf16, CPU)
    processors(8)
    monkeypatch.setattr(compute, "bf16_is_faster", lambda: False)
    assert "bf16, which is slower than fp32 on this processor, 4" in line(bf16, CPU)
    monkeypatch.setattr(compute, "bf16_is_faster", lambda: True)
    assert "cpu, bf16, 4 data-loading workers" in line(bf16, CPU)


def test_the_faster_products_are_measured(monkeypatch):
    clock, seconds = [0.0], {torch.bfloat16: 0.004, torch.float32: 0.0}

    def product(left, right):
        clock[0] += seconds[left.dtype]

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr(devices, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
    assert not devices.bf16_is_faster.__wrapped__()
    seconds[torch.float32] = 0.05
    assert devices.bf16_is_faster.__wrapped__()


def test_a_processor_has_bf16_by_its_instructions(monkeypatch):
    for found, has in (
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "amx_bf16": True}, True),
        ({"architecture": "aarch64"}, True),
        ({"architecture": "aarch64", "bf16": True}, True),
        ({"architecture": "aarch64", "bf16": False}, False),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        assert devices.has_bf16(CPU) is has


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
    output = " ".join(capsys.readouterr().err.split())
    sentence = f"error: device '{device}' is not available: PyTorch finds no "
    assert output.startswith(sentence)
    assert output.count("error:") == 1
    assert "http" not in output
    assert not (tmp_path / "out").exists()


def test_the_plan_measures_in_the_chosen_precision(data):
    facts = plan(load_recipe("scratch_32", [*TINY, f"data.source={data}", "compute.precision=bf16"]))
    assert facts["compute"].startswith("cpu, bf16, ")
