"""Read weights files of other programs into a plain state dict, and infer the model's sizes from its tensors.

Other modules use only the keys of the released checkpoints.
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

# How much larger than their file the tensors may be if some share memory (tied weights).
MAX_SHARED = 4

StateDict = dict[str, Tensor]


def is_weights_file(path: str | Path) -> bool:
    """Whether a file's name is that of a weights file."""
    return str(path).endswith((SAFETENSORS, *PICKLES))


def read_checkpoint(path: str | Path, *, shapes_only: bool = False) -> StateDict:
    """Read a weights file of any known layout into one flat state dict with the released keys.

    No pickle code is executed: `weights_only=True` is used, with `argparse.Namespace` allowed, since the official files
    contain one. Other objects in the file that are not tensors are left out.

    Args:
        path: a .safetensors file, or a .pth, .pt, .bin, .ckpt or .pth.tar that torch.save wrote.
        shapes_only: return tensors on the meta device; only the index is read.

    Returns:
        Tensors that own their memory: the file may be deleted afterwards.

    Raises:
        WeightsError: the file does not exist, is a folder, empty, truncated, not a checkpoint, or a pickle that needs
            code.
    """
    return read_weights(path, shapes_only=shapes_only)[0]


def read_weights(path: str | Path, *, shapes_only: bool = False) -> tuple[StateDict, list[str]]:
    """Read a weights file as `read_checkpoint` does, and also return notes about prefixes removed and tensors left out.

    Returns:
        The state dict, and sentences to print; none if the file contains one plain state dict.

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
            f"{path}: the file contains no tensors of a state dict.",
            remedy="Save `model.state_dict()` with torch.save or safetensors.",
        )
    tensors, notes = found
    if pickled:
        _require_plain(path, tensors)
        tensors = {key: take(value) for key, value in tensors.items()}
    return tensors, notes


def canonical_keys(state_dict: Mapping[str, Tensor], *, origin: str = "state dict") -> StateDict:
    """Remove the names of wrappers (`module`, `_orig_mod`, FSDP's, ...) from every key, at any position.

    Raises:
        WeightsError: two keys become equal.
    """
    plain: StateDict = {}
    for key, tensor in state_dict.items():
        short = without_wrappers(key)
        if short in plain:
            raise WeightsError(
                f"{origin}: two tensors are named {short!r}, one of them as {key!r}.",
                remedy="Save the state dict of one model only.",
            )
        plain[short] = tensor
    return plain


def official_layout(state_dict: Mapping[str, Tensor]) -> dict[str, StateDict]:
    """Return a state dict in the authors' form: for torch.save, under "model", keys with "module."."""
    return {"model": {f"module.{key}": tensor for key, tensor in state_dict.items()}}


def infer_config(state_dict: Mapping[str, Tensor], *, img_size: int | tuple[int, int] | None = None) -> CaiTConfig:
    """Return the configuration of the model that a state dict belongs to, inferred from its tensors.

    The initial LayerScale value and the drop-path rate can't be inferred: they are taken from the paper's table if
    width, depth and heads are those of one of its models; else the first follows from the depth, and the second is 0.

    Args:
        state_dict: with the released keys; tensors may be on the meta device.
        img_size: of the images that it was trained on; needed if the patches do not form a square.

    Raises:
        WeightsError: not a CaiT, or the grid is not square and no matching img_size was given.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    _require_cait(shapes)
    embed_dim = shapes["pos_embed"][2]
    if not all(map(math.prod, shapes.values())):
        empty = next(key for key, shape in shapes.items() if not math.prod(shape))
        raise WeightsError(
            f"{empty}: the tensor is empty, with shape {shapes[empty]}.",
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
        return None  # a teacher, or a CaiT with ablation options
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
        raise WeightsError(f"{path}: this is a folder, not a weights file.", remedy=remedy)
    if not path.exists():
        raise WeightsError(f"{path}: there is no such file.", remedy=remedy)
    if not is_weights_file(path):
        if path.suffix in GRAPHS:
            remedy = (
                "Exported graphs are not loaded here: give the run or model folder that was exported, and --engine."
            )
        raise WeightsError(f"{path}: not a weights file (suffix {path.suffix!r}).", remedy=remedy)
    if path.stat().st_size == 0:
        raise WeightsError(f"{path}: the file is empty.", remedy="Download or save it again.")


def _require_plain(path: Path, tensors: StateDict) -> None:
    """Raise unless all values are in the file: a few bytes must not become a terabyte when copied."""
    for key, tensor in tensors.items():
        plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            kind = (
                f"a tensor of shape {tuple(tensor.shape)} with missing values" if plain else "a tensor of another kind"
            )
            raise WeightsError(
                f"{path}: {key} must be a dense tensor on the CPU; it is {kind}.",
                remedy="Save `{k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}`.",
            )
    size, total = path.stat().st_size, sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    if total > MAX_SHARED * size:
        raise WeightsError(
            f"{path}: the tensors have {total:,} bytes, more than {MAX_SHARED} times the file's {size:,}: they are "
            "views of the same memory.",
            remedy="Save a copy of each tensor: `{k: v.clone() for k, v in model.state_dict().items()}`.",
        )


def _own(tensor: Tensor) -> Tensor:
    # Readers return views of the mapped file: overwriting the file would change the model or crash it.
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _shape_of(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _read_safetensors(path: Path, take: Callable[[Tensor], Tensor]) -> StateDict:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: take(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118 - it is not a dict
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: the file is damaged or truncated; safetensors reports: {_first_line(error)}.",
            remedy="Download or save it again, and compare its size with the original's.",
        ) from error


class _Bounded(io.BufferedReader):
    """A reader that caps reads at the file size: Python's own would allocate any requested length."""

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
                f"{path}: the checkpoint is truncated (its index is missing).",
                remedy="Download or save it again.",
            )
        with torch.serialization.safe_globals(_companions()), warnings.catch_warnings():
            # torch warns of another pickle protocol before it rejects or reads the file.
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
        # Broken files raise anything in the unpickler: EOFError, RuntimeError, KeyError, struct.error, ...
        raise WeightsError(
            f"{path}: not a readable checkpoint of torch.save ({_first_line(error)}).",
            remedy="Download or save it again.",
        ) from error


