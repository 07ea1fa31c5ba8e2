"""Exported files are the model, in programs that know nothing of deepcait; a file that is not the model is refused."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch

import deepcait
from deepcait.classifier import Classifier
from deepcait.cli.main import main
from deepcait.data import Preprocessing, open_source
from deepcait.errors import ConfigError
from deepcait.inference import export
from deepcait.inference.export import MAX_DRIFT, SUFFIXES, sample_images, verify_graph, write_graph
from deepcait.inference.fold import fold
from deepcait.inference.graph import opsets
from deepcait.weights.verification import Verification
from tests.inference.tiny import SIZES, scrambled, spread_of_difference

# What a user of the file writes; deepcait is not importable there.
READERS = {
    "onnx": (
        "import onnxruntime\nsession = onnxruntime.InferenceSession(path)\n"
        "run = lambda x: session.run(None, {'images': x})[0]"
    ),
    "openvino": (
        "import openvino\ncompiled = openvino.Core().compile_model(path, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})\n"
        "run = lambda x: compiled({'images': x})['logits']"
    ),
    "pt2": (
        "import torch\nmodule = torch.export.load(path).module()\n"
        "run = lambda x: module(torch.from_numpy(x)).detach().numpy()"
    ),
}
VARIANTS = [
    SIZES,
    {"embed_dim": 48, "depth": 1, "num_heads": 1, "img_size": (32, 64), "patch_size": 8, "cls_depth": 1},
    {"embed_dim": 64, "depth": 3, "num_heads": 8, "img_size": 32, "patch_size": 4},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("export")
    model = scrambled()
    Classifier(model, classes=list("abcdefg"), preprocessing=Preprocessing((32, 32))).save(place / "model")
    return place


def read_elsewhere(form, path, images_BCHW, tmp_path):
    """The logits that the plain engine gives in a process of its own, started outside the checkout."""
    import numpy as np

    np.save(tmp_path / "images.npy", images_BCHW.numpy())
    program = (
        "import sys, importlib.util, numpy as np\n"
        "assert importlib.util.find_spec('deepcait') is None\n"
        f"path = {str(path)!r}\n{READERS[form]}\n"
        "images = np.load('images.npy')\n"
        "np.save('logits.npy', np.concatenate([run(images[:1]), run(images[1:])]))\n"
        "assert not any(name.split('.')[0] == 'deepcait' for name in sys.modules)\n"
    )
    # -P and an empty PYTHONPATH: this checkout is not on the path, and an installed deepcait is taken off it.
    hide = "import sys; sys.path[:] = [p for p in sys.path if not __import__('os').path.isdir(p + '/deepcait')]\n"
    hide += "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', str(f))]\n"
    command = [sys.executable, "-P", "-c", hide + program]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.from_numpy(np.load(tmp_path / "logits.npy"))


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("form", READERS)
@pytest.mark.parametrize("sizes", VARIANTS)
def test_a_plain_engine_gives_our_logits(form, sizes, tmp_path):
    model = scrambled(**sizes)
    path = tmp_path / f"model{SUFFIXES[form]}"
    write_graph(fold(model), form, path)
    images_BCHW = sample_images(Preprocessing(model.config.img_size), 4)
    with torch.no_grad():
        expected_BK = model(images_BCHW)
    assert spread_of_difference(read_elsewhere(form, path, images_BCHW, tmp_path), expected_BK) < 1e-5


@pytest.mark.soak
@pytest.mark.process
@pytest.mark.parametrize("name", ["cait_xxs24_224", "cait_s24_224", "cait_xs24_384"])
def test_full_sizes(name, tmp_path, capsys):
    """Gammas of order 1, random head mixing: written by the command, each form gives the same logits elsewhere."""
    torch.manual_seed(1)
    model = deepcait.create_model(name).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "gamma" in key:
                parameter.uniform_(0.5, 1.0)
            elif ".proj_l." in key or ".proj_w." in key:
                parameter.add_(0.2 * torch.randn_like(parameter))
    preprocessing = Preprocessing(model.config.img_size)
    Classifier(model, classes=None, preprocessing=preprocessing).save(tmp_path / "model")
    images_BCHW = sample_images(preprocessing, 3)
    with torch.no_grad():
        expected_BK = model(images_BCHW)
    for form in READERS:
        path = tmp_path / f"{name}{SUFFIXES[form]}"
        assert main(["export", str(tmp_path / "model"), "--to", form, "--out", str(path), "--json"]) == 0
        proof = json.loads(capsys.readouterr().out)["proof"]
        assert proof["agreed"] == 12
        found = spread_of_difference(read_elsewhere(form, path, images_BCHW, tmp_path), expected_BK)
        with capsys.disabled():
            print(f"{name} {form}: {found:.1e} of the logits' spread, {path.stat().st_size:,} bytes")
        assert found < 1e-5
        path.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("form", READERS)
def test_the_verb_writes_proves_and_describes(folder, form, tmp_path, capsys):
    out = tmp_path / "new" / f"pets{SUFFIXES[form]}"
    out.parent.mkdir()
    assert main(["export", str(folder / "model"), "--to", form, "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["holds"]
    assert result["proof"]["batches"] == [1, 3, 8]
    assert result["proof"]["agreed"] == result["proof"]["num_images"] == 12
    assert result["proof"]["drift"] < 1e-5
    beside = json.loads(Path(f"{out}.json").read_text())
    assert beside["classes"] == list("abcdefg")
    assert beside["preprocessing"]["input_size"] == [3, 32, 32]
    assert beside["input"] == {"name": "images", "shape": ["batch", 3, 32, 32], "dtype": "float32"}
    assert sorted(path.suffix for path in out.parent.iterdir()) == sorted(
        {".json", ".py", SUFFIXES[form], *([".bin"] if form == "openvino" else [])}
    )


def broken_program(model):
    """The graph of a model in which one weight of one head's mixing is another."""
    with torch.no_grad():
        model.blocks[0].mix_w[1, 0] += 0.01
    return real_program(model)


