"""Foreign weight files in, one plain state dict out; and the model's sizes read off its tensors.

Foreign names stop here: above this file there are only the keys of the released checkpoints.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deepcait.errors import WeightsError
from deepcait.model.network import NetworkConfig
from deepcait.model.variants import NANO, VARIANTS, CaiTConfig, variant_names
from deepcait.weights.nests import find_state_dict, without_wrappers

SAFETENSORS = ".safetensors"
GRAPHS = (".onnx", ".xml", ".pt2")  # what inference/export.py writes
PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar")

# How much more the tensors may hold than their file, where some share their numbers (tied weights).
MAX_SHARED = 4

StateDict = dict[str, Tensor]


def is_weights_file(path: str | Path) -> bool:
    """Whether a file's name says that it holds weights."""
    return str(path).endswith((SAFETENSORS, *PICKLES))


def read_checkpoint(path: str | Path, *, shapes_only: bool = False) -> StateDict:
    """Read a weights file of any known layout into one flat state dict with the released keys.

    Nothing of a pickle is executed: it goes through `weights_only=True`, with `argparse.Namespace` allowed,
    which the official files hold beside the weights. Companions that are no tensors are left out.

    Args:
        path: a .safetensors file, or a .pth, .pt, .bin, .ckpt or .pth.tar that torch.save wrote.
        shapes_only: the tensors come on the meta device, and nothing but the index is read.

    Returns:
        Tensors that own their memory: the file may go afterwards.

    Raises:
        WeightsError: no such file, a folder, empty, cut short, not a checkpoint, or a pickle that asks for code.
    """
    return read_weights(path, shapes_only=shapes_only)[0]


def read_weights(path: str | Path, *, shapes_only: bool = False) -> tuple[StateDict, list[str]]:
    """Read a weights file as `read_checkpoint` does, and return also what was taken off, left out and passed over.

    Returns:
        The state dict, and sentences to print; none where the file holds one plain state dict.

    Raises:
        WeightsError: as `read_checkpoint`.
    """
    path = Path(path)
    _require_file(path)
    take = _shape_of if shapes_only else _own
    pickled = not path.name.endswith(SAFETENSORS)
    try:
        found = find_state_dict(_read_pickle(path) if pickled else _read_safetensors(path, take))
    except WeightsError as error:
        raise _named(path, error) from error
    if found is None:
        raise WeightsError(
            f"{path}: expected a state dict, alone or under a key, got no tensors there.",
            remedy="Save `model.state_dict()` with torch.save or safetensors.",
        )
    tensors, notes = found
    if pickled:
        _require_plain(path, tensors)
        tensors = {key: take(value) for key, value in tensors.items()}
    return tensors, notes


def canonical_keys(state_dict: Mapping[str, Tensor], *, origin: str = "state dict") -> StateDict:
    """Take the names of wrappers (`module`, `_orig_mod`, FSDP's, ...) out of every key, wherever they stand.

    Raises:
        WeightsError: two keys become one.
    """
    plain: StateDict = {}
    for key, tensor in state_dict.items():
        short = without_wrappers(key)
        if short in plain:
            raise WeightsError(
                f"{origin}: expected one tensor named {short!r}, got two, one as {key!r}.",
                remedy="Save the state dict of one model only.",
            )
        plain[short] = tensor
    return plain


def official_layout(state_dict: Mapping[str, Tensor]) -> dict[str, StateDict]:
    """Return a state dict as the authors publish theirs: for torch.save, under "model", keys with "module."."""
    return {"model": {f"module.{key}": tensor for key, tensor in state_dict.items()}}


