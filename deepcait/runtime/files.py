"""Atomic replacement of files and folders: at any moment the content is the old one or the new one, complete.

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
    """Raise unless a file can be written: its folder exists and can be written to, and its path is not a folder.

    Args:
        path: of the file.
        suffixes: allowed suffixes; none allows any.
        option: the option that names the file.

    Raises:
        ConfigError: the suffix is wrong, the path is a folder, or its folder does not exist or can't be written to.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise ConfigError(
            f"{option}: the file name must end in {' or '.join(suffixes)} (got {str(path)!r}).",
            remedy="The suffix decides the file format.",
        )
    if path.is_dir():
        raise ConfigError(f"{option}: {path} is a folder, not a file.", remedy="Give a file in it.")
    if not path.parent.is_dir():
        problem = f"{option}: the folder {path.parent} does not exist."
        raise ConfigError(problem, remedy="Create it, or choose another file.")
    _require_writable(path.parent, option)


def require_folder(path: Path, option: str) -> None:
    """Raise unless a folder can be written: it is one, or can be created.

    Args:
        path: of the folder; folders above it may be missing too.
        option: the option that names the folder.

    Raises:
        ConfigError: the path, or one above it, is a file, or nothing can be created there.
    """
    above = next(place for place in (path, *path.absolute().parents) if os.path.lexists(place))
    if not above.is_dir():
        problem = f"{option}: {above} is a file, not a folder."
        raise ConfigError(problem, remedy="Choose another folder.")
    _require_writable(above, option)


def _require_writable(folder: Path, option: str) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        problem = f"{option}: the folder {folder} can't be written to."
        raise ConfigError(problem, remedy="Change its permissions, or choose another place.")


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
    except BrokenPipeError:  # not about this file: the block prints, and the reader of its output has exited
        raise
    except OSError as error:
        raise _failure(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def move_file(source: Path, path: Path, *, flush: bool = True) -> None:
    """Rename a complete file, replacing any file of that name; both paths are on the same file system.

    Raises:
        OSError: the file can't be renamed; both are unchanged.
    """
    if flush:
        sync(source)
    os.replace(source, path)
    if flush:
        sync(path.parent)


def replace_folder(folder: str | Path, fill: Callable[[Path], None]) -> None:
    """Replace a folder by what `fill` writes, or create it.

    Args:
        folder: its path; a symbolic link stays a link.
        fill: called with an empty folder on the same file system, into which it writes.

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
        # After an exchange this is the old folder; after a failure, the unfinished new one.
        shutil.rmtree(aside, ignore_errors=True)


def current(folder: str | Path) -> Path:
    """Return the path at which to read a folder: its own, or `.NAME.old` after a kill; changes nothing."""
    folder = Path(folder)
    old = _old_place(Path(os.path.realpath(folder)))
    return old if not folder.exists() and old.is_dir() else folder


def _restore(folder: Path) -> None:
    """Restore a folder from `.NAME.old` after a kill, or remove leftovers."""
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
    """Exchange two folders in one step; False if the system or the file system can't."""
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
        errno.ENOSPC: "Free space on the disk, or choose another path; existing files were not changed.",
        errno.EDQUOT: "Free space in your quota, or choose another path; existing files were not changed.",
    }.get(error.errno or 0, "Choose a path that can be written to; existing files were not changed.")
    return WriteError(f"{path}: cannot write: {reason}.", remedy=remedy)
