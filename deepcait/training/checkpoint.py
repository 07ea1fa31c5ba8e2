"""Checkpoints: everything a run needs to resume bit-exactly, in one file with a digest of its content in its name.

`step_00001200-<digest>.safetensors` holds the weights, their average, the states of the optimizer and of a user's
loss and, in its header, the few numbers of `Progress` and the settings that decide results. It holds no random state:
all that is random follows from seed and step. The file is written next to its place, hashed, flushed and renamed, so a
kill or a full disk leaves the older one valid.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from deepcait.errors import RunError
from deepcait.runtime.device import to_host
from deepcait.runtime.files import move_file
from deepcait.training.average import WeightAverage
from deepcait.training.optimizer import load_optimizer_tensors, optimizer_tensors

FORMAT = 1
_FRESH_NS = 2_000_000_000
_NAME = re.compile(r"step_(\d{8})-([0-9a-f]{16})\.safetensors")


@dataclass
class Progress:
    """The state of a run that does not follow from its step alone; equal on every process."""

    step: int = 0
    """Optimizer steps done, skipped ones included."""
    evaluated_step: int = 0
    """The step after which the model was last evaluated; 0 before the first time."""
    best_step: int = 0
    best_top1: float = -1.0
    """Of the best evaluation."""
    best_score: float | None = None
    """Its value of the measure that chooses it, more is better; None if that was not a number."""
    loss_sum: float = 0.0
    """Of the steps since the last row of the log."""
    loss_steps: int = 0
    correct_sum: float = 0.0
    """Target mass that the predictions of these steps met."""
    skipped_steps: int = 0
    """In a row, up to now."""
    skipped_total: int = 0
    unreadable: list[str] = field(default_factory=list)
    """Paths of the training images that were skipped."""
    stopped_early: bool = False
    scaler: dict = field(default_factory=dict)
    """State of the fp16 gradient scaler."""


def save_checkpoint(
    folder: Path,
    progress: Progress,
    tensors: dict[str, torch.Tensor],
    *,
    keep: int,
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint atomically and delete all others but the `keep - 1` before it; return its path.

    Args:
        folder: of the checkpoints.
        progress, tensors: what the run needs to continue.
        keep: how many checkpoints stay.
        settings: what the run was begun with, as plain JSON, for `read_settings`.

    Raises:
        RunError: the disk is full or can't be written; the older checkpoints are still there.
    """
    # A folder, because safetensors writes under a name that it makes up first: a kill leaves it in there.
    aside = folder / ".unfinished"
    # One key only: the order of several is not fixed, and equal runs shall give equal files.
    header = {"format": FORMAT, "progress": dataclasses.asdict(progress), "settings": dict(settings or {})}
    tensors = to_host(tensors)
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        whole = aside / "checkpoint.safetensors"
        save_file(tensors, whole, metadata={"deepcait": json.dumps(header, sort_keys=True)})
        path = folder / f"step_{progress.step:08d}-{_digest(whole)}.safetensors"
        move_file(whole, path)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{folder}: the checkpoint of step {progress.step} can't be written: {error}.",
            remedy="Free space or give write access, then --resume; the previous checkpoint was not changed.",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    # Any other of this step or a later one was skipped on resuming, or is replaced by this one.
    others = [other for other in _candidates(folder) if other != path]
    earlier = sorted((other for other in others if _parts(other)[0] < progress.step), reverse=True)[: keep - 1]
    for old in set(others) - set(earlier):
        with contextlib.suppress(OSError):
            old.unlink()
    return path


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest valid checkpoint, or None, and a line for each newer one that was skipped."""
    passed_over = []
    for path in sorted(_candidates(folder), reverse=True):
        problem = _problem(path)
        if problem is None:
            return path, passed_over
        passed_over.append(f"{path.name}: {problem}")
    return None, passed_over


def read_checkpoint(path: Path) -> tuple[Progress, dict[str, torch.Tensor]]:
    """Return what `save_checkpoint` wrote.

    Raises:
        RunError: written by another version.
    """
    with safe_open(path, framework="pt") as file:
        header = json.loads((file.metadata() or {}).get("deepcait", "{}"))
        if header.get("format") != FORMAT or "progress" not in header:
            own = header.get("format") == FORMAT
            what = "it has no progress" if own else f"expected checkpoint format {FORMAT}, got {header.get('format')!r}"
            raise RunError(
                f"{path}: {what}.",
                remedy="Resume with the version of deepcait that wrote it, or start again in another folder.",
            )
        # Copies, so that no tensor stays tied to a file that will be deleted.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    return _progress_of(header), tensors


def state_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None, loss: nn.Module | None = None
) -> dict[str, torch.Tensor]:
    """Return all tensors that a run needs to resume, under the names that `load_tensors` reads.

    Args:
        model, optimizer, average: of the run.
        loss: a user's loss that is a torch module; None for any other.
    """
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"optimizer/{name}": value for name, value in optimizer_tensors(optimizer).items()}
    if average:
        tensors |= {f"ema/{name}": value for name, value in average.state_dict().items()}
    if loss is not None:
        # Copies, because buffers may share memory, which safetensors refuses.
        tensors |= {f"loss/{name}": value.clone() for name, value in loss.state_dict().items()}
    return tensors


def load_tensors(
    tensors: Mapping[str, torch.Tensor],
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    loss: nn.Module | None = None,
) -> None:
    """Load the tensors that `state_tensors` returned.

    Args:
        tensors: as `read_checkpoint` returns them.
        path: where they come from.
        model, optimizer, average, loss: what takes them. The state of the loss may be missing, as in older versions.

    Raises:
        RunError: they are of another model or recipe.
    """
    parts: dict[str, dict] = {"model": {}, "optimizer": {}, "ema": {}, "loss": {}}
    for key, value in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = value
    try:
        model.load_state_dict(parts["model"])
        load_optimizer_tensors(optimizer, parts["optimizer"])
        if average:
            average.load_state_dict(parts["ema"])
        if loss is not None and parts["loss"]:
            loss.load_state_dict(parts["loss"])
    except (RuntimeError, KeyError) as error:
        raise RunError(
            f"{path}: the weights and states do not fit the run's recipe ({str(error).splitlines()[0].rstrip(':')}).",
            remedy="Restore the config.yaml with which the run began, or start a new run in another --out.",
        ) from error


def step_of(path: Path) -> int:
    """Return the step that a checkpoint was written after."""
    return _parts(path)[0]


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings stored in a checkpoint; empty for an older version, which stored none."""
    return _header(path).get("settings", {})


