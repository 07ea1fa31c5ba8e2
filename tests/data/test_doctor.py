"""The doctor: every kind of planted damage is found with its path, and none where there is none."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepcait.data import duplicates
from deepcait.data.doctor import examine
from deepcait.data.duplicates import difference_hashes, near_groups, pixel_hash
from deepcait.data.findings import KINDS, Diagnosis
from deepcait.data.fix_list import leave_out, read_fix_list, write_fix_list
from deepcait.data.folder import open_folder
from deepcait.data.holding import open_split
from deepcait.data.looking import look_at_all
from deepcait.data.source import Subset
from deepcait.errors import DataError, WriteError
from deepcait.training.data import open_training_data
from deepcait.training.recipe import load_recipe
from tests.data.damage import DAMAGE, UNREADABLE, Found, encoded, random_image, sound_folder


@pytest.fixture
def root(tmp_path) -> Path:
    return sound_folder(tmp_path / "photos")


@pytest.fixture(scope="module")
def ruin(tmp_path_factory) -> tuple[Path, Found]:
    """A folder with all the damage at once, and what is to be found."""
    root = sound_folder(tmp_path_factory.mktemp("ruin") / "photos")
    return root, set().union(*(plant(root) for plant in DAMAGE.values()))


def pairs(diagnosis: Diagnosis) -> Found:
    return {(finding.kind, path) for finding in diagnosis.findings for path in finding.paths}


def contents(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_thirty_kinds_and_more():
    assert len(DAMAGE) >= 30


def test_a_sound_folder_has_no_finding(root):
    diagnosis = examine(root)
    assert diagnosis.findings == []
    assert diagnosis.num_images == {"train": 12, "val": 6}
    assert diagnosis.classes == ["cat", "dog", "owl"]


@pytest.mark.parametrize("name", DAMAGE)
def test_each_damage_is_found_and_nothing_else(root, name):
    planted = DAMAGE[name](root)
    assert pairs(examine(root)) == planted


def test_all_damage_at_once(ruin):
    root, planted = ruin
    before = contents(root)
    diagnosis = examine(root, num_workers=0)
    # Other classes that were planted with one image are small beside the large one, too.
    extra = {("imbalance", "train/hen"), ("imbalance", "train/Dog ")}
    assert planted <= pairs(diagnosis)
    assert pairs(diagnosis) - planted <= extra
    assert contents(root) == before


@pytest.mark.process
@pytest.mark.slow
def test_workers_change_nothing(ruin):
    root, _ = ruin
    calls = []
    parallel = examine(root, num_workers=2, progress=lambda done, total: calls.append((done, total)))
    assert parallel == examine(root, num_workers=0)
    total = sum(parallel.num_images.values())
    assert calls[-1] == (total, total)


def test_every_kind_is_planted_or_reported_here(ruin):
    _, planted = ruin
    untested = set(KINDS) - {kind for kind, _ in planted}
    assert untested == {
        "unusable_split",
        "ends_its_reader",
        "few_levels",
        "refused",
        "doubtful",
        "split_group",
    }  # test_depth, test_plausible, test_split


def test_errors_come_first_and_json_holds_all(ruin):
    diagnosis = examine(ruin[0])
    severities = [finding.severity for finding in diagnosis.findings]
    assert severities == sorted(severities, key=("error", "warning", "note").index)
    facts = json.loads(json.dumps(diagnosis.to_dict()))
    assert facts["summary"]["errors"] == diagnosis.count("error") == severities.count("error")
    assert len(facts["findings"]) == len(diagnosis.findings) == sum(facts["by_kind"].values())


def test_texts_say_what_and_do_not_repeat_the_path(ruin):
    findings = examine(ruin[0]).findings
    assert {finding.kind for finding in findings} >= {kind for kind, _ in ruin[1]}
    for finding in findings:
        assert finding.text
        assert not any(str(path) in finding.text for path in finding.paths), finding


def test_without_splits(root):
    DAMAGE["half.jpg"](root)
    diagnosis = examine(root / "train")
    assert diagnosis.num_images == {"all": 13}
    assert pairs(diagnosis) == {("undecodable", str(root / "train" / "cat" / "half.jpg"))}


def test_names_that_look_alike_however_their_accents_are_coded(root):
    for name in ("caf\u00e9", "cafe\u0301"):
        (root / "train" / "cat").with_name(name).mkdir()
    found = [finding.paths for finding in examine(root).findings if finding.kind == "class_names_alike"]
    assert found == [tuple(str(root / "train" / name) for name in ("cafe\u0301", "caf\u00e9"))]


def test_a_link_to_itself_is_a_stray_file(root):
    (root / "train" / "self").symlink_to("self")
    assert pairs(examine(root)) == {("stray_file", str(root / "train" / "self"))}


def test_a_split_without_images_is_a_finding(root):
    for path in (root / "val").rglob("*.*"):
        path.unlink()
    diagnosis = examine(root)
    assert ("unusable_split", "val") in pairs(diagnosis)
    assert diagnosis.num_images == {"train": 12}


def test_nothing_there_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such path"):
        examine(tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="No images found"):
        examine(tmp_path / "empty")


# ---- a fix list


def test_a_fix_list_leaves_a_folder_that_can_be_read(ruin, tmp_path):
    root, planted = ruin
    write_fix_list(tmp_path / "list.txt", examine(root).leave_out)
    left = set(read_fix_list(tmp_path / "list.txt"))
    assert {path for kind, path in planted if kind in UNREADABLE} <= left
    source = leave_out(
        open_folder(root, "train", ["cat", "dog", "fox", "hen", "owl", "yak", "Dog "]), tmp_path / "list.txt"
    )
    assert isinstance(source, Subset)
    looks = look_at_all(source, 0, lambda num: None)
    assert [look.fault for look in looks if look.fault] == []
    assert len({look.pixels for look in looks}) == len(looks)


def test_what_measures_stays_and_of_equal_images_the_first(root):
    """Left out is what a training is better off without, and no more."""
    twice, thrice = root / "train" / "cat" / "zz_twice.png", root / "train" / "cat" / "zz_thrice.png"
    for copy in (twice, thrice):
        copy.write_bytes((root / "train" / "cat" / "0.jpg").read_bytes())
    leaked = root / "val" / "dog" / "zz_leaked.png"
    leaked.write_bytes((root / "train" / "dog" / "0.jpg").read_bytes())
    found = {finding.kind: finding for finding in examine(root).findings if finding.kind in ("duplicate", "leak")}
    assert found["leak"].leave_out == (str(root / "train" / "dog" / "0.jpg"),)
    assert set(found["duplicate"].leave_out) == {str(twice), str(thrice)}


def test_relative_and_strange_paths(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_fix_list("list.txt", ["photos/train/cat/0.jpg", "photos/train/dog/caf\udce9.png", "s3://bucket/1.png"])
    assert read_fix_list("list.txt") == [
        str(root / "train" / "cat" / "0.jpg"),
        str(root / "train" / "dog" / "caf\udce9.png"),
        "s3://bucket/1.png",
    ]
    source = leave_out(open_folder("photos", "train"), "list.txt")
    assert len(source) == 11
    assert "cat/0.jpg" not in source.names


def test_a_pair_of_two_labels_is_in_the_list_with_what_to_decide(root, tmp_path):
    pair = [root / "train" / "cat" / "0.jpg", root / "train" / "dog" / "zz_copy.jpg"]
    pair[1].write_bytes(pair[0].read_bytes())
    diagnosis = examine(root)
    write_fix_list(tmp_path / "list.txt", diagnosis.leave_out, diagnosis.reasons)
    lines = (tmp_path / "list.txt").read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("# two_labels: "))
    assert lines[at].endswith("delete the line of the image with the correct label to keep it")
    assert lines[at + 1 : at + 3] == list(map(str, pair))
    assert read_fix_list(tmp_path / "list.txt") == diagnosis.leave_out
    (tmp_path / "list.txt").write_text("\n".join(line for line in lines if line != str(pair[0])))
    assert "cat/0.jpg" in leave_out(open_folder(root, "train"), tmp_path / "list.txt").names


def test_empty_class_folders_are_in_the_list_and_are_no_classes_then(root, tmp_path):
    (root / "train" / "lynx").mkdir()
    (root / "train" / "yeti" / "inner").mkdir(parents=True)
    diagnosis = examine(root)
    empty = [str(root / "train" / name) for name in ("lynx", "yeti")]
    assert [path for path in diagnosis.leave_out if Path(path).is_dir()] == empty
    write_fix_list(tmp_path / "list.txt", diagnosis.leave_out, diagnosis.reasons)
    with pytest.raises(DataError, match=r"without images: .*lynx.*--fix-list"):
        open_split(root, "train")
    settings = [f"data.source={root}", f"data.exclude={tmp_path / 'list.txt'}"]
    opened = open_training_data(load_recipe("finetune", settings))
    assert not {"lynx", "yeti"} & set(opened.train.classes)
    assert opened.validation.classes == opened.train.classes
    assert len(opened.train) > 0


def test_a_fix_list_that_an_editor_marked_as_utf8(tmp_path):
    (tmp_path / "list.txt").write_bytes("\N{ZERO WIDTH NO-BREAK SPACE}/a/1.png\r\n/a/2.png\r\n".encode())
    assert read_fix_list(tmp_path / "list.txt") == ["/a/1.png", "/a/2.png"]


def test_fix_list_errors(root, tmp_path):
    for name in ("a\nb.png", "a\rb.png"):
        with pytest.raises(DataError, match="contains a line break"):
            write_fix_list(tmp_path / "list.txt", [name])
    with pytest.raises(WriteError, match="cannot write"):
        write_fix_list(root / "train" / "cat" / "0.jpg" / "list.txt", [])
    with pytest.raises(WriteError, match="cannot write"):
        write_fix_list(tmp_path / ("x" * 254), [])
    with pytest.raises(DataError, match="the fix list can't be read"):
        read_fix_list(tmp_path / "list.txt")
    source = open_folder(root, "train")
    write_fix_list(tmp_path / "list.txt", [source.locate(index) for index in range(len(source))])
    with pytest.raises(DataError, match="all 12"):
        leave_out(source, tmp_path / "list.txt")


# ---- a file that ends its reader


class Deadly:
    """A source one of whose images ends the process that reads it."""

    def __init__(self, source, deadly: set[int]) -> None:
        self.source, self.deadly = source, deadly

    def __len__(self) -> int:
        return len(self.source)

    def locate(self, index: int) -> str:
        return self.source.locate(index)

    def read(self, index: int):
        if index in self.deadly:
            os._exit(9)
        return self.source.read(index)


@pytest.mark.process
@pytest.mark.slow
def test_a_file_that_ends_its_reader_is_found(root):
    source = open_folder(root, None)
    looks = look_at_all(Deadly(source, {3, 11}), 2, lambda num: None)
    assert [index for index, look in enumerate(looks) if look.fault] == [3, 11]
    assert looks[3].fault[0] == "ends_its_reader"
    assert source.locate(3) in looks[3].fault[1]


# ---- near duplicates


def test_equal_bytes_of_another_shape_are_another_image():
    wide, tall = (pixel_hash(Image.new("RGB", size, "red")) for size in ((8, 4), (4, 8)))
    assert wide != tall
    assert pixel_hash(Image.new("RGB", (8, 4), "red")) == wide


@pytest.mark.parametrize("block", [1024, 1, 3])
def test_near_groups_agree_with_every_pair(block, monkeypatch):
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    generator = np.random.default_rng(0)
    base = generator.integers(0, 256, (40, 8, 9, 3), dtype=np.uint8)
    noisy = [np.clip(base + generator.normal(0, sd, base.shape), 0, 255).astype(np.uint8) for sd in (0, 1, 3, 6)]
    thumbs = np.concatenate(noisy)
    hashes = difference_hashes(thumbs)
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= 3
    near &= np.abs(thumbs[:, None].astype(int) - thumbs[None]).mean((2, 3, 4)) <= 8
    for _ in range(3):  # near to one that is near, and so on: four of each image
        near = near @ near
    groups = near_groups(thumbs)
    assert sorted(map(tuple, groups)) == sorted({tuple(np.flatnonzero(row)) for row in near if row.sum() > 1})
    assert 80 <= sum(map(len, groups)) < 160
    for group in near_groups(thumbs):
        assert len({index % 40 for index in group}) == 1


def test_a_split_that_lies_flat_is_found_and_the_rest_is_read(tmp_path):
    for number, place in enumerate(("train/cat/a.png", "train/dog/b.png", "val/c.png", "test/d.png")):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(encoded(random_image(number), "PNG"))
    diagnosis = examine(tmp_path)
    found = {finding.kind: finding for finding in diagnosis.findings}
    assert found["unusable_split"].paths == (str(tmp_path / "val"),)
    assert found["unusable_split"].severity == "error"
    assert found["stray_folder"].paths == (str(tmp_path / "test"),)
    assert diagnosis.num_images == {"train": 2}


def test_flat_images_of_other_colours_are_not_alike():
    thumbs = np.stack([np.full((8, 9, 3), value, np.uint8) for value in (0, 60, 64, 200)])
    assert near_groups(thumbs) == [[1, 2]]
    assert near_groups(thumbs[:0]) == []


def test_difference_hash_is_one_bit_a_pair_of_neighbours():
    thumb = np.zeros((1, 8, 9, 3), np.uint8)
    thumb[0, 0, 1] = 9  # brighter than its left neighbour, and the next is darker
    assert difference_hashes(thumb).tolist() == [1 << 63]
    rising = np.broadcast_to(np.arange(9, dtype=np.uint8)[None, None, :, None], (1, 8, 9, 3))
    assert difference_hashes(rising).tolist() == [2**64 - 1]
