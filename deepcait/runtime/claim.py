"""Lock files that assign work to processes, on one machine or on several that share a folder.

A lock is a file that only one process can create; its owner touches it regularly. A lock is stale if its owner ran on
this machine and has ended, or if it was not touched for `STALE_S` seconds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deepcait.errors import RunError

_logger = logging.getLogger(__name__)
BEAT_S = 20.0
STALE_S = 300.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def claim(lock: Path) -> Iterator[bool]:
    """Yield whether this process holds the lock; it is touched until the end, then released.

    Args:
        lock: the file; its folder exists.
    """
    token = _take(lock) or (_take(lock) if _clear_stale(lock) else None)
    if token is None:
        yield False
        return
    done = threading.Event()
    beat = threading.Thread(target=_keep_alive, args=(lock, token, done), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        done.set()
        beat.join()
        if _read(lock).get("token") == token:
            with contextlib.suppress(OSError):
                lock.unlink()


@contextmanager
def hold(place: Path, lock: Path | None = None) -> Iterator[None]:
    """Hold the lock of a file or folder while it is written, so that no other process writes it too.

    The lock of a process that was killed on this machine is taken over at once; that of another machine, once it was
    not touched for `STALE_S` seconds, for which this waits.

    Args:
        place: what is going to be written, for messages.
        lock: its lock; None is a hidden file next to it.

    Raises:
        RunError: another process holds it; the message names it.
    """
    lock = place.with_name(f".{place.name}.lock") if lock is None else lock
    with ExitStack() as stack:
        while not _enter(stack, lock):
            require_free(place, lock)
            _logger.info("%s: waiting for a sign of %s", place, owner_of(lock))
            _watch(place, lock)
        yield


def require_free(place: Path, lock: Path) -> None:
    """Pass unless a process of this machine holds the lock.

    Raises:
        RunError: it does.
    """
    owner = _read(lock)
    if owner and _is_here(owner) and not _is_stale(lock, owner):
        raise _used(place, lock)


def owner_of(lock: Path) -> str:
    """Return a description of the process that holds a lock."""
    owner = _read(lock)
    return f"process {owner['pid']} on {owner['host']}" if {"pid", "host"} <= owner.keys() else "another process"


def _enter(stack: ExitStack, lock: Path) -> bool:
    try:
        return stack.enter_context(claim(lock))
    except OSError:
        return True  # nothing can be written there, which the writer reports


def _watch(place: Path, lock: Path) -> None:
    """Wait until a lock of another machine is released or stale. Raises RunError if it is touched meanwhile."""
    touched = _touched(lock)
    while touched is not None and not _is_stale(lock, _read(lock)):
        time.sleep(min(1.0, BEAT_S))
        before, touched = touched, _touched(lock)
        if touched is not None and touched != before:
            raise _used(place, lock)


def _touched(lock: Path) -> float | None:
    try:
        return lock.stat().st_mtime
    except OSError:
        return None


def _used(place: Path, lock: Path) -> RunError:
    since = _read(lock).get("since")
    started = f", since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(since))}" if since else ""
    return RunError(
        f"{place}: {owner_of(lock)} is writing there{started}.",
        remedy="Wait until it has ended, stop it, or choose another --out.",
    )


def _take(lock: Path) -> str | None:
    """Create the lock with its content in one step; None if it already exists."""
    token = secrets.token_hex(8)
    aside = lock.with_name(f".{lock.name}.{token}")
    try:
        aside.write_text(json.dumps(_here() | {"token": token}) + "\n", encoding="utf-8")
        try:
            os.link(aside, lock)
            return token
        except FileExistsError:
            return None
        except OSError:  # no hard links on this file system: create, then fill
            return token if _create(lock, aside.read_bytes()) else None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def _create(lock: Path, content: bytes) -> bool:
    try:
        with open(lock, "xb") as file:
            file.write(content)
        return True
    except FileExistsError:
        return False


def _clear_stale(lock: Path) -> bool:
    """Remove a stale lock; True if the lock may be free now."""
    owner = _read(lock)
    if not _is_stale(lock, owner):
        return False
    aside = lock.with_name(f".{lock.name}.{secrets.token_hex(8)}.stale")
    try:
        os.rename(lock, aside)
    except OSError:
        return True  # another process was faster
    if _read(aside) != owner:
        # Another process replaced the lock between the check and the renaming: put that lock back.
        with contextlib.suppress(OSError):
            os.link(aside, lock)
        aside.unlink()
        return False
    aside.unlink()
    return True


def _is_stale(lock: Path, owner: dict) -> bool:
    if owner and _is_here(owner):
        # A stopped or busy owner does not touch the lock, but is alive.
        return owner.get("started") != _started(owner.get("pid", 0))
    try:
        # Both times come from the file server's clock: the probe's and the lock's.
        probe = lock.with_name(f".{lock.name}.{secrets.token_hex(8)}.now")
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now - lock.stat().st_mtime > STALE_S
    except FileNotFoundError:
        return False


def _is_here(owner: dict) -> bool:
    """Whether this machine's process ids are those of the owner too."""
    return {key: owner.get(key) for key in ("host", "boot", "space")} == _machine()


def _keep_alive(lock: Path, token: str, done: threading.Event) -> None:
    while not done.wait(BEAT_S):
        with contextlib.suppress(OSError):
            if _read(lock).get("token") == token:
                os.utime(lock)


def _read(lock: Path) -> dict:
    try:
        content = json.loads(lock.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _here() -> dict:
    return {**_machine(), "pid": os.getpid(), "started": _started(os.getpid()), "since": time.time()}


def _machine() -> dict[str, str]:
    """What processes share that see each other's process ids."""
    boot, space = "", ""
    with contextlib.suppress(OSError):
        boot, space = _BOOT.read_text().strip(), os.readlink("/proc/self/ns/pid")
    return {"host": platform.node(), "boot": boot, "space": space}


def _started(pid: int) -> str | None:
    """Start time of a process of this machine in ticks, None if it does not exist; tells reused ids apart."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return _alive(pid)


def _alive(pid: int) -> str | None:
    """Without /proc: only whether the process is alive."""
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except PermissionError:
        return "alive"
    except OSError:
        return None
    return "alive"
