"""`deepcait bench --autotune`: the fastest that agrees is chosen, kept beside the model, and used where it holds."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch

import deepcait
from deepcait.bench import tune as tuning
from deepcait.bench.tune import tune
from deepcait.cli.main import main
from deepcait.data import Preprocessing
from deepcait.errors import ConfigError
from deepcait.inference import engines, native
from deepcait.inference.tuned import FILE, Choice, ChoiceError, read_choice
from deepcait.weights import resolve
from deepcait.weights.artefact import save_artefact
from deepcait.weights.spec import describe
from tests.inference.tiny import scrambled

PHOTO = str(next(Path(deepcait.__file__).parent.glob("assets/demo/test/*/*.png")))
QUICK = ["--engine", "eager", "--batch", "1,3", "--rounds", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A model folder with the choice that the verb left there."""
    folder = tmp_path_factory.mktemp("tune") / "model"
    preprocessing = Preprocessing((32, 32)).to_pretrained_cfg()
    save_artefact(folder, scrambled(), preprocessing=preprocessing, classes=list("abcdefg"))
    assert main(["bench", str(folder), "--autotune", *QUICK]) == 0
    return folder


@pytest.fixture
def model(tuned, tmp_path):
    return Path(shutil.copytree(tuned, tmp_path / "model"))


def change(folder: Path, **changes) -> None:
    content = json.loads((folder / FILE).read_text()) | changes
    (folder / FILE).write_text(json.dumps(content))


def test_the_fastest_is_chosen(monkeypatch, tuned):
    """The clock gets the time of each lane, so the result is known."""
    seconds = {("eager", 1): 0.2, ("eager", 2): 0.1, ("eager", 4): 0.4}

    def clock(lanes, rounds, progress):
        for lane, took in zip(lanes, seconds.values(), strict=True):
            lane.turns = [[took]] * rounds

    monkeypatch.setattr(tuning, "take_turns", clock)
    found = tune(str(tuned), engines=["eager"], threads=[1, 2, 4], batches=[1, 3], rounds=2)
    assert found["choice"] == {"engine": "eager", "precision": "fp32", "threads": 2, "batch": 3}
    assert found["images_per_s"] == 30
    assert [row["images_per_s"] for row in found["rows"]] == sorted((30, 15, 10, 7.5, 5, 2.5), reverse=True)


def test_an_engine_that_answers_otherwise_is_not_chosen(monkeypatch, tuned):
    real = tuning.build_engine

    def build(name, model, threads, precision):
        engine = real("eager", model, threads=threads)
        if name == "openvino":
            return lambda images_BCHW: engine(images_BCHW) * 1.001  # and it is the only one that is fast
        return lambda images_BCHW: [engine(images_BCHW) for _ in range(30)][0]

    monkeypatch.setattr(tuning, "build_engine", build)
    options = {"threads": [1], "batches": [1], "rounds": 2}
    found = tune(str(tuned), engines=["openvino", "eager"], **options)
    assert [(row["engine"], row["agrees"]) for row in found["rows"]] == [("openvino", False), ("eager", True)]
    assert found["choice"]["engine"] == "eager"
    with pytest.raises(ConfigError, match="none of the engines openvino"):
        tune(str(tuned), engines=["openvino"], **options)


def test_an_engine_that_is_not_installed_is_left_out(monkeypatch, tuned):
    real = tuning.build_engine

    def build(name, model, threads, precision):
        if name == "onnx":
            raise ConfigError("onnx: expected the package onnxruntime.", remedy="Install it.")
        return real(name, model, threads=threads)

    monkeypatch.setattr(tuning, "build_engine", build)
    found = tune(str(tuned), engines=["onnx", "eager"], threads=[1], batches=[1], rounds=2)
    assert list(found["left_out"]) == ["onnx"]
    assert found["choice"]["engine"] == "eager"
    with pytest.raises(ConfigError, match="abacus"):
        tune(str(tuned), engines=["abacus"], threads=[1], batches=[1], rounds=2)


