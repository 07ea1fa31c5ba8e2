"""The dry run says what will happen: every wrong setting at once, teacher, time, disk and shared memory."""

from __future__ import annotations

import dataclasses
import json
import linecache
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

import deepcait
from deepcait.cli.main import main
from deepcait.data.order import Order
from deepcait.errors import ConfigError, DeepcaitError, RunError, SettingsError, together
from deepcait.model import CaiT, CaiTConfig
from deepcait.model.convnet import ConvConfig
from deepcait.training import estimate, run
from deepcait.training import plan as planning
from deepcait.training.estimate import Speed, disk_bytes, expected_s, resident_bytes, smaller
from deepcait.training.optimizer import num_states
from deepcait.training.plan import plan
from deepcait.training.recipe import load_recipe
from deepcait.training.schedule import Schedule
from deepcait.training.settings import Average, Compute, Keep, Optimizer
from deepcait.training.sound import require_sound
from tests.training.test_class_names import LETTERS, TINY, write
from tests.training.tiny import tiny_model, tiny_recipe

Usage = namedtuple("Usage", "total used free")  # noqa: PYI024 - as shutil's
PARTS = """
import numpy as np
import torch
from PIL import Image


class Shades:
    classes = ["dark", "bright"]

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return Image.fromarray(np.full((16, 16, 3), 40 + 150 * (index % 2), np.uint8)), index % 2


class Net(torch.nn.Module):
    img_size = (16, 16)

    def __init__(self, num_classes=2):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4, 4), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
        self.head = torch.nn.Linear(64, num_classes)

    def forward(self, images):
        return self.head(self.body(images))


def squared(logits, targets, teacher=None):
    return ((logits - targets) ** 2).mean()


def make_loss():
    return squared


def make_broken_loss():
    return lambda logits, targets, teacher: logits.no_such_thing
"""


@pytest.fixture
def data(tmp_path) -> str:
    return write(tmp_path / "data", "folder", LETTERS)


