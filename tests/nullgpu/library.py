"""Builds the pretended GPU and starts programs with it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SOURCES = ("runtime.c", "accept.c", "driver.c")


def missing() -> str:
    """What keeps this machine from building the pretended GPU; "" if nothing does."""
    import torch

    if sys.platform != "linux":
        return "the pretended GPU is built for Linux"
    if torch.version.cuda is None:
        return "PyTorch was built without CUDA"
    if torch.cuda.is_available():
        return "this machine has a GPU"
    if shutil.which("gcc") is None:
        return "no gcc"
    if headers() is None:
        return "no CUDA headers beside PyTorch"
    return ""


def headers() -> Path | None:
    """The folder of CUDA's headers that PyTorch's package Triton brings; None if it is not there."""
    spec = importlib.util.find_spec("triton")
    folder = Path(spec.origin).parent / "backends" / "nvidia" / "include" if spec and spec.origin else None
    return folder if folder and (folder / "cuda_runtime_api.h").is_file() else None


def build(folder: Path) -> Path:
    """Compile into `folder`, unless it holds this version already; return the library to preload."""
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in SOURCES)).hexdigest()[:12]
    made = folder / digest
    if not made.is_dir():
        aside = folder / f".{digest}.{os.getpid()}"
        aside.mkdir(parents=True)
        gcc = ["gcc", "-O1", "-shared", "-fPIC", "-w", f"-I{headers()}"]
        runtime = [str(HERE / name) for name in SOURCES[:2]]
        subprocess.run([*gcc, *runtime, "-o", str(aside / "libnullgpu.so"), "-ldl", "-lpthread"], check=True)
        subprocess.run([*gcc, str(HERE / "driver.c"), "-o", str(aside / "libcuda.so.1")], check=True)
        try:
            aside.rename(made)
        except OSError:  # another process was faster
            shutil.rmtree(aside)
    return made / "libnullgpu.so"


def environment(library: Path, **more: str) -> dict[str, str]:
    """Variables for a process in which PyTorch finds the pretended GPU."""
    given = os.environ | {
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": str(library.parent),
        "NULLGPU": str(library),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "NCCL_CUMEM_ENABLE": "0",
    }
    return given | more


def run(library: Path, *words: str, timeout: float = 280, **more: str) -> subprocess.CompletedProcess[str]:
    """Run Python with the pretended GPU."""
    command = [sys.executable, *words]
    env = environment(library, **more)
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
