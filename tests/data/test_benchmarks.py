"""The named benchmarks, in the layout of their official archives, with few pictures."""

from __future__ import annotations

import json
import os
import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from deepcait.data import describe, imagenet, list_splits, open_folder, open_image, open_source, open_split
from deepcait.data import folder as folder_module
from deepcait.data.cifar import read_pickle
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
    with pytest.raises(DataError, match="expected class folders called by wnids"):
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
    with pytest.raises(DataError, match="lying flat without labels"):
        open_source(spec, "val")
    # The devkit's numbers alone would be taken for class indices: the trap.
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("1\n2\n3\n1\n")
    with pytest.raises(DataError, match=r"expected meta\.mat beside it"):
        open_source(spec, "val")
    truth.unlink()
    (tmp_path / "labels.txt").write_text("\n".join(VAL_WNIDS[:3]))
    with pytest.raises(DataError, match="as many as it has lines, got ILSVRC2012_val_00000004"):
        open_source(spec, "val")
    with pytest.raises(DataError, match="expected the split train, got val"):
        open_source(spec, "train")
    with pytest.raises(DataError, match="expected the folders train and val"):
        open_source(f"imagenet:{plant(tmp_path / 'other', 'cat/1.png')}")


# ---- ImageNet-V2


def folders_are_labels(source) -> bool:
    """Whether every picture counts as the class that its folder's name is."""
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
    monkeypatch.setattr(folder_module, "sort_classes", sort_as_text)
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
    with pytest.raises(DataError, match="expected 10 images in each folder, got more in 1"):
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


# ---- CIFAR


def python2_pickle(content) -> bytes:
    """What Python 2 wrote for the official archives: protocol 2, texts as bytes, arrays through numpy.core."""

    def dump(value) -> bytes:
        if isinstance(value, str):
            data = value.encode()
            return b"U" + bytes([len(data)]) + data
        if isinstance(value, bool | int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, list):
            return b"](" + b"".join(map(dump, value)) + b"e"
        if isinstance(value, dict):
            return b"}(" + b"".join(dump(key) + dump(item) for key, item in value.items()) + b"u"
        data = value.tobytes()
        new = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + dump(0) + b"\x85" + dump("b") + b"\x87R"
        dtype = b"cnumpy\ndtype\n" + dump("u1") + dump(0) + dump(1) + b"\x87R"
        dtype += b"(" + dump(3) + dump("|") + b"NNN" + dump(-1) + dump(-1) + dump(0) + b"tb"
        shape = dump(value.shape[0]) + dump(value.shape[1]) + b"\x86"
        state = b"(" + dump(1) + shape + dtype + b"\x89" + b"T" + struct.pack("<i", len(data)) + data + b"t"
        return new + state + b"b"

    return b"\x80\x02" + dump(content) + b"."


CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
FINE = [f"fine{index:02d}" for index in range(100)]


def write_cifar(root: Path, kind: str, form: str) -> tuple[np.ndarray, list[int]]:
    """Write the official layout with four pictures a batch; returns all pictures (n, 3072) and labels, in order."""
    generator = np.random.default_rng(1)
    ten, python = kind == "cifar10", form == "python"
    folder = {"cifar10python": "cifar-10-batches-py", "cifar10binary": "cifar-10-batches-bin"}.get(
        kind + form, f"cifar-100-{form}"
    )
    (root / folder).mkdir(parents=True)
    batches = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"] if ten else ["train", "test"]
    pictures, labels = [], []
    for batch in batches:
        data = generator.integers(0, 256, (4, 3072), dtype=np.uint8)
        own = generator.integers(0, 10 if ten else 100, 4).tolist()
        coarse = generator.integers(0, 20, 4).tolist()
        if python:
            content = {
                "batch_label": "b",
                "labels" if ten else "fine_labels": own,
                "data": data,
                "filenames": ["x.png"] * 4,
            }
            content |= {} if ten else {"coarse_labels": coarse}
            (root / folder / batch).write_bytes(python2_pickle(content))
        else:
            heads = [bytes([fine]) if ten else bytes([rough, fine]) for fine, rough in zip(own, coarse, strict=True)]
            records = b"".join(head + picture.tobytes() for head, picture in zip(heads, data, strict=True))
            (root / folder / f"{batch}.bin").write_bytes(records)
        pictures.append(data)
        labels += own
    names = CIFAR10 if ten else FINE
    if python:
        meta = {"label_names" if ten else "fine_label_names": names, "num_vis": 3072}
        (root / folder / ("batches.meta" if ten else "meta")).write_bytes(python2_pickle(meta))
    else:
        name = "batches.meta.txt" if ten else "fine_label_names.txt"
        (root / folder / name).write_text("\n".join(names) + "\n\n")
    return np.concatenate(pictures), labels