def infer_config(state_dict: Mapping[str, Tensor], *, img_size: int | tuple[int, int] | None = None) -> CaiTConfig:
    """Return the configuration of the model that a state dict belongs to, read off its tensors.

    Initial LayerScale value and drop-path rate leave no trace in weights: they come from the paper's table where
    width, depth and heads are those of one of its models, else from the depth, and 0.

    Args:
        state_dict: with the released keys; tensors on the meta device will do.
        img_size: of the images that it was trained on; needed where the patches form no square.

    Raises:
        WeightsError: not a CaiT, or a grid that is no square and no img_size that fits it.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    _require_cait(shapes)
    embed_dim = shapes["pos_embed"][2]
    if not all(map(math.prod, shapes.values())):
        empty = next(key for key, shape in shapes.items() if not math.prod(shape))
        raise WeightsError(
            f"{empty}: expected numbers, got the empty shape {shapes[empty]}.",
            remedy="Save the model again; DeepSpeed's ZeRO 3 needs its zero_to_fp32.py first.",
        )
    patch_size = shapes["patch_embed.proj.weight"][2]
    hidden = shapes["blocks.0.mlp.fc1.weight"][0]
    mlp_ratio = hidden / embed_dim
    if int(embed_dim * mlp_ratio) != hidden:
        mlp_ratio = math.nextafter(mlp_ratio, math.inf)  # the quotient was rounded down
    config = CaiTConfig(
        embed_dim=embed_dim,
        depth=count_blocks(shapes, "blocks"),
        num_heads=shapes["blocks.0.attn.proj_l.weight"][0],
        img_size=_stored_size(shapes["pos_embed"][1], patch_size, img_size),
        patch_size=patch_size,
        in_chans=shapes["patch_embed.proj.weight"][1],
        num_classes=shapes.get("head.weight", (0,))[0],
        cls_depth=count_blocks(shapes, "blocks_token_only"),
        mlp_ratio=mlp_ratio,
    )
    require_numbers(config, state_dict.values())
    size = _size_name(config)
    known = NANO if size == "nano" else VARIANTS.get(size or "")
    if known is None:
        return config
    return config.replace(layer_scale_init=known.layer_scale_init, drop_path_rate=known.drop_path_rate)


def image_size(config: NetworkConfig) -> tuple[int, int]:
    """Return height and width in pixels."""
    height, width = config.img_size
    return height, width


def variant_name(config: NetworkConfig) -> str | None:
    """Return the model name behind a configuration, whatever its classes; None if the table has no such model."""
    if type(config) is not CaiTConfig:
        return None  # a teacher, or a CaiT with some of the paper's choices exchanged
    size = _size_name(config)
    height, width = image_size(config)
    name = f"cait_{size}_{height}"
    usual_patch = NANO.patch_size if size == "nano" else 16
    plain = config.patch_size == usual_patch and config.in_chans == 3
    return name if plain and height == width and name in variant_names() else None


def _size_name(config: CaiTConfig) -> str | None:
    """The paper's size with these blocks, or "nano"."""
    fields = ("embed_dim", "depth", "num_heads", "cls_depth", "mlp_ratio")
    for size, known in {**VARIANTS, "nano": NANO}.items():
        if all(getattr(config, field) == getattr(known, field) for field in fields):
            return size
    return None


def _require_file(path: Path) -> None:
    remedy = "Give the path of a .safetensors, .pth or .bin file."
    if path.is_dir():
        raise WeightsError(f"{path}: expected a weights file, got a folder.", remedy=remedy)
    if not path.exists():
        raise WeightsError(f"{path}: expected a weights file, got nothing: there is no such file.", remedy=remedy)
    if not is_weights_file(path):
        if path.suffix in GRAPHS:
            remedy = "A graph is run by its engine; here give the run or model folder it was made from, and --engine."
        raise WeightsError(f"{path}: expected a weights file, got the ending {path.suffix!r}.", remedy=remedy)
    if path.stat().st_size == 0:
        raise WeightsError(f"{path}: expected a weights file, got an empty one.", remedy="Fetch or save it again.")


def _require_plain(path: Path, tensors: StateDict) -> None:
    """Raise unless every tensor has its numbers in the file: a few bytes must not become a terabyte when copied."""
    for key, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            kind = f"one of {tuple(tensor.shape)} whose numbers are not all there" if plain else "another kind"
            raise WeightsError(
                f"{path}: expected {key} as a dense tensor on the CPU, got {kind}.",
                remedy="Save `{k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}`.",
            )
    size, total = path.stat().st_size, sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    if total > MAX_SHARED * size:
        raise WeightsError(
            f"{path}: expected tensors of {MAX_SHARED} times the file's {size:,} bytes at most, got {total:,}: "
            "views of the same numbers.",
            remedy="Save each tensor once.",
        )


def _own(tensor: Tensor) -> Tensor:
    # Readers hand out views of the mapped file: whoever overwrites the file would change the model, or crash it.
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _shape_of(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _read_safetensors(path: Path, take: Callable[[Tensor], Tensor]) -> StateDict:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: take(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: expected a whole safetensors file, got one that can't be read ({_first_line(error)}).",
            remedy="Fetch or save it again; its size tells whether it was cut short.",
        ) from error


class _Bounded(io.BufferedReader):
    """A file that is never asked for more than it has: Python's own sets the memory aside that a length asks for."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            return super().read()
        return super().read(min(size, max(0, os.fstat(self.fileno()).st_size - self.tell())))


def _read_pickle(path: Path) -> object:
    try:
        mapped = zipfile.is_zipfile(path)
        with open(path, "rb") as file:
            cut_short = not mapped and file.read(2) == b"PK"
        if cut_short:
            raise WeightsError(
                f"{path}: expected a whole checkpoint, got one that was cut short (its index is missing).",
                remedy="Fetch or save it again.",
            )
        with torch.serialization.safe_globals(_companions()), warnings.catch_warnings():
            # torch warns of another pickle protocol before it refuses the file, or reads it all the same.
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            if mapped:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with _Bounded(io.FileIO(path)) as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except MemoryError:
        raise
    except Exception as error:
        # Whatever a broken file makes of the unpickler: EOFError, RuntimeError, KeyError, struct.error, ...
        raise WeightsError(
            f"{path}: expected a checkpoint of torch.save, got a file that can't be read ({_first_line(error)}).",
            remedy="Fetch or save it again.",
        ) from error


def _companions() -> list[Any]:
    """What checkpoints hold beside weights and what runs no code: options, an accuracy as numpy's number, paths."""
    scalar: Any = np.float64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]  # before numpy 2, and since
    path = type(Path())
    paths = [
        (path, f"pathlib.{path.__name__}"),
        (path, f"pathlib._local.{path.__name__}"),
    ]  # before Python 3.13, and since
    return [argparse.Namespace, np.dtype, *(type(np.dtype(kind)) for kind in "?bhilBHILefd"), *names, *paths]


