"""`deepcait bench`: each engine runs ours and timm's, both with the same logits; memory and turns are counted right."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from torch import nn

from deepcait.bench import inference, limit, precisions
from deepcait.bench.clock import Lane, ratio, take_turns
from deepcait.bench.engine_page import COLUMNS, markdown, table
from deepcait.bench.inference import _best, _contenders, build_contestants, build_pair, compare_memory, logit_error
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


def test_timm_has_no_int8(folder):
    ours, peer = build_pair(str(folder))
    runs = build_contestants(ours, peer, ["eager"], 1, ["fp32", "int8"])
    assert list(runs) == [("eager", "ours"), ("eager", "timm"), ("eager int8", "ours")]
    with pytest.raises(ConfigError, match="engine onnx does not compute in int8") as caught:
        build_contestants(ours, peer, ["onnx"], 1, ["fp32", "int8"])
    assert caught.value.remedy == "Choose the engine eager or compile, or one of these precisions."


def test_int8_is_compared_with_the_fastest_of_timm():
    def lane(seconds):
        return Lane("", print, turns=[[seconds], [seconds]])

    times = {("a", "ours"): 3.0, ("a", "timm"): 6.0, ("a bf16", "timm"): 4.0}
    times |= {("a int8", "ours"): 1.0, ("b int8", "ours"): 2.0}
    lanes = {key: lane(seconds) for key, seconds in times.items()}
    errors = {key: {"rms": 1e-7} for key in lanes}
    errors |= {("a bf16", "timm"): {"rms": 8e-3}, ("a int8", "ours"): {"rms": 2e-2}, ("b int8", "ours"): {"rms": 6e-3}}
    found = _best(_contenders(lanes, "int8"), errors, None)
    assert (found["ours"], found["timm"], found["ratio"], found["less_exact"]) == ("b int8", "a bf16", 2.0, False)
    # Without timm's bfloat16, int8 is less exact: the most exact of it is compared, and marked.
    lanes.pop(("a bf16", "timm"))
    found = _best(_contenders(lanes, "int8"), errors, None)
    assert (found["ours"], found["timm"], found["ratio"], found["less_exact"]) == ("b int8", "a", 3.0, True)
    assert found["rms"] == {"ours": 6e-3, "timm": 1e-7}
    # Over all precisions, int8 does not count where its error is larger; the other way round it has no effect.
    assert _best(lanes, errors, None)["ours"] == "a"
    assert list(_contenders(lanes, "fp32")) == [("a", "ours"), ("a", "timm")]


@pytest.mark.parametrize("multiplies", [True, False])
def test_int8_beside_timm(multiplies, monkeypatch, tmp_path, capsys):
    if multiplies and not limit.multiplies_int8():
        pytest.skip("no AVX512_VNNI")
    monkeypatch.setattr(limit, "multiplies_int8", lambda: multiplies)
    options = ["--engine", "eager", "--precision", "fp32,int8", "--batch", "1", "--rounds", "2", "--out", str(tmp_path)]
    assert main(["bench", "builtin:nano", *options, "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["models"]
    (row,) = result["batches"]
    found, best = row["engines"]["eager int8"], row["best"]["int8"]
    assert (found["timm"], found["ratio"], found["quartiles"]) == (None, None, None)
    assert row["best_peer"] == best["timm"] + " timm" == "eager timm"
    assert best["ours"] == "eager int8"
    assert best["ratio"] == pytest.approx(row["engines"]["eager"]["timm"]["median_s"] / found["ours"]["median_s"])
    head, *lines = [dict(zip(COLUMNS, line, strict=True)) for line in table(row)]
    assert head["timm, ms"]
    assert (lines[0]["timm, ms"], lines[0]["ratio"], lines[0]["quartiles"]) == ("", "", "")
    assert bool(lines[0]["of limit"]) == (found["ours"]["of_limit"] is not None) == multiplies
    assert best["limit"] is None or best["limit"]["library"] == "PyTorch, int8"
    page = (tmp_path / "bench_builtin_nano_b1.md").read_text()
    assert f"In int8: deepcait with eager int8 is {best['ratio']:.2f} times as fast as timm's fastest, eager" in page
    assert ("limit of the matrix products was not measured" in page) == (not multiplies)
    assert ("at a larger error" in page) == best["less_exact"] == (found["ours"]["rms"] > 1e-5)
    # The overall best can be int8, without a limit; the page says so by leaving it out.
    row |= {"limit": None, "of_limit": None}
    assert " of the limit." not in markdown(result, "")


def test_int8_alone_has_nothing_to_compare_with(monkeypatch, capsys):
    monkeypatch.setattr(inference, "build_pair", lambda spec: pytest.fail("a model was built before the refusal"))
    assert main(["bench", "cait_xxs24_224", "--precision", "int8"]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert "timm's network does not compute in int8, so there is nothing to compare with." in text
    assert "remedy: Add a precision of timm: --precision fp32,int8." in text


def test_what_engines_do_not_offer_is_named(monkeypatch, tmp_path):
    real = precisions.build_engine
    monkeypatch.setattr(precisions, "build_engine", lambda name, *args, **kwargs: real("eager", *args, **kwargs))
    options = {"engines": ["eager", "onnx"], "rounds": 2, "batch": 50}
    result = precisions.compare_precisions("builtin:nano", "builtin:demo", **options, precisions=["int8"])
    assert [(row["engine"], row["precision"]) for row in result["rows"]] == [
        ("eager", "fp32"),
        ("eager", "int8"),
        ("onnx", "fp32"),
    ]
    assert result["not_offered"] == {"onnx": ["int8"]}
    assert "Not offered: onnx in int8." in precisions.markdown(result, "")
    with pytest.raises(ConfigError, match="engine onnx does not compute in int8"):
        precisions.compare_precisions("builtin:nano", "builtin:demo", engines=["onnx"], precisions=["int8"])
    with pytest.raises(ConfigError, match="only one precision to compare: fp32 of onnx"):
        precisions.compare_precisions("builtin:nano", "builtin:demo", engines=["onnx"], precisions=["fp32"])


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
    row = {"batch": 1, "engines": engines, "limit": {"median_s": 0.05, "precision": "bf16"}}
    drawn, titles = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agg.Axes, "barh", lambda self, y, width, height, **kwargs: drawn.append(width))
        patch.setattr(agg.Axes, "set_title", lambda self, text, **kwargs: titles.append(text))
        draw_engines({"model": "m", "threads": 1, "engines": list(engines), "batches": [row]}, tmp_path / "a.png")
    assert drawn == [10.0, 10.0, 5.0, 5.0]
    assert titles == ["batch 1, matrix products in bf16"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_leaves_out_what_was_not_measured(tmp_path):
    agg = pytest.importorskip("matplotlib.axes")
    found = {"median_s": 0.1, "p95_s": 0.2, "images_per_s": 10.0}
    engines = {"eager int8": {"ours": found, "timm": None}, "eager": {"ours": found, "timm": found}}
    row = {"batch": 1, "engines": engines, "limit": None}
    labels = []
    with pytest.MonkeyPatch.context() as patch:
        real = agg.Axes.barh
        patch.setattr(agg.Axes, "barh", lambda self, *args, **kw: labels.append(kw["label"]) or real(self, *args, **kw))
        patch.setattr(agg.Axes, "axvline", lambda self, *args, **kwargs: pytest.fail("a limit was drawn"))
        draw_engines({"model": "m", "threads": 1, "engines": list(engines), "batches": [row]}, tmp_path / "a.png")
    assert labels == ["ours", None, "timm"]  # both are in the legend


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


def test_the_int8_limit_does_the_same_products(monkeypatch):
    done = []

    def counted(left, right, out=None):
        done.append(left.shape[0] * left.shape[1] * right.shape[1] if left.ndim == 2 else left.numel() * right.shape[2])
        return out if out is not None else left.new_zeros(left.shape[0], left.shape[1], right.shape[2])

    monkeypatch.setattr(limit, "multiplies_int8", lambda: True)
    lanes = product_lanes(TINY, 2, openvino=True, threads=1, precision="int8")
    assert list(lanes) == ["PyTorch, int8"]  # OpenVINO does not offer it
    lanes["PyTorch, int8"]()  # as it is
    monkeypatch.setattr(torch, "_int_mm", counted)
    monkeypatch.setattr(torch, "bmm", counted)
    lanes["PyTorch, int8"]()
    embedding = TINY.num_patches * TINY.embed_dim * TINY.in_chans * TINY.patch_size**2
    assert sum(done) == 2 * (count_products(TINY) - embedding)
    monkeypatch.setattr(limit, "multiplies_int8", lambda: False)
    assert product_lanes(TINY, 2, openvino=True, threads=1, precision="int8") == {}


def test_there_is_no_bf16_limit_without_the_instructions(monkeypatch):
    monkeypatch.setattr(limit, "has_bf16", lambda device: False)
    monkeypatch.setattr(limit, "openvino_default", lambda: "fp32")
    assert product_lanes(TINY, 2, openvino=True, threads=1, precision="bf16") == {}
    assert list(product_lanes(TINY, 2, openvino=False, threads=1)) != []


def test_formats_that_are_computed_in_fp32_are_named(monkeypatch, tmp_path, capsys):
    """A processor with neither instruction: the command ends well, and says what was measured."""
    monkeypatch.setattr(limit, "has_bf16", lambda device: False)
    monkeypatch.setattr(limit, "multiplies_int8", lambda: False)
    monkeypatch.setattr(native, "has_format", lambda dtype: dtype == torch.float32)
    options = ["--engine", "eager", "--rounds", "2", "--out", str(tmp_path), "--precision", "all"]
    assert main(["bench", "builtin:nano", "--batch", "1", *options]) == 0
    said = "eager bf16, eager int8: deepcait computes in fp32 here."
    assert said in capsys.readouterr().out
    result = json.loads((tmp_path / "bench_builtin_nano_b1.json").read_text())
    assert result["in_fp32"] == ["eager bf16", "eager int8"]
    assert result["batches"][0]["best"]["bf16"]["limit"] is None
    assert result["batches"][0]["best_ours"] == "eager ours"
    assert said in (tmp_path / "bench_builtin_nano_b1.md").read_text()
    assert main(["bench", "builtin:nano", "--data", "builtin:demo", "--batch", "50", *options]) == 0
    assert said in capsys.readouterr().out
    assert said in (tmp_path / "precision_builtin_nano.md").read_text()


def test_int8_products_need_the_instruction_and_must_be_exact(monkeypatch):
    uncached = limit.multiplies_int8.__wrapped__
    monkeypatch.setattr(limit, "processor_flags", lambda: "avx512f avx512_bf16")
    assert not uncached()
    monkeypatch.setattr(limit, "processor_flags", lambda: "avx512f avx512_vnni")
    assert uncached()
    monkeypatch.setattr(torch, "_int_mm", lambda left, right: (left.int() @ right.int()) + 1)
    assert not uncached()

    def missing(left, right):
        raise RuntimeError("not implemented for this processor")

    monkeypatch.setattr(torch, "_int_mm", missing)
    assert not uncached()


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
