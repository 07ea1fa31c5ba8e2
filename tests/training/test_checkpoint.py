"""Checkpoints: the same bits back, equal content in equal files, damage passed over with a reason, the last k kept."""

from __future__ import annotations

import dataclasses
import json
import os
import time

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from deepcait.errors import RunError
from deepcait.training import checkpoint
from deepcait.training.checkpoint import Progress, newest_checkpoint, read_checkpoint, read_progress, save_checkpoint
from deepcait.training.start import kept_start
from tests.disk import inode, watch_disk
from tests.training.tiny import tiny_model, tiny_recipe


def some_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "model/a": torch.randn(3, 5, generator=generator),
        "model/b": torch.randn(4, generator=generator, dtype=torch.float64),
        "model/narrow": torch.randn(4, 4, generator=generator).bfloat16(),
        "model/strided": torch.randn(4, 6, generator=generator).t(),
        "optimizer/step": torch.tensor(7.0),
        "ema/n_averaged": torch.tensor(3),
        "model/odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
    }


def save(folder, step: int, keep: int = 9, seed: int = 0):
    return save_checkpoint(folder, Progress(step=step), some_tensors(seed), keep=keep)


def test_the_same_bits_back(tmp_path):
    progress = Progress(
        step=12,
        evaluated_step=10,
        best_step=5,
        best_top1=1 / 3,
        loss_sum=0.1 + 0.2,
        skipped_total=2,
        scaler={"scale": 0.5},
    )
    path = save_checkpoint(tmp_path / "checkpoints", progress, some_tensors(), keep=2)
    got, tensors = read_checkpoint(path)
    assert got == progress
    assert tensors.keys() == some_tensors().keys()
    for name, wanted in some_tensors().items():
        assert tensors[name].dtype == wanted.dtype
        assert tensors[name].shape == wanted.shape
        assert (
            tensors[name].numpy(force=True).tobytes() == wanted.contiguous().numpy().tobytes()
            if (wanted.dtype != torch.bfloat16)
            else torch.equal(tensors[name], wanted)
        )
    path.write_bytes(b"\xff" * path.stat().st_size)  # in place: a tensor that only maps the file would follow
    assert torch.equal(tensors["model/a"], some_tensors()["model/a"])


def test_equal_content_gives_equal_bytes_and_name(tmp_path):
    one = save(tmp_path / "a", 3)
    shuffled = dict(reversed(some_tensors().items()))
    two = save_checkpoint(tmp_path / "b", Progress(step=3), shuffled, keep=1)
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()
    assert save(tmp_path / "c", 3, seed=1).name != one.name
    other = save_checkpoint(tmp_path / "d", Progress(step=3, loss_sum=1e-9), some_tensors(), keep=1)
    assert other.name != one.name


def damage(path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "one bit":
        content[-3] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize("how", ["truncated", "empty", "one bit", "a folder"])
def test_a_damaged_newest_is_passed_over_with_a_reason(tmp_path, how):
    paths = [save(tmp_path, step) for step in (5, 10, 15)]
    assert newest_checkpoint(tmp_path) == (paths[2], [])
    damage(paths[2], how)
    found, passed_over = newest_checkpoint(tmp_path)
    assert found == paths[1]
    [line] = passed_over
    assert line.startswith(f"{paths[2].name}: ")
    assert len(line) > len(paths[2].name) + 5
    for path in paths[:2]:
        damage(path, "truncated")
    found, passed_over = newest_checkpoint(tmp_path)
    assert found is None
    assert len(passed_over) == 3


@pytest.mark.parametrize("keep", [1, 2])
def test_what_was_just_saved_stays_whatever_lies_damaged_before_it(tmp_path, keep):
    save(tmp_path, 5), save(tmp_path, 10)
    damage(save(tmp_path, 30), "truncated")
    for step in (12, 14):
        path = save(tmp_path, step, keep=keep)
        assert newest_checkpoint(tmp_path) == (path, [])  # the damaged one is gone: it shall not count as kept
    assert len(list(tmp_path.iterdir())) == keep


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_k_are_kept(tmp_path, keep):
    for step in (1, 2, 9, 10, 100, 99_999_999):
        path = save(tmp_path, step, keep=keep)
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert [int(name[5:13]) for name in names] == [10, 100, 99_999_999][-keep:]
    assert newest_checkpoint(tmp_path)[0] == path


@pytest.mark.parametrize("keep", [1, 3])
def test_saved_twice_at_one_step_the_later_stays(tmp_path, keep):
    """Stopped before an evaluation that was due, then resumed: the same step, evaluated now."""
    for evaluated in range(6):
        path = save_checkpoint(tmp_path, Progress(step=4, evaluated_step=evaluated), some_tensors(), keep=keep)
        assert path.exists()
        assert newest_checkpoint(tmp_path)[0] == path


def test_a_checkpoint_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    """The name promises the content, after a power cut too; and that there is such a name."""
    done = watch_disk(monkeypatch)
    path = save(tmp_path, 5)
    assert done == [("sync", inode(path)), ("move", inode(path)), ("sync", inode(tmp_path))]


def test_leftovers_and_strangers_are_no_checkpoints(tmp_path):
    path = save(tmp_path, 5)
    (tmp_path / ".unfinished").mkdir()
    (tmp_path / ".unfinished" / ".tmpA1b2C3").write_bytes(path.read_bytes()[:99])  # as safetensors leaves it
    (tmp_path / "step_00000009.safetensors").write_bytes(b"mine")
    (tmp_path / "step_00000099-0123456789abcdef.safetensors.bak").write_bytes(b"mine")
    assert newest_checkpoint(tmp_path) == (path, [])
    assert newest_checkpoint(tmp_path / "nowhere") == (None, [])
    save(tmp_path, 6, keep=1)  # the leftover is written over, strangers are not ours to delete
    assert sorted(entry.name for entry in tmp_path.iterdir() if not entry.name.startswith("step_00000006")) == [
        "step_00000009.safetensors",
        "step_00000099-0123456789abcdef.safetensors.bak",
    ]


@pytest.mark.parametrize("where", ["save_file", "replace"])
@pytest.mark.parametrize("kind", [OSError, SafetensorError])
def test_a_full_disk_keeps_the_previous_one(tmp_path, monkeypatch, where, kind):
    path = save(tmp_path, 5)

    def full(*_, **__):
        raise kind("No space left on device")

    if where == "save_file":
        monkeypatch.setattr(checkpoint, "save_file", full)
    else:
        monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="No space left") as caught:
        save(tmp_path, 6, keep=1)
    assert "step 6" in caught.value.problem
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == [path]
    assert newest_checkpoint(tmp_path) == (path, [])


