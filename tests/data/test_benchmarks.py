"""The named benchmarks, in the layout of their official archives, with few images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deepcait.data import describe, imagenet, list_splits, open_folder, open_source, open_split
from deepcait.data import labels as labels_module
from deepcait.errors import DataError

WNIDS = ["n01440764", "n01443537", "n01484850"]
# The devkit's ids, in an order of their own.
ILSVRC_ID = {"n01440764": 3, "n01443537": 1, "n01484850": 2}


def plant(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def savemat(path: Path, **variables) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pytest.importorskip("scipy.io").savemat(path, variables)


def struct_array(fields: dict[str, list]) -> np.ndarray:
    array = np.zeros(len(next(iter(fields.values()))), dtype=[(name, object) for name in fields])
    for name, values in fields.items():
        array[name] = values
    return array


# ---- ImageNet


def imagenet_train(root: Path) -> Path:
    return plant(root, *(f"train/{wnid}/{wnid}_{number}.JPEG" for wnid in reversed(WNIDS) for number in (2, 10)))


VAL = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 5)]
VAL_WNIDS = [WNIDS[2], WNIDS[0], WNIDS[0], WNIDS[1]]


def test_imagenet_with_wnid_folders(tmp_path):
    imagenet_train(tmp_path)
    plant(tmp_path, *(f"val/{wnid}/{name}" for wnid, name in zip(VAL_WNIDS, VAL, strict=True)))
    spec = f"imagenet:{tmp_path}"
    assert list_splits(spec) == ["train", "val"]
    train, val = open_split(spec, "train"), open_split(spec, "eval")
    assert (train.kind, train.split, train.classes, train.labels) == ("imagenet", "train", WNIDS, [0, 0, 1, 1, 2, 2])
    assert sorted(zip(val.names, val.labels, strict=True))[0] == (f"{WNIDS[0]}/{VAL[1]}", 0)
    assert len(open_source(spec)) == 10
    model = ["n00000001", *WNIDS, "n09999999"]
    assert open_source(spec, "val", classes=model).labels == [1, 1, 2, 3]
    plant(tmp_path, "val/tench/1.JPEG")
    with pytest.raises(DataError, match="tench"):
        open_source(spec, "val")
    plant(tmp_path, "train/tench/1.JPEG")
    with pytest.raises(DataError, match="class folders must have wnids"):
        open_source(spec, "val")


def write_labels(root: Path, form: str) -> None:
    if form == "devkit":
        data = root / "ILSVRC2012_devkit_t12" / "data"
        ids = list(ILSVRC_ID.items())
        synsets = struct_array({"ILSVRC2012_ID": [i for _, i in ids], "WNID": [w for w, _ in ids]})
        savemat(data / "meta.mat", synsets=synsets)
        text = "".join(f"{ILSVRC_ID[wnid]}\n" for wnid in VAL_WNIDS)
        (data / "ILSVRC2012_validation_ground_truth.txt").write_text(text)
    elif form == "synsets":
        (root / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(VAL_WNIDS))
    elif form == "indices":
        lines = [f"{name} {WNIDS.index(wnid)}" for name, wnid in zip(VAL, VAL_WNIDS, strict=True)]
        (root / "val.txt").write_text("\n".join(reversed(lines)))
    else:
        rows = [f"{name[:-5]},{wnid} 1 2 3 4 {wnid} 5 6 7 8 " for name, wnid in zip(VAL, VAL_WNIDS, strict=True)]
        (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]))


@pytest.mark.parametrize("form", ["devkit", "synsets", "indices", "kaggle"])
@pytest.mark.parametrize("with_train", [True, False])
def test_imagenet_with_a_flat_val(tmp_path, form, with_train):
    plant(tmp_path, *(f"val/{name}" for name in VAL))
    if with_train:
        imagenet_train(tmp_path)
    write_labels(tmp_path, form)
    spec = f"imagenet:{tmp_path}"
    val = open_split(spec, "eval")
    assert val.names == VAL
    assert val.labels == [WNIDS.index(wnid) for wnid in VAL_WNIDS]
    assert val.classes == (WNIDS if with_train or form != "indices" else ["0", "1", "2"])
    assert val.read(1) == (b"val/" + VAL[1].encode(), 0, VAL[1])
    model = [*WNIDS, "n09999999"]
    assert open_source(spec, "val", classes=model).labels == val.labels
    if with_train:
        assert open_source(spec).names[0] == f"train/{WNIDS[0]}/{WNIDS[0]}_2.JPEG"
        assert open_source(spec).names[-1] == f"val/{VAL[-1]}"


def test_imagenet_labels_that_do_not_fit(tmp_path):
    spec = f"imagenet:{plant(tmp_path, *(f'val/{name}' for name in VAL))}"
    with pytest.raises(DataError, match="not in class folders, and there is no file of labels"):
        open_source(spec, "val")
    # The devkit's numbers alone would be taken for class indices: the trap.
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("1\n2\n3\n1\n")
    with pytest.raises(DataError, match=r"meta\.mat is missing in this folder"):
        open_source(spec, "val")
    truth.unlink()
    (tmp_path / "labels.txt").write_text("\n".join(VAL_WNIDS[:3]))
    with pytest.raises(DataError, match="as many as it has lines, got ILSVRC2012_val_00000004"):
        open_source(spec, "val")
    with pytest.raises(DataError, match="no split train; the splits are val"):
        open_source(spec, "train")
    with pytest.raises(DataError, match="ImageNet's folders train and val are missing"):
        open_source(f"imagenet:{plant(tmp_path / 'other', 'cat/1.png')}")


# ---- ImageNet-V2


def folders_are_labels(source) -> bool:
    """Whether every image counts as the class that its folder's name is."""
    return all(
        int(source.classes[label]) == label == int(name.split("/")[0])
        for name, label in zip(source.names, source.labels, strict=True)
    )


