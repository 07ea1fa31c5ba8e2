"""Which device computes."""

from __future__ import annotations

import torch

from deepcait.errors import ConfigError


def choose_device(wanted: str, local_rank: int = 0) -> torch.device:
    """Return the device a run computes on.

    Raises:
        ConfigError: a device that this machine does not have.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank)
        torch.zeros(1, device=device).item()  # the device `meta` is there, and computes nothing
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device: expected one that is here, got {wanted!r} ({reason}).", remedy="Use cpu.") from None
    return device