@pytest.mark.parametrize("form", ["python", "binary"])
@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar(tmp_path, kind, form):
    pictures, labels = write_cifar(tmp_path, kind, form)
    spec = f"{kind}:{tmp_path}"
    assert list_splits(spec) == ["train", "test"]
    train, test = open_split(spec, "train", split="train"), open_split(spec, "eval")
    assert (train.kind, len(train), len(test)) == (kind, len(labels) - 4, 4)
    assert train.classes == (CIFAR10 if kind == "cifar10" else FINE)
    assert [*train.labels, *test.labels] == labels
    assert test.names[1] == f"{test.classes[labels[-3]]}/00001.png"
    again = pickle.loads(pickle.dumps(train))
    for index in range(len(train)):
        image = np.asarray(open_image(again.read(index).data))
        assert np.array_equal(image, pictures[index].reshape(3, 32, 32).transpose(1, 2, 0))
    assert [sample.name for sample in map(open_source(f"{kind}:{next(tmp_path.iterdir())}").read, (0,))][0].startswith(
        "train/"
    )


def test_cifar_pickles_are_not_run(tmp_path):
    write_cifar(tmp_path, "cifar10", "python")
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    trap = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {trap}",)

    class Getter:
        def __reduce__(self):
            return getattr, (dict, "fromkeys")

    for evil in (Evil(), Getter()):
        for content in (evil, {"labels": [evil], "data": evil}):
            batch.write_bytes(pickle.dumps(content, 2))
            with pytest.raises(DataError, match="data_batch_3: expected a pickle of plain arrays"):
                open_source(f"cifar10:{tmp_path}")
    codec = b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R."
    for data in (codec, b"", b"\x80\x02", b"\x80\x02(" * 50, b"cbuiltins\neval\n."):
        with pytest.raises(DataError):
            read_pickle("x", data)
    assert not trap.exists()


@pytest.mark.parametrize("put", [b"r\xff\xff\xff\x03", b"q\xff", b"p67108863\n"])
def test_cifar_pickles_with_a_far_memo_index_take_no_memory(put):
    data = b"\x80\x02N" + put + b"."
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="the memo index"):
            read_pickle("batch", data)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_cifar_files_that_are_not_the_official_ones(tmp_path):
    write_cifar(tmp_path, "cifar10", "python")
    folder = tmp_path / "cifar-10-batches-py"
    images = np.zeros((4, 3072), np.uint8)
    for content in (
        {"labels": [0] * 4},
        {"labels": [0] * 3, "data": images},
        {"labels": ["a"] * 4, "data": images},
        [],
    ):
        (folder / "test_batch").write_bytes(python2_pickle(content))
        with pytest.raises(DataError, match="test_batch: expected a file of the official archive"):
            open_source(f"cifar10:{tmp_path}")
    (folder / "test_batch").write_bytes(python2_pickle({"labels": [0, 1, 2, 10], "data": images}))
    with pytest.raises(DataError, match="expected labels 0 to 9, got 10"):
        open_source(f"cifar10:{tmp_path}")
    (folder / "test_batch").unlink()
    with pytest.raises(DataError, match="cifar-10-batches-py"):
        open_source(f"cifar10:{tmp_path}")


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
    with pytest.raises(DataError, match="expected pictures 1 to 6, got 7"):
        open_source(spec)
    (tmp_path / "imagelabels.mat").write_bytes(b"no mat file")
    with pytest.raises(DataError, match=r"imagelabels\.mat: expected the official annotations"):
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
    with pytest.raises(DataError, match=rf"train{year}\.json: expected the official annotations"):
        open_source(spec)
