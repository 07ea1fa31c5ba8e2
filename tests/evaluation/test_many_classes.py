"""Ten thousand classes: memory grows with the images and the pairs that occur, not with the square of the classes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from unittest.mock import MagicMock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deepcait.data.roles import CHOSE
from deepcait.evaluation import Records, confusion, most_errors, per_class, summarise
from deepcait.evaluation.counts import Counts, score
from deepcait.evaluation.plots import _draw_confusion
from deepcait.evaluation.records import join, record
from deepcait.evaluation.safeguards import wrong_order
from deepcait.evaluation.tables import detail
from deepcait.report.results import Results
from tests.processes.harness import ROOT

K, N = 10_000, 3_000


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return out


def made(num_classes: int, num_images: int, seed: int = 0) -> tuple[Records, Counts]:
    """Records of random logits, in batches."""
    generator = torch.Generator().manual_seed(seed)
    counts, parts = Counts(), []
    for first in range(0, num_images, 100):
        labels_B = torch.randint(0, num_classes, (100,), generator=generator)
        logits_BK = torch.randn(100, num_classes, generator=generator)
        logits_BK[torch.arange(100), labels_B] += 3.0
        scores = score(logits_BK, labels_B)
        counts.add(*scores)
        parts.append(record(torch.arange(first, first + 100), logits_BK, labels_B[:, None], scores, num_classes))
    return join(parts, [str(row) for row in range(num_images)], None), counts


@pytest.fixture(scope="module")
def many() -> tuple[Records, Counts]:
    return made(K, N)


def _draw(records: Records) -> None:
    """The plot of confusions, without drawing."""
    axes = MagicMock()
    _draw_confusion(axes, records)
    (image,), _ = axes.imshow.call_args
    assert image.shape == (1000, 1000)
    assert "1,000 classes with most errors" in axes.set.call_args.kwargs["ylabel"]


def results_of(records: Records) -> Results:
    names = [f"class {index}" for index in range(records.num_classes)]
    return Results(
        classes=names,
        records=records,
        total=len(records),
        worst=[],
        nearest=[],
        train_counts=[1] * records.num_classes,
        role=CHOSE,
        test=None,
    )


def test_a_batch_keeps_nothing_of_the_other_classes():
    logits_BK, labels_B = torch.randn(7, K), torch.arange(7)
    kept = record(torch.arange(7), logits_BK, labels_B[:, None], score(logits_BK, labels_B), K)
    tensors = [value for value in vars(kept).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 6
    for tensor in tensors:
        assert tensor.untyped_storage().nbytes() <= 7 * 5 * 8


def test_no_result_makes_a_tensor_of_all_pairs(many):
    records, counts = many
    metrics = counts.metrics()
    metrics = type(metrics)(**(vars(metrics) | {"records": records}))
    with Largest() as largest:
        summarise(metrics)
        detail(records)
        wrong_order(records)
        _draw(records)
    assert largest.numel <= 2_000_000  # bootstrap samples and the plot of 1,000 classes; K x K are 100,000,000


def test_the_report_lists_the_classes_with_most_errors(many):
    from deepcait.report.page import _classes, _confusion

    results = results_of(many[0])
    with Largest() as largest:
        found, table = _confusion(results), _classes(results)
    assert largest.numel <= 10 * K
    assert found["confusion"] is None
    classes = per_class(results.records)
    errors = (classes.support_K - classes.hits_K).tolist()
    shown = [(row[0], int(row[2])) for row in found["worst"].rows]
    expected = sorted(range(K), key=lambda index: -errors[index])[: len(shown)]
    assert shown == [(f"class {index}", errors[index]) for index in expected]
    assert len(shown) == 20
    for name, _, _, _, answer in found["worst"].rows:
        index = int(name.split()[1])
        wrong_N = (results.records.label_N == index) & ~results.records.correct_N
        taken = torch.bincount(results.records.first_N[wrong_N], minlength=K)
        assert taken[int(answer.split()[1])] == taken.max()
    assert len(table.rows) == 1000
    assert "Of 10,000 classes the 1,000 with most errors" in table.caption


def test_confusions_are_those_of_the_whole_matrix():
    from deepcait.report.page import _commonest

    records, _ = made(40, 2000)
    results = results_of(records)
    whole_KK = confusion(records, range(40))
    assert whole_KK.equal(torch.bincount(records.label_N * 40 + records.first_N, minlength=1600).reshape(40, 40))
    chosen = [3, 17, 5]
    assert confusion(records, chosen).equal(whole_KK[chosen][:, chosen])
    wrong = sorted(
        ((-int(whole_KK[i, j]), i, j) for i in range(40) for j in range(40) if i != j and whole_KK[i, j]),
    )[:20]
    assert [row[:3] for row in _commonest(results).rows] == [
        [f"class {i}", f"class {j}", f"{-number:,}"] for number, i, j in wrong
    ]
    errors_K = whole_KK.sum(1) - whole_KK.diag()
    assert most_errors(per_class(records), 4) == errors_K.argsort(descending=True, stable=True)[:4].tolist()
    perfect = torch.eye(3) * 9
    labels = torch.arange(3)
    kept = record(labels, perfect, labels[:, None], score(perfect, labels), 3)
    assert most_errors(per_class(kept), 4) == []


SCRIPT = """
import json, re, warnings
from pathlib import Path
import numpy as np
import deepcait
from deepcait.model import CaiT, CaiTConfig

class Grey:
    def __init__(self, num_classes, size):
        self.classes = [f"class {index}" for index in range(num_classes)]
        self.targets = [index % num_classes for index in range(size)]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return np.full((16, 16, 3), index * 7 % 256, dtype=np.uint8), self.targets[index]

def data(num_classes):
    return {"train": Grey(num_classes, 128), "val": Grey(num_classes, 5000)}

def network(num_classes):
    return CaiT(CaiTConfig(embed_dim=32, depth=1, num_heads=2, img_size=16, patch_size=8, num_classes=num_classes))

def measure(num_classes, out):
    settings = {"epochs": 1, "global_batch_size": 64, "replicas": 1, "augment.repeats": 1, "data.num_workers": 0}
    model, images = (f"python:script:{name}(num_classes={num_classes})" for name in ("network", "data"))
    run = deepcait.train(images, out, model=model, settings=settings)
    metrics = deepcait.evaluate(run.classifier, images, split="val")
    # Not getrusage, which starts from the size of the process that started this one.
    peak_mb = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    return {"peak_mb": peak_mb, "num_images": metrics.num_images, "report": run.report.stat().st_size}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps([measure(num_classes, f"run-{n}") for n, num_classes in enumerate((10, 10_000))]))
"""


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_training_evaluation_and_report_of_many_classes_take_little_more_memory(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    few, many = json.loads(done.stdout.splitlines()[-1])
    assert many["num_images"] == few["num_images"] == 5000
    assert many["peak_mb"] - few["peak_mb"] < 300
    assert many["report"] < 1_000_000