real_program = export.to_program


@pytest.mark.slow
def test_a_broken_graph_is_refused(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export, "to_program", broken_program)
    out = tmp_path / "pets.pt2"
    out.write_text("what was there before")
    assert main(["export", str(folder / "model"), "--to", "pt2", "--out", str(out)]) == 3
    assert "verification failed, nothing was written" in capsys.readouterr().err
    assert out.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_a_changed_file_does_not_pass(tmp_path):
    """A finished ONNX file whose weights are tampered with: one of a thousand numbers, by a hundredth."""
    import onnx
    from onnx import numpy_helper

    model = scrambled()
    images_BCHW = sample_images(Preprocessing((32, 32)))
    path = tmp_path / "model.onnx"
    write_graph(fold(model), "onnx", path)
    assert verify_graph(model, "onnx", path, images_BCHW).holds
    graph = onnx.load(path)
    largest = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = numpy_helper.to_array(largest).copy()
    values.flat[:: values.size // 4] += 0.05
    largest.CopyFrom(numpy_helper.from_array(values, largest.name))
    onnx.save(graph, path)
    assert not verify_graph(model, "onnx", path, images_BCHW).holds


@pytest.mark.parametrize("drift", [1e-6, 1e-3])
def test_the_graph_is_written_last_and_only_if_the_verification_holds(tmp_path, monkeypatch, drift):
    """Whoever finds it finds what belongs to it."""
    moved, replace = [], os.replace

    def write(model, form, path, *, fp16, opset):
        path.write_text("graph")
        path.with_suffix(".bin").write_text("weights")

    figures = {"reader": "x", "max_drift": MAX_DRIFT, "batches": (1,), "num_images": 3, "agreed": 3}
    monkeypatch.setattr(export, "require_packages", lambda form: None)
    monkeypatch.setattr(export, "write_graph", write)
    monkeypatch.setattr(export, "verify_graph", lambda *_, **__: Verification(drift=drift, **figures))
    monkeypatch.setattr(os, "replace", lambda one, other: (moved.append(Path(other).name), replace(one, other))[1])
    (tmp_path / "m.xml").write_text("old")
    found, files = export.export_file(scrambled(), "openvino", tmp_path / "m.xml", torch.zeros(8, 3, 32, 32), {"a": 1})
    assert [path.name for path in files] == moved == (["m.bin", "m.xml.json", "m.xml"] if found.holds else [])
    assert found.holds == (drift < 1e-4)
    assert (tmp_path / "m.xml").read_text() == ("graph" if found.holds else "old")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(moved or ["m.xml"])


@pytest.mark.parametrize(
    ("out", "reported"),
    [("pets.xml", "must end in .onnx"), ("pets", "must end in .onnx"), (".", "must end in .onnx")],
)
def test_a_wrong_place(folder, out, reported, capsys):
    assert main(["export", str(folder / "model"), "--to", "onnx", "--out", out]) == 2
    assert reported in capsys.readouterr().err


def test_a_model_in_training_is_asked_as_it_will_be_used(tmp_path):
    model = scrambled().train()
    model.blocks[0].eval()
    for block in model.blocks:
        block.drop_path_rate = 0.9
    modes = [module.training for module in model.modules()]
    write_graph(fold(model), "pt2", tmp_path / "model.pt2")
    assert verify_graph(model, "pt2", tmp_path / "model.pt2", sample_images(Preprocessing((32, 32)))).holds
    assert [module.training for module in model.modules()] == modes


def test_too_few_images(tmp_path):
    with pytest.raises(ConfigError, match="expected 8 or more, got 2"):
        verify_graph(scrambled(), "pt2", tmp_path / "model.pt2", torch.zeros(2, 3, 32, 32))


@pytest.mark.slow
def test_openvino_weights_in_16_bits(folder, tmp_path, capsys):
    files = {}
    for precision in ("auto", "fp16"):
        out = tmp_path / f"{precision}.xml"
        options = ["--to", "openvino", "--out", str(out), "--precision", precision, "--tolerance", "0.1", "--json"]
        assert not main(["export", str(folder / "model"), *options])
        files[precision] = json.loads(capsys.readouterr().out)
    sizes = [Path(tmp_path, f"{precision}.bin").stat().st_size for precision in ("fp16", "auto")]
    assert sizes[0] < 0.6 * sizes[1]
    assert files["fp16"]["proof"]["num_images"] > 100
    assert MAX_DRIFT < files["fp16"]["proof"]["drift"] < 2e-2


@pytest.mark.parametrize(
    ("options", "reported"),
    [
        (["--to", "onnx", "--precision", "bf16"], "onnx files are not written in bf16; they store weights in float32."),
        (["--to", "openvino", "--precision", "int8"], "they store weights in float32, or in fp16."),
        (["--to", "onnx", "--precision", "int8"], "predict, eval or serve with --precision int8."),
        (["--to", "official", "--precision", "int8"], "int8 is for deepcait's engines eager and compile"),
        (["--to", "timm", "--precision", "fp16"], "timm files are not written in fp16"),
        (["--to", "openvino", "--precision", "fp16", "--tolerance", "1"], "--tolerance: expected 0 to 1"),
    ],
)
def test_formats_that_files_do_not_store(folder, tmp_path, capsys, options, reported):
    assert main(["export", str(folder / "model"), "--out", str(tmp_path / "out.xml"), *options]) == 2
    assert reported in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_tolerance_is_a_share_of_the_images():
    facts = {"reader": "x", "max_drift": 1.0, "num_images": 100, "agreed": 98}
    assert Verification(**facts, tolerance=0.02).holds
    assert not Verification(**facts, tolerance=0.01).holds
    assert not Verification(**facts).holds


def test_operator_sets_are_of_onnx_alone_and_of_those_that_are_verified(folder, tmp_path, capsys):
    def reported(*options: str) -> str:
        assert main(["export", str(folder / "model"), *options]) == 2
        return capsys.readouterr().err

    oldest, newest = opsets()
    for opset in (oldest - 1, newest + 1):
        text = reported("--to", "onnx", "--out", str(tmp_path / "m.onnx"), "--opset", str(opset))
        assert f"expected {oldest} to {newest}, got {opset}" in text
    for form, suffix in (("openvino", ".xml"), ("pt2", ".pt2"), ("timm", ""), ("official", ".pth")):
        assert "has no ONNX operator set" in reported("--to", form, "--out", f"{tmp_path}/m{suffix}", "--opset", "18")


@pytest.mark.parametrize("opset", [17, *(pytest.param(opset, marks=pytest.mark.slow) for opset in range(18, 26))])
def test_every_operator_set_gives_our_logits(folder, tmp_path, capsys, opset):
    onnx = pytest.importorskip("onnx")
    assert opsets() == (17, 25)
    out = tmp_path / "pets.onnx"
    command = ["export", str(folder / "model"), "--to", "onnx", "--out", str(out), "--opset", str(opset), "--json"]
    assert main(command) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["holds"]
    (written,) = [one.version for one in onnx.load(out).opset_import if not one.domain]
    assert written == opset
    # The preprocessing beside it feeds it.
    names = runpy.run_path(f"{out}.py")
    session = onnxruntime.InferenceSession(str(out))
    source = open_source("builtin:demo", "test")
    (tmp_path / "image.png").write_bytes(source.read(0).data)
    (logits_K,) = session.run(["logits"], {"images": names["model_input"](tmp_path / "image.png")})[0]
    assert int(logits_K.argmax()) == deepcait.load(folder / "model").predict([source.read(0).data], topk=1)[0][0].index