def sort_as_text(names):
    return sorted(names)


def test_v2_folders_are_class_indices(tmp_path, monkeypatch):
    """10 comes after 2; sorted as text only 12 of the 1,000 folders keep their index."""
    root = plant(tmp_path, *(f"imagenetv2-matched-frequency-format-val/{index}/0.jpeg" for index in range(1000)))
    source = open_source(f"imagenet-v2:{root}", "test")
    assert len(source) == 1000
    assert folders_are_labels(source)
    assert folders_are_labels(open_folder(root / "imagenetv2-matched-frequency-format-val", None))
    wnids = [f"n{index:08d}" for index in range(1000)]
    by_model = open_split(f"imagenet-v2:{root}", "eval", classes=wnids)
    assert by_model.labels == [int(name.split("/")[0]) for name in by_model.names]
    assert by_model.classes == wnids
    assert "taken as indices of the 1,000 classes of the model" in describe(by_model)
    assert "only a part: 1,000 of 1,000 folders, 1,000 of 10,000 images" in describe(by_model)
    # The same test fails where folders are sorted as text.
    monkeypatch.setattr(imagenet, "sort_classes", sort_as_text)
    monkeypatch.setattr(labels_module, "sort_classes", sort_as_text)
    trapped = open_source(f"imagenet-v2:{root}", "test")
    assert not folders_are_labels(trapped)
    assert (
        sum(int(name.split("/")[0]) == label for name, label in zip(trapped.names, trapped.labels, strict=True)) == 12
    )
    assert not folders_are_labels(open_folder(root / "imagenetv2-matched-frequency-format-val", None))


def test_v2_archives_that_are_not_right(tmp_path):
    root = plant(tmp_path / "a", *(f"{index}/{number}.jpeg" for index in range(3) for number in range(10)))
    assert "only a part: 3 of 1,000 folders, 30 of 10,000 images" in describe(open_source(f"imagenet-v2:{root}"))
    plant(root, *(f"1/{number}.jpeg" for number in range(20)))
    with pytest.raises(DataError, match="more than 10 images in the folders 1"):
        open_source(f"imagenet-v2:{root}")
    for wrong in ("n01440764", "1000", "007"):
        other = plant(tmp_path / wrong, f"{wrong}/1.jpeg", "0/1.jpeg")
        with pytest.raises(DataError, match=f"expected folders 0 to 999, got {wrong}"):
            open_source(f"imagenet-v2:{other}")


@pytest.mark.slow
def test_the_whole_v2(tmp_path):
    root = plant(tmp_path, *(f"{index}/{number}.jpeg" for index in range(1000) for number in range(10)))
    source = open_source(f"imagenet-v2:{root}", "test")
    assert len(source) == 10_000
    assert folders_are_labels(source)
    assert "part" not in describe(source)


# ---- Flowers, Cars, iNaturalist


def test_flowers(tmp_path):
    plant(tmp_path, *(f"jpg/image_{number:05d}.jpg" for number in range(1, 7)))
    savemat(tmp_path / "imagelabels.mat", labels=np.array([[102, 1, 2, 1, 2, 102]], np.uint8))
    savemat(tmp_path / "setid.mat", trnid=np.array([[6, 2]]), valid=np.array([[3]]), tstid=np.array([[1, 4, 5]]))
    spec = f"flowers102:{tmp_path}"
    assert list_splits(spec) == ["train", "val", "test"]
    train, test = open_source(spec, "train"), open_split(spec, "eval")
    assert (train.names, train.labels) == (["jpg/image_00006.jpg", "jpg/image_00002.jpg"], [101, 0])
    assert (test.split, test.labels, len(test.classes)) == ("test", [101, 0, 1], 102)
    assert (test.classes[0], test.classes[101]) == ("pink primrose", "blackberry lily")
    assert test.read(0).data == b"jpg/image_00001.jpg"
    savemat(tmp_path / "setid.mat", trnid=np.array([[7]]), valid=np.array([[3]]), tstid=np.array([[1]]))
    with pytest.raises(DataError, match="expected images 1 to 6, got 7"):
        open_source(spec)
    (tmp_path / "imagelabels.mat").write_bytes(b"no mat file")
    with pytest.raises(DataError, match=r"imagelabels\.mat: not the official annotations"):
        open_source(spec)


CARS = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]