@pytest.fixture
def parts(tmp_path, monkeypatch) -> Path:
    (tmp_path / "parts_of_plan.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def tiny(data: str, *settings: str):
    return load_recipe("scratch_32", [*TINY, f"data.source={data}", *settings])


# -- every error at once ----------------------------------------------------------------------------------------------


def test_all_keys_and_values_of_a_recipe_that_are_wrong_are_one_error(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("epoch: 3\nseed: x\nepochs: -1\noptimizer: {lr: -1, lrr: 2}\nmix: {mixup: -1}\n")
    argv = ["train", "--data", "nowhere", "--out", str(tmp_path / "run"), "--recipe", str(path)]
    assert main([*argv, "--json", "--set", "compute.precision=fp8", "kepp.x=1"]) == 2
    output = json.loads(capsys.readouterr().out)
    wrong = ["mine.yaml:1:1: epoch: unknown key", "mine.yaml:2:1: seed: expected a whole number", "epochs: expected 1"]
    wrong += ["optimizer.lrr: unknown key", "mix: expected mixup", "compute.precision: expected auto", "kepp: unknown"]
    assert [text for text in wrong if text not in output["error"]] == []
    assert output["error"].startswith("7 settings are not valid. (1) ")
    assert "Did you mean 'epochs'?" in output["remedy"]
    assert not (tmp_path / "run").exists()


def test_settings_that_do_not_fit_each_other_are_one_error_before_anything_is_opened(monkeypatch):
    settings = ["replicas=3", "augment.repeats=4", "schedule.min_lr=1", "loss=cee", "optimizer.name=timm:nothing"]
    settings += ["keep.tracker=x", "augment.rand_augment=rand-mX", "model=cait_nano_33", "teacher.spec=timm:nothing"]
    settings += ["optimizer.lr_factors=[a]", "mix.mixup=0.2"]
    recipe = load_recipe("demo", settings)
    for module, start in ((run, lambda: run.train(recipe, Path("never"))), (planning, lambda: plan(recipe))):
        monkeypatch.setattr(module, "open_training_data", lambda *_: pytest.fail("the data was opened"))
        with pytest.raises(SettingsError) as caught:
            start()
        output = caught.value.problem
        for text in ("is not divisible by replicas", "augment.repeats (4)", "schedule.min_lr", "loss: expected ce"):
            assert text in output
        for text in ("optimizer.name", "keep.tracker", "augment.rand_augment", "cait_nano_33", "timm has no model"):
            assert text in output
        assert len(caught.value.errors) == 10


def test_every_recipe_is_sound():
    for name in ("demo", "finetune", "distill", "pretrain", "nano_32", "transfer_cars"):
        require_sound(load_recipe(name))


def test_a_batch_that_several_processes_cannot_share_is_reported_at_once(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="replicas.*multiple of the number of processes"):
        require_sound(load_recipe("finetune"))


def test_errors_together_are_listed_once():
    one, other = ConfigError("a.", remedy="A."), ConfigError("b.", remedy="B.")
    assert together([one]) is one
    both = together([together([one, other]), one])
    assert (both.problem, both.remedy) == ("2 settings are not valid. (1) a. (2) b.", "(1) A. (2) B.")


# -- teacher ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", ["runs/nothing", "timm:nonsense", "timm:resnet18,weights=nothing.pth"])
def test_a_teacher_that_is_not_there_is_the_error_of_the_real_run(data, tmp_path, capsys, teacher):
    command = ["train", "--data", data, "--recipe", "scratch_32", "--teacher", teacher, "--out", str(tmp_path / "run")]
    output = []
    for more in ([], ["--dry-run"]):
        assert main([*command, *more, "--set", *TINY]) == 2
        output.append(capsys.readouterr().err)
    assert output[0] == output[1]


def test_a_teacher_of_other_classes_is_found_by_the_dry_run(data):
    with pytest.raises(DeepcaitError, match="lacks these classes of the student"):
        plan(tiny(data, "teacher.spec=builtin:nano"))


def test_the_teacher_counts(caplog):
    caplog.set_level("INFO", "deepcait")
    settings = ["data.source=builtin:demo", "model=builtin:nano", "data.num_workers=0"]
    alone = plan(load_recipe("demo", settings))
    taught = plan(load_recipe("demo", [*settings, "teacher.spec=builtin:nano"]))
    assert alone["teacher"] is None
    teacher = taught["teacher"]
    assert (teacher["params"], teacher["weights_bytes"]) == (taught["params"], 4 * taught["params"])
    assert teacher["gmacs"] == pytest.approx(taught["gmacs"], rel=0.05)
    assert taught["computed_flops"] - alone["computed_flops"] == teacher["flops"] > 0
    assert any(line.startswith("teacher        builtin:nano: input 32 x 32 px") for line in caplog.messages)


# -- time -------------------------------------------------------------------------------------------------------------


def test_time_is_steps_or_reading_and_validation(monkeypatch):
    speed = Speed(step_s=2.0, forward_s=0.5, teacher_s=1.0, read_s=4.0)
    recipe = tiny_recipe(epochs=3)
    order = Order(32, global_batch_size=8, replicas=2)
    images = 3 * 32
    by = lambda workers: dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, num_workers=workers))  # noqa: E731
    assert expected_s(by(0), speed, 2.0, order, 0) == images * (2 * 2.0 + 1.0 + 4.0)
    assert expected_s(by(1), speed, 2.0, order, 0) == images * 5.0
    assert expected_s(by(1), speed, 0.1, order, 0) == images * 4.0
    averaged = dataclasses.replace(by(1), ema=Average(decay=0.9))
    assert expected_s(averaged, speed, 2.0, order, 10) - images * 5.0 == 3 * 10 * (0.5 * 2.0 * 2 + 4.0)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert expected_s(by(1), speed, 2.0, order, 0) == images * 5.0 / 2


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", "high"), ("fp32-strict", "highest")])
def test_speed_is_measured_with_the_tf32_of_the_run(monkeypatch, precision, allowed):
    """A GPU is pretended by its name: what decides is the setting during the step."""
    found = []
    recipe = dataclasses.replace(tiny_recipe(), compute=Compute(device="cpu", precision=precision))
    pretended = torch.device("cuda")
    monkeypatch.setattr(CaiT, "to", lambda self, device: self)
    monkeypatch.setattr(torch, "zeros", lambda *shape, device=None, zeros=torch.zeros, **how: zeros(*shape, **how))
    monkeypatch.setattr(estimate, "_reading", lambda *_: found.append(torch.get_float32_matmul_precision()) or 1.0)
    monkeypatch.setattr(estimate, "_timed", lambda work: found.append(torch.get_float32_matmul_precision()) or 1.0)
    estimate.measure_speed(recipe, tiny_model(), None, None, Order(32, global_batch_size=8, replicas=2), pretended)
    assert found == [allowed, allowed, allowed, "highest"]


