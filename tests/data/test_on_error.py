"""Unreadable images while training: raise, or skip by the order and up to a budget; evaluation never substitutes."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

from deepcait.data import Preprocessing, evaluation_loader, open_folder
from deepcait.data.augment import Augment, build_augmentation
from deepcait.data.doctor import examine
from deepcait.data.fix_list import write_fix_list
from deepcait.data.loader import TrainingSet, Unreadable, training_batches
from deepcait.data.order import Order
from deepcait.errors import ConfigError, DataError, ImageError, RunError, Stopped
from deepcait.training.data import open_training_data
from deepcait.training.journal import read_metrics, read_state
from deepcait.training.plan import plan
from deepcait.training.resume import resumed_recipe
from deepcait.training.trainer import Trainer
from tests.data.damage import DAMAGE, UNREADABLE, sound_folder
from tests.data.test_doctor import Deadly
from tests.training.tiny import section, tiny_job, tiny_model, tiny_recipe

PREPROCESSING = Preprocessing((16, 16))
SEED = 3


@pytest.fixture(scope="module")
def ruin(tmp_path_factory) -> tuple[Path, set[str]]:
    """A folder with every damage that makes an image unreadable, and their paths."""
    root = sound_folder(tmp_path_factory.mktemp("ruin") / "photos")
    planted = set()
    for name in ("dangling link", "pipe", *(name for name in DAMAGE if "." in name)):
        found = DAMAGE[name](root)
        if {kind for kind, _ in found} & set(UNREADABLE):
            planted |= {path for _, path in found}
        else:
            os.unlink(next(iter(found))[1])
    return root, planted


def make_order(num_samples: int) -> Order:
    return Order(num_samples=num_samples, global_batch_size=6, replicas=3, repeats=3, seed=SEED)


def batches(root: Path, source=None, **options) -> tuple[list, list[Unreadable]]:
    """Some steps with skipping: what they hold, and what was told."""
    source = source or open_folder(root, "train")
    samples = TrainingSet(source, build_augmentation(Augment(erase=1.0), PREPROCESSING), SEED)
    reported: list[Unreadable] = []
    plain = {
        "replicas": [0, 1, 2],
        "first_step": 0,
        "last_step": 8,
        "max_errors": 100,
        "on_unreadable": reported.append,
    }
    return list(training_batches(samples, make_order(len(source)), **(plain | options))), reported


def same(one: list, two: list) -> bool:
    return len(one) == len(two) and all(
        torch.equal(x, y) for a, b in zip(one, two, strict=True) for x, y in zip(a, b, strict=True)
    )


# ---- the order


def test_the_next_readable_image_takes_the_place(ruin):
    root, planted = ruin
    source = open_folder(root, "train")
    order = make_order(len(source))
    bad = {index for index in range(len(source)) if source.locate(index) in planted}
    taken, reported = batches(root)
    expected = []
    for number, (images, labels) in enumerate(taken):
        for image, label, slot in zip(images, labels, order.slots(*divmod(number, 3)), strict=True):
            row = list(order.from_slot_on(slot))
            assert row[0] == slot.index
            assert sorted(row) == list(range(len(source)))
            stands = next(index for index in row if index not in bad)
            expected += [source.locate(index) for index in row[: row.index(stands)]]
            assert label == source.labels[stands]
            assert torch.equal(image, batches_of(source, slot._replace(index=stands)))
    assert [one.path for one in reported] == expected
    assert len(set(expected)) > 5


def batches_of(source, slot) -> torch.Tensor:
    return TrainingSet(source, build_augmentation(Augment(erase=1.0), PREPROCESSING), SEED)[slot][0]


def test_a_sound_folder_is_not_changed_by_skipping(tmp_path):
    root = sound_folder(tmp_path)
    skipping, reported = batches(root)
    assert same(skipping, batches(root, on_unreadable=None)[0])
    assert reported == []


@pytest.mark.parametrize("first_step", [1, 5])
def test_a_late_start_changes_no_bit(ruin, first_step):
    whole, _ = batches(ruin[0])
    assert same(batches(ruin[0], first_step=first_step)[0], whole[3 * first_step :])


@pytest.mark.process
@pytest.mark.slow
def test_workers_change_no_bit(ruin):
    here, reported_here = batches(ruin[0])
    there, reported_there = batches(ruin[0], num_workers=2)
    assert same(here, there)
    assert reported_here == reported_there
    assert reported_here
    assert all(one.path in one.problem for one in reported_here)


def test_a_row_without_a_readable_image_ends(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(4):
            (tmp_path / name / f"{index}.png").write_bytes(b"")
    with pytest.raises(RunError, match=r"got 8: .*0\.png") as caught:
        batches(tmp_path, open_folder(tmp_path, None))
    assert "data.exclude" in caught.value.remedy
    with pytest.raises(RunError, match="at most 2 unreadable training images, got 3"):
        batches(tmp_path, open_folder(tmp_path, None), max_errors=2)


@pytest.mark.process
@pytest.mark.slow
def test_a_worker_that_dies_names_the_file(tmp_path):
    source = open_folder(sound_folder(tmp_path), "train")
    slot = make_order(len(source)).slots(2, 1)[0]
    with pytest.raises(DataError) as caught:
        batches(tmp_path, Deadly(source, {slot.index}), num_workers=2)
    assert source.locate(slot.index) in caught.value.problem
    assert "memory" in caught.value.remedy
    with pytest.raises(DataError) as caught:
        list(evaluation_loader(Deadly(source, {5}), PREPROCESSING, batch_size=2, num_workers=1))
    assert source.locate(5) in caught.value.problem


# ---- a run


def run_recipe(**data):
    return section(tiny_recipe(epochs=3, replicas=1), "data", on_error="skip", **data)


def trainer_of(folder: Path, recipe, root: Path) -> Trainer:
    """A tiny network that trains on the images of a folder."""
    source = open_folder(root, "train")
    samples = TrainingSet(source, build_augmentation(Augment(), PREPROCESSING), recipe.seed)
    order = Order(num_samples=len(source), global_batch_size=8, replicas=1, repeats=1, seed=recipe.seed)
    job = tiny_job(folder, recipe, model=tiny_model(torch.float32))
    return Trainer(dataclasses.replace(job, samples=samples, order=order))


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "errors.jsonl").read_text().splitlines()]


def test_training_ends_and_counts_what_the_doctor_counts(ruin, tmp_path, caplog):
    root, planted = ruin
    trainer = trainer_of(tmp_path, run_recipe(max_errors=len(planted)), root)
    progress = trainer.fit()
    lines = [line for line in caplog.messages if line.startswith("skipped")]
    reported_by_doctor = {path for f in examine(root).findings if f.kind in UNREADABLE for path in f.paths}
    assert set(progress.unreadable) == reported_by_doctor == planted
    rows = rows_of(tmp_path)
    assert [row["path"] for row in rows] == progress.unreadable
    assert len(lines) == len(rows) == len(planted)  # each said once
    assert all(row["path"] in row["problem"] for row in rows)
    assert [row for row in read_metrics(tmp_path) if row["kind"] == "train"][-1]["unreadable"] == len(planted)
    assert read_state(tmp_path)["state"] == "finished"


def test_a_resumed_run_writes_the_same_files(ruin, tmp_path, monkeypatch):
    recipe = section(run_recipe(), "keep", checkpoint_every_steps=1)
    trainer_of(tmp_path / "whole", recipe, ruin[0]).fit()
    stopped = trainer_of(tmp_path / "parts", recipe, ruin[0])
    original = Trainer._log

    def stop_after_two(self, step, lr, result):
        original(self, step, lr, result)
        if step == 3:
            raise Stopped("by the test")  # after rows of step 3, before its checkpoint

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_log", stop_after_two)
        with pytest.raises(Stopped):
            stopped.fit()
    assert len(rows_of(tmp_path / "parts")) > 0
    trainer_of(tmp_path / "parts", recipe, ruin[0]).fit()
    for name in ("metrics.jsonl", "errors.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_budget_stops_the_run_with_names(ruin, tmp_path):
    with pytest.raises(RunError, match="at most 12 unreadable training images") as caught:
        trainer_of(tmp_path, run_recipe(max_errors=12), ruin[0]).fit()
    rows = rows_of(tmp_path)
    assert len(rows) > 12
    assert all(row["path"] in caught.value.problem for row in rows)
    assert read_state(tmp_path)["state"] == "failed"
    # With a larger budget the same run goes on.
    assert len(trainer_of(tmp_path, run_recipe(), ruin[0]).fit().unreadable) == len(ruin[1])


def test_raise_is_the_default_and_names_the_file(ruin, tmp_path):
    recipe = tiny_recipe(epochs=3, replicas=1)
    assert recipe.data.on_error == "raise"
    with pytest.raises(ImageError) as caught:
        trainer_of(tmp_path, recipe, ruin[0]).fit()
    assert any(path in caught.value.problem for path in ruin[1])
    assert "deepcait doctor" in caught.value.remedy
    assert "--resume with --set data.on_error=skip" in caught.value.remedy
    assert not (tmp_path / "errors.jsonl").exists()
    assert read_state(tmp_path)["state"] == "failed"


def test_evaluation_never_substitutes(ruin):
    root, planted = ruin
    for split in ("train", "all"):
        source = open_folder(root, None if split == "all" else split)
        with pytest.raises(ImageError) as caught:
            list(evaluation_loader(source, PREPROCESSING, batch_size=4))
        assert any(path in caught.value.problem for path in planted)


# ---- settings


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"data\.on_error"):
        section(tiny_recipe(), "data", on_error="ignore")
    with pytest.raises(ConfigError, match=r"data\.max_errors"):
        run_recipe(max_errors=-1)


def test_the_budget_may_change_on_resume_and_the_exclusion_may_not(tmp_path):
    (tmp_path / "config.yaml").write_text(run_recipe(source="photos").to_yaml())
    given = run_recipe(source="photos", max_errors=7)
    assert resumed_recipe(tmp_path, given).data.max_errors == 7
    with pytest.raises(ConfigError, match=r"data\.exclude"):
        resumed_recipe(tmp_path, run_recipe(source="photos", exclude="list.txt"))


def test_the_doctors_list_is_left_out(ruin, tmp_path):
    root, planted = ruin
    write_fix_list(tmp_path / "list.txt", examine(root).leave_out)
    recipe = section(tiny_recipe(), "data", source=str(root), exclude=str(tmp_path / "list.txt"))
    opened = open_training_data(recipe)
    samples = opened.train
    assert (len(samples), len(opened.validation)) == (12, 6)
    assert not {samples.locate(index) for index in range(12)} & planted
    assert any(f"{len(planted)} training and 0 validation" in line for line in opened.messages)
    assert len(list(evaluation_loader(samples, PREPROCESSING, batch_size=4))) == 3


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_without_a_label_is_reported_before_the_training(tmp_path, split):
    rows = ["1.png,0,train", "2.png,1,train", "3.png,0,val", f"4.png,-1,{split}"]
    (tmp_path / "list.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n")
    recipe = section(section(tiny_recipe(), "augment", repeats=1), "data", source=str(tmp_path / "list.csv"))
    with pytest.raises(DataError, match=r"4\.png has no class"):
        open_training_data(recipe)
    with pytest.raises(DataError, match=r"4\.png has no class"):
        plan(recipe)
