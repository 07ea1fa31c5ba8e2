"""53 images, counted the same whatever brings them: processes, batches, workers, order."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import deepcait
from deepcait.cli.main import main
from deepcait.data import Preprocessing, Source, Subset, open_source
from deepcait.evaluation import Metrics, evaluate

NUM_IMAGES = 53
BATCHES, WORKERS, SHUFFLED = (7, 16), (0, 2), (False, True)
ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.process, pytest.mark.xdist_group("processes")]


def make_model() -> torch.nn.Module:
    """A small CaiT with scales of order 1: every branch counts."""
    torch.manual_seed(3)
    return deepcait.create_model("cait_nano_32", depth=2, layer_scale_init=0.5)


def make_source(shuffled: bool) -> Source:
    """53 of the demo's photographs, of all classes."""
    source = open_source("builtin:demo", "test")
    positions = torch.arange(NUM_IMAGES) * 9
    if shuffled:
        positions = positions[torch.randperm(NUM_IMAGES, generator=torch.Generator().manual_seed(1))]
    return Subset(source, positions.tolist(), split="test")


def measure(shuffled: bool, batch_size: int, num_workers: int) -> Metrics:
    source = make_source(shuffled)
    return evaluate(make_model(), source, batch_size=batch_size, num_workers=num_workers)


def by_name(metrics: Metrics) -> dict:
    """Labels, best answers, probabilities and loss of each image, by its name."""
    records = metrics.records
    columns = (records.label_N, records.first_N, records.ranks_N, records.probabilities_NT, records.losses_N)
    return {name: [column[row] for column in columns] for row, name in enumerate(records.names)}


def assert_same(one: Metrics, other: Metrics) -> None:
    assert (one.num_images, one.correct1, one.correct5) == (other.num_images, other.correct1, other.correct5)
    assert one.loss == pytest.approx(other.loss, abs=1e-5)
    ours, theirs = by_name(one), by_name(other)
    assert set(ours) == set(theirs)
    for name, (label, first, rank, probabilities, loss) in ours.items():
        assert (label, first, rank) == tuple(theirs[name][:3])
        assert torch.allclose(probabilities, theirs[name][3], rtol=0, atol=1e-5)
        assert loss == pytest.approx(theirs[name][4].item(), abs=1e-5)


def assert_bit_equal(one: Metrics, other: Metrics) -> None:
    assert one == other
    for field in dataclasses.fields(one.records):
        ours, theirs = getattr(one.records, field.name), getattr(other.records, field.name)
        assert ours.equal(theirs) if isinstance(ours, torch.Tensor) else ours == theirs, field.name


def measure_shares(rank: int, folder: Path, combinations: list) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    torch.save([measure(*combination) for combination in combinations], folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def straight() -> Metrics:
    return measure(False, NUM_IMAGES, 0)


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> dict:
    """What two processes measure, for every combination, each twice."""
    folder = tmp_path_factory.mktemp("pair")
    combinations = [*itertools.product(SHUFFLED, BATCHES, WORKERS), (False, 7, 0)]
    # Not forked: a fork can't use the server of loader workers that its parent may have started.
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=measure_shares, args=(rank, folder, combinations)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    found: dict = {}
    for rank in range(2):
        measured = torch.load(folder / f"{rank}.pt", weights_only=False)
        for combination, metrics in zip(combinations, measured, strict=True):
            found.setdefault((rank, *combination), []).append(metrics)
    return found


@pytest.mark.parametrize("shuffled", SHUFFLED)
@pytest.mark.parametrize("batch_size", BATCHES)
@pytest.mark.parametrize("num_workers", WORKERS)
def test_one_and_two_processes(straight, shared, shuffled, batch_size, num_workers):
    assert straight.num_images == NUM_IMAGES
    assert_same(measure(shuffled, batch_size, num_workers), straight)
    first, second = (shared[rank, shuffled, batch_size, num_workers][0] for rank in range(2))
    assert_same(first, straight)
    assert_bit_equal(first, second)


def test_equal_runs_are_bit_equal(shared):
    assert_bit_equal(measure(True, 7, 0), measure(True, 7, 0))
    assert_bit_equal(*shared[0, False, 7, 0])


def test_the_comparison_can_say_no(straight):
    source = make_source(False)
    other = evaluate(
        make_model(),
        source,
        preprocessing=Preprocessing((32, 32), mean=(0.3,) * 3, std=(0.3,) * 3),
        batch_size=7,
    )
    with pytest.raises(AssertionError):
        assert_same(other, straight)


def test_the_command_under_torchrun(tmp_path, capsys):
    source = make_source(False)
    for row in range(NUM_IMAGES):
        path = Path(source.locate(row))
        (tmp_path / "photos" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, tmp_path / "photos" / path.parent.name)
    preprocessing = Preprocessing.from_pretrained_cfg(make_model().pretrained_cfg)
    classifier = deepcait.Classifier(make_model(), classes=source.classes, preprocessing=preprocessing)
    options = ["eval", str(classifier.save(tmp_path / "model")), "--data", str(tmp_path / "photos"), "--json"]
    options += ["--batch-size", "7", "--per-image"]
    assert main([*options, str(tmp_path / "one.csv")]) == 0
    one = json.loads(capsys.readouterr().out)
    several = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "deepcait"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    end = subprocess.run(
        [*several, *options, str(tmp_path / "two.csv")], capture_output=True, text=True, timeout=200, env=environment
    )
    assert end.returncode == 0, end.stderr
    two = json.loads(end.stdout)
    assert one["num_images"] == two["num_images"] == NUM_IMAGES
    assert (one["correct1"], one["correct5"]) == (two["correct1"], two["correct5"])
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
    rows = [list(csv.DictReader((tmp_path / name).open())) for name in ("one.csv", "two.csv")]
    same = [[(row["path"], row["label"], row["predictions"]) for row in own] for own in rows]
    assert len(same[0]) == NUM_IMAGES
    assert same[0] == same[1]