def test_a_large_network_is_measured_with_fewer_blocks():
    small = CaiTConfig(embed_dim=32, depth=24, num_heads=2)
    large = small.replace(embed_dim=384, num_heads=8)
    assert smaller(small) == (small, 1.0)
    fewer, factor = smaller(large)
    assert (fewer.embed_dim, fewer.depth) == (384, 2)
    assert factor == large.macs() / fewer.macs() > 5
    assert smaller(ConvConfig()) == (ConvConfig(), 1.0)


def test_a_dry_run_measures_and_prints_the_time(data, tmp_path, capsys):
    argv = ["train", "--data", data, "--recipe", "scratch_32", "--out", str(tmp_path / "run"), "--dry-run", "--json"]
    assert main([*argv, "--set", *TINY]) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert facts["expected_s"] > 0
    assert facts["images_per_s"] > 0
    assert facts["read_images_per_s"] > 0
    assert "time           about " in err
    assert "disk           up to " in err
    assert not (tmp_path / "run").exists()


def test_an_unreadable_image_or_a_run_that_is_there_stops_the_dry_run(data, tmp_path):
    folder = tmp_path / "run"
    run.train(tiny(data, "epochs=1"), folder)
    with pytest.raises(RunError, match="already contains a run"):
        plan(tiny(data), folder)
    assert plan(tiny(data), folder, resume=True)["disk_free_bytes"] is None
    for image in (Path(data) / "train").rglob("*.png"):
        image.write_bytes(b"nothing")
    with pytest.raises(DeepcaitError, match="png"):
        plan(tiny(data))


def test_a_run_whose_initial_model_is_gone_is_planned_from_its_folder(data, tmp_path):
    deepcait.load("builtin:nano").save(tmp_path / "nano")
    few = [f"data.source={data}", "data.num_workers=0", "epochs=1", "global_batch_size=6", "replicas=1"]
    recipe = load_recipe("demo", [f"model={tmp_path / 'nano'}", *few])
    run.train(recipe, tmp_path / "run")
    shutil.rmtree(tmp_path / "nano")
    with pytest.raises(DeepcaitError, match="nano"):
        plan(recipe, tmp_path / "other")
    facts = plan(recipe, tmp_path / "run", resume=True)
    assert facts["params"] == sum(p.numel() for p in deepcait.open_run(tmp_path / "run").last.model.parameters())


def test_a_part_whose_source_has_changed_stops_the_dry_run(parts, data):
    recipe = tiny(data, "epochs=1", "loss=python:parts_of_plan:make_loss")
    run.train(recipe, parts / "run")
    source = parts / "parts_of_plan.py"
    source.write_text(source.read_text().replace("** 2", "** 4"))
    linecache.checkcache()
    for start in (
        lambda: run.train(recipe, parts / "run", resume=True),
        lambda: plan(recipe, parts / "run", resume=True),
    ):
        with pytest.raises(RunError, match="has changed since the run began"):
            start()


# -- disk and shared memory -------------------------------------------------------------------------------------------


def test_the_disk_is_counted_and_the_count_holds(data, tmp_path):
    """What a finished run has is less than what was foretold, which has room for one more of each."""
    recipe = tiny(data, "ema.decay=0.5", "keep.checkpoints=2")
    foretold = plan(recipe)["disk_bytes"]
    run.train(recipe, tmp_path / "run")
    tensors = [path.stat().st_size for path in (tmp_path / "run").rglob("*.safetensors")]
    assert 0.5 * foretold < sum(tensors) < 1.3 * foretold  # so small a network has headers of its size
    adamw, sgd = (tiny_recipe(optimizer=Optimizer(name=name), keep=Keep(checkpoints=2)) for name in ("adamw", "sgd"))
    assert disk_bytes(adamw, 1000, 1000) == 3 * 4 * 3000 + 3 * 4000
    assert disk_bytes(sgd, 1000, 10) == 3 * 4 * 1010 + 3 * 4000
    stable = dataclasses.replace(sgd, schedule=Schedule(kind="warmup_stable_decay", warmup_epochs=0))
    assert disk_bytes(stable, 1000, 10) == 4 * 4 * 1010 + 5 * 4000


