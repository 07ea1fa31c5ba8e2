"""Recipes with alternatives, other sizes, fewer images, or a teacher's network: planned, trained, gone on with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch

import deepcait
from deepcait.data import Subset, open_source
from deepcait.data.split import limited
from deepcait.errors import ConfigError, Stopped
from deepcait.model import CaiT, CaiTConfig
from deepcait.model.ablation import AblatedCaiT
from deepcait.model.convnet import ConvNet
from deepcait.training.plan import plan
from deepcait.training.recipe import Recipe, load_recipe
from deepcait.training.run import train
from deepcait.training.start import planned_config, start_model
from deepcait.training.trainer import Trainer

TINY = ["data.source=builtin:demo", "data.limit=64", "data.val_limit=20", "data.num_workers=0", "compute.device=cpu"]
TINY += ["global_batch_size=16", "epochs=1", "keep.log_every_steps=1"]
TINY_CAIT = [*TINY, "shape.depth=2", "shape.patch_size=8", "shape.embed_dim=24", "shape.num_heads=3", "ema.decay=0"]


def run(folder: Path, recipe: Recipe, **how):
    return train(recipe, folder, **how)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "assignment",
    ["ablation={residual: rezero, talking_heads: none}", "ablation.class_token=average", "ablation.insert_at=0"],
)
def test_plan_and_training_agree_on_the_network(assignment):
    recipe = load_recipe("scratch_32", [*TINY_CAIT, assignment])
    model = start_model(recipe, [str(i) for i in range(10)]).model
    config = planned_config(recipe, 10)
    assert model.config == config
    assert isinstance(model, AblatedCaiT) == (assignment != "ablation.insert_at=0")
    facts = plan(recipe)
    assert (facts["params"], facts["train_images"]) == (sum(p.numel() for p in model.parameters()), 64)


@pytest.mark.parametrize(
    ("settings", "output"),
    [
        (["compute.memory=small"], ""),
        (["ablation.residual=rezero"], ""),
        (["compute.memory=small", "ablation.residual=rezero"], "it needs the blocks of a plain CaiT"),
        (
            ["compute.memory=small", "compute.attention=plain"],
            "it belongs to compute.backend=lean and compute.compile=blocks",
        ),
    ],
)
def test_a_setting_that_changes_nothing_is_reported(tmp_path, settings, output, caplog):
    recipe = load_recipe("scratch_32", [*TINY_CAIT, *settings, "data.limit=16", "data.val_limit=4"])
    facts = plan(recipe)
    planned = list(caplog.messages)
    caplog.clear()
    train(recipe, tmp_path / "run")
    for lines in (planned, caplog.messages):
        notes = [line for line in lines if "compute.memory=small changes nothing" in line]
        assert len(notes) == bool(output)
        assert output in "".join(notes)
    kept = facts["activation_bytes_of"]
    assert (kept["with compute.memory=small"] < kept["as it is by default"]) == ("rezero" not in "".join(settings))


def test_without_the_sections_the_network_and_its_first_weights_are_as_before():
    """What decides the bits: the class, the draws, the configuration. A section full of the paper's own words too."""
    # The sizes that cait_nano_32 had then.
    before = ["shape={embed_dim: 96, depth: 12}"]
    recipe = load_recipe("scratch_32", before)
    found = start_model(recipe, [str(i) for i in range(10)])
    assert type(found.model) is CaiT
    assert type(found.model.config) is CaiTConfig
    said = load_recipe(
        "scratch_32", [*before, "ablation={residual: layerscale, pre_norm: true, class_token: class_stage}"]
    )
    again = start_model(said, [str(i) for i in range(10)]).model
    assert type(again) is CaiT
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in found.model.state_dict().items())
    # Drawn before there were alternatives (commit 18195b3), on any machine: the first weights of seed 0.
    weights = found.model.blocks[3].mlp.fc1.weight.detach().double()
    assert weights.sum().item() == pytest.approx(FIRST_WEIGHTS_SUM, abs=1e-4)


FIRST_WEIGHTS_SUM = -1.5800312146148485


@pytest.mark.parametrize(
    "assignment",
    ["ablation.residual=resnet", "shape.num_heads=5", "ablation={class_token: inserted, insert_at: 2}"]
    + ["data.limit=-1", "ablation.residuals=none", "shape.dept=3"],
)
def test_mistakes_are_reported_before_anything_is_written(assignment, tmp_path):
    with pytest.raises(ConfigError):
        run(tmp_path / "run", load_recipe("scratch_32", [*TINY_CAIT, assignment]))
    assert not (tmp_path / "run").exists()


