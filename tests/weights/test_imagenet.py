"""The classes of the released models: wnids in order, names to read, and that models carry them."""

from __future__ import annotations

import pytest
import torch

from deepcait.classifier import Classifier
from deepcait.data import Preprocessing
from deepcait.errors import WeightsError
from deepcait.model import CaiT
from deepcait.model.variants import variant_config
from deepcait.training.recipe import Recipe
from deepcait.training.start import start_model
from deepcait.weights import describe, imagenet
from deepcait.weights.spec import _are_indices


def test_wnids_are_sorted_and_have_names():
    wnids, names = imagenet.wnids(), imagenet.names()
    assert len(set(wnids)) == len(names) == 1000
    assert wnids == sorted(wnids)
    assert (wnids[281], names[281]) == ("n02123045", "tabby, tabby cat")
    assert imagenet.is_imagenet(wnids)
    assert not imagenet.is_imagenet(wnids[::-1])
    assert imagenet.readable("n00000000") == "n00000000"


def test_released_models_know_their_classes():
    assert describe("cait_xxs24_224")["classes"] == imagenet.wnids()
    assert describe("cait_xxs24_448")["classes"] is None, "never released"


def test_predictions_are_readable_and_the_classes_stay_wnids():
    model = CaiT(variant_config("cait_nano_32").replace(num_classes=1000))
    classifier = Classifier(model, classes=imagenet.wnids(), preprocessing=Preprocessing((32, 32)), device="cpu")
    assert classifier.label(0) == "tench, Tinca tinca"
    assert classifier.classes is not None
    assert classifier.classes[0] == "n01440764"


def test_bare_integers_keep_the_released_head():
    assert _are_indices([str(index) for index in range(1000)], imagenet.wnids())
    assert not _are_indices([str(index) for index in range(999)], imagenet.wnids())
    assert not _are_indices([f"c{index}" for index in range(1000)], imagenet.wnids())
    assert not _are_indices(["0", "1"], ["cat", "dog"])


def test_a_start_from_imagenet_keeps_head_and_names_for_bare_integers(tmp_path):
    """As ImageNet comes in shards; a model called by integers could not be measured on folders of wnids."""
    model = CaiT(variant_config("cait_nano_32").replace(num_classes=1000, depth=1))
    classifier = Classifier(model, classes=imagenet.wnids(), preprocessing=Preprocessing((32, 32)), device="cpu")
    recipe = Recipe(model=str(classifier.save(tmp_path / "model")))
    found = start_model(recipe, [str(index) for index in range(1000)])
    assert found.classes == imagenet.wnids()
    assert torch.equal(found.model.head.weight, model.head.weight)
    found = start_model(recipe, [str(index) for index in range(999)])
    assert found.classes == [str(index) for index in range(999)]


def test_a_missing_table_says_so(monkeypatch):
    monkeypatch.setattr(imagenet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="timm"):
        imagenet.read_table("imagenet_synsets.txt")
