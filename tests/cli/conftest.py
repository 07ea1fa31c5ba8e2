"""A small model and a few pictures for the verbs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import deepcait
from deepcait.cli.main import main
from deepcait.data import Preprocessing

CLASSES = ["cat", "dog", "owl"]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A model of three classes with random weights."""
    torch.manual_seed(0)
    model = deepcait.create_model("cait_nano_32", num_classes=3, depth=2)
    classifier = deepcait.Classifier(model, classes=CLASSES, preprocessing=Preprocessing((32, 32)))
    return classifier.save(tmp_path_factory.mktemp("model") / "pets")


@pytest.fixture
def photos(tmp_path) -> Path:
    """Twelve pictures in class folders."""
    root = tmp_path / "photos"
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for index in range(4):
            pixels = torch.randint(0, 256, (40, 40, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def run(capsys):
    """Call the command; returns exit code, stdout, stderr."""

    def call(*argv: object) -> tuple[int, str, str]:
        code = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def run_json(run):
    """Call the command with --json; returns the one value that stdout carries."""

    def call(*argv: object):
        code, out, err = run(*argv, "--json")
        assert code == 0, err
        return json.loads(out)

    return call
