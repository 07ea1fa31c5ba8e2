"""Dataset and evaluation loader: every image once, in order, errors that keep their words."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from deepcait.data import NO_LABEL, ImageDataset, Preprocessing, evaluation_loader, open_folder, open_source
from deepcait.errors import ConfigError, ImageError


class ThreadCount:
    """A transform that tells how many threads torch has where it runs."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return torch.tensor([torch.get_num_threads()])


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (9, 9), (number * 50, 0, 99)).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_samples(folder):
    dataset = ImageDataset(open_folder(folder, None), Preprocessing((8, 8)))
    image, label, index = dataset[4]
    assert len(dataset) == 6
    assert image.shape == (3, 8, 8)
    assert (label, index) == (1, 4)
    dataset.source.labels[4] = None
    assert dataset[4][1] == NO_LABEL


def test_every_image_once_in_order_with_the_last_batch_small():
    source, preprocessing = open_source("builtin:demo", "test"), Preprocessing((32, 32))
    batches = list(evaluation_loader(source, preprocessing, batch_size=64))
    assert [len(images) for images, _, _ in batches] == [64] * 7 + [52]
    labels, indices = (torch.cat([batch[i] for batch in batches]) for i in (1, 2))
    assert indices.tolist() == list(range(500))
    assert labels.tolist() == source.labels
    assert torch.equal(batches[7][0][51], ImageDataset(source, preprocessing)[499][0])


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.process)])
def test_a_damaged_file_stops_with_its_name(folder, num_workers):
    (folder / "b" / "0.png").write_bytes(b"damaged")  # the second of its batch
    loader = evaluation_loader(open_folder(folder, None), Preprocessing((8, 8)), batch_size=2, num_workers=num_workers)
    with pytest.raises(ImageError) as caught:
        list(loader)
    assert str(folder / "b" / "0.png") in caught.value.problem
    assert caught.value.remedy


@pytest.mark.process
def test_workers_change_nothing_and_have_one_thread(folder):
    source = open_folder(folder, None)
    alone = list(evaluation_loader(source, Preprocessing((8, 8)), batch_size=4))
    shared = list(evaluation_loader(source, Preprocessing((8, 8)), batch_size=4, num_workers=2))
    assert all(
        torch.equal(*pair) for one, two in zip(alone, shared, strict=True) for pair in zip(one, two, strict=True)
    )
    threads = [batch[0] for batch in evaluation_loader(source, ThreadCount(), batch_size=3, num_workers=1)]
    assert torch.cat(threads).unique().tolist() == [1]


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 2, "num_workers": -1}])
def test_options_that_do_not_fit(folder, options):
    with pytest.raises(ConfigError, match="Loader"):
        evaluation_loader(open_folder(folder, None), Preprocessing((8, 8)), **options)
