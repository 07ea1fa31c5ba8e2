"""The safeguards warn where they should, only there, and are missed where they are taken away."""

from __future__ import annotations

import warnings

import pytest
import torch
from PIL import Image
from torch import nn

import deepcait
from deepcait.data import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, Subset, open_source
from deepcait.errors import EvaluationWarning
from deepcait.evaluation import evaluate, safeguards
from deepcait.evaluation import evaluate as evaluate_function
from deepcait.evaluation.counts import Counts, score
from deepcait.evaluation.expected import Expected, differs, expected_accuracy
from deepcait.evaluation.records import join, record
from deepcait.evaluation.safeguards import (
    is_text_order,
    near_chance,
    near_constant,
    no_numbers,
    other_preprocessing,
    wrong_order,
)
from deepcait.weights import Resolved
from tests.evaluation.tiny_imagenet import PLAIN, GreyModel, build_v2

evaluate_module = __import__("sys").modules[evaluate_function.__module__]
V2_MODEL = {"num_classes": 12, "step": 16}


def make_records(labels, answers, num_classes):
    """Records of images with these labels and answers."""
    labels, answers = torch.as_tensor(labels), torch.as_tensor(answers)
    logits = 5.0 * torch.nn.functional.one_hot(answers, num_classes).double()
    ranks = (labels != answers).long()
    rows = torch.arange(len(labels))
    part = record(rows, logits, labels[:, None], (ranks, torch.ones(len(labels))), num_classes)
    return join([part], [str(row) for row in rows.tolist()], None)


def answers_of(labels, accuracy, num_classes):
    """What a model of this accuracy answers; its errors fall anywhere."""
    wrong = torch.randint(0, num_classes, labels.shape)
    return torch.where(torch.rand(labels.shape) < accuracy, labels, wrong)


def test_logits_that_are_no_numbers_are_reported():
    logits = torch.eye(4).double()
    logits[1, 2], logits[3, 0] = float("nan"), float("inf")
    labels, rows = torch.arange(4)[:, None], torch.arange(4)
    records = join([record(rows, logits, labels, score(logits, labels), 4)], list("abcd"), None)
    assert "for 2 of 4 images" in str(no_numbers(records))
    assert no_numbers(make_records([0, 1], [0, 0], 2)) is None


def test_an_evaluation_warns_of_a_model_whose_weights_are_damaged():
    model = deepcait.load("builtin:nano", device="cpu").model
    model.head.bias.data[3] = float("nan")
    source = Subset(open_source("builtin:demo"), range(3), split="test")
    with pytest.warns(EvaluationWarning, match="weights are damaged"):
        metrics = evaluate(model, source)
    assert (metrics.correct1, metrics.correct5) == (0, 0)


# -- the order of the classes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_classes", "num_each", "accuracy"), [(10, 30, 0.45), (10, 100, 0.9), (100, 10, 0.6), (2, 60, 0.9)]
)
def test_a_permuted_class_order_is_found_and_proposed(num_classes, num_each, accuracy):
    labels = torch.arange(num_classes).repeat(num_each)
    order = torch.arange(num_classes).roll(1) if num_classes == 2 else torch.randperm(num_classes)
    records = make_records(labels, order[answers_of(labels, accuracy, num_classes)], num_classes)
    text, proposed = wrong_order(records)
    assert "are predicted as one other class" in text
    right = sum(proposed.get(label) == order[label] for label in range(num_classes))
    assert right >= 0.95 * num_classes
    # Read with the proposed order, the answers are as good as they were.
    again = {answer: label for label, answer in proposed.items()}
    corrected = torch.tensor([again.get(answer, -1) for answer in records.first_N.tolist()])
    assert (corrected == labels).float().mean() > accuracy - 0.05


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("num_images", [20, 53, 500, 5000])
def test_no_order_is_found_where_it_is_right_or_there_is_none(num_classes, accuracy, num_images):
    for _ in range(5):
        labels = torch.randint(0, num_classes, (num_images,))
        assert wrong_order(make_records(labels, answers_of(labels, accuracy, num_classes), num_classes)) is None


def test_one_answer_for_everything_is_no_order():
    labels = torch.arange(10).repeat(50)
    assert wrong_order(make_records(labels, torch.full_like(labels, 3), 10)) is None
    # A few classes stand for all, outside those of the data.
    assert wrong_order(make_records(labels % 2, 5 + labels % 2, 10)) is None


