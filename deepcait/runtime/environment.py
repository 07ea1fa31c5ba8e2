"""The software versions and the machine behind a result."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Files with the time and the period of control groups, of version 2 and 1.
_QUOTAS = {False: ("cpu.max",), True: ("cpu.cfs_quota_us", "cpu.cfs_period_us")}


def environment() -> dict:
    """Return the versions and the machine behind a result, as plain JSON."""
    packages = ("deepcait", "torch", "torchvision", "timm", "numpy", "pillow", "safetensors")
    versions = {name: version(name) for name in packages}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": num_cpus(),
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "versions": versions,
        "commit": _commit(),
    }


def num_cpus() -> int:
    """Return how many processors this process may use, by its affinity and the limit of its container."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([own, *map(math.ceil, _limits())])


def processor() -> str:
    """Return the processor's name."""
    return _cpu_field("model name") or platform.processor() or platform.machine()


def processor_flags() -> str:
    """Return the processor's instruction sets, separated by spaces; "" if the system does not list them."""
    return _cpu_field("flags")


def processor_vendor() -> str:
    """Return the processor's vendor, such as GenuineIntel or AuthenticAMD; "" if the system does not state it."""
    return _cpu_field("vendor_id")


def version(package: str) -> str | None:
    """Return the version of an installed package, None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _limits() -> Iterator[float]:
    """Seconds of processor time per second that Linux allows each control group of this process, where limited."""
    for line in _lines(_OWN_GROUPS):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _GROUPS / "cpu" if controllers else _GROUPS  # version 1, version 2
        inner = root / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if not folder.is_relative_to(root):
                break
            quota = " ".join(line for name in _QUOTAS[bool(controllers)] for line in _lines(folder / name)).split()
            if len(quota) == 2 and all(text.isdecimal() and int(text) for text in quota):  # else "max" or -1
                yield int(quota[0]) / int(quota[1])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []


def _cpu_field(name: str) -> str:
    """A field of the first processor in Linux's /proc/cpuinfo."""
    lines = _lines(Path("/proc/cpuinfo"))
    return next((line.partition(": ")[2] for line in lines if line.startswith(name)), "")


def _commit() -> str | None:
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