def test_the_disk_of_a_run_that_can_be_prolonged_is_counted(data, tmp_path):
    """It has one checkpoint and two models more, from before the decay."""
    recipe = tiny(data, "schedule.kind=warmup_stable_decay", "schedule.decay_epochs=1", "keep.checkpoints=1")
    run.train(recipe, tmp_path / "run")
    files = [path for path in (tmp_path / "run").rglob("*.safetensors")]
    assert len([path for path in files if "stable" in path.parts]) == 3
    header_bytes = 2**15  # at most, per file
    tensor_bytes = sum(path.stat().st_size - header_bytes for path in files)
    assert tensor_bytes < plan(recipe)["disk_bytes"]


@pytest.mark.parametrize(
    ("name", "momentum", "number"),
    [("adamw", 0.9, 2), ("sgd", 0.9, 1), ("sgd", 0.0, 0), ("timm:lion", 0.9, 1), ("timm:adan", 0.9, 4)],
)
def test_the_states_of_an_optimizer_are_counted(name, momentum, number):
    optimizer = Optimizer(name=name, momentum=momentum)
    assert num_states(optimizer) == number
    assert resident_bytes(tiny_recipe(optimizer=optimizer), 1000, 10) == 4000 + 40 * (1 + number)
    averaged = tiny_recipe(optimizer=optimizer, ema=Average(decay=0.9))
    assert resident_bytes(averaged, 1000, 1000) == 8000 + 4000 * (1 + number)


def test_the_states_are_counted_without_the_compiler(monkeypatch):
    """Importing it takes seconds, which every start of a training would pay."""
    monkeypatch.setattr(torch.compiler, "set_stance", lambda *_: pytest.fail("imported the compiler"))
    assert num_states(Optimizer()) == 2


def test_memory_of_a_head_alone(data):
    """Only what is trained has gradients and states of the optimizer."""
    facts = plan(tiny(data, "train=head"))
    assert facts["trained_params"] < 0.1 * facts["params"]
    assert facts["weights_and_optimizer_bytes"] == 4 * (facts["params"] + 3 * facts["trained_params"])


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**9, 10**9 - 1000, 1000))
    argv = ["train", "--data", data, "--recipe", "scratch_32", "--out", str(tmp_path / "deep" / "run")]
    for more in (["--dry-run"], ["--dry-run", "--resume"], []):
        assert main([*argv, *more, "--set", *TINY]) == 2
        output = " ".join(capsys.readouterr().err.split())
        assert "the run's files take up to" in output
        assert "lower keep.checkpoints" in output
        assert not (tmp_path / "deep").exists()


def test_small_shared_memory_is_noted_by_both(data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(estimate, "shared_memory", lambda: 1000)
    recipe = tiny(data, "data.num_workers=2", "epochs=1")
    facts = plan(recipe)
    assert facts["shared_memory_bytes"] == (2 * 4 + 1) * 6 * 3 * 16 * 16
    (note,) = (note for note in facts["notes"] if "shared memory" in note)
    assert "--shm-size" in note
    assert plan(tiny(data))["shared_memory_bytes"] == 0  # without workers
    caplog.clear()
    run.train(recipe, tmp_path / "run")
    assert note in caplog.messages


# -- parts of one's own -----------------------------------------------------------------------------------------------


def test_own_network_loss_and_data_are_planned(parts, capsys):
    module = "python:parts_of_plan"
    argv = ["train", "--data", f"{module}:Shades", "--model", f"{module}:Net", "--recipe", "finetune", "--out", "r"]
    argv += ["--dry-run", "--json", "--set", "global_batch_size=8", "replicas=2", "data.num_workers=0"]
    assert main([*argv, f"loss={module}:make_loss"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["params"], facts["classes"], facts["img_size"]) == (4 * 48 + 4 + 8 + 128 + 2, 2, [16, 16])
    assert facts["activation_bytes"] > 0
    assert facts["step_flops"] > 0
    assert facts["expected_s"] > 0
    assert main([*argv, f"loss={module}:make_broken_loss"]) == 2
    output = json.loads(capsys.readouterr().out)
    assert "make_broken_loss failed with AttributeError" in output["error"]
    assert main([*argv, "loss=python:parts_of_plan:nothing", "augment.transform=python:nowhere:x"]) == 2
    output = json.loads(capsys.readouterr().out)
    assert "(1) augment.transform" in output["error"]
    assert "(2) loss" in output["error"]


def test_the_precision_of_the_recipe_is_measured():
    settings = ["data.source=builtin:demo", "data.num_workers=0", "compute.precision=bf16"]
    recipe = load_recipe("demo", settings)
    assert recipe.compute == Compute(precision="bf16")
    assert plan(recipe)["activation_bytes"] < plan(load_recipe("demo", settings[:2]))["activation_bytes"]
