"""What a program has set in PyTorch around a call changes nothing that the call returns."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import deepcait
from deepcait.data import Subset, open_image, open_source
from deepcait.inference import build_engine

DEMO = open_source("builtin:demo", "test")
FEW = Subset(DEMO, range(0, 500, 12), split="test")
PATHS = [DEMO.locate(row) for row in (3, 77, 401)]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


STATES: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no-grad": torch.no_grad,
    "deterministic": deterministic,
    "device": default_device,
}


@pytest.fixture(scope="module")
def nano() -> deepcait.Classifier:
    return deepcait.load("builtin:nano", device="cpu")


@pytest.fixture(scope="module")
def images(nano) -> torch.Tensor:
    return torch.stack([nano.preprocessing(open_image(path)) for path in PATHS])


def _facts(value: Any) -> Any:
    """A value as something that can be compared: tensors with their kind and bits."""
    if isinstance(value, torch.Tensor):
        kind = (value.dtype, value.device, value.requires_grad, value.is_inference())
        return (*kind, value.detach().clone().contiguous().view(-1).view(torch.uint8).tolist())
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, Image.Image):
        return (value.mode, value.size, value.tobytes())
    if isinstance(value, dict):
        return {key: _facts(inner) for key, inner in value.items()}
    if dataclasses.is_dataclass(value):
        return {field.name: _facts(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_facts(inner) for inner in value]
    return value


def _loaded(**how: Any) -> dict[str, Any]:
    loaded = deepcait.load("builtin:nano", device="cpu", **how)
    return {"weights": dict(loaded.model.named_parameters()), "classes": loaded.classes}


FUNCTIONS: dict[str, Callable[[deepcait.Classifier, torch.Tensor], Any]] = {
    "load": lambda nano, images: _loaded(),
    "load another size": lambda nano, images: _loaded(img_size=48),
    "predict": lambda nano, images: nano.predict(PATHS),
    "predict flipped": lambda nano, images: deepcait.load("builtin:nano", device="cpu", tta="flip").predict(PATHS),
    "predict_and_embed": lambda nano, images: nano.predict_and_embed(PATHS),
    "preprocess": lambda nano, images: nano.preprocessing(open_image(PATHS[0])),
    "logits": lambda nano, images: nano.logits(images),
    "embed": lambda nano, images: nano.embed(PATHS),
    "explain": lambda nano, images: nano.explain(PATHS[0], steps=2),
    "evaluate": lambda nano, images: deepcait.evaluate(nano, FEW),
    "evaluate a loader": lambda nano, images: deepcait.evaluate(
        nano, DataLoader([(image, 3) for image in images], batch_size=2)
    ),
    "evaluate a module": lambda nano, images: deepcait.evaluate(nano.model, FEW, preprocessing=nano.preprocessing),
    "fold": lambda nano, images: dict(deepcait.fold(nano.model).named_buffers()),
    "class attention": lambda nano, images: deepcait.explain.class_attention(nano.model, images),
    "eager": lambda nano, images: build_engine("eager", nano.model)(images),
    "eager bf16": lambda nano, images: build_engine("eager", nano.model, precision="bf16")(images),
}


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    return {}


@pytest.mark.filterwarnings("ignore::deepcait.errors.EvaluationWarning")
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("state", STATES)
def test_the_state_of_the_program_changes_nothing(nano, images, expected, state, name):
    function = FUNCTIONS[name]
    if name not in expected:
        expected[name] = _facts(function(nano, images))
    with STATES[state]():
        found = function(nano, images)
    assert _facts(found) == expected[name]


@pytest.mark.parametrize("state", STATES)
def test_a_model_loaded_in_a_state_trains_and_explains_outside(nano, images, state):
    with STATES[state]():
        loaded = deepcait.load("builtin:nano", device="cpu")
    assert loaded.predict(PATHS) == nano.predict(PATHS)
    loaded.model(images).sum().backward()
    assert loaded.explain(PATHS[0]).gradient is not None
    assert all(parameter.grad is not None for parameter in loaded.model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_engines_of_other_programs(nano, images, name):
    for package in ("onnxruntime", "onnxscript") if name == "onnx" else ("openvino",):
        pytest.importorskip(package)
    engine = build_engine(name, nano.model, threads=1)
    wanted = _facts(engine(images))
    for state, enter in STATES.items():
        with enter():
            assert _facts(engine(images)) == wanted, state
    for state in ("float64", "inference", "autocast", "device"):
        with STATES[state]():
            found = build_engine(name, nano.model, threads=1)(images)
        assert _facts(found) == wanted, state
