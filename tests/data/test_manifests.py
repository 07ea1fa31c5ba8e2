"""CSV and parquet manifests, and parquet that holds images."""

from __future__ import annotations

import pytest

from deepcait.data import describe, list_splits, open_source
from deepcait.data.source import require_labels
from deepcait.data.spec import read_column
from deepcait.errors import DataError, ImageError
from tests.data.forms import write_parquet


def manifest(tmp_path, text: str | bytes, name: str = "list.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na/1.png,dog\nb/2.png,cat\n",
        "a/1.png,dog\nb/2.png,cat\n",
        "\ufefffile_name;class;width\r\n./a/1.png;dog;3\r\n\r\nb/2.png;cat;4\r\n",
        'label\tFILENAME\ndog\t"a/1.png"\n cat\tb\\2.png\n',
    ],
)
def test_headers_separators_and_ends_of_lines(tmp_path, text):
    source = open_source(manifest(tmp_path, text))
    assert source.names == ["a/1.png", "b/2.png"]
    assert (source.classes, source.labels, source.kind) == (["cat", "dog"], [1, 0], "csv")
    assert ("other columns: width" in describe(source)) == ("width" in text)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"bytes")
    assert source.read(0) == (b"bytes", 1, "a/1.png")
    with pytest.raises(ImageError, match=r"2\.png.*no such file"):
        source.read(1)


def test_splits_of_a_manifest(tmp_path):
    path = manifest(
        tmp_path, "path,label,split\ntrain/1.png,dog,train\ntrain/2.png,cat,train\nx/3.png,cat,Validation\n"
    )
    assert list_splits(path) == ["train", "val"]
    assert open_source(path, "train").names == ["1.png", "2.png"]
    val = open_source(path, "val")
    assert (val.names, val.classes, val.labels) == (["x/3.png"], ["cat", "dog"], [0])
    assert val.locate(0) == str(tmp_path / "x/3.png")
    assert open_source(path).names == ["train/1.png", "train/2.png", "Validation/x/3.png"]
    with pytest.raises(DataError, match="no split test; the splits are train, val"):
        open_source(path, "test")


def test_whole_numbers_are_names_and_indices_where_asked_or_of_a_model_that_has_other_names(tmp_path):
    path = manifest(tmp_path, "path,label\n1.png,2\n2.png,0\n")
    named, indices = open_source(path), open_source(path, labels="indices")
    assert (named.classes, named.labels) == (["0", "2"], [1, 0])
    assert (indices.classes, indices.labels) == (["0", "1", "2"], [2, 0])
    assert "integers, taken as class indices 0 to 2 (1 unused)" in describe(indices)
    assert open_source(path, classes=["a", "b", "c"]).labels == [2, 0]
    assert open_source(path, classes=["0", "1", "2"], labels="names").labels == [2, 0]
    with pytest.raises(DataError, match="unknown class '2'"):
        open_source(path, classes=["0", "1"], labels="names")
    assert open_source(path, classes=["a", "b", "c"]).classes == ["a", "b", "c"]
    with pytest.raises(DataError, match="expected class indices 0 to 1, got 2"):
        open_source(path, classes=["a", "b"])
    unlabelled = open_source(manifest(tmp_path, "path\n1.png\n", "u.csv"))
    assert unlabelled.labels == [None]
    assert "no labels" in describe(unlabelled)