def test_a_limit_takes_classes_evenly_and_always_the_same():
    source = open_source("builtin:demo", "train")
    some = limited(source, 64)
    counts = torch.bincount(torch.tensor(some.labels), minlength=10)
    assert len(some) == 64
    assert set(counts.tolist()) == {6, 7}
    assert len(set(some.names)) == 64
    assert set(some.names) <= set(limited(source, 200).names)
    assert limited(source, 64).names == some.names
    assert some.indices == sorted(some.indices)  # in the order of the source
    assert limited(source, 0) is limited(source, 10**6) is limited(source, len(source)) is source
    # Not the first images of each class.
    first = [index for label in range(10) for index in [i for i, one in enumerate(source.labels) if one == label][:2]]
    assert limited(source, 20).names != [source.names[index] for index in first]


def test_what_a_limit_rounds_off_goes_to_the_class_that_lost_most():
    few = [*range(10), *range(100, 106), *range(200, 204)]  # 3.5, 2.1 and 1.4 of 7
    some = limited(Subset(open_source("builtin:demo", "train"), few, split="train"), 7)
    assert [some.labels.count(label) for label in range(3)] == [4, 2, 1]


def stop_after(steps: int, monkeypatch) -> None:
    step = Trainer._step

    def stopping(self, batches, request):
        request.asked = request.asked or self.progress.step + 1 >= steps
        return step(self, batches, request)

    monkeypatch.setattr(Trainer, "_step", stopping)


@pytest.mark.parametrize(
    ("name", "assignments"),
    [
        ("scratch_32", [*TINY_CAIT, "ablation={residual: fixup, talking_heads: none, drop_path_shape: linear}"]),
        ("scratch_32", [*TINY_CAIT, "ablation={residual: scalar, class_token: average}", "drop_path_rate=0.2"]),
        # Weights, gradients and the optimizer's state lie in memory in one order, after resuming too.
        ("scratch_32", [*TINY_CAIT, "ablation={residual: none}", "compute.channels_last=true"]),
        ("teacher_32", [*TINY, "data.limit=48", "data.val_limit=10"]),
    ],
)
def test_stopped_and_gone_on_with_it_ends_with_the_same_bytes(name, assignments, tmp_path, monkeypatch):
    recipe = load_recipe(name, assignments)
    run(tmp_path / "whole", recipe)
    with monkeypatch.context() as context:
        stop_after(2, context)
        with pytest.raises(Stopped):
            run(tmp_path / "cut", recipe)
    run(tmp_path / "cut", recipe, resume=True)
    for file in ("best/model.safetensors", "metrics.jsonl"):
        assert digest(tmp_path / "whole" / file) == digest(tmp_path / "cut" / file), file
    loaded = deepcait.load(tmp_path / "cut").model
    assert isinstance(loaded, ConvNet if name == "teacher_32" else AblatedCaiT)
    section = json.loads((tmp_path / "cut" / "best" / "config.json").read_text())["deepcait"]
    assert section["recipe"]["ablation"] == dataclasses.asdict(recipe.ablation)


def test_the_small_cait_learns_from_the_convolutional_teacher(tmp_path):
    """The way that `nano_32` goes: a teacher's run folder, another network, the same classes."""
    run(tmp_path / "teacher", load_recipe("teacher_32", [*TINY, "data.limit=16", "data.val_limit=10"]))
    short = ["schedule.warmup_epochs=0", "schedule.decay_epochs=1"]
    student = load_recipe("nano_32", [*TINY_CAIT, *short, f"teacher.spec={tmp_path / 'teacher'}"])
    outcome = run(tmp_path / "student", student)
    assert outcome.steps == 4
    with pytest.raises(ConfigError, match="lacks these classes"):
        run(
            tmp_path / "other",
            dataclasses.replace(student, data=dataclasses.replace(student.data, source=pets(tmp_path))),
        )


def pets(tmp_path: Path) -> str:
    from PIL import Image

    for split in ("train", "test"):
        for name in ("cat", "unicorn"):
            folder = tmp_path / "pets" / split / name
            folder.mkdir(parents=True)
            for index in range(16):
                Image.new("RGB", (32, 32), (index, 0, 0)).save(folder / f"{index}.png")
    return str(tmp_path / "pets")