def test_two_classes_that_are_mixed_up_by_half_are_no_order():
    labels = torch.arange(10).repeat(60)
    swapped = torch.arange(10)
    swapped[[4, 5]] = torch.tensor([5, 4])
    half = torch.where(torch.rand(labels.shape) < 0.55, swapped[labels], labels)
    assert wrong_order(make_records(labels, half, 10)) is None
    # Two swapped folders are found although the other eight are right.
    text, proposed = wrong_order(make_records(labels, swapped[labels], 10))
    assert proposed[4] == 5
    assert "2 classes" in text


def test_the_largest_share_of_a_class_chooses_first_whatever_the_number_of_its_images():
    """Six of ten images of class 0 are answered 1, and so are all four of class 2."""
    labels, answers = torch.tensor([0] * 10 + [2] * 4), torch.tensor([1] * 6 + [0] * 4 + [1] * 4)
    assert safeguards._match(labels, answers) == {2: 1, 0: 0}


def test_an_offset_of_one_is_named():
    labels = torch.arange(20).repeat(10)
    text, _ = wrong_order(make_records(labels, (labels - 1).clamp(min=0), 1000))
    assert "off by 1" in text


def test_numbers_sorted_as_text_are_recognised_among_a_thousand():
    as_text = sorted(range(1000), key=str)
    moved = dict(enumerate(as_text[:150]))  # 1000 itself would stand behind 100
    assert is_text_order(moved)
    assert not is_text_order(moved | {3: moved[4], 4: moved[3]})


def test_evaluate_proposes_the_order(tmp_path, monkeypatch):
    build_v2(tmp_path, 12)
    names = [str(index) for index in range(12)]
    with warnings.catch_warnings(action="error"):
        right = evaluate(GreyModel(names, **V2_MODEL), tmp_path, preprocessing=PLAIN)
    assert (right.proposed_order, right.warnings) == (None, ())
    reversed_names = GreyModel(names[::-1], **V2_MODEL)
    with pytest.warns(EvaluationWarning) as caught:
        metrics = evaluate(reversed_names, tmp_path, preprocessing=PLAIN)
    reported = [str(one.message) for one in caught]
    assert list(metrics.warnings) == reported
    assert any("class order" in text for text in reported)
    assert metrics.proposed_order == {index: 11 - index for index in range(12)}
    monkeypatch.setattr(evaluate_module, "wrong_order", lambda records: None)
    assert not any("class order:" in text for text in evaluate(
        reversed_names, tmp_path, preprocessing=PLAIN).warnings)  # fmt: skip


# -- guessing ---------------------------------------------------------------------------------------------------------


def counted(correct, num):
    return Counts(num, correct, correct, 0).metrics()


@pytest.mark.parametrize(
    ("correct", "num", "num_classes", "warned"),
    [
        (50, 50_000, 1000, True),
        (600, 50_000, 1000, True),  # sorted as text: a perfect model has 1.2 %
        (2_000, 50_000, 1000, False),
        (53, 530, 10, True),
        (120, 530, 10, False),
        (50, 100, 2, True),
        (80, 100, 2, False),
        (52_600, 100_000, 2, False),  # surely a fiftieth of the way from chance to certainty
        (3, 29, 10, False),  # too few to say
        (3, 30, 10, True),
        (100, 100, 1, False),
        (35, 66, 3, False),  # the printed interval, 41.16 to 64.57 %, does not hold a third
    ],
)
def test_near_chance(correct, num, num_classes, warned):
    assert (near_chance(counted(correct, num), num_classes) is not None) == warned


@pytest.mark.parametrize(
    ("correct", "num", "num_classes", "said"),
    [(13, 66, 3, "below"), (22, 66, 3, "about"), (600, 50_000, 1000, "only slightly above")],
)
def test_the_warning_of_guessing_agrees_with_the_printed_interval(correct, num, num_classes, said):
    assert f"% is {said} chance" in str(near_chance(counted(correct, num), num_classes))


@pytest.mark.parametrize(
    ("numbers", "correct", "num_classes", "said"),
    [
        ((40, 16, 10), 35, 3, "top-1 53.03 % is not significantly above"),
        (
            (40, 16, 10),
            40,
            3,
            "predicting the largest class (60.61 %, 40 of 66 images)",
        ),
        ((900, 50, 50), 500, 3, "is below"),
        ((40, 16, 10), 60, 3, None),
        ((40, 16, 10), 35, 10, None),  # a part of the model's classes
        ((66,), 33, 1, None),
        ((14, 10, 5), 14, 3, None),  # too few to say
    ],
)
def test_the_largest_class_as_the_only_answer(numbers, correct, num_classes, said):
    labels = [label for label, number in enumerate(numbers) for _ in range(number)]
    answers = [label if row < correct else (label + 1) % num_classes for row, label in enumerate(labels)]
    records = make_records(labels, answers, num_classes)
    text = near_constant(counted(correct, len(labels)), records)
    assert said in text if said else text is None


