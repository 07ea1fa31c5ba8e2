"""evaluate on a Dataset or DataLoader: the numbers of the folder path, for any batch size; plain errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

import deepcait
from deepcait.data import Preprocessing, open_source
from deepcait.errors import ConfigError, DataError, EvaluationWarning, ImageError
from deepcait.evaluation import evaluate
from deepcait.weights.imagenet import wnids


class Images:
    """The demo's test images as a torch dataset, with a transform and its own order of classes."""

    def __init__(self, transform=None, classes=None, limit=60) -> None:
        self.source = open_source("builtin:demo", "test")
        self.rows = range(0, len(self.source), len(self.source) // limit)
        self.transform = transform or (lambda image: image)
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        sample = self.source.read(self.rows[index])
        with Image.open(self.source.locate(self.rows[index])) as image:
            label = self.source.classes[sample.label]
            return self.transform(image.convert("RGB")), self.names().index(label)

    def names(self) -> list[str]:
        return getattr(self, "classes", self.source.classes)


@pytest.fixture(scope="module")
def nano() -> deepcait.Classifier:
    return deepcait.load("builtin:nano", device="cpu")


@pytest.fixture(scope="module")
def folder_metrics(nano, tmp_path_factory) -> deepcait.evaluation.Metrics:
    """Of the same images in class folders."""
    root, images = tmp_path_factory.mktemp("folder"), Images()
    for index in range(len(images)):
        image, label = images[index]
        path = root / images.names()[label] / f"{index:03d}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    return evaluate(nano, root)


def facts(metrics) -> tuple:
    return metrics.num_images, metrics.correct1, metrics.correct5, pytest.approx(metrics.loss, abs=1e-5)


TRANSFORMS = {
    "pil": None,
    "uint8 array": np.asarray,
    "uint8 tensor": lambda image: torch.from_numpy(np.array(image)).movedim(-1, 0),
    "float tensor": lambda image: torch.from_numpy(np.array(image)).movedim(-1, 0) / 255,
}


@pytest.mark.parametrize("kind", TRANSFORMS)
@pytest.mark.parametrize("batch_size", [7, 60])
def test_a_dataset_gives_the_numbers_of_the_folder(nano, folder_metrics, kind, batch_size):
    assert facts(evaluate(nano, Images(TRANSFORMS[kind]), batch_size=batch_size)) == facts(folder_metrics)


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_a_loader_gives_the_numbers_of_the_folder(nano, folder_metrics, batch_size):
    loader = DataLoader(Images(nano.preprocessing), batch_size=batch_size)
    metrics = evaluate(nano, loader)
    assert facts(metrics) == facts(folder_metrics)
    assert len(metrics.records) == metrics.num_images
    # A plain module, whose classes are given.
    assert facts(evaluate(nano.network, loader, classes=nano.classes)) == facts(folder_metrics)


def test_labels_are_matched_by_name(nano, folder_metrics):
    other_order = sorted(nano.classes, key=lambda name: name[::-1])
    for data in (Images(classes=other_order), DataLoader(Images(nano.preprocessing, other_order), 16)):
        assert facts(evaluate(nano, data)) == facts(folder_metrics)
    half = Subset(Images(classes=other_order), range(30))
    assert evaluate(nano, half).num_images == 30
    assert evaluate(nano, {"val": half, "test": Images(classes=other_order)}).num_images == folder_metrics.num_images


class Sign(nn.Module):
    """Predicts class 1 if the mean is above 0, without names, parameters or pretrained_cfg."""

    def forward(self, images_BCHW):
        mean_B = images_BCHW.mean((1, 2, 3))
        return torch.stack([-mean_B, mean_B, torch.full_like(mean_B, -9.0)], 1)


def test_a_module_without_names_takes_labels_as_its_indices():
    images = torch.linspace(-1, 1, 12)[:, None, None, None].expand(12, 3, 4, 4)
    labels = (images[:, 0, 0, 0] > 0).long()
    metrics = evaluate(Sign(), DataLoader(TensorDataset(images, labels), 5, shuffle=True))
    assert (metrics.num_images, metrics.correct1, metrics.warnings) == (12, 12, ())
    pixels = ((images + 1) * 127.5).byte()
    found = evaluate(Sign(), TensorDataset(pixels, labels), preprocessing=Preprocessing((4, 4), (0.5,) * 3, (0.5,) * 3))
    assert found.correct1 == 12
    with pytest.raises(DataError, match="got 3"):
        evaluate(Sign(), TensorDataset(pixels, labels + 2), preprocessing=Preprocessing((4, 4)))
    with pytest.raises(DataError, match="expected 0 to 2, indices of the classes, got 3"):
        evaluate(Sign(), DataLoader(TensorDataset(images, labels + 2), 5))
    assert evaluate(Sign(), DataLoader(TensorDataset(images, labels), 5), class_mask=[0, 1]).correct1 == 12
    with pytest.raises(ConfigError, match="not in the mask"):
        evaluate(Sign(), DataLoader(TensorDataset(images, labels), 5), class_mask=[1, 2])


def test_what_looks_wrong_is_said(nano):
    images, labels = torch.rand(40, 3, 32, 32), torch.zeros(40, dtype=torch.long)
    with pytest.warns(EvaluationWarning, match="none below 0"):
        evaluate(nano, DataLoader(TensorDataset(images, labels), 16))
    with pytest.warns(EvaluationWarning, match="yielded 32 of the 40 images"):
        evaluate(nano, DataLoader(TensorDataset(images, labels), 16, drop_last=True))


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(torch.randn(9, 3, 32, 32), [0, 1, 2] * 3, strict=True)


def test_an_iterable_is_evaluated_through_its_loader(nano):
    assert evaluate(nano, DataLoader(Stream(), 4)).num_images == 9
    with pytest.raises(ConfigError, match="an iterable one") as caught:
        evaluate(nano, Stream())
    assert "DataLoader(dataset" in caught.value.remedy


class Thousand(nn.Module):
    """Predicts class 999 of 1,000 without names."""

    def forward(self, images_BCHW):
        return torch.eye(1000)[[999] * len(images_BCHW)]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_wordnet_ids_are_those_of_imagenet(batch_size):
    """As for a Dataset or DATA: a model of 1,000 classes without names has them in the order of ImageNet."""
    data = TensorDataset(torch.randn(4, 3, 8, 8), torch.tensor([1, 0, 1, 1]))
    data.classes = [wnids()[7], wnids()[999]]
    metrics = evaluate(Thousand(), DataLoader(data, batch_size))
    assert metrics.correct1 == 3
    assert metrics.records.class_name(999) == wnids()[999]


def loader_of(*parts) -> DataLoader:
    return DataLoader(TensorDataset(*parts), 2)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (loader_of(torch.randn(4, 3, 32, 32)), r"expected batches \(images, labels\)"),
        (loader_of(torch.randn(4, 3, 32, 32), torch.randn(4)), "got float32 .* and float32"),
        (loader_of(torch.randn(4, 3 * 32), torch.zeros(4).long()), r"got float32 \(2, 96\)"),
        (loader_of(torch.zeros(4, 3, 32, 32).byte(), torch.zeros(4).long()), "expected float images"),
        (loader_of(torch.randn(0, 3, 32, 32), torch.zeros(0).long()), "has no images"),
        (DataLoader([{"image": 1}], 1), "got dict of 1"),
        (7, "int is not a map-style dataset"),
        (None, "NoneType is not a map-style dataset"),
        (TensorDataset(torch.randn(4, 3, 32, 32), torch.zeros(4).long()), "expected floats from 0 to 1"),
        ([(Image.new("RGB", (8, 8)), None)], "a label is not a class index or name"),
        ([Image.new("RGB", (8, 8))], "labels can't be read from the items"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_mistakes_are_plain(nano, data, words):
    with pytest.raises((DataError, ConfigError, ImageError), match=words) as caught:
        evaluate(nano, data)
    assert caught.value.remedy


def test_options_that_a_loader_does_not_take(nano):
    loader = loader_of(torch.randn(4, 3, 32, 32), torch.zeros(4).long())
    with pytest.raises(ConfigError, match="split .* can't be used with a DataLoader"):
        evaluate(nano, loader, split="test")
    with pytest.raises(ConfigError, match="protocol .* can't be used"):
        evaluate(nano, loader, protocol="real")
    with pytest.raises(ConfigError, match="class_mask"):
        evaluate(nano, loader, class_mask="data")
