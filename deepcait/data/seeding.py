"""Seeds as arithmetic: all randomness follows from a few integers, so no random state is stored."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part and on their order.

    Python's own `hash` differs from process to process; this one does not.
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, those of every accelerator included.

    timm's augmentations draw from all three.
    """
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.manual_seed(seed)


def seed_sample(seed: int) -> None:
    """Seed the generators that augmentation draws from, to the same state as `seed_everything`, without accelerators'.

    It is called for every image, and looking for accelerators takes longer than seeding.
    """
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)