def _companions() -> list[Any]:
    """Harmless objects that checkpoints contain besides weights: options, NumPy scalars, paths."""
    scalar: Any = np.float64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]  # before numpy 2, and since
    path = type(Path())
    paths = [
        (path, f"pathlib.{path.__name__}"),
        (path, f"pathlib._local.{path.__name__}"),
    ]  # before Python 3.13, and since
    return [argparse.Namespace, np.dtype, *(type(np.dtype(kind)) for kind in "?bhilBHILefd"), *names, *paths]


def _refusal(path: Path, error: Exception) -> WeightsError:
    """The error for a pickle that the safe reader rejected; torch's own text recommends to run it."""
    asked = re.search(r"GLOBAL (\S+)", str(error)) or re.search(r"Unsupported (?:class|global)\S* (\S+)", str(error))
    if asked or "Unsupported" in str(error):
        what = asked.group(1).strip("`'\"") if asked else _first_line(error)
        return WeightsError(
            f"{path}: refused: the file is a pickle that needs {what}, which could run code. Nothing of it was "
            "executed.",
            remedy="If you trust its origin, load it in the program that wrote it and save `model.state_dict()` alone. "
            "More: `deepcait help refused-pickles`.",
        )
    return WeightsError(
        f"{path}: not a checkpoint of torch.save.",
        remedy="Give a .safetensors, .pth or .bin file with a state dict.",
    )


def _named(path: Path, error: WeightsError) -> WeightsError:
    """The error, prefixed once with the file's name."""
    problem = error.problem if error.problem.startswith(str(path)) else f"{path}: {error.problem}"
    return WeightsError(problem, remedy=error.remedy)


def _require_cait(shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise unless the tensors from which sizes are inferred exist and have the right number of dimensions."""
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
            f"these are not the weights of a CaiT: {', '.join(missing)} missing or of another form; "
            f"the {len(shapes)} tensors begin with {held}.",
            remedy="Give a CaiT's weights; other networks can only be teachers (--teacher timm:NAME).",
        )


def count_blocks(keys: Iterable[str], stage: str) -> int:
    """Return how many blocks a stage has.

    Args:
        keys: of a state dict.
        stage: `blocks` or `blocks_token_only`.

    Raises:
        WeightsError: they are not numbered 0, 1, 2, ... (a single number must not create millions of blocks).
    """
    found = {key.split(".", 2)[1] for key in keys if key.startswith(f"{stage}.") and key.count(".") > 1}
    surplus = found - set(map(str, range(len(found))))
    if surplus:
        raise WeightsError(
            f"{stage} must be numbered from 0 to {len(found) - 1}, but there is {min(surplus)[:20]!r}.",
            remedy="Save the complete state dict of one CaiT.",
        )
    return len(found)


def require_numbers(config: NetworkConfig, tensors: Iterable[Tensor]) -> None:
    """Raise if a description has far more parameters than the weights, before memory is allocated.

    Raises:
        WeightsError: the network has several times as many parameters as there are values.
    """
    promised, held = config.num_params(), sum(tensor.numel() for tensor in tensors)
    if promised > MAX_SHARED * held:
        raise WeightsError(
            f"the weights have {held:,} values, but their shapes describe {promised:,} parameters.",
            remedy="Download or save the model again.",
        )


def _stored_size(num_patches: int, patch_size: int, img_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the images that a position embedding of `num_patches` rows was trained on."""
    if img_size is not None:
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if (height // patch_size) * (width // patch_size) != num_patches:
            raise WeightsError(
                f"img_size {height} x {width} with patches of {patch_size} does not give the {num_patches} patches of "
                "these weights.",
                remedy="Set img_size to the height and width of the images that they were trained on.",
            )
        return height, width
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise WeightsError(
            f"the {num_patches} patches of pos_embed do not form a square.",
            remedy="Set img_size to the height and width of the images that these weights were trained on.",
        )
    return side * patch_size, side * patch_size


def _first_line(error: BaseException) -> str:
    return (str(error).strip().partition("\n")[0] or type(error).__name__)[:200].rstrip(". ")
