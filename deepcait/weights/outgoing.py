"""A model in the forms that others read: timm's folder, and the authors' own checkpoint."""

from __future__ import annotations

import errno
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from deepcait.errors import ConfigError
from deepcait.weights.artefact import save_artefact
from deepcait.weights.atomic import replace_file
from deepcait.weights.layouts import SAFETENSORS, StateDict, official_layout
from deepcait.weights.spec import Resolved

OFFICIAL_SUFFIXES = (".pth", SAFETENSORS)


def write_timm(found: Resolved, folder: str | Path) -> Path:
    """Write a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads, and deepcait too.

    It is our model folder: `architecture` is the nearest that timm knows, `model_args` holds every size.

    Args:
        found: the model, with its classes, preprocessing and story.
        folder: its place.

    Raises:
        ConfigError: the folder holds something else.
        WeightsError: it can't be written.
    """
    return save_artefact(
        folder,
        found.model,
        preprocessing=found.pretrained_cfg,
        classes=found.classes,
        recipe=found.section.get("recipe"),
        metrics=found.section.get("metrics"),
        provenance=found.provenance,
    )


def write_official(found: Resolved, path: str | Path) -> Path:
    """Write a plain state dict in the authors' layout.

    Args:
        found: the model; classes and preprocessing have no place in this layout.
        path: `.pth`: as the authors publish theirs, `torch.load(path)["model"]` with "module." before each key.
            `.safetensors`: the same tensors, which can't be nested, under the plain keys of the released models.

    Raises:
        ConfigError: another ending.
        WeightsError: it can't be written; an older file is still there.
    """
    path = Path(path)
    if path.suffix not in OFFICIAL_SUFFIXES or path.is_dir():
        got = "a folder" if path.is_dir() else f"the ending {path.suffix!r}"
        raise ConfigError(
            f"{path}: expected a file that ends in {' or '.join(OFFICIAL_SUFFIXES)}, got {got}.",
            remedy="The official layout is one file: .pth as the authors publish it, or .safetensors.",
        )
    # In the order and with the dtype of the model, each tensor with memory of its own.
    tensors: StateDict = {key: t.detach().cpu().contiguous() for key, t in found.model.state_dict().items()}

    def fill(place: Path) -> None:
        try:
            if path.suffix == SAFETENSORS:
                save_file(tensors, place, metadata={"format": "pt"})
            else:
                torch.save(official_layout(tensors), place)
        except (SafetensorError, RuntimeError) as error:  # both wrap what the system said
            full = "os error 28" in str(error).lower() or "no space" in str(error).lower()
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error).partition("\n")[0], str(path)) from error

    replace_file(path, fill)
    path.chmod(0o666 & ~_umask())
    return path


def _umask() -> int:
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask
