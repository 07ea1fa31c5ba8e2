"""Find a CaiT's state dict in other programs' files: under any key, with any prefix, among other tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor

from deepcait.errors import WeightsError, some

# Names that wrappers insert into keys: DistributedDataParallel and DeepSpeed, torch.compile, FSDP, activation
# checkpointing, Lightning Fabric, fairscale.
WRAPPERS = frozenset(
    {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_fpw_module"}
)
# Tensors that identify a CaiT, the first of them with each ablation option too.
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
# Parts of a name for weights other than the trained ones: used only if there are no others.
_COPIES = ("ema", "swa", "averag", "teacher", "momentum", "target")
MAX_NESTS = 8  # nesting depth
_MAX_ITEMS = 64  # items of a list


@dataclass(frozen=True)
class Found:
    """One state dict of several that a file may hold.

    Args:
        place: its keys, joined by dots; "" is the top level of the file.
        prefix: common prefix of the keys, without wrappers.
        pairs: (key, tensor), the keys without prefix and wrappers.
        num_markers: how many tensors of a CaiT are among them.
        left_out: keys in the same mapping that are not the model's.
    """

    place: str
    prefix: str
    pairs: list[tuple[str, Tensor]]
    num_markers: int
    left_out: list[str]

    @property
    def name(self) -> str:
        """Its name in messages."""
        return ".".join(part for part in (self.place, self.prefix.rstrip(".")) if part)

    @property
    def rank(self) -> tuple[int, bool, int]:
        """The largest is best: a CaiT first, trained weights before averaged ones, then most tensors."""
        copied = any(word in self.name.lower() for word in _COPIES)
        return self.num_markers, not copied, len(self.pairs)


def find_state_dict(content: object) -> tuple[dict[str, Tensor], list[str]] | None:
    """Return the state dict that fits a CaiT best, with plain keys, and notes about the choice.

    Args:
        content: content of a weights file: nested mappings and lists with tensors.

    Returns:
        The tensors and sentences to print; None if there is no tensor under a string key.

    Raises:
        WeightsError: two keys become equal.
    """
    found = [one for place, tensors in _mappings(content) for one in _candidates(place, tensors)]
    if not found:
        return None
    best = max(found, key=lambda one: one.rank)  # of equals, the first
    state_dict: dict[str, Tensor] = {}
    for key, tensor in best.pairs:
        if key in state_dict:
            raise WeightsError(
                f"two tensors are named {key!r}; their keys differ only in the names of wrappers.",
                remedy="Save the state dict of one model only.",
            )
        state_dict[key] = tensor
    notes = []
    if best.prefix:
        notes.append(f"removed the prefix {best.prefix!r} from the names of tensors")
    if best.left_out:
        notes.append(f"left out {some(best.left_out)}, which are not part of the model")
    others = [one.name or "its own content" for one in found if one is not best and one.num_markers]
    if others:
        notes.append(f"used the weights under {best.name or 'no key'}, not those under {some(others)}")
    return state_dict, notes


def without_wrappers(key: str) -> str:
    """Return a key without the names of wrappers."""
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def _mappings(content: object) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping in `content` with tensors, and its keys."""
    seen: set[int] = set()  # a dictionary may contain itself
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
    """The models in one mapping: one per prefix of a CaiT's tensors, else all of it as one."""
    plain = {key: without_wrappers(key) for key in tensors}
    fits: dict[str, int] = {}
    for key in plain.values():
        for marker in MARKERS:
            prefix = key[: len(key) - len(marker)]
            if key.endswith(marker) and (not prefix or prefix.endswith(".")):
                fits[prefix] = fits.get(prefix, 0) + 1
    # "blocks.0.norm.weight" also ends with "norm.weight": one marker does not suffice.
    prefixes = [prefix for prefix, num in fits.items() if num >= _MIN_MARKERS] or [""]
    found = []
    for prefix in prefixes:
        pairs, left_out = [], []
        for key, tensor in tensors.items():
            short = plain[key]
            # A number among the weights: a loss, an accuracy, the count of an average.
            alone = tensor.ndim == 0 and "." not in short and len(tensors) > 1
            owner = max((other for other in prefixes if short.startswith(other)), key=len, default=None)
            if owner == prefix and not alone:
                pairs.append((short.removeprefix(prefix), tensor))
            elif owner is None or alone:
                left_out.append(key)
        num = fits.get(prefix, 0)
        found.append(Found(place, prefix, pairs, num if num >= _MIN_MARKERS else 0, left_out if num else []))
    return found
