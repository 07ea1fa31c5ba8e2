"""Find a CaiT's state dict in what other programs save: under any key, behind any prefix, beside other tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor

from deepcait.errors import WeightsError, some

# Parts that wrappers put into keys: DistributedDataParallel and DeepSpeed, torch.compile, FSDP, activation
# checkpointing, Lightning Fabric, fairscale.
WRAPPERS = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_fpw_module"}
)
# Tensors that tell a CaiT, the first of them in each of its ablations too.
MARKERS = (
    "pos_embed",
    "cls_token",
    "patch_embed.proj.weight",
    "blocks.0.attn.qkv.weight",
    "blocks.0.attn.proj_l.weight",
    "blocks.0.mlp.fc1.weight",
    "blocks_token_only.0.attn.q.weight",
    "norm.weight",
)
_MIN_MARKERS = 4
# Words in a name that say that the weights are not those that were trained: they are taken where no others are.
_COPIES = ("ema", "swa", "averag", "teacher", "momentum", "target")
MAX_NESTS = 8  # one in the other
_MAX_ITEMS = 64  # of a list


@dataclass(frozen=True)
class Found:
    """One state dict of several that a file may hold.

    Args:
        place: keys that lead to it, joined by dots; "" is the file's own content.
        prefix: what stood before every key, wrappers taken out.
        pairs: (key, tensor), the keys without prefix and wrappers.
        num_markers: how many tensors of a CaiT are among them.
        left_out: keys beside them that are none of the model's.
    """

    place: str
    prefix: str
    pairs: list[tuple[str, Tensor]]
    num_markers: int
    left_out: list[str]

    @property
    def name(self) -> str:
        """How messages call it."""
        return ".".join(part for part in (self.place, self.prefix.rstrip(".")) if part)

    @property
    def rank(self) -> tuple[int, bool, int]:
        """The best is the largest: a CaiT first, trained weights before averaged ones, then the most tensors."""
        copied = any(word in self.name.lower() for word in _COPIES)
        return self.num_markers, not copied, len(self.pairs)


def find_state_dict(content: object) -> tuple[dict[str, Tensor], list[str]] | None:
    """Return the state dict that fits a CaiT best, with plain keys, and what a user should know of the choice.

    Args:
        content: what a weights file held: mappings and lists, one in the other, with tensors anywhere.

    Returns:
        The tensors and sentences to print; None where there is no tensor under a text.

    Raises:
        WeightsError: two keys become one.
    """
    found = [one for place, tensors in _mappings(content) for one in _candidates(place, tensors)]
    if not found:
        return None
    best = max(found, key=lambda one: one.rank)  # of equals the first
    state_dict: dict[str, Tensor] = {}
    for key, tensor in best.pairs:
        if key in state_dict:
            raise WeightsError(
                f"expected one tensor named {key!r}, got two that differ in the names of wrappers only.",
                remedy="Save the state dict of one model only.",
            )
        state_dict[key] = tensor
    notes = []
    if best.prefix:
        notes.append(f"took {best.prefix!r} off the names of the tensors")
    if best.left_out:
        notes.append(f"left out {some(best.left_out)}, which are none of the model's")
    others = [one.name or "its own content" for one in found if one is not best and one.num_markers]
    if others:
        notes.append(f"took the weights under {best.name or 'no key'}, not those under {some(others)}")
    return state_dict, notes


def without_wrappers(key: str) -> str:
    """Return a key without the names of wrappers."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def _mappings(content: object) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping in `content` that holds tensors, with the keys that lead to it."""
    seen: set[int] = set()  # a dictionary may hold itself
    level: list[tuple[str, Any]] = [("", content)]
    for _ in range(MAX_NESTS + 1):
        below: list[tuple[str, Any]] = []
        for place, value in level:
            if id(value) in seen:
                continue
            seen.add(id(value))
            inner = list(value.items() if isinstance(value, Mapping) else enumerate(islice(value, _MAX_ITEMS)))
            tensors = {key: one for key, one in inner if isinstance(key, str) and isinstance(one, Tensor)}
            if tensors:
                yield place, tensors
            below += [
                (f"{place}.{key}" if place else str(key), one)
                for key, one in inner
                if isinstance(one, Mapping | list | tuple)
            ]
        level = below


def _candidates(place: str, tensors: dict[str, Tensor]) -> list[Found]:
    """The models in one mapping: one a prefix that stands before a CaiT's tensors, else all of it as one."""
    plain = {key: without_wrappers(key) for key in tensors}
    fits: dict[str, int] = {}
    for key in plain.values():
        for marker in MARKERS:
            prefix = key[: len(key) - len(marker)]
            if key.endswith(marker) and (not prefix or prefix.endswith(".")):
                fits[prefix] = fits.get(prefix, 0) + 1
    # "blocks.0.norm.weight" ends as "norm.weight" does: one marker is none.
    prefixes = [prefix for prefix, num in fits.items() if num >= _MIN_MARKERS] or [""]
    found = []
    for prefix in prefixes:
        pairs, left_out = [], []
        for key, tensor in tensors.items():
            short = plain[key]
            # A number beside the weights: a loss, an accuracy, the count of an average.
            alone = tensor.ndim == 0 and "." not in short and len(tensors) > 1
            owner = max((other for other in prefixes if short.startswith(other)), key=len, default=None)
            if owner == prefix and not alone:
                pairs.append((short.removeprefix(prefix), tensor))
            elif owner is None or alone:
                left_out.append(key)
        num = fits.get(prefix, 0)
        found.append(Found(place, prefix, pairs, num if num >= _MIN_MARKERS else 0, left_out if num else []))
    return found