def test_threads_are_left_as_they_were(tuned):
    before = torch.get_num_threads()
    tune(str(tuned), engines=["eager"], threads=[before + 1], batches=[1], rounds=2)
    assert torch.get_num_threads() == before


def test_predict_uses_what_lies_with_the_model(model, capsys):
    assert main(["predict", str(model), PHOTO, "--engine", "eager", "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert main(["predict", str(model), PHOTO, "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out) == expected
    assert "engine eager, fp32, 1 threads" in output.err
    assert str(model / FILE) in output.err


def test_eval_uses_it_and_says_so(model, tmp_path, capsys):
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        shutil.copy(PHOTO, tmp_path / "data" / name)
    options = ["eval", str(model), "--data", str(tmp_path / "data"), "--json"]
    assert main(options) == 0
    output = capsys.readouterr()
    assert "engine eager, fp32, 1 threads" in output.err
    found = json.loads(output.out)
    assert found["engine"] == "eager"
    # Another size is another model: the choice is not for it.
    assert main([*options, "--img-size", "48"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["engine"] is None
    assert "engine eager" not in output.err


@pytest.mark.parametrize(("options", "batch"), [([], None), (["--max-batch", "5"], 5), (["--engine", "eager"], 16)])
def test_serve_uses_it_down_to_the_batch(model, monkeypatch, options, batch):
    change(model, batch=3)
    seen = []
    serving = importlib.import_module("deepcait.serve.run")  # by its name: other tests import the package again
    monkeypatch.setattr(serving, "serve", lambda *_, limits, threads, **__: seen.append((limits, threads)))
    assert main(["serve", str(model), *options]) == 0
    ((limits, threads),) = seen
    assert limits.max_batch == (batch or 3)
    assert threads == (None if batch == 16 else 1)


@pytest.mark.parametrize(
    ("changes", "output"),
    [
        ({"machine": {"cpu": "an abacus"}}, "measured with cpu an abacus"),
        ({"model": {"params": 1, "img_size": 32}}, "measured with params 1"),
        ({"engine": "abacus"}, "is not valid"),
        ({"threads": 0}, "is not valid"),
        ({"batch": "8"}, "is not valid"),
        ({"model": []}, "TypeError"),
    ],
)
def test_a_choice_that_does_not_hold_is_reported_and_not_used(model, changes, output, capsys):
    if "machine" in changes:
        changes = {"machine": json.loads((model / FILE).read_text())["machine"] | changes["machine"]}
    change(model, **changes)
    with pytest.raises(ChoiceError, match=output):
        read_choice(model, describe(model))
    assert main(["predict", str(model), PHOTO]) == 0
    error = capsys.readouterr().err
    assert "not used: " in error
    assert "bench MODEL --autotune" in error


def test_a_broken_file(model):
    (model / FILE).write_text("{")
    with pytest.raises(ChoiceError, match="JSONDecodeError"):
        read_choice(model, describe(model))


def test_the_choice_stays_when_the_model_is_saved_again(model):
    before = read_choice(model, describe(model))
    save_artefact(model, scrambled(), preprocessing=Preprocessing((32, 32)).to_pretrained_cfg(), classes=None)
    assert read_choice(model, describe(model)) == before
    assert isinstance(before, Choice)


def test_a_name_has_no_folder(tmp_path, capsys):
    weights = tmp_path / "model"
    save_artefact(weights, scrambled(), preprocessing={}, classes=None)
    file = str(weights / "model.safetensors")
    options = ["--autotune", "--json", *QUICK]
    assert main(["bench", file, *options]) == 0
    output = capsys.readouterr()
    assert "not stored" in output.err
    (result,) = json.loads(output.out)["tuned"]
    assert set(result["choice"]) == {"engine", "precision", "threads", "batch"}
    assert main(["bench", file, *options, "--out", str(tmp_path / "kept")]) == 0
    assert (tmp_path / "kept" / FILE).is_file()


def test_a_shorter_format_needs_a_tolerance_that_allows_it(monkeypatch):
    """bf16 is among the candidates only if it is asked for, and chosen only if enough best classes are the same."""
    from deepcait.bench import tune as module

    monkeypatch.setattr(engines.Eager, "computed_in", property(lambda engine: engine.precision))
    options = {"engines": ["eager"], "precisions": ["fp32", "bf16"], "threads": [1], "batches": [1], "rounds": 2}
    found = module.tune("builtin:nano", **options, tolerance=0.05)
    shares = {row["precision"]: row["same_top1"] for row in found["rows"]}
    assert shares["fp32"] == 1.0
    assert 0.95 <= shares["bf16"] <= 1.0
    assert all(row["agrees"] for row in found["rows"])
    monkeypatch.setattr(module, "_same_top1", lambda *args: {("eager", "fp32"): 1.0, ("eager", "bf16"): 0.97})
    for tolerance, agrees in ((0.0, False), (0.02, False), (0.03, True)):
        rows = module.tune("builtin:nano", **options, tolerance=tolerance)["rows"]
        assert {row["precision"]: row["agrees"] for row in rows} == {"fp32": True, "bf16": agrees}


def test_a_format_that_is_computed_in_fp32_is_not_chosen(monkeypatch):
    from deepcait.bench import tune as module

    monkeypatch.setattr(native, "has_format", lambda dtype: dtype == torch.float32)
    options = {"engines": ["eager"], "threads": [1], "batches": [1], "rounds": 2}
    found = module.tune("builtin:nano", **options, precisions=["fp32", "int8"])
    assert [row["precision"] for row in found["rows"]] == ["fp32"]
    assert found["left_out"] == {"eager int8": "eager int8: fp32 is computed in its place here."}
    with pytest.raises(ConfigError, match="eager int8: fp32 is computed in its place here"):
        module.tune("builtin:nano", **options, precisions=["int8"])


def test_int8_is_stored_within_the_tolerance_and_used(monkeypatch, tmp_path, capsys):
    """The clock makes int8 the fastest, and 97 of 100 classes stay the same."""
    found = resolve("builtin:nano")
    save_artefact(tmp_path, found.model, preprocessing=found.pretrained_cfg, classes=found.classes)

    def clock(lanes, rounds, progress):
        for lane in lanes:
            lane.turns = [[0.1 if "int8" in lane.name else 0.2]] * rounds

    monkeypatch.setattr(tuning, "take_turns", clock)
    monkeypatch.setattr(engines.Eager, "computed_in", property(lambda engine: engine.precision))
    monkeypatch.setattr(tuning, "_same_top1", lambda *args: {("eager", "fp32"): 1.0, ("eager", "int8"): 0.97})
    for tolerance, chosen in (("0.01", "fp32"), ("0.03", "int8")):
        options = ["--engine", "eager", "--precision", "fp32,int8", "--tolerance", tolerance, "--threads", "1"]
        assert main(["bench", str(tmp_path), "--autotune", *options, "--batch", "2"]) == 0
        printed = capsys.readouterr().out
        assert f"fastest: eager, {chosen}, 1 threads, 2 images per call" in printed
        assert "97 %" in printed
        assert json.loads((tmp_path / FILE).read_text())["precision"] == chosen
        assert main(["predict", str(tmp_path), PHOTO, "--json"]) == 0
        assert f"engine eager, {chosen}, 1 threads" in capsys.readouterr().err
    assert main(["eval", str(tmp_path), "--data", "builtin:demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["precision"] == "int8"
    with pytest.raises(ConfigError, match="engine onnx does not compute in int8"):
        tune("builtin:nano", engines=["onnx"], precisions=["int8"])
