"""Machine code, compiled by this machine's C++ compiler at first use and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deepcait.runtime.environment import processor, processor_flags
from deepcait.runtime.files import move_file

FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-std=c++17", "-fPIC", "-fopenmp", "-shared")
_TIMEOUT_S = 120


def compile_library(name: str, sources: Sequence[Path], headers: Sequence[Path], flags: Sequence[str] = FLAGS) -> Path:
    """Return a shared library, compiled again if sources, headers, compiler, flags or processor changed.

    Args:
        name: of the library.
        sources: what is compiled.
        headers: what the sources include, from their own folders or from these.
        flags: of the compiler, which is CXX, or g++.

    Raises:
        OSError: there is no compiler, or no writable cache folder.
        RuntimeError: the user has no home folder.
        subprocess.SubprocessError: compilation fails.
    """
    asked, *options = (os.environ.get("CXX") or "g++").split()  # such as "ccache g++"
    compiler = shutil.which(asked)
    if compiler is None:
        raise FileNotFoundError("no C++ compiler")
    what = [source.read_bytes() for source in (*sources, *headers)]
    what += [
        text.encode()
        for text in (" ".join((os.path.realpath(compiler), *options, *flags)), processor(), processor_flags())
    ]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepcait"
    made = folder / f"{name}-{hashlib.sha256(b'|'.join(what)).hexdigest()[:16]}.so"
    if not made.is_file():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            new = Path(aside, made.name)
            folders = dict.fromkeys(f"-I{header.parent}" for header in headers)
            command = [compiler, *options, *flags, *folders, *map(str, sources), "-o", str(new)]
            subprocess.run(command, check=True, capture_output=True, timeout=_TIMEOUT_S)
            move_file(new, made, flush=False)
    return made
