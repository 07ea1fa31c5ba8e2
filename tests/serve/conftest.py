"""A small model for the service, and a model that waits until it is told to go on."""

from __future__ import annotations

import threading

import pytest
import torch

import deepcait
from deepcait.data import Preprocessing
from deepcait.model.alternatives import AblationConfig
from deepcait.model.networks import build_model, named_config
from tests.serve.harness import live

CLASSES = ["cat", "dog", "owl"]


def small_classifier(kind=deepcait.Classifier, *, engine=None, **preprocessing):
    """Three classes; weights of order 1, so that pictures differ in their answers."""
    torch.manual_seed(0)
    model = deepcait.create_model("cait_nano_32", num_classes=3, embed_dim=96, depth=2, layer_scale_init=1.0)
    torch.nn.init.normal_(model.head.weight)
    return kind(model, classes=CLASSES, preprocessing=Preprocessing((32, 32), **preprocessing), engine=engine)


def without_attention(class_token=None):
    """Another network; or, with a `class_token` of AblatedCaiT, a CaiT without class stage."""
    torch.manual_seed(0)
    config = named_config("quicknet_32").replace(num_classes=3)
    if class_token:
        sizes = {"embed_dim": 32, "depth": 1, "num_heads": 2, "img_size": 32, "patch_size": 8, "num_classes": 3}
        config = AblationConfig(**sizes, class_token=class_token)
    return deepcait.Classifier(build_model(config), classes=CLASSES, preprocessing=Preprocessing((32, 32)))


class Patient(deepcait.Classifier):
    """A model that stands in the network until `go` is set; `batches` are the sizes it was given."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.go = threading.Event()
        self.batches: list[int] = []

    def logits(self, images_BCHW):
        self.batches.append(len(images_BCHW))
        assert self.go.wait(120)
        return super().logits(images_BCHW)


@pytest.fixture(scope="session")
def classifier():
    return small_classifier()


@pytest.fixture
def patient():
    waiting = small_classifier(Patient)
    yield waiting
    waiting.go.set()


@pytest.fixture(scope="module")
def service(classifier):
    """A service that a whole module asks."""
    with live(classifier) as running:
        yield running