def read_progress(path: Path) -> Progress:
    """Return the numbers of a checkpoint without its tensors; those of step 0 if its header has none."""
    return _progress_of(_header(path))


def _progress_of(header: Mapping[str, Any]) -> Progress:
    known = {one.name for one in dataclasses.fields(Progress)}
    progress = Progress(**{name: value for name, value in header.get("progress", {}).items() if name in known})
    # Before `keep.best_by` top-1 chose the best evaluation.
    if "best_score" not in header.get("progress", {}) and progress.best_step:
        progress.best_score = progress.best_top1
    return progress


def _header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads((file.metadata() or {}).get("deepcait", "{}"))


def _candidates(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step_*.safetensors") if _NAME.fullmatch(path.name)]


def _parts(path: Path) -> tuple[int, str]:
    """Step and digest in a checkpoint's name."""
    match = _NAME.fullmatch(path.name)
    assert match, path
    return int(match[1]), match[2]


def _problem(path: Path) -> str | None:
    try:
        digest = _digest_once(path)
    except OSError as error:
        return error.strerror or str(error)
    return None if digest == _parts(path)[1] else "content and name do not match: damaged or truncated"


def _digest_once(path: Path) -> str:
    """The digest of a file, which is read again only if it may have changed since."""
    stat = path.stat()
    # A change within the resolution of the file system's clock would not show.
    if time.time_ns() - stat.st_mtime_ns < _FRESH_NS:
        return _digest(path)
    return _known_digest(path.absolute(), stat.st_ino, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _known_digest(path: Path, _inode: int, _size: int, _mtime_ns: int) -> str:
    return _digest(path)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