def test_an_evaluation_names_the_largest_class_where_guessing_is_far(tmp_path):
    for name, grey, number in (("a", 8, 40), ("b", 24, 16), ("c", 40, 10)):
        (tmp_path / name).mkdir()
        for i in range(number):
            Image.new("RGB", (8, 8), (grey,) * 3).save(tmp_path / name / f"{i}.png")
    blind = GreyModel(num_classes=3, step=16)
    blind.greys_K = blind.greys_K + torch.tensor([0.0, 1000.0, 1000.0])  # the first class always wins
    reported = evaluate(blind, tmp_path, preprocessing=PLAIN).warnings
    assert [text for text in reported if "% is about chance" in text] == []
    assert [text for text in reported if "60.61 %, 40 of 66 images" in text]


def test_evaluate_warns_of_guessing(tmp_path, monkeypatch):
    build_v2(tmp_path, 12)
    blind = GreyModel(**V2_MODEL)
    blind.greys_K = blind.greys_K + 1000  # the last class always wins
    with pytest.warns(EvaluationWarning, match=r"8\.33 % is about chance \(8\.33 %\)") as caught:
        evaluate(blind, tmp_path, preprocessing=PLAIN)
    assert caught[0].filename == __file__
    monkeypatch.setattr(evaluate_module, "near_chance", lambda metrics, num_possible: None)
    assert not any("% is about chance" in t for t in evaluate(blind, tmp_path, preprocessing=PLAIN).warnings)


# -- preprocessing ----------------------------------------------------------------------------------------------------

OWN = Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.875)


class Declared(nn.Module):
    def __init__(self, **attributes):
        super().__init__()
        for name, value in attributes.items():
            setattr(self, name, value)


@pytest.mark.parametrize(
    "model",
    [
        Declared(pretrained_cfg=OWN.to_pretrained_cfg()),
        Declared(default_cfg=OWN.to_pretrained_cfg()),
        Declared(preprocessing=OWN),
        Declared(module=Declared(pretrained_cfg=OWN.to_pretrained_cfg())),
    ],
)
def test_another_preprocessing_than_the_model_s_own_is_reported(model):
    assert other_preprocessing(model, OWN) is None
    text = other_preprocessing(model, Preprocessing((8, 8), crop_ratio=1.0))
    assert "mean 0.485 0.456 0.406 instead of 0.5 0.5 0.5" in text
    assert "std" in text
    assert "crop ratio 1 instead of 0.875" in text
    assert "interpolation" not in text
    assert "image size 3 9 9 instead of 3 8 8" in other_preprocessing(model, Preprocessing((9, 9), OWN.mean, OWN.std))
    assert other_preprocessing(Declared(), OWN) is None


def test_evaluate_warns_of_another_preprocessing(monkeypatch):
    model = deepcait.create_model("cait_nano_32")
    few = Subset(open_source("builtin:demo", "test"), range(0, 500, 50), split="test")
    own = Preprocessing.from_pretrained_cfg(model.pretrained_cfg)
    other = Preprocessing(own.img_size, (0.1, 0.2, 0.3), own.std, own.interpolation, own.crop_ratio)

    def warnings_of(preprocessing):
        return [text for text in evaluate(
            model, few, preprocessing=preprocessing).warnings
            if text.startswith("preprocessing")]  # fmt: skip

    assert warnings_of(own) == []
    assert warnings_of(None) == []
    assert "mean" in warnings_of(other)[0]
    monkeypatch.setattr(evaluate_module, "other_preprocessing", lambda model, preprocessing: None)
    assert warnings_of(other) == []


