"""Watch attention: layers are called as in any forward pass, with their hooks, and report their weights."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from deepcait.errors import ConfigError

# Called with an attention layer, its weights after the softmax, and those after a second head mixing, if it has one.
Receiver = Callable[[nn.Module, Tensor, Tensor | None], None]


class _Receivers(threading.local):
    """The receivers of this thread: forward passes of other threads are not watched."""

    all: tuple[Receiver, ...] = ()


_receivers = _Receivers()


@contextmanager
def watch_attention(receive: Receiver) -> Iterator[None]:
    """Inside this context, attention layers that are called in this thread report their weights.

    All blocks are called, whatever the backend.

    Args:
        receive: called with the attention layer, its weights (B, A, Q, J) after the softmax, and the weights
            (B, A, N, N) after the second head mixing, None in the class stage, which mixes no heads.
    """
    before = _receivers.all
    _receivers.all = (*before, receive)
    try:
        yield
    finally:
        _receivers.all = before


def is_watched() -> bool:
    """Whether this thread is inside `watch_attention`."""
    return bool(_receivers.all)


def report_attention(attention: nn.Module, weights: Tensor | None = None, mixed: Tensor | None = None) -> None:
    """Pass the weights of an attention layer to the receivers; a layer calls this in its `forward`."""
    if weights is not None:
        for receive in _receivers.all:
            receive(attention, weights, mixed)


def watch_class_stage(blocks: Iterable[nn.Module], cls_B1D: Tensor, patches_BND: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Pass the class token through the class blocks; return it, (B, 1, D), and each block's weights, (B, A, 1, T).

    Raises:
        ConfigError: a block's attention layer was replaced by one that reports no weights.
    """
    rows: list[Tensor] = []
    with watch_attention(lambda attention, weights, mixed: rows.append(weights)):
        for index, block in enumerate(blocks):
            cls_B1D = block(cls_B1D, patches_BND)
            require_one_report(f"blocks_token_only.{index}.attn", cast("Any", block).attn, len(rows) - index)
    return cls_B1D, rows


def stack_rows(rows: Iterable[Tensor]) -> Tensor:
    """Return the class token's rows of several class blocks, each (B, A, 1, T), as (B, class blocks, A, T)."""
    return torch.stack([row_BA1T[:, :, 0] for row_BA1T in rows], dim=1)


def require_one_report(name: str, attention: nn.Module, reports: int) -> None:
    """Raise unless an attention layer reported its weights once per call.

    Raises:
        ConfigError: it did not.
    """
    if reports != 1:
        times = f"{reports} times per call" if reports else "never"
        raise ConfigError(
            f"{name} ({type(attention).__name__}) returns its attention weights {times}, so they can't be shown.",
            remedy="Derive it from the layer of deepcait.model.attention that it replaces, and override `attend` only.",
        )
