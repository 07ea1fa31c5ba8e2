"""Atomic replacement of files and folders: a reader, or a kill, finds the old content or the new, never a part.

A file is written under a temporary name in the same folder, flushed to the disk, and renamed over the old one. A
folder is filled under a temporary name and exchanged with the old one by one system call (Linux: renameat2). If the
system has no such call, the old folder is renamed to `.NAME.old` before the new one is renamed to its name; a kill
between the two leaves `.NAME.old`, which `current` finds for readers and the next writer restores.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from deepcait.errors import ConfigError, WriteError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_bytes(path: str | os.PathLike[str], data: bytes, *, flush: bool = True) -> None:
    """Replace one file, or create it, atomically.

    Args:
        path: of the file; its folder must exist.
        data: its content.
        flush: wait until the content is on the disk. False is for caches that can be computed again.

    Raises:
        WriteError: the disk is full, read-only, ...; the old file is still there.
    """
    with replacing(path, flush=flush) as temporary:
        temporary.write_bytes(data)


def require_file(path: Path, suffixes: Sequence[str], option: str) -> None:
    """Pass for a file that can be written, before any work is done: its folder is there, nothing else in its place.

    Args:
        path: of the file.
        suffixes: endings that it may have; none allows any.
        option: that asked for it.

    Raises:
        ConfigError: another ending, a folder, or no folder to write in.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise ConfigError(
            f"{option}: expected a file that ends in {' or '.join(suffixes)}, got {str(path)!r}.",
            remedy="The ending says which form is written.",
        )
    if path.is_dir():
        raise ConfigError(f"{option}: expected a file, got the folder {path}.", remedy="Give a file in it.")
    if not path.parent.is_dir():
        got = f"no folder {path.parent}"
        raise ConfigError(f"{option}: expected a file in a folder that exists, got {got}.", remedy="Create the folder.")


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, flush: bool = True) -> Iterator[Path]:
    """Replace one file, or create it, with what the block writes; a reader never sees it half written.

    Args:
        path: of the file; its folder must exist.
        flush: wait until the content is on the disk, so that a power cut leaves no empty file.

    Yields:
        A temporary path in the same folder, where the block writes the file.

    Raises:
        WriteError: the disk is full, read-only, ...; the old file is still there, as after an error in the block.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        yield temporary
        move_file(temporary, path, flush=flush)
    except BrokenPipeError:  # not of this file: the block prints, and the reader of its output has gone
        raise
    except OSError as error:
        raise _failure(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def move_file(source: Path, path: Path, *, flush: bool = True) -> None:
    """Rename a complete file, replacing any file of that name; both paths are on the same disk.

    Raises:
        OSError: the file can't be renamed; both are unchanged.
    """
    if flush:
        sync(source)
    os.replace(source, path)
    if flush:
        sync(path.parent)


def replace_folder(folder: str | Path, fill: Callable[[Path], None]) -> None:
    """Replace a folder with what `fill` writes, or create it; what was there is gone afterwards.

    Args:
        folder: its place; a symbolic link keeps pointing there.
        fill: is given an empty folder beside the place, on the same disk, and writes into it.

    Raises:
        WriteError: the disk is full, read-only, ...; the old folder is still there.
    """
    folder = Path(os.path.realpath(folder))
    aside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.new")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _restore(folder)
        aside.mkdir()
        fill(aside)
        for path in sorted(aside.rglob("*"), reverse=True):
            sync(path)
        sync(aside)
        _move_in(aside, folder)
        sync(folder.parent)
    except OSError as error:
        raise _failure(folder, error) from error
    finally:
        # After an exchange this is the old folder, after a failure the unfinished new one.
        shutil.rmtree(aside, ignore_errors=True)


def current(folder: str | Path) -> Path:
    """Return where a folder is to be read: its place, or where a kill left it aside; changes nothing."""
    folder = Path(folder)
    old = _old_place(Path(os.path.realpath(folder)))
    return old if not folder.exists() and old.is_dir() else folder


def _restore(folder: Path) -> None:
    """Put a folder back that a kill left aside, or clear away what is no longer needed."""
    old = _old_place(folder)
    if old.exists() and folder.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        os.rename(old, folder)


def _old_place(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _move_in(aside: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(aside, folder)
    elif not _exchange(aside, folder):
        old = _old_place(folder)
        os.rename(folder, old)
        os.rename(aside, folder)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False where the system or the disk can't."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def sync(path: Path) -> None:
    """Wait until a file, or the list of names in a folder, is on the disk."""
    if os.name != "posix" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _failure(path: Path, error: OSError) -> WriteError:
    reason = error.strerror or str(error)
    remedy = {
        errno.ENOSPC: "Make room on the disk, or give another place; what was there before is untouched.",
        errno.EDQUOT: "Make room in your quota, or give another place; what was there before is untouched.",
    }.get(error.errno or 0, "Give a place that can be written to; what was there before is untouched.")
    return WriteError(f"{path}: expected to write here, got {reason!r}.", remedy=remedy)
