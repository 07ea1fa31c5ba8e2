"""A classifier moved to another folder, offline, gives bitwise the logits of before."""

from __future__ import annotations

import shutil

import pytest
import torch
from PIL import Image

import deepcait
from deepcait.classifier import Prediction
from deepcait.data import Preprocessing, open_image
from deepcait.errors import ConfigError, ImageError, ShapeError, WeightsError

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def make_classifier(classes=CLASSES, num_classes=10) -> deepcait.Classifier:
    torch.manual_seed(1)
    model = deepcait.create_model("cait_nano_32", num_classes=num_classes)
    # Gammas of order 1: otherwise the blocks are invisible in the logits.
    torch.nn.init.normal_(model.head.weight)
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.0)
    return deepcait.Classifier(model, classes=classes, preprocessing=Preprocessing((32, 32), crop_ratio=0.9))


@pytest.fixture
def pictures(tmp_path):
    paths = []
    for index in range(3):
        pixels = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8).numpy()
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_a_moved_model_gives_the_same_bits(tmp_path, pictures):
    before = make_classifier()
    before.save(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    after = deepcait.load(tmp_path / "there")
    images = torch.stack([before.preprocessing(open_image(path)) for path in pictures])
    assert torch.equal(after.logits(images), before.logits(images))
    assert after.classes == CLASSES
    assert after.preprocessing == before.preprocessing
    assert after.predict(pictures) == before.predict(pictures)


def test_predictions_are_ranked(pictures):
    answers = make_classifier().predict(pictures, topk=10)
    assert [len(answer) for answer in answers] == [10] * 3
    for answer in answers:
        probabilities = [prediction.probability for prediction in answer]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1)
        assert all(isinstance(p, Prediction) and p.label == CLASSES[p.index] for p in answer)


def test_a_path_a_picture_and_a_list_are_the_same(pictures):
    classifier = make_classifier()
    from_path = classifier.predict(pictures[0])
    assert classifier.predict(str(pictures[0])) == from_path
    assert classifier.predict(Image.open(pictures[0])) == from_path
    (first, *_) = classifier.predict(pictures)
    assert [answer.index for answer in first] == [answer.index for answer in from_path[0]]
    assert [answer.probability for answer in first] == pytest.approx(
        [answer.probability for answer in from_path[0]], abs=1e-5
    )
    assert classifier.predict([]) == []


def test_fewer_classes_give_fewer_answers_and_no_names_give_indices(pictures):
    (answer,) = make_classifier(classes=None, num_classes=3).predict(pictures[0])
    assert [prediction.label for prediction in answer] == [str(prediction.index) for prediction in answer]
    assert len(answer) == 3


def test_mistakes_are_named(tmp_path, pictures):
    classifier = make_classifier()
    with pytest.raises(ConfigError, match="topk"):
        classifier.predict(pictures, topk=0)
    with pytest.raises(ImageError, match="not an image file but a folder"):
        classifier.predict(tmp_path)
    with pytest.raises(ShapeError):
        classifier.logits(torch.zeros(3, 32, 32))
    with pytest.raises(ConfigError, match="10 names"):
        make_classifier(classes=["one"])


def test_a_class_is_found_by_the_name_of_one_alone():
    """ImageNet's wnids read out give "crane" twice: the bird is not taken for the machine in silence."""
    classifier = make_classifier(classes=["n02012849", "n03126707", "7"], num_classes=3)
    assert [classifier.label(index) for index in range(2)] == ["crane", "crane"]
    with pytest.raises(ConfigError, match="several classes are named 'crane': 0, 1") as caught:
        classifier.index("crane")
    assert "index" in caught.value.remedy
    assert [classifier.index(name) for name in ("n03126707", "7", "1")] == [1, 2, 1]


@pytest.mark.parametrize("thing", [torch.ones(3, 8, 8) * 2, [torch.zeros(8, 8, 5)], None, 7], ids=repr)
def test_what_is_no_image_is_named(thing):
    classifier = make_classifier()
    for ask in (classifier.predict, classifier.embed):
        with pytest.raises(ConfigError, match="image: expected (floats|pixels|a path, bytes)"):
            ask(thing)


