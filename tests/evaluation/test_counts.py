"""Counts are exact: equal to torchmetrics, and the same for any batch size, order and number of processes."""

from __future__ import annotations

import math
import multiprocessing

import pytest
import torch
import torch.distributed as dist
from torchmetrics.functional.classification import multiclass_accuracy

from deepcait.errors import DataError, ShapeError
from deepcait.evaluation import Counts, Metrics


def count(logits_BK, labels_B, batch_size=None) -> Metrics:
    counts = Counts()
    for logits, labels in zip(logits_BK.split(batch_size or len(labels_B)), labels_B.split(batch_size or len(labels_B)),
                              strict=True):  # fmt: skip
        counts.update(logits, labels)
    return counts.merge().metrics()


@pytest.mark.parametrize("num_classes", [1, 2, 3, 5, 10, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_torchmetrics_without_ties(num_classes, seed):
    torch.manual_seed(seed)
    logits, labels = torch.randn(211, num_classes), torch.randint(0, (num_classes + 1) // 2, (211,))  # absent classes
    metrics = count(logits, labels)
    for got, k in ((metrics.top1, 1), (metrics.top5, min(5, num_classes))):
        if num_classes == 1:
            assert got == 1.0
        else:
            expected = multiclass_accuracy(logits, labels, num_classes=num_classes, average="micro", top_k=k)
            assert got == pytest.approx(expected.item(), abs=1e-6)
    assert metrics.loss == pytest.approx(torch.nn.functional.cross_entropy(logits.double(), labels).item(), abs=1e-9)


@pytest.mark.parametrize("num_classes", [2, 3, 10, 100])
def test_ties_agree_with_torchmetrics_on_the_first_answer(num_classes):
    for _ in range(20):
        logits, labels = torch.randint(0, 3, (97, num_classes)).float(), torch.randint(0, num_classes, (97,))
        expected = multiclass_accuracy(logits, labels, num_classes=num_classes, average="micro")
        assert count(logits, labels).top1 == pytest.approx(expected.item(), abs=1e-6)


def test_of_equal_logits_the_lower_index_comes_first():
    labels = torch.arange(8)
    metrics = count(torch.zeros(8, 8), labels)
    assert (metrics.correct1, metrics.correct5) == (1, 5)


def test_what_fewer_than_five_classes_give():
    metrics = count(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([0]))
    assert metrics.to_dict() == {
        "num_images": 1, "correct1": 0, "correct5": 1, "top1": 0.0, "top5": 1.0, "loss": pytest.approx(2.407605964),
    }  # fmt: skip


def test_nothing_changes_with_batch_size_or_order():
    logits, labels = 3 * torch.randn(53, 10), torch.randint(0, 10, (53,))
    order = torch.randperm(53)
    once = count(logits, labels)
    assert all(count(logits, labels, batch_size) == once for batch_size in (1, 7, 16, 53))
    assert count(logits[order], labels[order], 7) == once


@pytest.mark.parametrize("num_classes", [3, 10])
def test_nan_is_never_correct(num_classes):
    logits = torch.zeros(2, num_classes)
    logits[:, 0] = 9
    logits[1, -1] = math.nan
    metrics = count(logits, torch.tensor([0, 0]))
    assert (metrics.correct1, metrics.correct5) == (1, 1)
    assert math.isnan(metrics.loss)
    assert metrics.to_dict()["loss"] is None


def test_an_infinite_loss_is_no_number():
    assert count(torch.tensor([[-math.inf, 0.0]]), torch.tensor([0])).to_dict()["loss"] is None


@pytest.mark.parametrize(("loss", "bounded"), [(2.0**30 - 64, True), (2.0**30, False)])
def test_a_loss_larger_than_any_classifiers_makes_the_mean_undefined(loss, bounded):
    counts = Counts()
    counts.add(torch.tensor([1]), torch.tensor([loss]))
    assert (counts.num_unbounded, counts.loss_ticks) == ((0, int(loss) * 2**32) if bounded else (1, 0))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes_is_refused(label):
    with pytest.raises(DataError, match="0 to 2"):
        Counts().update(torch.zeros(1, 3), torch.tensor([label]))


def test_logits_of_another_shape_are_refused():
    with pytest.raises(ShapeError):
        Counts().update(torch.zeros(2, 3, 4), torch.zeros(2))


def test_no_image_gives_no_metrics():
    with pytest.raises(DataError, match="no images"):
        Counts().metrics()


def make_data():
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(53, 10, generator=generator)
    return logits, torch.randint(0, 10, (53,), generator=generator)


def count_share(rank: int, address: str, results) -> None:
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    logits, labels = make_data()
    counts = Counts()
    counts.update(logits[rank::2], labels[rank::2])
    results.put(counts.merge().metrics())
    dist.destroy_process_group()


@pytest.mark.process
def test_two_processes_count_what_one_counts(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    address = f"file://{tmp_path / 'meeting'}"
    processes = [context.Process(target=count_share, args=(rank, address, results)) for rank in range(2)]
    for process in processes:
        process.start()
    got = [results.get() for _ in processes]
    for process in processes:
        process.join()
    assert got == [count(*make_data())] * 2


def test_counts_begin_at_nothing():
    assert set(vars(Counts()).values()) == {0}
