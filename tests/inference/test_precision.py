"""The precision that was asked for is the one that computes, or one paragraph says why not."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import torch

import deepcait
from deepcait.classifier import Classifier, load
from deepcait.cli import eval as evaluate
from deepcait.cli import predict, serve
from deepcait.cli.main import main
from deepcait.data import Preprocessing
from deepcait.errors import ConfigError
from deepcait.inference import PRECISIONS, build_engine, fold, native
from deepcait.inference.engines import openvino_default
from deepcait.inference.precision import ON_CPU, choose_precision, engine_for, require_offered
from tests.inference.tiny import scrambled, spread_of_difference

needs_bf16 = pytest.mark.skipif(not native.has_format(torch.bfloat16), reason="no AVX512_BF16, or no C++ compiler")


@pytest.fixture(autouse=True)
def _faster(monkeypatch):
    """On every processor with the instructions, also where float32 is faster."""
    monkeypatch.setattr(fold, "is_faster", lambda dtype: True)


@pytest.fixture(scope="module")
def model():
    return scrambled(embed_dim=64, depth=2, num_heads=4, img_size=32, patch_size=8)


@pytest.mark.parametrize("engine", list(ON_CPU))
def test_every_precision_is_offered_or_refused(engine):
    for asked in PRECISIONS:
        if asked in ("auto", "fp32-strict"):
            assert choose_precision(asked, engine) == "fp32"
        elif asked in ON_CPU[engine]:
            assert choose_precision(asked, engine) == asked
        else:
            with pytest.raises(
                ConfigError, match=f"engine {engine} does not compute in {asked} on a CPU; it offers fp32"
            ):
                choose_precision(asked, engine)
    with pytest.raises(ConfigError, match="precision: expected one of auto, fp32, .*got 'bfloat16'"):
        choose_precision("bfloat16", engine)


def test_the_remedy_names_an_engine_that_offers_it():
    with pytest.raises(ConfigError) as caught:
        choose_precision("bf16", "onnx")
    assert caught.value.remedy == "Choose the engine eager or compile or openvino, or one of these precisions."
    with pytest.raises(ConfigError) as caught:
        choose_precision("int8", "openvino")
    assert caught.value.remedy == "Choose the engine eager or compile, or one of these precisions."


def test_one_engine_that_offers_it_is_enough():
    require_offered(["onnx", "eager"], ["fp32", "int8"])
    with pytest.raises(ConfigError, match="engine onnx does not compute in int8"):
        require_offered(["onnx", "openvino"], ["fp32", "int8"])
    with pytest.raises(ConfigError, match="engine eager does not compute in int8 on a GPU"):
        require_offered(["eager"], ["int8"], "cuda")


def test_on_a_gpu():
    assert choose_precision("fp16", "eager", "cuda") == "fp16"
    assert choose_precision("auto", "eager", "cuda") == "fp32"


@needs_bf16
def test_eager_in_bf16(model):
    images_BCHW = torch.randn(3, 3, 32, 32)
    plain, fast = (build_engine("eager", model, threads=1, precision=name)(images_BCHW) for name in ("fp32", "bf16"))
    assert 1e-5 < spread_of_difference(fast, plain) < 5e-2
    assert fast.dtype == torch.float32
    assert torch.equal(build_engine("eager", model, precision="auto")(images_BCHW), plain)


@pytest.mark.slow
@needs_bf16
def test_compile_in_bf16_gives_what_eager_gives(model):
    images_BCHW = torch.randn(3, 3, 32, 32)
    found, expected = (
        build_engine(name, model, threads=1, precision="bf16")(images_BCHW) for name in ("compile", "eager")
    )
    assert spread_of_difference(found, expected) < 1e-5


@pytest.mark.slow
def test_openvino_in_bf16(model):
    images_BCHW = torch.randn(3, 3, 32, 32)
    plain, fast = (build_engine("openvino", model, threads=1, precision=name)(images_BCHW) for name in ("fp32", "bf16"))
    difference = spread_of_difference(fast, plain)
    assert 1e-5 < difference < 0.2 if openvino_default() == "bf16" else difference < 1e-5


@needs_bf16
def test_a_classifier_takes_the_engine_that_has_it(model):
    fast, plain = (
        Classifier(model, classes=None, preprocessing=Preprocessing((32, 32)), precision=name)
        for name in ("bf16", "fp32-strict")
    )
    assert (fast.network.name, fast.network.precision) == ("eager", "bf16")
    assert plain.network is plain.model
    with pytest.raises(ConfigError, match="engine eager does not compute in fp16"):
        load("builtin:nano", precision="fp16")


def test_commands_take_it_and_refuse_in_one_paragraph(capsys):
    image = str(next(Path(deepcait.__file__).parent.glob("assets/demo/test/*/*.png")))
    answers = {}
    for precision in ("auto", "bf16"):
        assert not main(["predict", "builtin:nano", image, "--precision", precision, "--json"])
        answers[precision] = json.loads(capsys.readouterr().out)[0]["predictions"][0]
    assert answers["auto"]["label"] == answers["bf16"]["label"]
    if native.has_format(torch.bfloat16):
        assert answers["auto"]["probability"] != answers["bf16"]["probability"]
    assert main(["predict", "builtin:nano", image, "--precision", "fp16", "--engine", "onnx"]) == 2
    error = capsys.readouterr().err
    assert "the engine onnx does not compute in fp16 on a CPU" in error
    assert "Traceback" not in error
    for precision in ("bf16", "int8"):
        assert not main(["eval", "builtin:nano", "--data", "builtin:demo", "--precision", precision, "--json"])
        row = json.loads(capsys.readouterr().out)
        assert (row["engine"], row["precision"]) == ("eager", precision)
    for command in (["predict", "builtin:nano", image], ["serve", "builtin:nano", "--port", "0"]):
        assert main([*command, "--precision", "int8", "--engine", "onnx"]) == 2
        assert "Choose the engine eager or compile, or" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", [predict, evaluate, serve])
def test_help_names_the_precisions_that_choose_eager(command):
    without_engine = [name for name in PRECISIONS if engine_for(None, name) == "eager" and name in ON_CPU["eager"]]
    assert f"{' or '.join(without_engine)} without --engine uses the engine eager" in inspect.getsource(command)
