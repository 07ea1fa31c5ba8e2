"""Data that is surely a mistake is refused or noted, by train, --dry-run and doctor alike."""

from __future__ import annotations

import csv
import random
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import deepcait
from deepcait.data import list_splits, open_source, open_split
from deepcait.data.doctor import examine
from deepcait.data.folder import find_splits, split_of
from deepcait.data.plausible import doubts, require_classes
from deepcait.errors import DataError, DeepcaitError
from deepcait.training.data import open_training_data
from deepcait.training.plan import plan
from deepcait.training.recipe import load_recipe
from tests.data.damage import DAMAGE, sound_folder


def fill(root: Path, *folders: str, images: int = 4) -> Path:
    """Images of different colours in every folder below root."""
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(images):
            Image.new("RGB", (12, 12), (20 * index, 30 * number % 256, 90)).save(root / folder / f"{index}.png")
    return root


def recipe(data: Path | str):
    return load_recipe("finetune", [f"data.source={data}", "model=builtin:nano", "global_batch_size=4", "replicas=1"])


def refusal(data: Path | str) -> str:
    """What train, the dry run and the doctor say alike of data that can't be trained on."""
    with pytest.raises(DeepcaitError) as trained:
        open_training_data(recipe(data))
    with pytest.raises(DeepcaitError) as planned:
        plan(recipe(data))
    assert str(trained.value) == str(planned.value)
    (found,) = (one for one in examine(data).findings if one.kind == "refused")
    assert found.text == str(trained.value)
    return str(trained.value)


def notes(data: Path | str, caplog) -> list[str]:
    """What train, the dry run and the doctor doubt alike."""
    found = [one.text for one in examine(data).findings if one.kind == "doubtful"]
    caplog.clear()
    with caplog.at_level("WARNING", logger="deepcait"):
        plan(recipe(data))
    assert [record.getMessage() for record in caplog.records if record.getMessage() in found] == found
    assert list(open_training_data(recipe(data)).doubts) == found
    return found


def test_one_class_is_refused(tmp_path):
    assert "training needs two classes or more. Add images of another class" in refusal(fill(tmp_path, "cat"))


def test_a_folder_too_high_is_refused_with_the_right_one(tmp_path):
    fill(tmp_path, "images/cat", "images/dog")
    assert f"Give {tmp_path / 'images'}: the classes (cat, dog) are in it." in refusal(tmp_path)


def test_a_data_set_one_level_too_high_is_refused(tmp_path):
    fill(tmp_path, "set/train/cat", "set/train/dog", "set/val/cat", "set/val/dog")
    assert f"Give {tmp_path / 'set'}: the splits (train, val) are in it." in refusal(tmp_path)


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_labels_beside_flat_images_are_named(tmp_path, name):
    fill(tmp_path, "train")
    (tmp_path / "train" / name).write_text("file_name,label\n0.png,cat\n")
    assert f"Give {tmp_path / 'train' / name}: it names the label" in refusal(tmp_path)
    with pytest.raises(DataError, match=f"Give .*{name}"):
        examine(tmp_path / "train")


WORDS = {
    "train": ["train", "Training", "training_set", "train-set", "trainset", "train_data", "seg_train", "train_images"],
    "val": ["val", "valid", "validation", "dev", "dev_set", "validation_set", "valset", "seg_val"],
    "test": ["test", "testing", "test_set", "testset", "seg_test", "test_images"],
}


@pytest.mark.parametrize(("split", "word"), [(split, word) for split, words in WORDS.items() for word in words])
def test_usual_words_for_splits_are_known(split, word):
    assert split_of(word) == split


@pytest.mark.parametrize(
    "word", ["dataset", "images", "cat", "set", "trainer", "latest", "device", "contest", "seg_pred"]
)
def test_other_words_are_no_splits(word):
    assert split_of(word) is None


