"""Tar shards and zip archives: their index, their patterns, URLs, and what hostile ones get."""

from __future__ import annotations

import io
import json
import os
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pytest

from deepcait.data import Preprocessing, describe, evaluation_loader, list_splits, open_source, stored, tar
from deepcait.data.shards import expand_braces
from deepcait.errors import ConfigError, DataError, ImageError
from tests.data.forms import add_to_tar


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            add_to_tar(archive, name, data)
    return path


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def samples(*labels, first: int = 0) -> dict[str, bytes]:
    members = {}
    for number, label in enumerate(labels, start=first):
        members |= {f"{number:04d}.jpg": f"picture {number}".encode(), f"{number:04d}.cls": str(label).encode()}
    return members


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def scans(monkeypatch) -> list[str]:
    """Which shards were walked through."""
    walked, original = [], tar._scan
    monkeypatch.setattr(tar, "_scan", lambda shard, size: walked.append(shard) or original(shard, size))
    return walked


# ---- tar


def test_samples_are_members_of_one_key(tmp_path):
    members = {
        "a/1.jpg": b"one", "a/1.cls": b"2\n", "a/1.txt": b"a caption",
        "a/2.json": json.dumps({"label": 0, "width": 3}).encode(), "a/2.JPEG": b"two",
        "a/3.seg.png": b"mask", "a/3.png": b"three", "a/3.cls": b"1",
        "b/._4.jpg": b"hidden", "./b/5.v2.webp": b"five", "b/5.cls": b"0", "b/6.jpg": b"no label", "b/7.cls": b"9",
        "b/8.jpg": b"hidden label", "b/8.cls": b"-1",
    }  # fmt: skip
    source = open_source(write_tar(tmp_path / "x.tar", members))
    assert source.names == ["a/1.jpg", "a/2.JPEG", "a/3.png", "b/5.v2.webp", "b/6.jpg", "b/8.jpg"]
    assert source.labels == [2, 0, 1, 0, None, None]
    assert [source.read(i).data for i in range(4)] == [b"one", b"two", b"three", b"five"]
    assert source.locate(0) == f"{tmp_path / 'x.tar'}: a/1.jpg"


def test_labels_may_be_names_and_shards_class_folders(tmp_path):
    named = open_source(write_tar(tmp_path / "n.tar", {"1.jpg": b"1", "1.json": b'{"label": "dog"}'} | {
        "2.jpg": b"2", "2.cls": b"cat"}))  # fmt: skip
    assert (named.classes, named.labels) == (["cat", "dog"], [1, 0])
    tree = write_tar(
        tmp_path / "t.tar", {"data/train/dog/1.jpg": b"", "data/train/cat/1.jpg": b"", "data/val/cat/2.v1.jpg": b""}
    )
    assert list_splits(tree) == ["train", "val"]
    assert open_source(tree, "val").names == ["cat/2.v1.jpg"]
    assert open_source(tree).names == ["train/dog/1.jpg", "train/cat/1.jpg", "val/cat/2.v1.jpg"]


def test_patterns_and_splits_of_shards(tmp_path):
    for split, first in (("train", 0), ("val", 10)):
        for number in range(3):
            write_tar(tmp_path / f"{split}-{number:03d}.tar", samples(0, 1, first=first + 2 * number))
    source = open_source(f"{tmp_path}/train-{{000..002}}.tar")
    assert len(source) == 6
    assert len(open_source(f"{tmp_path}/{{train,val}}-{{000..001}}.tar", "val")) == 4
    assert list_splits(tmp_path) == ["train", "val"]
    assert describe(open_source(tmp_path)).startswith("tar, split all: 12 images, 2 classes")
    with pytest.raises(DataError, match=r"003\.tar.*no such file"):
        open_source(f"{tmp_path}/train-{{000..003}}.tar")
    write_tar(tmp_path / "extra.tar", samples(0))
    with pytest.raises(DataError, match=r"extra\.tar.*this file name has no split"):
        open_source(tmp_path)