def test_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    path = save(tmp_path, 5)
    monkeypatch.undo()
    with pytest.raises(RunError, match="expected checkpoint format 1, got 99"):
        read_checkpoint(path)
    save_file({"a": torch.zeros(1)}, tmp_path / "step_00000009-0123456789abcdef.safetensors")
    with pytest.raises(RunError, match="format"):
        read_checkpoint(tmp_path / "step_00000009-0123456789abcdef.safetensors")


@pytest.mark.parametrize("content", ["", "[]", "{}", "only the network"])
def test_a_start_that_is_half_known_is_looked_for_again(tmp_path, caplog, content):
    config = dataclasses.asdict(tiny_model(torch.float32).config)
    text = json.dumps({"config": config}) if content == "only the network" else content
    (tmp_path / "start.json").write_text(text, encoding="utf-8")
    save(tmp_path / "checkpoints", 5)
    assert kept_start(tmp_path, tiny_recipe()) is None
    assert caplog.messages == ["start.json is unreadable; looking for cait_xxs24_224 instead"]


def test_a_checkpoint_is_read_once_until_it_changes(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path, Progress(step=1), {"a": torch.ones(4)}, keep=1)
    read, digest = [], checkpoint._digest
    monkeypatch.setattr(checkpoint, "_digest", lambda path: read.append(path) or digest(path))
    an_hour_ago = time.time() - 3600
    os.utime(path, (an_hour_ago, an_hour_ago))
    for _ in range(3):
        assert newest_checkpoint(tmp_path) == (path, [])
    assert read == [path]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    os.utime(path, (an_hour_ago + 1, an_hour_ago + 1))
    assert newest_checkpoint(tmp_path)[0] is None


@pytest.mark.parametrize("header", [{}, {"format": checkpoint.FORMAT}])
def test_a_header_without_progress(tmp_path, header):
    """Its step is not known, so nothing is resumed from it."""
    path = tmp_path / "checkpoint.safetensors"
    save_file({"a": torch.ones(1)}, path, metadata={"deepcait": json.dumps(header)})
    assert read_progress(path) == Progress()
    with pytest.raises(RunError, match="expected checkpoint format|it has no progress"):
        read_checkpoint(path)


def test_progress_is_read_alike_with_and_without_the_tensors(tmp_path):
    """Before keep.best_by there was no score; a later version may add numbers."""
    path = tmp_path / "checkpoint.safetensors"
    progress = {"step": 3, "best_step": 2, "best_top1": 0.5, "of_a_later_version": 1}
    header = {"format": checkpoint.FORMAT, "progress": progress}
    save_file({"a": torch.ones(1)}, path, metadata={"deepcait": json.dumps(header)})
    assert (
        read_progress(path) == read_checkpoint(path)[0] == Progress(step=3, best_step=2, best_top1=0.5, best_score=0.5)
    )