def _refusal(path: Path, error: Exception) -> WeightsError:
    """What to say of a pickle that the safe reader refused; torch's own text recommends to run it."""
    asked = re.search(r"GLOBAL (\S+)", str(error)) or re.search(r"Unsupported (?:class|global)\S* (\S+)", str(error))
    if asked or "Unsupported" in str(error):
        what = asked.group(1).strip("`'\"") if asked else _first_line(error)
        return WeightsError(
            f"{path}: expected tensors only, got a pickle that asks for {what}, which could run code; "
            "it was refused and nothing of it was executed.",
            remedy="If you trust where it came from, load it there and save `model.state_dict()` alone. More in "
            "`deepcait help refused-pickles`.",
        )
    return WeightsError(
        f"{path}: expected a checkpoint of torch.save, got something else.",
        remedy="Give a .safetensors, .pth or .bin file with a state dict.",
    )


def _named(path: Path, error: WeightsError) -> WeightsError:
    """The error with the file's name before it, once."""
    problem = error.problem if error.problem.startswith(str(path)) else f"{path}: {error.problem}"
    return WeightsError(problem, remedy=error.remedy)


def _require_cait(shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise unless the tensors that the sizes are read from are there, with as many dimensions as they need."""
    ndims = {
        "cls_token": 3,
        "pos_embed": 3,
        "patch_embed.proj.weight": 4,
        "blocks.0.attn.proj_l.weight": 2,
        "blocks.0.mlp.fc1.weight": 2,
        "blocks_token_only.0.attn.q.weight": 2,
    }
    missing = [key for key, ndim in ndims.items() if len(shapes.get(key, ())) != ndim]
    if missing:
        held = ", ".join(list(shapes)[:8])
        raise WeightsError(
            f"expected the weights of a CaiT, got none of that form for {', '.join(missing)}; "
            f"the {len(shapes)} tensors begin with {held}.",
            remedy="Give a CaiT's weights; another network can only be a teacher (`timm:NAME`).",
        )


def count_blocks(keys: Iterable[str], stage: str) -> int:
    """Return how many blocks a stage has.

    Args:
        keys: of a state dict.
        stage: `blocks` or `blocks_token_only`.

    Raises:
        WeightsError: they are not numbered 0, 1, 2, ...: a number alone must not make a model of millions of blocks.
    """
    found = {key.split(".", 2)[1] for key in keys if key.startswith(f"{stage}.") and key.count(".") > 1}
    surplus = found - set(map(str, range(len(found))))
    if surplus:
        raise WeightsError(
            f"expected {stage} numbered from 0 to {len(found) - 1}, as many as there are, got {min(surplus)[:20]!r}.",
            remedy="Save the whole state dict of one CaiT.",
        )
    return len(found)


def require_numbers(config: NetworkConfig, tensors: Iterable[Tensor]) -> None:
    """Raise where a description promises far more than the weights hold, before memory is set aside for it.

    Raises:
        WeightsError: the network has several times as many parameters as there are numbers.
    """
    promised, held = config.num_params(), sum(tensor.numel() for tensor in tensors)
    if promised > MAX_SHARED * held:
        raise WeightsError(
            f"expected weights of the {promised:,} parameters that their sizes promise, got {held:,} numbers.",
            remedy="Fetch or save the model again.",
        )


def _stored_size(num_patches: int, patch_size: int, img_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the images that a position embedding of `num_patches` rows was trained on."""
    if img_size is not None:
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if (height // patch_size) * (width // patch_size) != num_patches:
            raise WeightsError(
                f"img_size: expected one that gives the {num_patches} patches of these weights, "
                f"got {height} x {width} with patches of {patch_size}.",
                remedy="Give the height and width of the images that they were trained on.",
            )
        return height, width
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise WeightsError(
            f"pos_embed: expected a square number of patches, got {num_patches}.",
            remedy="Give img_size, the height and width of the images that these weights were trained on.",
        )
    return side * patch_size, side * patch_size


def _first_line(error: BaseException) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:200].rstrip(". ")
