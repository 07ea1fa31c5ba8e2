"""The journal: rows past a resumed step are forgotten, half-written ones too; only the main process writes."""

from __future__ import annotations

import json
import os

import pytest

from deepcait.errors import RunError
from deepcait.training import journal as journal_module
from deepcait.training.journal import Journal, read_metrics, read_state
from tests.disk import inode, watch_disk


@pytest.fixture
def journal(tmp_path) -> Journal:
    journal = Journal(tmp_path)
    for step in (2, 4, 6):
        journal.metrics("train", step, loss=1 / step)
        if step in (4, 6):
            journal.metrics("eval", step, top1=step / 10)
    return journal


def rows(journal: Journal) -> list[tuple[str, int]]:
    return [(row["kind"], row["step"]) for row in read_metrics(journal.folder)]


EVERY = [("train", 2), ("train", 4), ("eval", 4), ("train", 6), ("eval", 6)]


@pytest.mark.parametrize(
    ("step", "evaluated", "kept"),
    [(6, 6, EVERY), (6, 4, EVERY[:4]), (5, 4, EVERY[:3]), (4, 0, EVERY[:2]), (3, 0, EVERY[:1]), (0, 0, [])],
)
def test_rows_past_the_resumed_step_are_cut(journal, step, evaluated, kept):
    before = (journal.folder / "metrics.jsonl").read_text().splitlines()
    journal.cut(step, evaluated)
    assert rows(journal) == kept
    assert (journal.folder / "metrics.jsonl").read_text().splitlines() == before[: len(kept)]


@pytest.mark.parametrize(
    "tail", [b'{"kind": "train", "st', b"\0\0\0\0", b"\xff\xfe", b"{}", b"[1]", b"7", b'{"kind": "train", "step": 8']
)
def test_half_written_rows_are_cut_and_what_follows_is_whole(journal, tail):
    path = journal.folder / "metrics.jsonl"
    whole = path.read_bytes()
    with open(path, "ab") as file:
        file.write(tail)
    assert rows(journal) == EVERY
    journal.cut(100, 100)
    assert path.read_bytes() == whole
    journal.metrics("train", 8, loss=0.1)
    assert rows(journal) == [*EVERY, ("train", 8)]


@pytest.mark.parametrize(
    "damaged", [b"\0\0\0\0", b'{"kind": "train", "step": "2"}', b'{"kind": "train", "step": null}']
)
def test_a_row_that_the_disk_damaged_costs_itself_alone(journal, damaged):
    """Those behind it were waited for before the checkpoint: they are not written again."""
    path = journal.folder / "metrics.jsonl"
    first, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(damaged + b"\n" + b"".join(others))
    assert rows(journal) == EVERY[1:]
    journal.cut(6, 6)
    assert path.read_bytes() == b"".join(others)


def test_cutting_and_writing_again_gives_the_same_bytes(journal):
    path = journal.folder / "metrics.jsonl"
    whole = path.read_bytes()
    journal.cut(4, 0)
    journal.metrics("eval", 4, top1=0.4)
    journal.metrics("train", 6, loss=1 / 6)
    journal.metrics("eval", 6, top1=0.6)
    assert path.read_bytes() == whole


def test_nothing_to_cut(tmp_path):
    Journal(tmp_path).cut(0, 0)
    assert read_metrics(tmp_path) == []


def test_other_processes_write_nothing(tmp_path):
    heard = []
    journal = Journal(tmp_path, active=False, listeners=[heard.append])
    journal.metrics("train", 1, loss=1.0), journal.timing(step=1), journal.state("running", 1)
    journal.cut(0, 0), journal.write_table(), journal.flush()
    assert list(tmp_path.iterdir()) == []
    assert heard == []


def test_listeners_state_and_table(tmp_path):
    heard = []
    journal = Journal(tmp_path, listeners=[heard.append])
    journal.metrics("train", 1, loss=0.5)
    journal.metrics("eval", 1, top1=0.25)
    journal.timing(step=1, seconds=2.0)
    journal.state("stopped", 1)
    journal.write_table()
    assert [row["kind"] for row in heard] == ["train", "eval"]
    assert read_state(tmp_path) == {"state": "stopped", "step": 1}
    assert (tmp_path / "metrics.csv").read_text() == "kind,step,loss,top1\ntrain,1,0.5,\neval,1,,0.25\n"
    assert json.loads((tmp_path / "timing.jsonl").read_text()) == {"step": 1, "seconds": 2.0}
    assert read_state(tmp_path / "nowhere") == {}
    for broken in ("[1]", "", "{"):
        (tmp_path / "status.json").write_text(broken)
        assert read_state(tmp_path) == {}


def test_rows_are_waited_for(journal, monkeypatch):
    journal.unreadable(4, "a.png", "damaged")
    done = watch_disk(monkeypatch)
    journal.flush()
    assert done == [("sync", inode(journal.folder / name)) for name in ("metrics.jsonl", "errors.jsonl")]


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    journal_module.replace_text(tmp_path / "status.json", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="No space left on device"):
        journal_module.replace_text(tmp_path / "status.json", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]
    assert (tmp_path / "status.json").read_text() == "old"


def test_a_folder_that_cannot_be_written_is_one_paragraph(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match="cannot write") as caught:
        Journal(tmp_path).metrics("train", 1, loss=0.5)
    assert "--resume" in caught.value.remedy