@pytest.mark.parametrize("none", ["-1", ""])
def test_minus_one_among_indices_is_an_image_without_a_label(tmp_path, none):
    source = open_source(manifest(tmp_path, f"path,label\n1.png,1\n2.png,{none}\n3.png,0\n"))
    assert (source.classes, source.labels) == (["0", "1"], [1, None, 0])
    with pytest.raises(DataError, match=r"2\.png has no class"):
        require_labels(source)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,label\n1.png,0\n2.png,-2\n",
            r"list\.csv, line 3: expected a class name or a whole number .*, got -2",
        ),
        ("path,label\n1.png,a\n2.png\n", r"list\.csv, line 3: expected 2 columns, got 1"),
        ("path,label\n1.png,a\n2.png,b,c\n", r"list\.csv, line 3: expected 2 columns, got 3"),
        ("path,label\n1.png,a\n,b\n", "line 3: expected a path"),
        ("path,label\n1.png,a\n2\0.png,b\n", "line 3: expected a path"),
        ("path,label,split\n1.png,a,train\n2.png,a,extra\n", "line 3: expected the split .* got 'extra'"),
        ("photo,species\n1.png,a\n", "no column of paths found; the columns are photo, species"),
        ("path,label\n1.png,a\n1.png,b\n", r"1\.png more than once"),
        ("path,label\n", "no images found"),
        ("", "the file is empty"),
        ('path,label\n1.png,"a\n', "line 2: the line is not valid CSV"),
        (b"path,label\n1.png,\xff\n", "line 2: the text is not UTF-8"),
        ("path,label,split\n1.png,a,train\n2.png,zebra,val\n", r"list\.csv: unknown class 'zebra'"),
    ],
)
def test_manifests_that_do_not_fit(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        open_source(manifest(tmp_path, text), "val" if "zebra" in str(text) else None)


def test_a_manifest_maps_to_trained_classes_by_name(tmp_path):
    path = manifest(tmp_path, "1.png,dog\n2.png,cat\n")
    assert open_source(path, classes=["cow", "dog", "cat"]).labels == [1, 2]
    with pytest.raises(DataError, match="unknown class 'cat'"):
        open_source(path, classes=["cow", "dog"])


# ---- parquet


def test_a_parquet_manifest(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.table({"path": ["1.png", "2.png"], "label": [1, 0], "w": [3, 4]}), tmp_path / "l.parquet"
    )
    source = open_source(tmp_path / "l.parquet")
    assert (source.names, source.labels) == (["1.png", "2.png"], [1, 0])
    assert "other columns: w" in describe(source)
    parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no column of paths found"):
        open_source(tmp_path / "x.parquet")
    parquet.write_table(pyarrow.table({"path": ["1.png"], "label": [0.5]}), tmp_path / "f.parquet")
    with pytest.raises(DataError, match="row 0: expected a class name or a whole number, got 0.5"):
        open_source(tmp_path / "f.parquet")


def test_parquet_with_images(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "data").mkdir()
    for split, labels in (("train", [1, 0, 1]), ("validation", [0, -1, None])):
        images = [(f"{number}.png", f"{split} {number}".encode()) for number in range(3)]
        write_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", images, labels, ["cat", "dog"], group=2)
    source = open_source(tmp_path, "val")
    assert (source.kind, source.classes, source.labels) == ("parquet", ["cat", "dog"], [0, None, None])
    assert [source.read(index).data for index in (2, 0, 1)] == [b"validation 2", b"validation 0", b"validation 1"]
    assert source.locate(2).endswith("validation-00000-of-00001.parquet: row 2")
    assert open_source(tmp_path).names[3] == "validation/0.png"
    assert open_source(tmp_path, "train", classes=["dog", "cat"]).labels == [0, 1, 0]


def test_two_classes_of_one_name_stay_two(tmp_path):
    """The hub's ImageNet calls a bird and a machine crane: by name alone each would be taken for the last of them."""
    pytest.importorskip("pyarrow")
    for split in ("train", "validation"):
        images = [(f"{number}.png", b"") for number in range(3)]
        names = ["crane", "dog", "crane"]
        write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", images, [0, 1, 2], names)
    train = open_source(tmp_path, "train")
    assert train.classes == ["crane (0)", "dog", "crane (2)"]
    assert "classes of the same name are distinguished by their index (crane)" in describe(train)
    assert open_source(tmp_path, "val", classes=train.classes).labels == train.labels == [0, 1, 2]


def test_parquet_without_names_or_paths(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"file": [b"one", b"two", None], "label": [4, 0, 0], "name": [b"1", b"2", b"3"]})
    for number in range(2):
        parquet.write_table(table, tmp_path / f"{number}.parquet", row_group_size=2)
    source = open_source(tmp_path)
    assert source.names[:4] == ["0/00000000", "0/00000001", "0/00000002", "1/00000000"]
    assert (source.classes, source.labels[:3]) == (["0", "4"], [1, 0, 0])
    assert "integers, taken as class names" in describe(source)
    assert source.read(4).data == b"two"
    with pytest.raises(ImageError, match="row 2: the cell has no image"):
        source.read(2)
    parquet.write_table(table.rename_columns(["file", "fine_label", "name"]), tmp_path / "2.parquet")
    with pytest.raises(DataError, match=r"0\.parquet and \S+2\.parquet: different columns of labels: label and fine_l"):
        open_source(tmp_path)
    parquet.write_table(pyarrow.table({"path": ["1.png"]}), tmp_path / "2.parquet")
    with pytest.raises(DataError, match=r"2\.parquet: no column of images"):
        open_source(tmp_path)


