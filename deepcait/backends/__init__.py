"""Backends that compute the patch blocks of a CaiT: exactly the same function, or the block is left alone.

`CaiT.set_backend` is the only entry point. A backend is called once per block and forward pass. It returns a function
of its own for a block that it supports, else the block itself.
"""

from __future__ import annotations

from deepcait.backends.lean import Lean
from deepcait.backends.reference import Backend
from deepcait.errors import ConfigError

BACKENDS = ("auto", "reference", "lean")

__all__ = ["BACKENDS", "Backend", "build_backend"]


def build_backend(name: str, *, small_memory: bool = False) -> Backend:
    """Return a backend by name; see `CaiT.set_backend`.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in BACKENDS:
        raise ConfigError(
            f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}.",
            remedy="auto chooses the fastest one for the device.",
        )
    kind = Backend if name == "reference" else Lean
    return kind(name, small_memory=small_memory)