@pytest.mark.parametrize(("train", "val"), [("training_set", "test_set"), ("train", "dev"), ("seg_train", "seg_test")])
@pytest.mark.parametrize("packed", [False, True])
def test_splits_by_other_names_are_recognised(tmp_path, train, val, packed):
    nested = f"{train}/{train}" if train.startswith("seg") else train
    inner = f"{val}/{val}" if val.startswith("seg") else val
    root = fill(tmp_path / "d", *(f"{folder}/{name}" for folder in (nested, inner) for name in ("cats", "dogs")))
    data: Path | str = root
    if packed:
        data = tmp_path / "d.zip"
        with zipfile.ZipFile(data, "w") as archive:
            for path in sorted(root.rglob("*.png")):
                archive.write(path, path.relative_to(root).as_posix())
    source = open_source(data, "train")
    assert (source.classes, len(source)) == (["cats", "dogs"], 8)
    assert set(list_splits(data)) == {"train", split_of(val)}


def test_images_lie_where_nested_splits_are(tmp_path):
    fill(tmp_path, "seg_train/seg_train/a", "seg_train/seg_train/b", "seg_pred/seg_pred")
    assert find_splits(tmp_path) == {"train": tmp_path / "seg_train" / "seg_train"}


def test_classes_called_like_splits_are_doubted(tmp_path, caplog):
    fill(tmp_path, "train_2019", "test_2019")
    assert any("the classes are called like splits (" in note for note in notes(tmp_path, caplog))


def test_classes_one_level_deeper_are_doubted(tmp_path, caplog):
    fill(tmp_path, "camera_1/cat", "camera_1/dog", "camera_2/cat", "camera_2/dog")
    (note,) = notes(tmp_path, caplog)
    assert "all images of camera_1, camera_2 are in subfolders (cat, dog), which may be the classes" in note


@pytest.mark.parametrize("inner", ["photos", "photos/all"])
def test_one_class_that_holds_classes_is_doubted(tmp_path, caplog, inner):
    fill(tmp_path, f"{inner}/cat", f"{inner}/dog", f"{inner}/frog", "other")
    (note,) = notes(tmp_path, caplog)
    assert f"all images of {inner} are in subfolders (cat, dog, frog), which may be the classes" in note
    assert note.endswith(f"If they are, give {tmp_path / inner}")


def test_classes_one_level_deeper_in_a_split_are_doubted(tmp_path, caplog):
    fill(tmp_path, "train/photos/cat", "train/photos/dog", "train/other", "val/photos/cat", "val/other")
    (note,) = notes(tmp_path, caplog)
    assert note.endswith(f"If they are, give {tmp_path / 'train' / 'photos'}")


def test_class_folders_with_images_beside_subfolders_are_not_doubted(tmp_path, caplog):
    fill(tmp_path, "cat", "cat/more", "cat/others", "dog/images", "owl")
    assert notes(tmp_path, caplog) == []


@pytest.mark.parametrize("folders", [("up/photos/{}",), ("up/photos/{}", "up/other")])
@pytest.mark.parametrize("split", ["", "train/"])
def test_evaluating_a_folder_too_high_names_the_right_one(tmp_path, folders, split):
    names = [f"{split}{name}" for name in ("airplane", "bird")]
    fill(tmp_path, *(folder.format(name) for folder in folders for name in names))
    with pytest.raises(DataError, match=f"Give {tmp_path / 'up' / 'photos'}: the .* are in it") as caught:
        deepcait.evaluate(deepcait.load("builtin:nano"), tmp_path / "up")
    assert "Rename" not in str(caught.value)
    fill(tmp_path, "up/photos/fox")
    with pytest.raises(DataError, match="Rename those labels"):
        deepcait.evaluate(deepcait.load("builtin:nano"), tmp_path / "up")


def test_a_split_that_is_not_read_is_doubted(tmp_path, caplog):
    fill(tmp_path, *(f"{split}/{name}" for split in ("train", "val", "holdout") for name in ("cat", "dog")))
    assert any(
        "holdout has class folders of the same names and is not read" in note for note in notes(tmp_path, caplog)
    )


