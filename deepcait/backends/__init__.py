"""Ways to compute the patch blocks of a CaiT: each computes the same function, or leaves the block to the reference.

`CaiT.set_backend` is the only entry. A backend is asked once per block and forward pass, and returns what computes it:
a function of its own for a block that it takes, else the block itself.
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
        ConfigError: an unknown name.
    """
    if name not in BACKENDS:
        raise ConfigError(
            f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}.",
            remedy="auto takes the fastest one of the device.",
        )
    kind = Backend if name == "reference" else Lean
    return kind(name, small_memory=small_memory)
