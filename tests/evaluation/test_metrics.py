"""Metrics beyond counts: equal to torchmetrics and scipy on random data with ties, absent classes, few classes."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional import classification as reference

from deepcait.errors import ConfigError
from deepcait.evaluation import (
    bootstrap_mean,
    calibration,
    compare,
    confusion,
    list_classes,
    list_confusion,
    list_reliability,
    mcnemar,
    per_class,
    summarise,
    wilson,
)
from deepcait.evaluation.counts import Counts, score
from deepcait.evaluation.records import join, record


def make(logits, labels):
    scores = score(logits, labels)
    part = record(torch.arange(len(labels)), logits, labels[:, None], scores, logits.shape[1])
    counts = Counts()
    counts.add(*scores)
    records = join([part], [str(row) for row in range(len(labels))], None)
    metrics = counts.metrics()
    return records, type(metrics)(metrics.num_images, metrics.correct1, metrics.correct5, metrics.loss, 0, records)


@pytest.fixture(params=[(K, ties, seed) for K in (2, 3, 4, 10, 50) for ties in (False, True) for seed in range(3)])
def data(request):
    """Logits and labels; with ties and, for every seed but the first, with classes that never occur."""
    num_classes, ties, seed = request.param
    torch.manual_seed(seed)
    logits = torch.randint(0, 4, (211, num_classes)).float() if ties else 2 * torch.randn(211, num_classes)
    return logits, torch.randint(0, num_classes if seed == 0 else (num_classes + 1) // 2, (211,)), num_classes


def test_agrees_with_torchmetrics(data):
    logits, labels, K = data
    records, metrics = make(logits, labels)
    classes, answers = per_class(records), logits.argmax(1)
    kinds = {"num_classes": K}
    assert confusion(records, range(K)).equal(reference.multiclass_confusion_matrix(answers, labels, **kinds))
    for ours, theirs in (
        (classes.recall_K, reference.multiclass_recall),
        (classes.precision_K, reference.multiclass_precision),
        (classes.f1_K, reference.multiclass_f1_score),
    ):
        assert torch.allclose(ours.float(), theirs(answers, labels, average=None, **kinds), atol=1e-6)
        macro = theirs(answers, labels, average="macro", **kinds).item()
        assert classes.macro(ours) == pytest.approx(macro, abs=1e-6)
    accuracy = reference.multiclass_accuracy(answers, labels, average=None, **kinds)
    assert torch.allclose(classes.recall_K.float(), accuracy, atol=1e-6)
    present = torch.bincount(labels, minlength=K) > 0
    assert classes.balanced_accuracy == pytest.approx(accuracy[present].mean().item(), abs=1e-6)
    for k, ours in ((1, metrics.top1), (min(5, K), metrics.top5)):
        if k == 1 or not logits.frac().eq(0).all():  # torch.topk promises no order among equals
            theirs = reference.multiclass_accuracy(logits, labels, average="micro", top_k=k, **kinds)
            assert ours == pytest.approx(theirs.item(), abs=1e-6)
    if K > 2:
        assert int(reference.multiclass_stat_scores(answers, labels, average="micro", **kinds)[0]) == metrics.correct1


@pytest.mark.parametrize("num_bins", [5, 10, 15])
def test_calibration_agrees_with_torchmetrics(data, num_bins):
    logits, labels, K = data
    records, _ = make(logits, labels)
    ece = reference.multiclass_calibration_error(
        logits.double().softmax(1), labels, num_classes=K, n_bins=num_bins, norm="l1"
    )
    curve = calibration(records, num_bins)
    assert curve.ece == pytest.approx(ece.item(), abs=1e-6)
    assert int(curve.num_M.sum()) == 211


def test_a_sure_answer_lies_in_the_last_bin():
    records, _ = make(torch.tensor([[100.0, 0.0], [0.0, 100.0]]), torch.tensor([0, 0]))
    curve = calibration(records, 10)
    assert curve.num_M.tolist() == [0] * 9 + [2]
    assert curve.ece == pytest.approx(0.5)


def test_a_confidence_on_an_edge_belongs_to_the_bin_above_it():
    records, _ = make(torch.zeros(3, 2), torch.tensor([0, 1, 1]))  # each answer has the probability 1/2
    assert calibration(records, 2).num_M.tolist() == [0, 3]
    assert calibration(records, 2).accuracy_M.tolist() == pytest.approx([0, 1 / 3])


def test_not_a_number_is_left_out_of_calibration_and_is_valid_json():
    records, metrics = make(torch.tensor([[math.nan, 0.0], [math.nan, 1.0]]), torch.tensor([0, 0]))
    facts = summarise(metrics)
    assert facts["ece"] is None
    assert facts["intervals"]["loss"] is None
    assert per_class(records).hits_K.tolist() == [0, 0]


def test_the_lists_hold_the_same_figures(data):
    logits, labels, K = data
    records, metrics = make(logits, labels)
    classes = list_classes(records)
    assert sum(one["num_images"] for one in classes) == 211
    assert sum(one["num_correct"] for one in classes) == metrics.correct1
    cells = list_confusion(records)
    assert sum(one["num_images"] for one in cells) == 211
    assert sum(one["num_images"] for one in cells if one["label"] == one["answer"]) == metrics.correct1
    bins = list_reliability(records)
    assert sum(one["num_images"] for one in bins) == 211
    assert [(one["from"], one["to"]) for one in bins] == [(i / 15, (i + 1) / 15) for i in range(15)]


# -- intervals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("correct", "num"), [(0, 10), (10, 10), (8, 10), (224, 250), (39200, 50000)])
def test_wilson_agrees_with_scipy(correct, num):
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.binomtest(correct, num).proportion_ci(0.95, method="wilson")
    assert wilson(correct, num) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_wilson_holds_the_truth_as_often_as_it_says():
    hits = torch.distributions.Binomial(60, torch.tensor(0.8)).sample((4000,)).int().tolist()
    covered = sum(wilson(hit, 60)[0] <= 0.8 <= wilson(hit, 60)[1] for hit in hits) / 4000
    assert 0.93 < covered < 0.97


def test_bootstrap_is_the_normal_interval_of_a_mean_and_repeats():
    values = torch.randn(2000, dtype=torch.float64)
    low, high = bootstrap_mean(values)
    half = 1.96 * values.std().item() / math.sqrt(2000)
    assert low == pytest.approx(values.mean().item() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean().item() + half, abs=0.1 * half)
    assert bootstrap_mean(values) == bootstrap_mean(values, seed=0) == (low, high)


# -- pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 9), (5, 5), (0, 30), (400, 480), (2000, 2200), (3, 9000)])
def test_mcnemar_agrees_with_scipy(b, c):
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(min(b, c), b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(c, b) == mcnemar(b, c)


def test_models_are_compared_image_by_image():
    labels = torch.tensor([0, 0, 0, 0, 1])
    first, _ = make(torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [1, 0]]), labels)
    second, _ = make(torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 0], [1, 0]]), labels)
    paired = compare(first, second)
    assert (paired.only_first, paired.only_second, paired.p_value) == (2, 1, 1.0)
    other = join([first], ["other"] * 5, None)
    with pytest.raises(ConfigError, match="same images"):
        compare(first, other)