def test_a_minimum_probability_shortens_predictions(pictures):
    classifier = make_classifier()
    every = classifier.predict(pictures, topk=10)
    for row, short in zip(every, classifier.predict(pictures, topk=10, min_probability=0.2), strict=True):
        assert short == [one for one in row if one.probability >= 0.2]
    assert classifier.predict(pictures, min_probability=1.0) == [[], [], []]
    with pytest.raises(ConfigError, match="expected 0 to 1, got 2"):
        classifier.predict(pictures, min_probability=2)


def test_tta_is_the_mean_of_an_image_and_its_mirror_image(tmp_path, pictures):
    plain = make_classifier()
    plain.save(tmp_path / "model")
    flipped = deepcait.load(tmp_path / "model", tta="flip")
    images = torch.stack([plain.preprocessing(open_image(path)) for path in pictures])
    mean_BK = (plain.logits(images).softmax(-1) + plain.logits(images.flip(-1)).softmax(-1)) / 2
    torch.testing.assert_close(flipped.logits(images).softmax(-1), mean_BK)
    assert not torch.allclose(mean_BK, plain.logits(images).softmax(-1), atol=1e-4)
    torch.testing.assert_close(flipped.logits(images.flip(-1)), flipped.logits(images))
    with pytest.raises(ConfigError, match="expected one of flip, got 'crop'"):
        deepcait.load(tmp_path / "model", tta="crop")


def test_weights_that_give_no_numbers_are_refused(pictures):
    classifier = make_classifier()
    torch.nn.init.constant_(classifier.model.head.bias, float("nan"))
    with pytest.raises(WeightsError, match="diverged"):
        classifier.predict(pictures)


def test_another_image_size(tmp_path, pictures):
    make_classifier().save(tmp_path / "model")
    classifier = deepcait.load(tmp_path / "model", img_size=48)
    assert classifier.preprocessing.img_size == (48, 48)
    assert len(classifier.predict(pictures)) == 3
    with pytest.raises(ConfigError, match="multiples of the patch size"):
        deepcait.load(tmp_path / "model", img_size=33)
    with pytest.raises(ConfigError, match="is not a model name"):
        deepcait.load(None)


def test_a_printed_classifier_is_one_line():
    model = make_classifier(num_classes=3, classes=None)
    number = sum(parameter.numel() for parameter in model.model.parameters())
    assert repr(model) == f"Classifier(CaiT: 3 classes, 32 x 32 px, {number:,} parameters)"
    assert repr(deepcait.load("builtin:nano")).startswith("Classifier(builtin:nano: 10 classes, 32 x 32 px, ")


def test_methods_of_an_explanation_as_one_text(pictures):
    classifier = make_classifier()
    assert list(classifier.explain(pictures[0], methods="rollout").maps) == ["class-attention", "rollout"]
    several = classifier.explain(pictures[0], methods="rollout, gradient")
    assert list(several.maps) == ["class-attention", "rollout", "gradient"]
    with pytest.raises(ConfigError, match="got 'roll'"):
        classifier.explain(pictures[0], methods="roll")


def test_predictions_and_features_come_from_one_pass(pictures):
    classifier = make_classifier()
    passes = []
    classifier.model.norm.register_forward_hook(lambda *_: passes.append(1))
    predictions, features_BD = classifier.predict_and_embed(pictures, topk=3)
    assert len(passes) == 1
    torch.testing.assert_close(features_BD, classifier.embed(pictures))
    for got, expected in zip(predictions, classifier.predict(pictures, topk=3), strict=True):
        assert [one.label for one in got] == [one.label for one in expected]
        assert [one.probability for one in got] == pytest.approx([one.probability for one in expected], abs=1e-6)
    assert classifier.predict_and_embed([])[1].shape == (0, classifier.model.num_features)
