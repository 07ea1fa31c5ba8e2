"""evaluate: any classifier, each image once, the model left as it was, wrong classes refused."""

from __future__ import annotations

import dataclasses
import multiprocessing

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn

import deepcait
from deepcait.data import Preprocessing, Subset, open_source
from deepcait.errors import ConfigError, DataError, ShapeError
from deepcait.evaluation import evaluate, map_classes
from deepcait.evaluation.measure import Loading, Wanted, measure
from deepcait.evaluation.protocols import plan_task

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}
TO_4_PX = Preprocessing((4, 4), mean=(0, 0, 0), std=(1, 1, 1))


class ColourModel(nn.Module):
    """Its logits are the mean of each channel: class 0 red, 1 green, 2 blue."""

    def __init__(self, classes=None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.frozen = nn.Dropout(0.5).eval()
        self.pretrained_cfg = {"label_names": classes} if classes else {}

    def forward(self, images_BCHW):
        assert not self.training
        return self.scale * images_BCHW.mean((2, 3))


@pytest.fixture
def colours(tmp_path):
    """17 images in class folders blue, green, red, one of the green ones in fact red."""
    for name, colour in COLOURS.items():
        (tmp_path / name).mkdir()
        for index in range(6 if name == "red" else 5):
            Image.new("RGB", (8, 8), colour).save(tmp_path / name / f"{index}.png")
    Image.new("RGB", (8, 8), COLOURS["red"]).save(tmp_path / "green" / "wrong.png")
    return tmp_path


def test_classes_are_mapped_by_name(colours):
    metrics = evaluate(ColourModel(["red", "green", "blue"]), colours, preprocessing=TO_4_PX)
    assert (metrics.num_images, metrics.correct1, metrics.correct5) == (17, 16, 17)


def test_without_names_the_order_of_the_data_counts(colours):
    assert evaluate(ColourModel(), colours, preprocessing=TO_4_PX).correct1 == 5
    assert evaluate(ColourModel(), colours, preprocessing=TO_4_PX, classes=["red", "green", "blue"]).correct1 == 16


def test_integers_are_the_indices_of_the_model(colours):
    for index, name in enumerate(("red", "green", "blue")):
        (colours / name).rename(colours / str(index))
    assert evaluate(ColourModel(["a", "b", "c"]), colours, preprocessing=TO_4_PX).correct1 == 16
    assert evaluate(ColourModel(), colours, preprocessing=TO_4_PX).correct1 == 16
    (colours / "2").rename(colours / "3")
    assert evaluate(ColourModel(), colours, preprocessing=TO_4_PX).correct1 == 16, "as many classes as the model has"
    with pytest.raises(DataError, match="expected class indices 0 to 2, got 3"):
        evaluate(ColourModel(["a", "b", "c"]), colours, preprocessing=TO_4_PX)


def test_a_part_of_the_models_classes_is_enough(colours):
    metrics = evaluate(ColourModel(), open_source(colours), preprocessing=TO_4_PX, classes=["red", "green", "blue"])
    assert metrics.num_images == 17
    assert map_classes(open_source(colours), ["x", "red", "green", "blue"], 4) == [3, 2, 1]


def test_a_class_that_the_model_does_not_have_is_refused(colours):
    (colours / "red").rename(colours / "purple")
    with pytest.raises(DataError, match="purple"):
        evaluate(ColourModel(["red", "green", "blue"]), colours, preprocessing=TO_4_PX)


def test_another_number_of_classes_is_refused(colours):
    (colours / "red").rename(colours.parent / "elsewhere")
    with pytest.raises(DataError, match="the model has 3 classes"):
        evaluate(ColourModel(), colours, preprocessing=TO_4_PX)


def test_batch_size_and_workers_change_nothing(colours):
    model = ColourModel(["red", "green", "blue"])
    results = {evaluate(model, colours, preprocessing=TO_4_PX, batch_size=size) for size in (1, 7, 16)}
    assert len(results) == 1


def test_a_batch_that_does_not_fit_into_memory_is_halved(colours):
    """As on a GPU with too little memory; a single image that does not fit ends the evaluation."""
    model, sizes = ColourModel(["red", "green", "blue"]), []
    fits = evaluate(model, colours, preprocessing=TO_4_PX)

    def limit(most: int):
        def refuse(module, inputs):
            sizes.append(len(inputs[0]))
            if sizes[-1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        return model.register_forward_pre_hook(refuse)

    with limit(3):
        assert evaluate(model, colours, preprocessing=TO_4_PX, batch_size=16) == fits
    assert [size for size in sizes if size <= 3] == [2] * 8 + [1]
    with limit(0), pytest.raises(torch.OutOfMemoryError):
        evaluate(model, colours, preprocessing=TO_4_PX)


@pytest.mark.process
def test_workers_change_nothing(colours):
    model = ColourModel(["red", "green", "blue"])
    alone = evaluate(model, colours, preprocessing=TO_4_PX, batch_size=7)
    assert evaluate(model, colours, preprocessing=TO_4_PX, batch_size=7, num_workers=2) == alone


def test_the_model_keeps_its_modes(colours):
    model = ColourModel(["red", "green", "blue"]).train()
    model.frozen.eval()
    evaluate(model, colours, preprocessing=TO_4_PX)
    assert model.training
    assert not model.frozen.training
    (colours / "red" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError):
        evaluate(model, colours, preprocessing=TO_4_PX)
    assert model.training


def test_progress_is_reported(colours):
    reported = []
    evaluate(ColourModel(), colours, preprocessing=TO_4_PX, batch_size=10, progress=lambda *step: reported.append(step))
    assert reported == [(10, 17), (17, 17)]


def test_a_cait_brings_its_own_preprocessing():
    model = deepcait.create_model("cait_nano_32")
    source = open_source("builtin:demo", "test")
    some = Subset(source, range(0, 500, 10), split="test")
    first, second = (deepcait.evaluate(model, some, batch_size=size) for size in (16, 16))
    other = deepcait.evaluate(model, some, batch_size=7)
    assert first == second
    assert (other.correct1, other.correct5) == (first.correct1, first.correct5)
    assert other.loss == pytest.approx(first.loss, abs=1e-5)


def test_unknown_preprocessing_is_asked_for(colours):
    with pytest.raises(ConfigError, match="preprocessing"):
        evaluate(ColourModel(), colours)


def test_an_unknown_protocol_is_refused(colours):
    with pytest.raises(ConfigError, match="Did you mean imagenet"):
        evaluate(ColourModel(), colours, preprocessing=TO_4_PX, protocol="imagnet")


def test_a_classifier_is_measured_as_it_is_used():
    few = Subset(open_source("builtin:demo", "test"), range(0, 500, 25), split="test")
    classifier = deepcait.load("builtin:nano", device="cpu")
    whole = evaluate(classifier, few)
    assert whole == evaluate(classifier.model, few)
    classifier.preprocessing = dataclasses.replace(classifier.preprocessing, mean=(0.9, 0.9, 0.9))
    beside = evaluate(classifier, few)
    assert beside.loss != whole.loss
    assert beside.records.classes == classifier.classes
    own = dataclasses.replace(classifier.preprocessing, mean=(0.1, 0.1, 0.1))
    assert evaluate(classifier, few, preprocessing=own).loss not in (whole.loss, beside.loss)
    classifier.network = nn.Sequential(classifier.model)  # an engine, which says nothing of itself
    assert evaluate(classifier, few).loss == beside.loss


def test_what_is_no_model_is_named():
    with pytest.raises(ConfigError, match="expected a torch module or a deepcait.Classifier, got str") as caught:
        evaluate("builtin:nano", "builtin:demo")  # type: ignore[arg-type]
    assert "deepcait.load" in caught.value.remedy


def test_a_model_that_is_no_classifier_is_refused(colours):
    with pytest.raises(ShapeError, match=r"expected logits \(B=17, K\), got \(17, 3, 4, 4\)"):
        evaluate(nn.Identity(), colours, preprocessing=TO_4_PX, batch_size=32)


def evaluate_share(rank: int, address: str, data, results) -> None:
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    model = ColourModel(["red", "green", "blue"])
    try:
        metrics = evaluate(model, data, preprocessing=TO_4_PX, batch_size=7)
        # Tensors would travel as handles that die with this process.
        results.put(dataclasses.replace(metrics, records=None))
    except DataError as error:
        results.put(error.problem)
    dist.destroy_process_group()


def evaluate_with_two_processes(tmp_path, data) -> list:
    context = multiprocessing.get_context("fork")
    results, address = context.SimpleQueue(), f"file://{tmp_path}"
    processes = [context.Process(target=evaluate_share, args=(rank, address, data, results)) for rank in range(2)]
    for process in processes:
        process.start()
    got = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return got


@pytest.mark.process
def test_two_processes_count_each_image_once(colours, tmp_path_factory):
    expected = evaluate(ColourModel(["red", "green", "blue"]), colours, preprocessing=TO_4_PX)
    assert evaluate_with_two_processes(tmp_path_factory.mktemp("a") / "meeting", colours) == [expected] * 2


@pytest.mark.process
def test_an_error_in_one_process_is_raised_in_all(colours, tmp_path_factory):
    (colours / "blue" / "1.png").write_bytes(b"no image")
    first, second = evaluate_with_two_processes(tmp_path_factory.mktemp("b") / "meeting", colours)
    assert first == second
    assert "1.png" in first


def test_several_models_are_measured_while_each_image_is_read_once(colours, monkeypatch):
    """As a run does with its weights and their average."""
    source = open_source(colours)
    read, original = [], type(source).read
    monkeypatch.setattr(type(source), "read", lambda self, index: (read.append(index), original(self, index))[1])
    wanted = Wanted(plan_task(source, "folder"), None)
    loading = Loading(4, 0, torch.device("cpu"))
    right, wrong = ColourModel(), nn.Sequential(ColourModel())
    wrong.register_forward_hook(lambda module, inputs, logits: -logits)
    (first, records), (second, others) = measure([right, wrong], wanted, range(len(source)), TO_4_PX, loading)
    assert sorted(read) == list(range(len(source)))
    assert first.metrics() == evaluate(right, source, preprocessing=TO_4_PX)
    assert second.metrics() == evaluate(wrong, source, preprocessing=TO_4_PX)
    assert first.correct1 != second.correct1
    assert records.names == others.names == list(source.names)
