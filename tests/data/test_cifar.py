"""CIFAR-10 and CIFAR-100 as their official archives hold them; pickles are read, never run."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from deepcait.data import cifar, list_splits, open_image, open_source, open_split
from deepcait.data.cifar import read_pickle
from deepcait.errors import DataError


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
    """Write the official layout with four images a batch; returns all images (n, 3072) and labels, in order."""
    generator = np.random.default_rng(1)
    ten, python = kind == "cifar10", form == "python"
    folder = {"cifar10python": "cifar-10-batches-py", "cifar10binary": "cifar-10-batches-bin"}.get(
        kind + form, f"cifar-100-{form}"
    )
    (root / folder).mkdir(parents=True)
    batches = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"] if ten else ["train", "test"]
    images, labels = [], []
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
            records = b"".join(head + image.tobytes() for head, image in zip(heads, data, strict=True))
            (root / folder / f"{batch}.bin").write_bytes(records)
        images.append(data)
        labels += own
    names = CIFAR10 if ten else FINE
    if python:
        meta = {"label_names" if ten else "fine_label_names": names, "num_vis": 3072}
        (root / folder / ("batches.meta" if ten else "meta")).write_bytes(python2_pickle(meta))
    else:
        name = "batches.meta.txt" if ten else "fine_label_names.txt"
        (root / folder / name).write_text("\n".join(names) + "\n\n")
    return np.concatenate(images), labels


@pytest.mark.parametrize("form", ["python", "binary"])
@pytest.mark.parametrize("kind", ["cifar10", "cifar100"])
def test_cifar(tmp_path, kind, form):
    pictures, labels = write_cifar(tmp_path, kind, form)
    spec = f"{kind}:{tmp_path}"
    assert list_splits(spec) == ["train", "test"]
    train, test = open_source(spec, "train"), open_split(spec, "eval")
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
            with pytest.raises(DataError, match="data_batch_3: not a pickle of plain arrays"):
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


def test_binary_files_that_are_no_records(tmp_path):
    write_cifar(tmp_path, "cifar10", "binary")
    path = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    whole = path.read_bytes()
    for broken in (b"", whole[:-1], whole + b"\0"):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"test_batch\.bin: expected a file of the official archive"):
            open_source(f"cifar10:{tmp_path}")
    path.write_bytes(b"\x0a" + whole[1:])
    with pytest.raises(DataError, match="expected labels 0 to 9, got 10"):
        open_source(f"cifar10:{tmp_path}")


BEFORE_PIXELS = b"T" + struct.pack("<i", 4 * 3072)


@pytest.mark.parametrize(
    "change",
    [(b"U\x02u1", b"U\x02i1"), (b"\x89" + BEFORE_PIXELS, b"\x88" + BEFORE_PIXELS)],
    ids=["signed", "by columns"],
)
def test_arrays_of_another_kind(tmp_path, change):
    """Signed numbers, and an array that lies column by column: other images than the bytes in their order."""
    write_cifar(tmp_path, "cifar10", "python")
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    whole = path.read_bytes()
    assert whole.count(change[0]) == 1
    path.write_bytes(whole.replace(*change))
    with pytest.raises(DataError, match="an array of another type"):
        open_source(f"cifar10:{tmp_path}")


def test_more_pixels_than_the_shape_says(tmp_path):
    write_cifar(tmp_path, "cifar10", "python")
    data = python2_pickle({"labels": [0] * 4, "data": np.zeros((5, 3072), np.uint8)})
    five, four = (b"J" + struct.pack("<i", number) + b"J" + struct.pack("<i", 3072) for number in (5, 4))
    assert data.count(five) == 1
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(data.replace(five, four))
    with pytest.raises(DataError, match="test_batch: expected a file of the official archive"):
        open_source(f"cifar10:{tmp_path}")


def test_a_file_larger_than_any_of_them_is_not_read(tmp_path, monkeypatch):
    write_cifar(tmp_path, "cifar10", "python")
    monkeypatch.setattr(cifar, "_MAX_FILE_BYTES", 5000)
    with pytest.raises(DataError, match=r"data_batch_1: expected a file of the official archive, got [\d,]+ bytes"):
        open_source(f"cifar10:{tmp_path}")


def test_cifar_files_that_are_not_the_official_ones(tmp_path):
    write_cifar(tmp_path, "cifar10", "python")
    folder = tmp_path / "cifar-10-batches-py"
    images = np.zeros((4, 3072), np.uint8)
    for content in (
        {"labels": [0] * 4},
        {"labels": [0] * 3, "data": images},
        {"labels": ["a"] * 4, "data": images},
        {"labels": [0] * 4, "data": images.reshape(2, 6144)},
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
