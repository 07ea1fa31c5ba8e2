"""What is done to the disk, in order: of a power cut only that is safe which was waited for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def inode(path: str | os.PathLike[str]) -> int:
    """The number of a file or folder, which it keeps under another name."""
    return os.stat(path).st_ino


def watch_disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return a list that fills up: ("sync", inode) where the disk is waited for, ("move", inode) at each renaming."""
    done: list[tuple[str, int]] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def seen_sync(descriptor: int) -> None:
        done.append(("sync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def seen_move(move):
        def moved(source, place, **how) -> None:
            done.append(("move", inode(source)))
            move(source, place, **how)

        return moved

    monkeypatch.setattr(os, "fsync", seen_sync)
    monkeypatch.setattr(os, "replace", seen_move(replace))
    monkeypatch.setattr(os, "rename", seen_move(rename))
    return done


def things_in(folder: Path) -> set[int]:
    """The folder itself and all that is in it."""
    return {inode(folder), *map(inode, folder.rglob("*"))}