def test_one_class_with_nearly_everything_is_doubted(tmp_path, caplog):
    fill(tmp_path, "cat", images=40)
    fill(tmp_path, "dog", images=3)
    assert any("are of the class cat: a model that always " in note for note in notes(tmp_path, caplog))


def table(root: Path, labels: list[str]) -> Path:
    fill(root, "i", images=len(labels))
    with open(root / "data.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((f"i/{n}.png", label) for n, label in enumerate(labels))])
    return root / "data.csv"


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["cat", "dog", "cat|dog", "dog|owl", "cat|owl"] * 4, "several in one ('cat|dog'"),
        (["cat", "dog", "cat dog", "dog owl", "owl cat"] * 4, "several in one ('cat dog'"),
        ([f"{n / 7:.3f}" for n in range(10)] * 2, "numbers to predict (0.000"),
        ([f"IMG_{n}" for n in range(10)] + ["IMG_0"], "classes for"),
    ],
)
def test_labels_that_are_no_classes_are_doubted(tmp_path, labels, said, caplog):
    assert any(said in note for note in notes(table(tmp_path, labels), caplog))


@pytest.mark.parametrize(
    "names",
    [
        ["great white shark", "tiger shark", "red fox", "kit fox"],
        ["a", "b"],
        ["1", "2"],
        ["New York", "New Delhi", "Rome"],
    ],
)
def test_usual_names_are_not_doubted(tmp_path, names, caplog):
    assert notes(table(tmp_path, names * 6), caplog) == []


# -- the doctor and train agree


def agree(data: Path | str) -> bool:
    """Whether the data can be trained on; the doctor must say the same."""
    try:
        open_training_data(recipe(data))
        trains = True
    except DeepcaitError:
        trains = False
    try:
        errors = {one.kind for one in examine(data).findings if one.severity == "error"}
    except DeepcaitError:
        assert not trains
        return False
    assert trains or errors, f"train refuses {data}, the doctor finds no error"
    of_files = {"unreadable", "empty_file", "not_an_image", "undecodable", "bomb", "two_labels", "leak"}
    assert not trains or not errors - of_files, f"the doctor reports {errors}, train accepts"
    return trains


@pytest.mark.parametrize("name", DAMAGE)
def test_doctor_and_train_agree_on_every_planted_fault(tmp_path, name):
    root = sound_folder(tmp_path / "photos")
    DAMAGE[name](root)
    agree(root)


def test_doctor_and_train_agree_on_sixty_layouts(tmp_path):
    draw = random.Random(0)
    outcomes = []
    for number in range(60):
        root = tmp_path / str(number)
        splits = draw.sample(["train", "val", "test", "dev", "extra", "training_set"], draw.choice([0, 0, 1, 2, 2, 3]))
        classes = draw.sample(["cat", "dog", "owl", "1", "2", "train"], draw.choice([1, 2, 2, 3]))
        folders = [f"{split}/{name}" for split in splits or ["."] for name in classes]
        dropped = draw.sample(folders, draw.choice([0, 0, 0, 1]))
        fill(root, *(folder for folder in folders if folder not in dropped), images=draw.choice([1, 2, 3]))
        root.mkdir(exist_ok=True)
        for folder in draw.sample(folders, draw.choice([0, 0, 1])):
            (root / folder / draw.choice(["deeper", ".hidden"])).mkdir(parents=True, exist_ok=True)
        if draw.random() < 0.2:
            fill(root, draw.choice(["val", "test", "train", "loose"]), images=2)
        outcomes.append(agree(root))
    assert 15 < sum(outcomes) < 55  # both happen


def test_require_classes_and_doubts_take_any_source(tmp_path):
    source = open_split(fill(tmp_path, "cat", "dog"), "train")
    require_classes(tmp_path, source)
    assert doubts(tmp_path, source) == []