def test_shards_beside_class_folders_are_not_taken_for_the_data(tmp_path):
    """An unpacked archive often lies beside its folder."""
    write_tar(tmp_path / "train.tar", samples(0))
    assert open_source(tmp_path).kind == "tar"
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "1.jpg").write_bytes(b"")
    assert (open_source(tmp_path).kind, open_source(f"tar:{tmp_path}").kind) == ("folder", "tar")


def test_equal_keys_in_two_shards_are_distinguished(tmp_path):
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", samples(0))
    assert open_source(tmp_path).names == ["0/0000.jpg", "1/0000.jpg"]
    write_tar(tmp_path / "0.tar", {"a.jpg": b""})
    with tarfile.open(tmp_path / "0.tar", "a") as archive:
        add_to_tar(archive, "a.jpg", b"again")
    with pytest.raises(DataError, match="more than once"):
        open_source(tmp_path / "0.tar")


def test_braces():
    assert expand_braces("a{9..11}{x,y}") == ["a9x", "a9y", "a10x", "a10y", "a11x", "a11y"]
    assert expand_braces("{098..100}") == ["098", "099", "100"]
    for wrong in ("{}", "{5..1}", "{a..b}", "{0..999999999}"):
        with pytest.raises(DataError, match="expected braces"):
            expand_braces(wrong)


def test_the_index_is_built_once_and_again_when_the_shard_changes(tmp_path, scans):
    shard = write_tar(tmp_path / "x.tar", samples(0, 1))
    first, again = open_source(shard), open_source(shard)
    assert len(scans) == 1
    assert (first.names, first.labels) == (again.names, again.labels)
    assert Path(f"{shard}.index.json").is_file()
    times = shard.stat().st_atime_ns, shard.stat().st_mtime_ns
    write_tar(shard, samples(*range(20)))
    os.utime(shard, ns=times)  # the size alone tells
    assert len(open_source(shard)) == 20
    os.utime(shard, ns=(1, 1))  # the time alone tells
    open_source(shard)
    assert len(scans) == 3


def test_an_index_of_another_form_is_built_anew(tmp_path, scans):
    """As another version would write it."""
    shard = write_tar(tmp_path / "x.tar", samples(0, 1))
    open_source(shard)
    path = Path(f"{shard}.index.json")
    path.write_text(path.read_text().replace(tar._FORMAT, "deepcait-tar-1"))
    open_source(shard)
    assert len(scans) == 2


@pytest.mark.parametrize(
    "damage", ["", "[]", '{"format": "deepcait-tar-3"}', "far", "before", "short", "nested", "parts", "truth"]
)
def test_a_damaged_index_is_built_anew(tmp_path, scans, damage):
    shard = write_tar(tmp_path / "x.tar", samples(0, 1))
    open_source(shard)
    path = Path(f"{shard}.index.json")
    content = json.loads(path.read_text())
    broken = {"far": [["a", 10**9, 5, 0]], "short": [["a", 1]], "nested": [[["a"], 1, 1, {}]]}.get(damage)
    broken = {"parts": [["a", 512.0, 5.5, 0]], "truth": [["a", True, 5, 0]]}.get(damage, broken)
    broken = [["a", -5, 5, 0]] if damage == "before" else broken
    path.write_text(damage if broken is None else json.dumps(content | {"index": broken}))
    assert open_source(shard).read(1).data == b"picture 1"
    assert len(scans) == 2


def test_a_read_only_place_keeps_its_index_in_the_cache(tmp_path, scans, monkeypatch):
    shard = write_tar(tmp_path / "x.tar", samples(0))
    original = stored.write_bytes

    def refuse(path, data, **how):
        if path.parent == tmp_path:
            raise PermissionError("read-only")
        original(path, data, **how)

    monkeypatch.setattr(stored, "write_bytes", refuse)
    assert len(open_source(shard)) == len(open_source(shard)) == 1
    assert len(scans) == 1
    assert sorted(tmp_path.iterdir()) == [shard]
    monkeypatch.setattr(stored, "write_bytes", lambda path, data, **how: (_ for _ in ()).throw(OSError("full")))
    os.utime(shard, ns=(1, 1))
    assert len(open_source(shard)) == 1


