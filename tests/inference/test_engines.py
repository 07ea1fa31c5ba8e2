"""Every engine gives the model's logits for any number of images; what is missing is told in one paragraph."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._inductor import config

import deepcait
from deepcait.classifier import Classifier
from deepcait.cli.main import main
from deepcait.data import Preprocessing
from deepcait.errors import ConfigError, ShapeError
from deepcait.inference import ENGINES, build_engine
from tests.inference.tiny import scrambled, spread_of_difference


@pytest.fixture(scope="module")
def model():
    return scrambled()


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in ENGINES])
def test_the_same_logits_for_any_batch(model, name):
    engine = build_engine(name, model, threads=1)
    assert engine.name == name
    for num_images in (1, 3, 8):
        images_BCHW = torch.randn(num_images, 3, 32, 32)
        with torch.no_grad():
            expected_BK = model(images_BCHW)
        assert spread_of_difference(engine(images_BCHW), expected_BK) < 1e-5
    # What came out earlier is not overwritten by the next call.
    first_BK = engine(images_BCHW)
    kept_BK = first_BK.clone()
    engine(-images_BCHW)
    assert torch.equal(first_BK, kept_BK)


def test_an_engine_does_not_train(model):
    with pytest.raises(ConfigError, match="can't be trained"):
        build_engine("eager", model).train()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_images_that_a_graph_is_not_for(model, name):
    engine = build_engine(name, model, threads=1)
    for shape in ((1, 3, 16, 16), (3, 32, 32), (1, 1, 32, 32)):
        with pytest.raises(ShapeError, match=r"expected \(B, 3, 32, 32\)"):
            engine(torch.zeros(shape))
    with pytest.raises(ConfigError, match=r"expected float32, got torch.float64"):
        engine(torch.zeros(1, 3, 32, 32).double())
    assert engine(torch.zeros(0, 3, 32, 32)).shape == (0, 7)
    with pytest.raises(ConfigError, match="expected weights in float32, got torch.bfloat16"):
        build_engine(name, scrambled().bfloat16())


@pytest.mark.parametrize("threads", [0, -1])
def test_too_few_threads(model, threads):
    with pytest.raises(ConfigError, match="threads: expected 1 or more"):
        build_engine("eager", model, threads=threads)


def test_an_unknown_engine(model):
    with pytest.raises(ConfigError, match=r"eager, compile, onnx, openvino, got 'tensorrt'"):
        build_engine("tensorrt", model)


def test_another_network(model):
    with pytest.raises(ConfigError, match="Linear can't be folded"):
        build_engine("eager", torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("engine", "package", "extra"),
    [("onnx", "onnxruntime", "export"), ("onnx", "onnxscript", "export"), ("openvino", "openvino", "openvino")],
)
def test_a_missing_extra_is_one_line(model, monkeypatch, engine, package, extra):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named '{package}'", name=package)
        return real(name, *args, **kwargs)

    monkeypatch.setattr("importlib.import_module", lambda name, *args: without(name))
    with pytest.raises(ConfigError, match=f"{engine}: the package {package} can't be imported") as caught:
        build_engine(engine, model)
    assert caught.value.remedy == f'Install it: pip install "deepcait[{extra}]"'


def test_no_compiler_is_one_paragraph(model, capsys, tmp_path):
    """torch.compile itself would end in a traceback of two pages."""
    Classifier(model, classes=None, preprocessing=Preprocessing((32, 32))).save(tmp_path / "model")
    image = str(next(Path(deepcait.__file__).parent.glob("assets/demo/test/*/*.png")))
    with config.patch({"cpp.cxx": ("/no/such/compiler",)}):
        with pytest.raises(ConfigError, match=r"no C\+\+ compiler") as caught:
            build_engine("compile", model)
        assert main(["predict", str(tmp_path / "model"), image, "--engine", "compile"]) == 2
    assert "g++" in caught.value.remedy
    error = capsys.readouterr().err
    assert "compiler" in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_a_compiler_that_fails_is_one_paragraph(model, monkeypatch, tmp_path):
    """One that says its version and compiles nothing."""
    fake = tmp_path / "fake++"
    fake.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'fake++ 1.0' && exit 0\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch.compiler.reset()
    with config.patch({"cpp.cxx": (str(fake),), "fx_graph_cache": False}):
        engine = build_engine("compile", scrambled(5))
        with pytest.raises(ConfigError, match="compile: the C\\+\\+ compiler failed"):
            engine(torch.zeros(1, 3, 32, 32))
    torch.compiler.reset()


def test_a_classifier_answers_through_an_engine(model):
    plain, fast = (
        Classifier(model, classes=None, preprocessing=Preprocessing((32, 32)), engine=engine, threads=threads)
        for engine, threads in ((None, None), ("eager", 1))
    )
    assert plain.network is plain.model
    assert fast.network.name == "eager"
    images_BCHW = torch.randn(2, 3, 32, 32)
    assert spread_of_difference(fast.logits(images_BCHW), plain.logits(images_BCHW)) < 1e-5
    assert torch.equal(fast.features(images_BCHW), plain.features(images_BCHW))


@pytest.mark.process
def test_signals_arrive_after_openvino_models_are_gone():
    # Two cores, dropped in the order of their making, left a signal stack behind that was unmapped.
    script = (
        "import gc, os, signal, deepcait\n"
        "from deepcait.inference.engines import build_engine\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('arrived'))\n"
        "model = deepcait.create_model('cait_nano_32', depth=1, cls_depth=1).eval()\n"
        "first = build_engine('openvino', model)\n"
        "second = build_engine('openvino', model)\n"
        "del first; gc.collect()\n"
        "del second; gc.collect()\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "arrived\n"), done.stderr
