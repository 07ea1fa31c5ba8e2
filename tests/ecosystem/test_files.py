"""Files and folders of other people's packages: transformers' pipeline, webdataset's shards, HF datasets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import deepcait
from deepcait.data import open_source

IMAGES = 40


@pytest.fixture(scope="module")
def nano() -> deepcait.Classifier:
    return deepcait.load("builtin:nano", device="cpu")


@pytest.fixture(scope="module")
def samples() -> list[tuple[str, str]]:
    """(path, class name) of real photographs, all classes among them."""
    source = open_source("builtin:demo", "test")
    rows = range(0, len(source), len(source) // IMAGES)
    return [(source.locate(row), source.classes[source.labels[row]]) for row in rows]


@pytest.fixture(scope="module")
def expected(nano, samples) -> tuple:
    """What we count on these photographs as files in class folders."""
    predicted = nano.predict([path for path, _ in samples], topk=1)
    correct = sum(row[0].label == name for row, (_, name) in zip(predicted, samples, strict=True))
    assert 0 < correct < len(samples)
    return len(samples), correct


def counted(metrics) -> tuple:
    return metrics.num_images, metrics.correct1


def test_the_pipeline_of_transformers_reads_a_saved_folder(nano, samples, tmp_path):
    transformers = pytest.importorskip("transformers")
    nano.save(tmp_path / "model")
    classify = transformers.pipeline("image-classification", model=str(tmp_path / "model"), device="cpu", top_k=3)
    paths = [path for path, _ in samples[:4]]
    for found, ours in zip(classify(paths), nano.predict(paths, topk=3), strict=True):
        assert [one["label"] for one in found] == [one.label for one in ours]
        assert [one["score"] for one in found] == pytest.approx([one.probability for one in ours], abs=2e-3)


def test_shards_written_and_read_by_webdataset(nano, samples, expected, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    names = nano.classes
    with webdataset.ShardWriter(str(tmp_path / "photos-%03d.tar"), maxcount=15, verbose=0) as shards:
        for number, (path, name) in enumerate(samples):
            content = Path(path).read_bytes()
            shards.write({"__key__": f"{number:05d}", "png": content, "cls": names.index(name)})
    pattern = str(tmp_path / "photos-{000..002}.tar")
    assert counted(deepcait.evaluate(nano, pattern)) == expected
    stream = webdataset.WebDataset(pattern, shardshuffle=False).decode("pil").to_tuple("png", "cls")
    stream = stream.map_tuple(lambda image: nano.preprocessing(image.convert("RGB")), int)
    assert counted(deepcait.evaluate(nano, DataLoader(stream, batch_size=7))) == expected


class Pairs:
    """An HF dataset as a torch dataset of (image, label)."""

    def __init__(self, rows, classes) -> None:
        self.rows, self.classes = rows, classes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        row = self.rows[index]
        return row["image"], row["label"]


def test_datasets_of_hugging_face(nano, samples, expected, tmp_path):
    datasets = pytest.importorskip("datasets")
    names = sorted(nano.classes, reverse=True)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    contents = [{"bytes": Path(path).read_bytes(), "path": None} for path, _ in samples]
    columns = {"image": contents, "label": [names.index(name) for _, name in samples]}
    made = datasets.Dataset.from_dict(columns, features=features)
    assert isinstance(made[0]["image"], Image.Image)
    made.to_parquet(tmp_path / "photos.parquet")
    assert counted(deepcait.evaluate(nano, tmp_path / "photos.parquet")) == expected
    assert counted(deepcait.evaluate(nano, Pairs(made, names))) == expected

    def collate(rows):
        images = torch.stack([nano.preprocessing(row["image"].convert("RGB")) for row in rows])
        return images, torch.tensor([nano.classes.index(names[row["label"]]) for row in rows])

    assert counted(deepcait.evaluate(nano, DataLoader(made, 7, collate_fn=collate))) == expected
    made.save_to_disk(tmp_path / "disk")
    assert counted(deepcait.evaluate(nano, tmp_path / "disk")) == expected
