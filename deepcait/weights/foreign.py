"""Networks that need other code than deepcait: recorded when saved; code that a folder names is never imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from deepcait.errors import WeightsError


def foreign_class(network: nn.Module) -> str:
    """Return which class keeps a network from being built by deepcait alone, as module:name; empty if none does."""
    parts = [type(network)] if hasattr(network, "part") else map(type, network.modules())
    for kind in parts:
        if hasattr(network, "part") or kind.__module__.partition(".")[0] not in ("deepcait", "torch"):
            return f"{kind.__module__}:{kind.__qualname__}"
    return ""


def require_code(folder: Path, description: Mapping[str, Any], have: bool) -> None:
    """Pass if a folder's network is deepcait's own, or the caller has its code: no folder chooses what is imported.

    Raises:
        WeightsError: it needs other code; the message names the class.
    """
    foreign = (description.get("deepcait") or {}).get("foreign")
    if not foreign or have:
        return
    factory = foreign.get("factory") or "python:package.module:factory"
    raise WeightsError(
        f"{folder}: these are weights of {foreign.get('class')}, which is not part of deepcait; code that a folder "
        "names is not imported.",
        remedy=f"Read that code, then name it: {factory},weights={folder}.",
    )