def test_spaces_around_the_names_of_columns(tmp_path):
    path = manifest(tmp_path, "path, label, patient \na/1.png, dog, p\nb/2.png, cat, q\n")
    source = open_source(path)
    assert source.classes == ["cat", "dog"]
    assert describe(source).endswith("other columns: patient")
    assert read_column(path, "patient", source) == ["p", "q"]


@pytest.mark.parametrize("with_images", [True, False])
def test_pyarrow_starts_no_threads(tmp_path, monkeypatch, with_images):
    """A forked worker process would wait for them without end."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    first = {"image": [b"1", b"2"]} if with_images else {"path": ["1.png", "2.png"]}
    parquet.write_table(pyarrow.table({**first, "label": ["a", "b"], "patient": ["p", "q"]}), tmp_path / "x.parquet")
    asked = []
    for name in ("read", "read_row_group"):
        own = getattr(parquet.ParquetFile, name)
        monkeypatch.setattr(
            parquet.ParquetFile,
            name,
            lambda *args, own=own, use_threads=True, **more: asked.append(use_threads) or own(*args, **more),
        )
    source = open_source(tmp_path / "x.parquet")
    assert read_column(tmp_path / "x.parquet", "patient", source) == ["p", "q"]
    if with_images:
        assert source.read(1).data == b"2"
    assert set(asked) == {False}


@pytest.mark.parametrize("name", ["path", "File_Name"])
def test_paths_that_are_bytes(tmp_path, name):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({name: [b"1.png", b"2.png"], "label": [1, 0]}), tmp_path / "list.parquet")
    with pytest.raises(DataError, match=r"list\.parquet, row 0: expected a path, got .*1\.png.* as text"):
        open_source(tmp_path / "list.parquet")
    images = [{"bytes": b"one", "path": None}, {"bytes": b"two", "path": b"2.png"}]
    parquet.write_table(pyarrow.table({"image": images, "label": [1, 0]}), tmp_path / "images.parquet")
    with pytest.raises(DataError, match=r"images\.parquet, row 1: expected text in the column image\.path"):
        open_source(tmp_path / "images.parquet")


def test_damaged_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "x.parquet"
    write_parquet(path, [("1.png", b"x" * 5000)], [0], None)
    whole = path.read_bytes()
    source = open_source(path)
    for broken in (b"", b"PAR1", whole[:-20], b"x" * 100):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"x\.parquet: not a readable parquet file"):
            open_source(path)
    path.unlink()
    with pytest.raises(ImageError, match="no such file"):
        source.read(0)


def test_a_label_of_thousands_of_digits(tmp_path):
    (tmp_path / "m.csv").write_text("path,label\na.png,1\nb.png," + "9" * 5000 + "\n")
    assert open_source(tmp_path / "m.csv").classes == ["1", "9" * 5000]
    with pytest.raises(DataError, match="data.labels=indices needs integers from 0"):
        open_source(tmp_path / "m.csv", labels="indices")


def test_parquet_without_columns(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.table({}), tmp_path / "m.parquet")
    with pytest.raises(DataError, match="no column of paths found; the columns are missing"):
        open_source(tmp_path / "m.parquet")