@pytest.mark.parametrize("layout", ["one", "devkit"])
def test_cars(tmp_path, layout):
    if layout == "one":
        annotations = struct_array({
            "relative_im_path": ["car_ims/1.jpg", "car_ims/2.jpg", "car_ims/3.jpg"], "class": [2.0, 1.0, 2.0],
            "test": [0, 0, 1]})  # fmt: skip
        savemat(tmp_path / "cars_annos.mat", annotations=annotations, class_names=np.array(CARS, object))
    else:
        savemat(tmp_path / "devkit" / "cars_meta.mat", class_names=np.array(CARS, object))
        train = struct_array({"bbox_x1": [1, 1], "class": [2, 1], "fname": ["1.jpg", "2.jpg"]})
        savemat(tmp_path / "devkit" / "cars_train_annos.mat", annotations=train)
        with pytest.raises(DataError, match="cars_test_annos_withlabels"):
            open_source(f"cars:{tmp_path}")
        test = struct_array({"class": [2], "fname": ["3.jpg"]})
        savemat(tmp_path / "cars_test_annos_withlabels.mat", annotations=test)
    train, test = open_source(f"cars:{tmp_path}", "train"), open_split(f"cars:{tmp_path}", "eval")
    assert (train.classes, train.labels, test.labels) == (CARS, [1, 0], [1])
    assert test.locate(0) == str(tmp_path / ("car_ims/3.jpg" if layout == "one" else "cars_test/3.jpg"))


@pytest.mark.parametrize("label", ["two", 1.5, float("nan"), [1, 2], ""])
def test_matlab_labels_that_are_no_whole_numbers(tmp_path, label):
    given = np.empty(2, object)
    given[:] = [label, 1]
    savemat(tmp_path / "cars/devkit/cars_meta.mat", class_names=np.array(CARS, object))
    cars = struct_array({"class": [label, 1], "fname": ["1.jpg", "2.jpg"]})
    savemat(tmp_path / "cars/devkit/cars_train_annos.mat", annotations=cars)
    savemat(tmp_path / "cars/cars_test_annos_withlabels.mat", annotations=cars)
    with pytest.raises(DataError, match=r"cars_train_annos\.mat: expected whole numbers, got"):
        open_source(f"cars:{tmp_path / 'cars'}")
    cars = struct_array({"relative_im_path": ["1.jpg", "2.jpg"], "class": [label, 1], "test": [0, 1]})
    savemat(tmp_path / "one/cars_annos.mat", annotations=cars, class_names=np.array(CARS, object))
    with pytest.raises(DataError, match=r"cars_annos\.mat: expected whole numbers, got"):
        open_source(f"cars:{tmp_path / 'one'}")
    for file, labels, numbers in (("imagelabels", given, np.array([1])), ("setid", np.array([1, 2]), given)):
        savemat(tmp_path / "flowers/imagelabels.mat", labels=labels)
        savemat(tmp_path / "flowers/setid.mat", trnid=numbers, valid=np.array([1]), tstid=np.array([2]))
        with pytest.raises(DataError, match=rf"{file}\.mat: expected whole numbers, got"):
            open_source(f"flowers102:{tmp_path / 'flowers'}")


@pytest.mark.parametrize(("kind", "year"), [("inat18", 2018), ("inat19", 2019)])
def test_inaturalist(tmp_path, kind, year):
    categories = [{"id": 10, "name": "Parus major"}, {"id": 2, "name": "Bellis perennis"}, {"id": 0, "name": "Apis"}]
    (tmp_path / "categories.json").write_text(json.dumps(categories))
    for split, rows in (("train", [(5, 10), (3, 2)]), ("val", [(7, 2)])):
        content = {
            "images": [{"id": image, "file_name": f"train_val{year}/Aves/{image}.jpg"} for image, _ in rows],
            "annotations": [{"id": 0, "image_id": image, "category_id": label} for image, label in reversed(rows)],
            "categories": [{"id": entry["id"], "name": "hidden"} for entry in categories],
        }
        (tmp_path / f"{split}{year}.json").write_text(json.dumps(content))
    spec = f"{kind}:{plant(tmp_path, f'train_val{year}/Aves/7.jpg')}"
    assert list_splits(spec) == ["train", "val"]
    train, val = open_split(spec, "train"), open_split(spec, "eval")
    assert train.classes == val.classes == ["Apis", "Bellis perennis", "Parus major"]
    assert (train.labels, val.labels) == ([2, 1], [1])
    assert val.read(0).data == f"train_val{year}/Aves/7.jpg".encode()
    assert describe(val) == f"{kind}, split val: 1 images, 3 classes"
    (tmp_path / "categories.json").write_text(json.dumps([entry | {"name": "same"} for entry in categories]))
    assert open_source(spec).classes == ["0", "2", "10"]
    (tmp_path / "categories.json").write_text(json.dumps(categories[:1]))
    with pytest.raises(DataError, match="no category 2"):
        open_source(spec)
    (tmp_path / f"train{year}.json").write_text("{")
    with pytest.raises(DataError, match=rf"train{year}\.json: not the official annotations"):
        open_source(spec)