@pytest.mark.parametrize("name", ["../evil.jpg", "/etc/passwd.jpg", "a/../../b.jpg", "C:\\x.jpg", "..\\x.jpg"])
@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_names_that_lead_out_are_refused(tmp_path, write, name):
    path = write(tmp_path / ("x.tar" if write is write_tar else "x.zip"), {"a/1.jpg": b"", name: b""})
    with pytest.raises(DataError, match="points outside the archive"):
        open_source(path)


KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE]


@pytest.mark.parametrize("kind", KINDS)
def test_links_and_devices_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        info = tarfile.TarInfo("1.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataError, match=r"a link, device or hole: 1\.jpg"):
        open_source(tmp_path / "x.tar")


def test_a_name_with_a_zero_byte_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("1.jpg")
        info.pax_headers = {"path": "a/1\0.jpg"}
        archive.addfile(info)
    with pytest.raises(DataError, match="points outside the archive"):
        open_source(tmp_path / "x.tar")


def test_a_member_larger_than_any_image_is_not_read(tmp_path, monkeypatch):
    source = open_source(write_tar(tmp_path / "x.tar", samples(0)))
    source.reader.max_bytes = len(b"picture 0")
    assert source.read(0).data == b"picture 0"
    source.reader.max_bytes -= 1
    monkeypatch.setattr(tar, "read_range", lambda *_: pytest.fail("read"))
    with pytest.raises(ImageError, match=r"x\.tar: 0000\.jpg: expected at most 8 bytes, got 9"):
        source.read(0)


def test_a_label_that_is_a_large_file_is_not_read(tmp_path):
    with pytest.raises(DataError, match=r"class name in 1\.json, got 'a large file'"):
        open_source(write_tar(tmp_path / "x.tar", {"1.jpg": b"", "1.json": b" " * 2**20 + b"4"}))


def test_damaged_tars_are_never_taken_for_shorter_ones(tmp_path):
    shard = write_tar(tmp_path / "x.tar", samples(*range(10)))
    whole = shard.read_bytes()
    third = whole.index(b"0003.jpg")
    for broken in (
        whole[: third + 512 + 4],
        whole[:third] + b"\xff" * 512 + whole[third + 512 :],
        b"",
        b"no tar at all" * 100,
        b"\x1f\x8b" + os.urandom(600),
    ):
        shard.write_bytes(broken)
        with pytest.raises(DataError, match=r"x\.tar"):
            open_source(shard)
    shard.write_bytes(whole)
    source = open_source(shard)
    shard.write_bytes(whole[:third])
    with pytest.raises(ImageError, match="cut short"):
        source.read(9)
    shard.unlink()
    with pytest.raises(ImageError, match="no such file"):
        source.read(0)


@pytest.mark.parametrize("label", [b"", b"[1]", b'{"label": [1, 2]}', b'{"label": true}', b"no json"])
def test_labels_that_are_none(tmp_path, label):
    with pytest.raises(DataError, match=r"1\.json"):
        open_source(write_tar(tmp_path / "x.tar", {"1.jpg": b"", "1.json": label}))
    with pytest.raises(DataError, match="names or integers, not both"):
        open_source(write_tar(tmp_path / "y.tar", {"1.jpg": b"", "1.cls": b"cat", "2.jpg": b"", "2.cls": b"4"}))
    with pytest.raises(DataError, match="expected labels from 0, got -3"):
        open_source(write_tar(tmp_path / "z.tar", {"1.jpg": b"", "1.cls": b"-3"}))
    with pytest.raises(DataError, match="data.labels=indices needs labels from 0 to 99,999, got 99999999999"):
        open_source(write_tar(tmp_path / "z.tar", {"1.jpg": b"", "1.cls": b"99999999999"}), labels="indices")


@pytest.mark.parametrize("first", ["1.cls", "1.json"])
@pytest.mark.parametrize("second", ["the same", "another"])
def test_two_labels_of_one_kind_for_a_sample(tmp_path, first, second):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, data in (("1.jpg", b""), (first, b"4"), (first if second == "the same" else first.upper(), b"5")):
            add_to_tar(archive, name, data)
    suffix = first.partition(".")[2]
    with pytest.raises(DataError, match=rf"x\.tar: expected one \.{suffix} for the sample '1', got another"):
        open_source(tmp_path / "x.tar")
    both = open_source(write_tar(tmp_path / "y.tar", {"1.jpg": b"", "1.cls": b"4", "1.json": b"5"}))
    assert both.classes == ["4"]


@pytest.mark.parametrize("text", [b"{", b"[" * 100_000, b" " * 2**20 + b"4", b'{"label": [1]}'])
@pytest.mark.parametrize("name", ["1.json", "1.meta.json", "0.json"])
def test_the_json_of_a_sample_with_a_label_is_its_own_affair(tmp_path, name, text):
    source = open_source(write_tar(tmp_path / "x.tar", {name: text, "1.jpg": b"", "1.cls": b"4"}))
    assert source.classes == ["4"]


def test_two_images_under_one_label(tmp_path):
    with pytest.raises(DataError, match="one image for the sample"):
        open_source(write_tar(tmp_path / "x.tar", {"1.jpg": b"", "1.png": b"", "1.cls": b"4"}))


def test_bare_integers_must_be_indices_of_the_model(tmp_path):
    shard = write_tar(tmp_path / "x.tar", samples(0, 2))
    assert open_source(shard).classes == ["0", "2"]
    assert open_source(shard, labels="indices").classes == ["0", "1", "2"]
    assert "(1 unused)" in describe(open_source(shard, labels="indices"))
    assert open_source(shard, classes=["a", "b", "c"]).labels == [0, 2]
    with pytest.raises(DataError, match="expected class indices 0 to 1, got 2"):
        open_source(shard, classes=["a", "b"])
    assert open_source(shard, classes=["2", "0"]).labels == [1, 0], "integers that are names are names"


def test_shards_behind_a_url(tmp_path, scans):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    pictures = [(Path(__file__).parents[2] / "deepcait/assets/demo/test/cat").iterdir()]
    data = [path.read_bytes() for path in list(pictures[0])[:4]]
    for number in range(2):
        shard = write_tar(tmp_path / "x.tar", {
            "a.png": data[2 * number], "a.cls": b"0", "b.png": data[2 * number + 1], "b.cls": b"1"})  # fmt: skip
        memory.pipe(f"/deepcait/train-{number}.tar", shard.read_bytes())
    for spec in ("memory://deepcait/train-{0..1}.tar", "tar:memory://deepcait/train-{0..1}.tar"):
        source = open_source(spec)
        assert [source.read(index).data for index in range(4)] == data
    assert len(scans) == 2
    ((images, labels, _),) = evaluation_loader(source, Preprocessing((8, 8)), batch_size=4)
    assert labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(DataError, match="no such file"):
        open_source("memory://deepcait/gone.tar")
    memory.rm("/deepcait", recursive=True)
    with pytest.raises(ImageError, match="no such file"):
        source.read(0)
    with pytest.raises(DataError, match="unknownscheme"):
        open_source("unknownscheme://x.tar")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r'pip install "deepcait\[data\]"'):
        open_source(tmp_path / "x.parquet")


