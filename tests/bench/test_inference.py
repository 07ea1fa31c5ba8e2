"""`deepcait bench`: each engine runs ours and timm's, both with the same logits; memory and turns are counted right."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from torch import nn

from deepcait.bench.clock import Lane, ratio, take_turns
from deepcait.bench.inference import _best, build_contestants, build_pair, compare_memory, logit_error
from deepcait.bench.limit import Products, count_products, product_lanes
from deepcait.bench.memory import LiveBytes, live_bytes
from deepcait.bench.plots import draw_engines
from deepcait.cli.main import main
from deepcait.errors import ConfigError
from deepcait.inference import native
from deepcait.inference.fold import fold
from deepcait.model import CaiT, CaiTConfig, variant_config
from deepcait.weights.artefact import save_artefact
from deepcait.weights.timm_layout import model_args
from tests.inference.tiny import SIZES, scrambled
from tests.processes.harness import DEMO

TINY = CaiTConfig(num_classes=7, **SIZES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "tiny"
    return save_artefact(path, scrambled(), preprocessing={}, classes=None)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    """One block of each kind: an export takes seconds per block."""
    path = tmp_path_factory.mktemp("bench") / "shallow"
    return save_artefact(path, scrambled(**SIZES | {"depth": 1, "cls_depth": 1}), preprocessing={}, classes=None)


def test_ours_beside_timm(folder, tmp_path, capsys):
    options = ["--engine", "eager", "--batch", "1,2", "--rounds", "2", "--json", "--out", str(tmp_path / "out")]
    assert main(["bench", str(folder), *options]) == 0
    (result,) = json.loads(capsys.readouterr().out)["models"]
    assert [row["batch"] for row in result["batches"]] == [1, 2]
    for row in result["batches"]:
        found = row["engines"]["eager"]
        assert found["ratio"] == pytest.approx(found["timm"]["median_s"] / found["ours"]["median_s"])
        assert row["best_ratio"] == found["ratio"]
        assert row["of_limit"] == pytest.approx(row["limit"]["median_s"] / found["ours"]["median_s"])
        assert max(found[who]["drift"] for who in ("ours", "timm")) < 1e-4
    written = {path.suffix: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {
        f"bench_{str(folder).strip('/').replace('/', '_')}_b1_b2"
    }
    assert json.loads(written[".json"])["batches"] == result["batches"]
    assert f"{result['batches'][0]['best_ratio']:.2f}" in written[".md"].decode()


def test_each_precision_beside_the_same_of_timm(folder):
    ours, peer = build_pair(str(folder))
    images_BCHW = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        expected_BK = peer(images_BCHW)
    runs = build_contestants(ours, peer, ["eager"], 1, ["fp32", "bf16"])
    assert list(runs) == [(name, who) for name in ("eager", "eager bf16") for who in ("ours", "timm")]
    errors = {
        key: ((run(images_BCHW) - expected_BK).abs().max() / expected_BK.std()).item() for key, run in runs.items()
    }
    assert errors["eager", "timm"] < 1e-4 < errors["eager bf16", "timm"] < 0.2
    with pytest.raises(ConfigError, match="engine onnx does not compute in bf16"):
        build_contestants(ours, peer, ["onnx"], 1, ["bf16"])


def test_the_best_is_no_less_exact_than_the_peer():
    def lane(seconds):
        return Lane("", print, turns=[[seconds], [seconds]])

    lanes = {("a", "ours"): lane(1.0), ("b", "ours"): lane(2.0), ("a", "timm"): lane(3.0), ("b", "timm"): lane(4.0)}
    errors = {key: {"rms": 1e-7} for key in lanes} | {("a", "ours"): {"rms": 2e-2}}
    found = _best(lanes, errors, None)
    assert (found["ours"], found["timm"], found["ratio"]) == ("b", "a", 1.5)
    assert _best(lanes, errors | {("a", "timm"): {"rms": 3e-2}}, None)["ratio"] == 3.0
    # Rounding in float32 is no error; and if all of ours is less exact, the most exact counts.
    assert _best(lanes, errors | {("a", "ours"): {"rms": 5e-7}}, None)["ratio"] == 3.0
    assert _best(lanes, errors | {("b", "ours"): {"rms": 3e-2}}, None)["ours"] == "a"


def test_precisions_on_images(tmp_path, capsys):
    for images in (DEMO / "test").iterdir():
        (tmp_path / "data" / images.name).mkdir(parents=True)
        for image in sorted(images.iterdir())[:5]:
            shutil.copy(image, tmp_path / "data" / images.name)
    data = ["--data", str(tmp_path / "data")]
    options = [*data, "--engine", "eager", "--precision", "all", "--batch", "10", "--rounds", "2"]
    assert not main(["bench", "builtin:nano", *options, "--json", "--out", str(tmp_path)])
    (result,) = json.loads(capsys.readouterr().out)["precisions"]
    plain, short, shortest = result["rows"]
    assert (plain["precision"], short["precision"], shortest["precision"]) == ("fp32", "bf16", "int8")
    assert plain["correct"] == result["network_correct"]
    assert plain["same_top1"] == result["num_images"] == 50
    assert plain["rms"] < 1e-5
    assert abs(short["correct"] - plain["correct"]) <= 2
    if native.has_format(torch.bfloat16) and native.is_faster(torch.bfloat16):
        assert 1e-5 < short["rms"] < 2e-2
    assert f"{short['correct']:,}" in (tmp_path / "precision_builtin_nano.md").read_text()


def test_the_plot_is_of_the_results(tmp_path):
    agg = pytest.importorskip("matplotlib.axes")
    found = {"median_s": 0.1, "p95_s": 0.2, "images_per_s": 10.0}
    engines = {name: {"ours": found, "timm": found | {"images_per_s": 5.0}} for name in ("eager", "onnx")}
    row = {"batch": 1, "engines": engines, "limit": {"median_s": 0.05}}
    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agg.Axes, "barh", lambda self, y, width, height, **kwargs: drawn.append(width))
        draw_engines({"model": "m", "threads": 1, "engines": list(engines), "batches": [row]}, tmp_path / "a.png")
    assert drawn == [10.0, 10.0, 5.0, 5.0]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_each_engine_runs_the_peer_too(shallow, engine):
    pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
    ours, peer = build_pair(str(shallow))
    images_BCHW = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        expected_BK = peer(images_BCHW)
    for run in build_contestants(ours, peer, [engine], 1).values():
        assert (run(images_BCHW) - expected_BK).abs().max() < 1e-4 * expected_BK.std()


def test_the_limit_does_the_products_that_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    products = Products(TINY)
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        products(*products.inputs(2))
    assert counter.get_total_flops() == 2 * 2 * count_products(TINY)
    for run in product_lanes(TINY, 2, openvino=False, threads=1).values():
        run()


def test_live_bytes_of_a_chain():
    class Chain(nn.Module):
        def forward(self, x):
            y = x + 1  # alive until z exists
            z = y * 2
            del y
            return z.view(-1) + 1  # a view is no memory

    assert live_bytes(Chain(), torch.zeros(1000)) == 2 * 4000


def test_the_lean_path_holds_less_than_timm():
    memory = compare_memory(*build_pair("cait_xxs24_224"), batch=1)
    assert 0 < memory["ours"] < memory["timm"]
    assert memory["ratio"] == memory["ours"] / memory["timm"]


def test_lean_memory_at_448():
    import timm

    # Two blocks deep, as the peak does not depend on the depth; timm holds several maps of all heads and images.
    config = dataclasses.replace(variant_config("cait_xxs24_224"), img_size=(448, 448), depth=2)
    ours = CaiT(config).eval()
    peer = timm.create_model("cait_xxs24_224", **model_args(config)).eval()
    images_BCHW = torch.randn(4, 3, 448, 448)
    memory = compare_memory(ours, peer, 4)
    assert memory["ratio"] < 1 / 3
    with torch.no_grad(), LiveBytes() as counter:
        fold(ours)(images_BCHW)
    # The largest is the hidden layer of the MLP: less than one image's map of all heads.
    assert counter.largest < 4 * config.num_heads * config.num_patches**2


def test_turns_alternate_and_the_first_round_is_not_counted():
    order = []
    lanes = [Lane(name, lambda name=name: order.append(name)) for name in "ab"]
    take_turns(lanes, rounds=2)
    changes = [name for name, before in zip(order, [None, *order], strict=False) if name != before]
    assert changes == ["b", "a", "b", "a"]  # b a | a b | b a
    assert [len(lane.turns) for lane in lanes] == [2, 2]


def test_ratio_says_how_many_times_faster():
    ours, peer = Lane("ours", print, turns=[[1.0], [2.0]]), Lane("peer", print, turns=[[3.0], [4.0]])
    found = ratio(ours, peer)
    assert found["ratio"] == 3.5 / 1.5
    assert 2 <= found["quartiles"][1] <= 3


def test_logits_that_are_not_finite_are_refused():
    for got, expected in ((float("nan"), 1.0), (1.0, float("inf"))):
        with pytest.raises(ConfigError, match="NaN or infinity"):
            logit_error(torch.tensor([[got, 1.0]]), torch.tensor([[expected, 2.0]]))


@pytest.mark.parametrize(
    ("options", "output"),
    [
        (["--rounds", "1"], "--rounds"),
        (["--batch", "0"], "--batch"),
        (["--batch", "many"], "--batch"),
        (["--engine", "abacus"], "abacus"),
        (["--engine", ""], "--engine"),
        (["--threads", "0"], "--threads"),
    ],
)
def test_mistakes(capsys, options, output):
    assert main(["bench", "cait_xxs24_224", *options]) == 2
    assert output in capsys.readouterr().err
