"""Tables whose columns have names of their own, and folders that datasets.save_to_disk wrote."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from deepcait.data import Columns, describe, list_splits, open_source, open_split
from deepcait.data.doctor import examine
from deepcait.data.source import require_labels
from deepcait.errors import ConfigError, DataError, DeepcaitError, ImageError
from tests.data.test_labels_missing import png

LABELS = ["ab"[number % 2] for number in range(8)]
NAMED = Columns(label="breed", image="id_code", suffix=".png", root="images")


@pytest.fixture
def images(tmp_path, monkeypatch) -> Path:
    """Eight images in images/, and the current folder above it."""
    (tmp_path / "images").mkdir()
    for number in range(8):
        (tmp_path / "images" / f"x.{number}.png").write_bytes(png(number))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_table(folder: Path, form: str) -> Path:
    """A table with columns id_code (a path without suffix), breed and label, which is not the label."""
    path = folder / "tables" / f"list.{form}"
    path.parent.mkdir()
    ids = [f"x.{number}" for number in range(8)]
    if form == "csv":
        path.write_text("id_code,breed,label\n" + "".join(f"{i},{b},9\n" for i, b in zip(ids, LABELS, strict=True)))
    elif form == "jsonl":
        rows = [{"id_code": i, "breed": b, "label": 9} for i, b in zip(ids, LABELS, strict=True)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pa.table({"id_code": ids, "breed": LABELS, "label": [9] * 8}), path)
    return path


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_columns_suffix_and_folder_are_named(images, form):
    path = write_table(images, form)
    source = open_source(path, columns=NAMED)
    assert (source.classes, require_labels(source)) == (["a", "b"], [0, 1] * 4)
    assert source.names == [f"x.{number}.png" for number in range(8)]
    assert source.read(3).data == png(3)
    assert "other columns: label" in describe(source)
    train, val = (open_split(path, role, columns=NAMED) for role in ("train", "val"))
    assert len(train) + len(val) == 8
    assert not [one for one in examine(path, columns=NAMED).findings if one.severity == "error"]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_column_that_is_not_there_is_an_error_that_lists_those_there_are(images, form):
    path = write_table(images, form)
    with pytest.raises(DataError, match=r"label_column: expected a column, got 'bred'; .*'id_code', 'breed', 'label'"):
        open_source(path, columns=Columns(label="bred", image="id_code"))
    with pytest.raises(DataError, match="Did you mean 'id_code'"):
        open_source(path, columns=Columns(image="id_cod"))
    with pytest.raises(DataError, match=r"no column of paths.*data\.image_column"):
        open_source(path)


def test_names_are_found_whatever_their_case_and_numbers_are_ids_with_a_suffix(images):
    Path("n.jsonl").write_text('{"Id": 1, "CLASS": "a"}\n{"Id": 2, "CLASS": "b"}\n')
    source = open_source("n.jsonl", columns=Columns(image="id", suffix=".png"))
    assert (source.names, source.classes) == (["1.png", "2.png"], ["a", "b"])
    with pytest.raises(DataError, match="line 1: expected a path, got '1'"):
        open_source("n.jsonl", columns=Columns(image="id"))


def test_columns_of_what_is_no_table_and_odd_suffixes_are_refused(images):
    with pytest.raises(ConfigError, match=r"label_column and image_root: expected a table \(csv, jsonl"):
        open_source("images", columns=Columns(label="breed", root="x"))
    for suffix in ("png", "./png"):
        with pytest.raises(ConfigError, match="expected a suffix such as .jpg"):
            Columns(suffix=suffix)


def test_parquet_with_images_takes_the_columns_that_are_named(images):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cells = [{"bytes": png(n), "path": f"{n}.png"} for n in range(4)]
    thumbs = [{"bytes": png(200 + n), "path": f"{n}.png"} for n in range(4)]
    features = {name: {"_type": "ClassLabel", "names": ["x", "y"]} for name in ("artist", "genre")}
    table = pa.table({"image": cells, "thumb": thumbs, "artist": [0, 0, 1, 1], "genre": [0, 1] * 2})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, "x.parquet")
    source = open_source("x.parquet", columns=Columns(label="genre", image="thumb"))
    assert (source.classes, source.labels, source.read(1).data) == (["x", "y"], [0, 1] * 2, png(201))
    with pytest.raises(ConfigError, match="image_root: this table contains the images"):
        open_source("x.parquet", columns=Columns(label="genre", root="images"))
    with pytest.raises(DataError, match="'image', 'thumb', 'artist', 'genre'"):
        open_source("x.parquet", columns=Columns(label="style"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"path": "caf\xe9.png"}\n', "line 1: the text is not UTF-8"),
        (b'{"path": "a.png", "label": ["cat"]}\n', "line 1: expected a class name"),
    ],
)
def test_json_lines_are_text_and_labels(tmp_path, data, said):
    (tmp_path / "x.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=said):
        open_source(tmp_path / "x.jsonl")


def test_json_lines_end_at_line_feeds_alone(tmp_path):
    (tmp_path / "x.jsonl").write_text(
        '{"path": "a\u2028b.png", "label": "c"}\r\n{"path": "d.png", "label": "e"}\n', "utf-8"
    )
    assert open_source(tmp_path / "x.jsonl").names == ["a\u2028b.png", "d.png"]


# -- datasets.save_to_disk ------------------------------------------------------------------------------------------


def save_to_disk(
    folder: Path, numbers: range, *, split: str | None = None, files: int = 2, names=("cat", "dog")
) -> Path:
    """A Dataset as `datasets` saves it: arrow streams of small batches, state.json, dataset_info.json."""
    pa = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True)
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    filenames = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    for number, filename in enumerate(filenames):
        own = list(numbers)[number::files]
        images = [{"bytes": png(n), "path": f"{n}.png"} for n in own]
        struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        table = pa.table(
            {"image": pa.array(images, struct), "label": pa.array([n % len(names) for n in own], pa.int64())}
        )
        with pa.ipc.new_stream(folder / filename, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in filenames], "_split": split, "_fingerprint": "0"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features, "citation": ""}))
    return folder


@pytest.fixture
def saved(tmp_path) -> Path:
    """A DatasetDict with a split that is no split of ours."""
    root = tmp_path / "saved"
    splits = {"train": range(10), "validation": range(10, 14), "unsupervised": range(14, 16)}
    for split, numbers in splits.items():
        save_to_disk(root / split, numbers, split=split)
    (root / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return root


def test_a_saved_dictionary_of_datasets(saved):
    assert list_splits(saved) == ["train", "val"]
    train, val = open_split(saved, "train"), open_split(saved, "val")
    assert (train.kind, train.classes, len(train), len(val)) == ("arrow", ["cat", "dog"], 10, 4)
    assert "splits not used: unsupervised" in describe(train)
    assert train.names[:2] == ["0.png", "2.png"]  # the first file has every other one
    assert require_labels(val) == [0, 0, 1, 1]
    for source in (train, pickle.loads(pickle.dumps(train))):
        assert [source.read(index).data for index in (9, 0, 5)] == [png(9), png(0), png(1)]
    assert train.locate(5).endswith("data-00001-of-00002.arrow: row 0")
    assert len(open_source(saved)) == 14
    diagnosis = examine(saved)
    assert (diagnosis.kind, diagnosis.num_images) == ("arrow", {"train": 10, "val": 4})


def test_a_saved_dataset_without_splits_and_with_one(tmp_path):
    whole = open_source(f"arrow:{save_to_disk(tmp_path / 'a', range(6), files=1)}")
    assert (whole.labels, whole.names[3]) == ([0, 1] * 3, "3.png")
    one = save_to_disk(tmp_path / "b", range(6), split="test")
    assert list_splits(one) == ["test"]
    with pytest.raises(DataError, match="label_column: expected a column, got 'x'; the columns are 'image', 'label'"):
        open_source(one, columns=Columns(label="x"))


def spoil(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_wrong_with_a_saved_folder_is_said(tmp_path, saved):
    spoil(saved / "dataset_dict.json", splits=["one", "two"])
    with pytest.raises(DataError, match=r"none of the splits is train, val or test: one, two.*folder of one"):
        open_source(saved)
    spoil(saved / "dataset_dict.json", splits=["../train"])
    with pytest.raises(DataError, match="expected a list of splits"):
        open_source(saved)
    train = saved / "train"
    for change, said in (
        ({"_data_files": []}, "the names of the arrow files are missing"),
        ({"_data_files": [{"filename": "../x.arrow"}]}, "the names of the arrow files are missing"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "no such file"),
        ({"_indices_data_files": [{"filename": "i.arrow"}]}, "flatten_indices"),
    ):
        before = (train / "state.json").read_text()
        spoil(train / "state.json", **change)
        with pytest.raises(DataError, match=said):
            open_source(train)
        (train / "state.json").write_text(before)
    (train / "dataset_info.json").write_text("[]")
    with pytest.raises(DataError, match="expected a JSON object"):
        open_source(train)


def test_damaged_arrow_files_are_refused_or_read_never_worse(tmp_path):
    folder = save_to_disk(tmp_path / "a", range(6), files=1)
    (file,) = folder.glob("*.arrow")
    data = file.read_bytes()
    for end in (0, 3, 100, len(data) // 2):
        file.write_bytes(data[:end])
        with pytest.raises(DataError, match="not a readable arrow file|no such file|has no rows"):
            open_source(folder)
    for place in range(0, len(data), 7):
        file.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        try:
            source = open_source(folder)
            for index in range(len(source)):
                source.read(index)
        except DeepcaitError:
            pass


def test_an_arrow_file_that_ends_while_it_is_used_is_an_error_of_the_image(tmp_path):
    folder = save_to_disk(tmp_path / "a", range(6), files=1)
    source = open_source(folder)
    (file,) = folder.glob("*.arrow")
    file.write_bytes(b"")
    with pytest.raises(ImageError, match="not a readable arrow file|no such file"):
        source.read(0)