# ---- zip


def test_zip_of_class_folders(tmp_path):
    members = {
        "pets/train/dog/1.jpg": b"d" * 5000, "pets/train/cat/2.jpg": b"c", "pets/val/cat/3.jpg": b"v",
        "__MACOSX/pets/train/cat/._2.jpg": b"x", "pets/.hidden/1.jpg": b"", "pets/train/cat/notes.txt": b"",
    }  # fmt: skip
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        source = open_source(write_zip(tmp_path / "x.zip", members, method), "train")
        assert source.names == ["dog/1.jpg", "cat/2.jpg"]
        assert (source.classes, source.labels) == (["cat", "dog"], [1, 0])
        assert [source.read(index).data for index in range(2)] == [b"d" * 5000, b"c"]
    assert source.locate(0).endswith("x.zip: pets/train/dog/1.jpg")
    with pytest.raises(DataError, match=r"expected one \.zip file, got 2"):
        write_zip(tmp_path / "v.zip", {}) and open_source(f"zip:{tmp_path}")
    plain = open_source(write_zip(tmp_path / "y.zip", {"dog/1.jpg": b"", "cat/deep/er/1.jpg": b""}))
    assert plain.names == ["dog/1.jpg", "cat/deep/er/1.jpg"]
    with pytest.raises(DataError, match="is not in a class folder"):
        open_source(write_zip(tmp_path / "z.zip", {"1.jpg": b"", "cat/1.jpg": b""}))
    with pytest.raises(DataError, match="'val/1.jpg' is not in a class folder"):
        open_source(
            write_zip(tmp_path / "f.zip", {"train/cat/1.jpg": b"", "val/1.jpg": b"", "test/2.jpg": b""}), "train"
        )
    with pytest.raises(DataError, match="no images found"):
        open_source(write_zip(tmp_path / "e.zip", {"a.txt": b""}))


