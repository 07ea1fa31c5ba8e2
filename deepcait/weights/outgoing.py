"""A model in the forms that others read: timm's folder, and the authors' own checkpoint."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from deepcait.errors import ConfigError
from deepcait.model.mode import evaluation_mode
from deepcait.runtime.files import replacing, require_file
from deepcait.weights.artefact import save_artefact
from deepcait.weights.layouts import SAFETENSORS, StateDict, image_size, official_layout, read_checkpoint
from deepcait.weights.spec import RUN_FOLDERS, Resolved
from deepcait.weights.timm_layout import require_known_to_timm
from deepcait.weights.verification import Verification, changed_keys, compare_logits

OFFICIAL_SUFFIXES = (".pth", SAFETENSORS)
# Largest difference of logits, in units of their standard deviation, between two programs in float64.
MAX_DRIFT = 1e-5


def write_timm(found: Resolved, folder: str | Path) -> Path:
    """Write a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads, and deepcait too.

    It is our model folder: `architecture` is the nearest that timm knows, `model_args` holds every size.

    Args:
        found: the model, with its classes, preprocessing and story.
        folder: its place.

    Raises:
        ConfigError: the folder holds something else, is the one that the model was read from, or belongs to a run.
        WeightsError: it can't be written.
    """
    _require_another_place(found, Path(folder))
    _require_no_run(Path(folder))
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
        ConfigError: another ending, a folder, no folder to write in, or one that belongs to a run.
        WeightsError: it can't be written; an older file is still there.
    """
    path = Path(path)
    if path.suffix not in OFFICIAL_SUFFIXES:  # to the letter: readers know the form by it
        raise ConfigError(
            f"{path}: expected a file that ends in {' or '.join(OFFICIAL_SUFFIXES)}, got the ending {path.suffix!r}.",
            remedy="The official layout is one file: .pth as the authors publish it, or .safetensors.",
        )
    require_file(path, (), "--out")
    _require_no_run(path)
    # In the order and with the dtype of the model, each tensor with memory of its own.
    tensors: StateDict = {key: t.detach().cpu().contiguous() for key, t in found.model.state_dict().items()}
    with replacing(path) as temporary:
        try:
            if path.suffix == SAFETENSORS:
                save_file(tensors, temporary, metadata={"format": "pt"})
            else:
                torch.save(official_layout(tensors), temporary)
        except (SafetensorError, RuntimeError) as error:  # both wrap what the system said
            full = any(said in str(error).lower() for said in ("os error 28", "no space", "unexpected pos"))
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error).partition("\n")[0], str(path)) from error
    path.chmod(0o666 & ~_umask())
    return path


def verify_timm(found: Resolved, folder: str | Path) -> Verification:
    """Load with timm what `write_timm` wrote, and compare tensors and logits.

    Raises:
        ConfigError: timm has no such network.
    """
    import timm

    require_known_to_timm(found.model.config)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    ours = found.model
    images = torch.randn(1, ours.config.in_chans, *image_size(ours.config), generator=torch.Generator().manual_seed(0))
    changed, dtype = changed_keys(ours.state_dict(), theirs.state_dict()), next(ours.parameters()).dtype
    try:  # in float64: two classes may be so near each other that rounding in float32 is large beside their spread
        with evaluation_mode(ours), torch.inference_mode():
            expected_BK, got_BK = (model.double()(images.double()) for model in (ours, theirs))
    finally:
        ours.to(dtype)
    return Verification(
        reader=f"timm {timm.__version__}",
        max_drift=MAX_DRIFT,
        num_tensors=len(ours.state_dict()),
        changed=changed,
        batches=(1,),
        **compare_logits(expected_BK, got_BK, MAX_DRIFT),
    )


def verify_official(found: Resolved, path: str | Path) -> Verification:
    """Read back what `write_official` wrote, and compare the tensors."""
    state_dict = found.model.state_dict()
    changed = changed_keys(state_dict, read_checkpoint(path))
    return Verification(reader="deepcait", max_drift=MAX_DRIFT, num_tensors=len(state_dict), changed=changed)


def _require_another_place(found: Resolved, folder: Path) -> None:
    """Raise where writing would replace the model that was read, and what else lies beside it (averaged weights)."""
    source = str(found.provenance.get("source") or found.spec)
    if any(os.path.realpath(folder) == os.path.realpath(place) for place in (source, found.spec)):
        raise ConfigError(
            f"{folder}: expected another place, got that of the model itself.", remedy="Name a new folder."
        )


def _require_no_run(place: Path) -> None:
    """Raise where writing would replace a part of a training run, whose model no export brings back."""
    real = Path(os.path.realpath(place))
    for part in (real, *real.parents):
        if part.name in (*RUN_FOLDERS, "checkpoints") and (part.parent / "status.json").is_file():
            raise ConfigError(
                f"{place}: expected a place of its own, got one inside {part}, which belongs to the run {part.parent}.",
                remedy="Name a new place outside.",
            )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