class Trained(nn.Module):
    """Tells light from dark, right only where images are normalised as in its training; declares nothing."""

    def __init__(self, mean, std):
        super().__init__()
        # Four classes: what greys of 0.1, 0.35, 0.65, 0.9 become.
        self.centres_K = (torch.tensor([0.1, 0.35, 0.65, 0.9]) - mean) / std

    def forward(self, images_BCHW):
        values_B = images_BCHW.mean((1, 2, 3))
        return -(values_B[:, None] - self.centres_K).abs()


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.5), (0.0, 1.0)])
def test_a_model_that_declares_nothing_is_asked(tmp_path, monkeypatch, mean, std):
    model = Trained(mean, std)
    for label, value in enumerate((0.1, 0.35, 0.65, 0.9)):
        (tmp_path / str(label)).mkdir()
        for number in range(15):
            grey = round(255 * value) + number - 7
            Image.new("RGB", (8, 8), (grey,) * 3).save(tmp_path / str(label) / f"{number}.png")
    own, wrong = (Preprocessing((8, 8), *pair) for pair in (((mean,) * 3, (std,) * 3), (IMAGENET_MEAN, IMAGENET_STD)))
    with warnings.catch_warnings(action="error"):
        good = evaluate(model, tmp_path, preprocessing=own)
    assert good.correct1 == 60
    bad = evaluate(model, tmp_path, preprocessing=wrong)
    assert bad.correct1 < 60
    (text,) = [text for text in bad.warnings if text.startswith("preprocessing")]
    own_text = f"mean {mean:g} {mean:g} {mean:g} and std {std:g} {std:g} {std:g}"
    assert f"with {own_text} the model predicts 60 of 60 images correctly" in text
    monkeypatch.setattr(evaluate_module, "better_normalisation", lambda *_: None)
    assert not any(t.startswith("preprocessing") for t in evaluate(
        model, tmp_path, preprocessing=wrong).warnings)  # fmt: skip


def test_a_normalisation_that_shares_its_mean_or_its_deviation_with_the_right_one_is_asked_too():
    """The right answers come with ImageNet's; of the images up to the last one, 256 are looked at."""
    labels = torch.arange(4).repeat(150)
    wrong, right = (make_records(labels, answers, 4) for answers in ((labels + 1) % 4, labels))
    asked = []

    def measure(other, rows):
        asked.append(rows)
        return make_records(labels[rows], (right if other.mean == IMAGENET_MEAN else wrong).first_N[rows], 4)

    for mean, std in ((IMAGENET_MEAN, (0.5, 0.5, 0.5)), ((0.5, 0.5, 0.5), IMAGENET_STD)):
        reported = safeguards.better_normalisation(wrong, Preprocessing((8, 8), mean, std), measure)
        assert "256 of 256 images correctly; with mean" in reported
    assert {(len(set(rows)), rows[0], rows[-1]) for rows in asked} == {(256, 0, 599)}


# -- what a released model reaches ------------------------------------------------------------------------------------


def resolved(name, kind="name", provenance=None) -> Resolved:
    model = deepcait.create_model("cait_nano_32")
    return Resolved(
        spec=name, kind=kind, model=model, name=name, classes=None, pretrained_cfg={}, provenance=provenance or {}
    )


class Data:
    classes = ("cat", "dog")


def test_the_accuracy_expected_of_a_released_model():
    xxs24 = resolved("cait_xxs24_224")
    assert expected_accuracy(xxs24, "imagenet", Data()) == Expected(0.784, 0.94326)
    assert expected_accuracy(xxs24, "real", Data()) == Expected(0.8524, 0.96714)
    assert expected_accuracy(xxs24, "v2", Data()) == Expected(0.6729, 0.8751)
    assert expected_accuracy(xxs24, "folder", Data()) is None
    assert expected_accuracy(resolved("cait_xs36_224"), "imagenet", Data()) is None  # never released
    assert expected_accuracy(resolved("cait_xxs24_224", "run"), "imagenet", Data()) is None  # weights of one's own
    hub = resolved("cait_xxs24_224", "hub", {"hub_id": "timm/cait_xxs24_224.fb_dist_in1k"})
    assert expected_accuracy(hub, "imagenet", Data()) == Expected(0.784, 0.94326)


def test_imagenet_a_and_r_are_recognised_by_their_classes():
    from deepcait.weights.imagenet import read_table

    for subset, top1 in (("imagenet_a", 0.1488), ("imagenet_r", 0.4143)):
        data = Data()
        data.classes = read_table(f"{subset}_synsets.txt").split()
        assert expected_accuracy(resolved("cait_xxs24_224"), "folder", data, "data") == Expected(top1, None)
        assert expected_accuracy(resolved("cait_xxs24_224"), "folder", data) is None


def test_another_accuracy_than_expected_is_reported():
    assert differs(Expected(0.784, None), 0.7838) is None
    assert "expected 78.40 %" in differs(Expected(0.784, None), 0.74)