def test_hostile_zips(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a/1.jpg": b"0" * 3_000_000, "b/2.jpg": b"fine"})
    whole = path.read_bytes()
    source = open_source(path)
    assert source.read(1).data == b"fine"
    # The member is larger, or of other content, than the list declares.
    liar = source.reader.entries[0]._replace(num_bytes=10)
    source.reader.entries[0] = liar
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="another length"):
            source.read(0)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000  # no more is unpacked than is declared
    finally:
        tracemalloc.stop()
    source.reader.entries[0] = liar._replace(crc=zlib.crc32(b"0" * 10))  # a part of it is no whole
    with pytest.raises(ImageError, match="another length"):
        source.read(0)
    for promise in ({"num_bytes": 2**31}, {"num_packed": 2**31}):
        source.reader.entries[0] = liar._replace(**promise)
        with pytest.raises(ImageError, match="expected at most 104,857,600 bytes"):
            source.read(0)
    source.reader.entries[0] = source.reader.entries[1]._replace(offset=source.reader.entries[1].offset + 1)
    with pytest.raises(ImageError, match="no member there"):
        source.read(0)
    path.write_bytes(whole[:30] + b"\xff" * 40 + whole[70:])
    with pytest.raises(ImageError, match=r"x\.zip: a/1\.jpg"):
        open_source(path).read(0)
    for broken in (b"", b"PK", whole[:-30], whole[100:]):
        path.write_bytes(broken)
        with pytest.raises((DataError, ImageError)):
            open_source(path).read(0)
    write_zip(path, {"a/1.jpg": b"picture"}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"picture", b"pictuer", 1))
    with pytest.raises(ImageError, match="another length or checksum"):
        open_source(path).read(0)


def test_links_and_passwords_in_zips_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        info = zipfile.ZipInfo("a/1.jpg")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="a link"):
        open_source(tmp_path / "x.zip")
    data = bytearray(write_zip(tmp_path / "y.zip", {"a/1.jpg": b"x"}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "y.zip").write_bytes(data)
    with pytest.raises(DataError, match="encrypted"):
        open_source(tmp_path / "y.zip")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a/1.jpg", b"x")
    (tmp_path / "z.zip").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="compression 14"):
        open_source(tmp_path / "z.zip")
