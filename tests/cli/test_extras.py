"""A package that only an extra brings: where it is missing, one paragraph that names the extra, and exit code 2."""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path

import pytest

from deepcait.cli import main as command
from deepcait.cli.main import main

PYPROJECT = tomllib.loads((Path(__file__).parent.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]


def block(monkeypatch, *packages: str) -> None:
    """Have these packages, and what is inside them, not be there."""
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            monkeypatch.delitem(sys.modules, name)
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


CASES = {
    "parquet": ("data", ["pyarrow"], ["eval", "{model}", "--data", "{photos}.parquet"]),
    "mat": ("data", ["scipy"], ["doctor", "--data", "flowers102:{photos}"]),
    "url": ("data", ["fsspec"], ["eval", "{model}", "--data", "https://127.0.0.1:9/a-{000..001}.tar"]),
    "plots": ("explain", ["matplotlib"], ["eval", "{model}", "--data", "{photos}", "--plots", "{photos}/plots"]),
    "gradients": (
        "explain",
        ["captum"],
        ["explain", "{model}", "{photos}/cat/0.png", "--out", "{photos}/o", "--method", "integrated-gradients"],
    ),
    "serve": ("serve", ["uvicorn"], ["serve", "{model}", "--port", "0"]),
    "onnx": ("export", ["onnx", "onnxscript"], ["export", "{model}", "--to", "onnx", "--out", "{photos}/m.onnx"]),
    "openvino": ("openvino", ["openvino"], ["export", "{model}", "--to", "openvino", "--out", "{photos}/m.xml"]),
    "tensorboard": (
        "track",
        ["tensorboard", "torch.utils.tensorboard"],
        ["train", "--data", "{photos}", "--model", "{model}", "--out", "{photos}-run", "--set", "keep.tensorboard=true"]
        + ["epochs=1", "global_batch_size=4", "replicas=1", "data.num_workers=0"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_missing_package_names_its_extra(case, model_folder, photos, monkeypatch, capsys):
    extra, packages, argv = CASES[case]
    (photos.parent / "photos.parquet").write_bytes(b"PAR1" + bytes(20) + b"PAR1")
    for name in ("imagelabels.mat", "setid.mat", "jpg") if case == "mat" else ():
        (photos / name).mkdir() if name == "jpg" else (photos / name).write_bytes(b"")
    if case == "serve":
        for module in [name for name in sys.modules if name.startswith("deepcait.serve")]:
            monkeypatch.delitem(sys.modules, module)
    block(monkeypatch, *packages)
    code = main([word.replace("{model}", str(model_folder)).replace("{photos}", str(photos)) for word in argv])
    printed = capsys.readouterr().err
    assert code == 2, printed
    assert f"deepcait[{extra}]" in printed
    assert "Traceback" not in printed


def test_any_package_of_an_extra_is_traced_to_it():
    """The net below all that: an import that nobody caught."""
    for extra, requirements in PYPROJECT["optional-dependencies"].items():
        for requirement in requirements if extra not in ("dev", "docs", "ecosystem") else ():
            name = requirement.partition(">")[0].strip()
            with pytest.raises(ModuleNotFoundError) as caught:
                raise ModuleNotFoundError(name=name.replace("-", "_") + ".inside")
            problem, remedy = command._missing_package(caught.value)
            assert name.replace("-", "_") in problem
            assert "\n" not in remedy
            assert f"deepcait[{extra}]" in remedy
    with pytest.raises(ModuleNotFoundError) as ours:
        importlib.import_module("deepcait.gone")
    assert command._missing_package(ours.value) is None
