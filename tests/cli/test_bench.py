"""`deepcait bench --data`: the ratios are there, the files only where asked for, mistakes are reported."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from deepcait.cli.bench import Args, _precisions
from deepcait.cli.main import main
from deepcait.errors import ConfigError


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(root / f"{number}.jpg")
    (root / "notes.txt").write_text("no picture")
    return root


def test_a_flat_folder(photos, tmp_path, capsys):
    options = ["--rounds", "2", "--workers", "0", "--batch-size", "4", "--json", "--out", str(tmp_path / "out")]
    assert main(["bench", "--data", str(photos), *options]) == 0
    result = json.loads(capsys.readouterr().out)
    speed = result["images_per_s"]
    assert result["num_images"] == 5
    assert result["images_per_round"] == 32 * 4  # the five of them again and again
    assert result["data_ratio"] == pytest.approx(speed["train"] / speed["timm_train"])
    assert result["data_eval_ratio"] == pytest.approx(speed["eval"] / speed["timm_eval"])
    assert 0 <= result["resampler"]["largest_difference"] <= 2
    written = json.loads((tmp_path / "out" / "data_loader.json").read_text())
    assert written["data_ratio"] == result["data_ratio"]
    assert "--rounds 2" in written["command"]
    assert f"{result['data_ratio']:.2f}" in (tmp_path / "out" / "data_loader.md").read_text()


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ([], "neither a model nor --data"),
        (["--data", "PHOTOS", "--rounds", "1"], "--rounds: expected 2"),
        (["--data", "PHOTOS", "--workers", "-1"], "--workers"),
        (["--data", "PHOTOS", "--batch-size", "0"], "--batch-size"),
        (["--data", "/no/such/place"], "/no/such/place"),
    ],
)
def test_mistakes(photos, capsys, options, part):
    assert main(["bench", *(str(photos) if word == "PHOTOS" else word for word in options)]) == 2
    assert part in capsys.readouterr().err


def test_a_model_beside_timm(tmp_path, capsys):
    options = ["--engine", "eager", "--batch", "2", "--rounds", "2", "--threads", "1"]
    assert main(["bench", "builtin:nano", *options, "--out", str(tmp_path), "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    (row,) = model["batches"]
    ours, timm = (row["engines"]["eager"][who] for who in ("ours", "timm"))
    assert row["engines"]["eager"]["ratio"] == pytest.approx(timm["median_s"] / ours["median_s"])
    assert row["best_ratio"] == row["engines"]["eager"]["ratio"]
    assert ours["drift"] < 1e-5
    assert timm["drift"] < 1e-5
    assert 0 < model["memory_bytes"]["ours"] < model["memory_bytes"]["timm"]
    written = json.loads((tmp_path / "bench_builtin_nano_b2.json").read_text())
    assert written["batches"] == model["batches"]
    assert written["command"] == f"deepcait bench builtin:nano {' '.join(options)}"  # it measures the same again


def test_all_precisions_are_those_of_the_engines():
    found = {engine: _precisions(Args(engine=engine, precision="all")) for engine in ("onnx", "openvino", "eager")}
    assert found == {"onnx": ["fp32"], "openvino": ["fp32", "bf16"], "eager": ["fp32", "bf16", "int8"]}
    assert _precisions(Args(precision="all")) == ["fp32", "bf16", "int8"]
    assert _precisions(Args(precision="all"), "cuda") == ["fp32", "bf16", "fp16"]
    with pytest.raises(ConfigError, match="one or more of fp32, bf16, fp16, or all, got int8"):
        _precisions(Args(precision="fp32,int8"), "cuda")


@pytest.mark.parametrize(("option", "value"), [("--engine", "abacus"), ("--precision", ","), ("--precision", "int4")])
def test_precisions_on_images_that_are_none(option, value, capsys):
    options = {"--data": "builtin:demo", "--precision": "all", option: value}
    assert main(["bench", "builtin:nano", *(word for pair in options.items() for word in pair)]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert f"{option}: expected one or more of" in error
    assert f"got {value.strip(',') or 'none'}." in error


def test_batches_that_are_none(capsys):
    assert main(["bench", "builtin:nano", "--batch", "1,x"]) == 2
    assert "--batch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--train", "--autotune"], "--autotune and --train"),
        (["--train", "--engine", "onnx"], "--engine is not used by --train"),
        (["--cost", "--batch", "8"], "--batch is not used by --cost"),
        (["--compiled"], "or add --train"),
        (["--cost", "--precision", "bf16"], "--precision is not used by --cost"),
        (["--tolerance", "0.1"], "or add --autotune"),
        (["--workers", "8"], "--workers is not used by the benchmark of engines"),
        (["--batch-size", "8"], "Omit --batch-size, or add --data."),
        (["--train", "--batch-size", "8"], "--batch-size is not used by --train"),
        (["--data", "x", "--cost", "--batch", "8"], "--batch is not used by --cost and --data"),
        (["--train", "--device", "cuda"], "Omit --device, or --train."),
        (["--data", "x", "--precision", "all", "--device", "cuda"], "--device is not used by"),
    ],
)
def test_an_option_that_would_go_unused_is_reported_at_once(options, part, capsys):
    assert main(["bench", "cait_nano_32", *options]) == 2
    assert part in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--train"], "--train: no model was given. remedy: Use deepcait bench MODEL --train."),
        (["--autotune"], "--autotune: no model"),
        (["--cost"], "--cost: no model"),
        (["--engine", "eager"], "--engine is not used by --data"),
        (["--batch", "8"], "Omit --batch, or name a model."),
        (["--threads", "1"], "--threads is not used by --data"),
        (["--compiled"], "--compiled is not used by --data"),
    ],
)
def test_an_option_for_models_is_refused_where_only_data_is_measured(photos, options, part, capsys):
    assert main(["bench", "--data", str(photos), *options]) == 2
    assert part in " ".join(capsys.readouterr().err.split())


def test_a_place_for_figures_that_can_not_be_is_reported_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["bench", "cait_nano_32", "--engine", "eager", "--batch", "1", "--out", str(tmp_path / "file")]) == 2
    printed = capsys.readouterr()
    assert "is a file, not a folder" in " ".join(printed.err.split())
    assert "best:" not in printed.out
