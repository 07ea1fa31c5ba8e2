"""`deepcait bench --train` and `--cost`: the same step on both sides, exact counts, exponents of known powers."""

from __future__ import annotations

import json

import pytest
import torch

import deepcait
from deepcait.bench.activations import PATHS, count_activations, inference_bytes
from deepcait.bench.cost import FIGURES, SIDES, Point, compare_cost, fit, grow
from deepcait.bench.memory import live_bytes
from deepcait.bench.train import compare_training
from deepcait.bench.work import Work
from deepcait.cli.main import main
from deepcait.inference.fold import fold
from deepcait.model import CaiT, CaiTConfig
from deepcait.training.footprint import training_bytes
from deepcait.weights.artefact import save_artefact

TINY = CaiTConfig(embed_dim=32, depth=3, num_heads=2, img_size=32, patch_size=8, num_classes=5)


def test_a_step_beside_timm(tmp_path, capsys):
    options = ["--train", "--batch", "2", "--rounds", "2", "--out", str(tmp_path), "--json"]
    assert main(["bench", "builtin:nano", *options]) == 0
    (result,) = json.loads(capsys.readouterr().out)["models"]
    steps = result["steps"]
    ours, timm = steps["ours"], steps["timm"]
    assert result["train_ratio"] == pytest.approx(timm["median_s"] / ours["median_s"])
    assert ours["kept_bytes"] < timm["kept_bytes"] / 2
    assert steps["ours, checkpointing"]["kept_bytes"] < timm["kept_bytes"] / 10
    assert steps["ours, memory small"]["operators"] > ours["operators"] > 100
    assert ours["moved_bytes"] > 0
    assert "ours, compiled" not in steps
    page = (tmp_path / "train_step_builtin_nano_fp32.md").read_text()
    assert f"| {ours['operators']:,} |" in page
    assert json.loads((tmp_path / "train_step_builtin_nano_fp32.json").read_text())["steps"] == steps


def test_autocast_keeps_less_on_both_sides(tmp_path):
    """A small network: a processor without bfloat16 takes minutes for the one in the package."""
    folder = save_artefact(tmp_path / "tiny", CaiT(TINY), preprocessing={}, classes=None)
    wide, narrow = (compare_training(str(folder), batch=2, rounds=2, precision=p)["steps"] for p in ("fp32", "bf16"))
    for name in ("ours", "timm"):
        assert narrow[name]["kept_bytes"] < wide[name]["kept_bytes"]


def test_work_counts_operators_and_their_tensors():
    x = torch.zeros(100)
    with Work() as work:
        y = x + x  # one operator: two in, one out
        y.view(10, 10).t()  # none
        torch.empty(1000)  # none
    assert (work.operators, work.moved_bytes) == (1, 1200)
    with Work() as work:
        torch.mul(x, 2.0, out=y)
        x.expand(50, 100).sum()  # no more than its memory is read
    assert (work.operators, work.moved_bytes) == (2, 800 + 404)
    with Work() as work:
        torch.nn.functional.linear(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4))
    assert work.flops == 2 * 2 * 3 * 4


def test_exponents_of_known_powers():
    xs = [1, 2, 4, 16]
    found = fit(xs, [5 * x**1.5 for x in xs])
    assert found["exponent"] == pytest.approx(1.5)
    assert found["slopes"] == pytest.approx([1.5, 1.5])
    assert (found["from"], found["to"]) == (1, 16)
    bent = fit([1, 2, 4], [1, 2, 8])
    assert bent["slopes"] == pytest.approx([1, 2])
    assert bent["exponent"] == pytest.approx(1.5)


def test_cost_of_a_tiny_model():
    points = [Point("depth", depth, TINY.replace(depth=depth), 2) for depth in (2, 4)]
    result = compare_cost("builtin:nano", rounds=2, points=points)
    assert [row["x"] for row in result["points"]] == [2, 4]
    for row, point in zip(result["points"], points, strict=True):
        assert row["training_bytes"]["ours"] == training_bytes(point.config, PATHS["training_bytes"], 2)
        assert all(row[key][side] > 0 for key in FIGURES for side in SIDES)
        assert row["training_bytes"]["ours"] < row["training_bytes"]["timm"]
    # Of inference, what is alive at once does not depend on the depth.
    assert result["exponents"]["depth"]["inference_bytes"]["ours"]["exponent"] == 0


def test_each_curve_grows_one_thing():
    points = grow(CaiTConfig(embed_dim=192, depth=24, num_heads=4))
    for axis in ("batch", "tokens", "depth"):
        of_axis = [point for point in points if point.axis == axis]
        assert len({point.batch for point in of_axis}) == (5 if axis == "batch" else 1)
        assert len({point.config.num_patches for point in of_axis}) == (5 if axis == "tokens" else 1)
        assert len({point.config.depth for point in of_axis}) == (4 if axis == "depth" else 1)


@pytest.mark.parametrize("threads", [1, 2])
def test_activations_are_those_that_are_counted(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        require_counted_activations(threads)
    finally:
        torch.set_num_threads(before)


def require_counted_activations(threads):
    rows = count_activations(TINY, [(32, 32), (16, 48)], [1, 5])
    assert [(row["img_size"], row["batch"]) for row in rows] == [
        ([32, 32], 1), ([32, 32], 5), ([16, 48], 1), ([16, 48], 5),
    ]  # fmt: skip
    for row in rows:
        config = TINY.replace(img_size=row["img_size"])
        assert row["inference_bytes"] == inference_bytes(config, row["batch"])
        for name, compute in PATHS.items():
            assert row[name] == training_bytes(config, compute, row["batch"])
    assert torch.get_num_threads() == threads, "counting leaves the number of threads as it was"
    torch.set_num_threads(1)
    deep = fold(CaiT(TINY.replace(depth=5)).eval())
    assert live_bytes(deep, torch.zeros(5, 3, 32, 32)) == rows[1]["inference_bytes"]


@pytest.mark.parametrize(
    ("options", "output"),
    [
        (["--train", "--batch", "1,2"], "--batch"),
        (["--train", "--rounds", "1"], "--rounds"),
        (["--train", "--precision", "fp8"], "--precision"),
        (["--train", "--threads", "-1"], "--threads"),
        (["--cost", "--rounds", "1"], "--rounds"),
        (["--cost", "--threads", "0"], "--threads"),
    ],
)
def test_mistakes(capsys, options, output):
    assert main(["bench", "builtin:nano", *options]) == 2
    assert output in capsys.readouterr().err


def test_cost_of_a_network_that_timm_lacks(capsys):
    assert main(["bench", "convnet_32", "--cost", "--rounds", "2"]) == 2
    assert "timm does not have this network" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["--train", "--cost"])
def test_a_model_without_classes_has_no_training_step(capsys, tmp_path, what):
    features = deepcait.create_model("cait_nano_32", num_classes=0)
    torch.save(features.state_dict(), tmp_path / "features.pth")
    assert main(["bench", str(tmp_path / "features.pth"), what, "--rounds", "2"]) == 2
    assert "has no classifier" in capsys.readouterr().err
