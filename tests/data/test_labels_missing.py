"""Labels that are not found: the error lists the columns or files there were. Dotted names and JSON lines are read."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from deepcait.data import open_source, open_split
from deepcait.data.doctor import examine
from deepcait.data.source import require_labels
from deepcait.errors import DataError


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("label", [lambda n: ("cls", str(n % 2)), lambda n: ("json", json.dumps({"label": n % 2}))])
def test_shards_with_dots_in_their_names(tmp_path, label):
    members = {}
    for number in range(6):
        suffix, text = label(number)
        members |= {f"scan.v1.{number}.png": png(number), f"scan.v1.{number}.{suffix}": text.encode()}
    source = open_source(shard(tmp_path / "dots.tar", members))
    assert require_labels(source) == [0, 1] * 3
    assert source.classes == ["0", "1"]
    # By the index that was stored, too.
    assert require_labels(open_source(tmp_path / "dots.tar")) == [0, 1] * 3


def test_the_first_dot_comes_before_the_last(tmp_path):
    members = {"a.png": png(0), "a.cls": b"cat", "b.png": png(1), "b.cls": b"dog"}
    assert open_source(shard(tmp_path / "plain.tar", members)).classes == ["cat", "dog"]


def csv(root: Path, header: str) -> Path:
    for number in range(6):
        (root / f"{number}.png").write_bytes(png(number))
    (root / "x.csv").write_text(header + "\n" + "".join(f"{n}.png,{'ab'[n % 2]}\n" for n in range(6)))
    return root / "x.csv"


def test_a_csv_without_a_known_column_lists_its_columns(tmp_path):
    path = csv(tmp_path, "filename,breed")
    with pytest.raises(DataError, match=r"no column called label, .* among 'breed'.*--set data.label_column=NAME"):
        require_labels(open_source(path))
    (found,) = (one for one in examine(path).findings if one.severity == "error")
    assert found.kind == "refused"


def test_a_shard_without_labels_says_what_was_looked_for(tmp_path):
    path = shard(tmp_path / "x.tar", {"a.png": png(0), "a.txt": b"cat"})
    with pytest.raises(DataError, match=r"no \.cls or \.json of the same name in the shard, which has .*\.txt 1"):
        require_labels(open_source(path))


def test_parquet_lists_its_columns_or_its_labels(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": png(n), "path": f"{n}.png"} for n in range(4)]
    table = pa.table({"image": images, "breed": ["a", "b"] * 2})
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match="among 'image', 'breed'"):
        require_labels(open_source(tmp_path / "x.parquet"))
    features = {name: {"_type": "ClassLabel", "names": ["a", "b"]} for name in ("artist", "genre")}
    table = pa.table({"image": images, "artist": [0, 1] * 2, "genre": [1, 0] * 2})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "y.parquet")
    with pytest.raises(DataError, match=r"several columns are labels \(artist, genre\)"):
        require_labels(open_source(tmp_path / "y.parquet"))


def test_json_lines_are_a_manifest(tmp_path):
    csv(tmp_path, "filename,label")
    rows = [{"file_name": f"{n}.png", "label": "ab"[n % 2], "source": "x"} for n in range(6)]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines, table = open_split(tmp_path / "metadata.jsonl", "train"), open_split(tmp_path / "x.csv", "train")
    assert (lines.classes, lines.names, lines.labels) == (table.classes, table.names, table.labels)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}\n[1]\n", "line 2: expected a JSON object"),
        ("{'a': 1}\n", "line 1"),
        ('{"a": 1}\n', "no column of paths"),
    ],
)
def test_wrong_json_lines_are_refused_with_their_line(tmp_path, text, said):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(DataError, match=said):
        open_source(tmp_path / "x.jsonl")
