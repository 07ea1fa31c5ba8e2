"""Notes of a plan: batches that do not fit the number of images, and few images to tell epochs apart."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from PIL import Image

from deepcait.data.order import Order
from deepcait.training.notes import notes_of
from deepcait.training.plan import plan
from deepcait.training.recipe import load_recipe
from deepcait.training.run import train
from deepcait.training.settings import Keep
from tests.documents.shown import ROOT
from tests.training.tiny import SMALL_RUN, tiny_recipe


def taken(order):
    """How often each image stands in the first epoch."""
    steps = range(order.steps_per_epoch)
    return Counter(slot.index for s in steps for r in range(order.replicas) for slot in order.slots(s, r))


@pytest.mark.parametrize(
    ("num", "batch", "repeats", "note"),
    [
        (60, 32, 1, "an epoch takes 32 of 60 training images, in whole steps of 32"),
        (64, 32, 1, None),
        (71, 32, 1, None),  # a tenth
        (72, 32, 1, "takes 64 of 72"),
        (10, 32, 1, "a step takes 32 images and there are 10: each occurs in it about 3.2 times"),
        (60, 32, 4, "an epoch takes 8 of 60 training images, each 4 times"),
        (20, 32, 4, None),  # one step, of 8 images in 4 copies
        (7, 32, 4, "each occurs in it about 4.6 times"),
    ],
)
def test_notes_of_a_batch_that_does_not_fit_say_what_the_order_does(num, batch, repeats, note):
    order = Order(num, batch, replicas=4, repeats=repeats)
    notes = notes_of(tiny_recipe(), order, 1000)
    assert [note in output for output in notes] == ([True] if note else [])
    counts = taken(order)
    if note and "takes " in note and " of " in note:
        assert f"takes {len(counts)} of {num}" in notes[0]
    assert any(count > repeats for count in counts.values()) == bool(note and "occurs" in note)


def test_classes_drawn_equally_often_leave_out_others_anyway():
    assert notes_of(tiny_recipe(), Order(60, 32, class_labels=(0, 1) * 30), 1000) == []


@pytest.mark.parametrize(("num", "said"), [(6, "by 6 validation images:"), (1, "by 1 validation image:"), (100, None)])
def test_notes_of_few_validation_images(num, said):
    """Of a measure that one image moves much; by default so few choose by their loss."""
    assert notes_of(tiny_recipe(), Order(64, 32), num) == []
    notes = notes_of(tiny_recipe(keep=Keep(best_by="top1")), Order(64, 32), num)
    assert [said in output for output in notes] == ([True] if said else [])
    if num == 6:
        assert "a single prediction changes the accuracy by 16.7 percentage points" in notes[0]
    early = load_recipe("finetune", ["keep.best_by=top1"])
    assert any("best epoch and early stopping are decided by 6" in note for note in notes_of(early, Order(64, 32), 6))


def test_a_dry_run_and_a_run_say_both(tmp_path, caplog):
    for name, value in (("a", 0), ("b", 255)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (8, 8), (value, 20 * i, 0)).save(tmp_path / "data" / name / f"{i}.png")
    settings = [f"data.source={tmp_path / 'data'}", "epochs=1", "global_batch_size=10", "compute.device=cpu"]
    settings += ["keep.best_by=top1"]
    recipe = load_recipe("demo", settings)
    plan(recipe)
    planned = list(caplog.records)
    caplog.clear()
    train(recipe, tmp_path / "run")
    for lines in (planned, caplog.records):
        notes = [record.getMessage() for record in lines if record.levelname == "WARNING"]
        assert [line for line in notes if "takes 10 of 18 training images" in line], lines
        assert [line for line in notes if "is decided by 2 validation images" in line], lines


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["start=random"],
            "head_warmup_epochs is 1: the weights that it does not train are random; head_warmup_epochs=0",
        ),
        (["start=random", "train=head"], "train is head: the weights that it does not train are random; train=all"),
        (["start=random", "train=lora"], "train is lora: the weights that it does not train are random; train=all"),
        (["model=python:nets:Small"], "are random, unless the factory of python:nets:Small loads trained ones"),
        (["start=random", "head_warmup_epochs=0"], None),
        (["model=python:nets:Small,weights=runs/small"], None),
        (["model=runs/photos", "start=random", "train=head"], None),
        ([], None),
    ],
)
def test_frozen_weights_that_are_random_are_noted(settings, said):
    notes = notes_of(load_recipe("finetune", settings), Order(64, 32), 1000)
    assert [said in note for note in notes] == ([True] if said else [])


@pytest.mark.process
def test_a_run_from_python_prints_its_notes(tmp_path):
    """On stderr, where logging is not configured."""
    settings = SMALL_RUN | {"epochs": 1, "head_warmup_epochs": 1}
    program = (
        "import deepcait\n"
        f"deepcait.train('builtin:demo', 'run', model='cait_nano_32', recipe='demo', settings={settings!r})"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "only the head moves: head_warmup_epochs is 1, epochs 1" in done.stderr
    assert "the weights that it does not train are random" in done.stderr
    assert "plan:" not in done.stderr


def test_two_ways_to_even_out_classes_are_noted():
    order = Order(num_samples=64, global_batch_size=8, replicas=1)
    for settings, said in (
        (["data.balanced=true", "optimizer.class_weights=true"], True),
        (["data.balanced=true"], False),
    ):
        notes = notes_of(load_recipe("finetune", settings), order, 1000)
        assert any("both even out the classes" in note for note in notes) == said
