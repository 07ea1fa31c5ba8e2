"""Export a model to the layouts of other programs: timm's folder, and the authors' checkpoint."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from deepcait.errors import ConfigError
from deepcait.model.mode import evaluation_mode
from deepcait.runtime.files import replacing, require_file, require_folder
from deepcait.weights.artefact import require_replaceable, save_artefact
from deepcait.weights.layouts import SAFETENSORS, StateDict, image_size, official_layout, read_checkpoint
from deepcait.weights.spec import RUN_FOLDERS, Resolved
from deepcait.weights.timm_layout import require_known_to_timm
from deepcait.weights.verification import Verification, changed_keys, compare_logits

OFFICIAL_SUFFIXES = (".pth", SAFETENSORS)
# Largest difference of logits, in units of their standard deviation, between two programs in float64.
MAX_DRIFT = 1e-5


def write_timm(found: Resolved, folder: str | Path) -> Path:
    """Write a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads, and deepcait too.

    It is a model folder: `architecture` is the most similar that timm has, `model_args` has every size.

    Args:
        found: the model, with its classes, preprocessing and metadata.
        folder: its path.

    Raises:
        ConfigError: the folder holds something else, is the model's own, or belongs to a run.
        WeightsError: it can't be written.
    """
    require_timm(Path(folder))
    _require_another_place(found, Path(folder))
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
        found: the model; this layout has no classes and preprocessing.
        path: `.pth`: as the authors publish theirs, `torch.load(path)["model"]` with "module." before each key.
            `.safetensors`: the same tensors under the plain keys of the released models.

    Raises:
        ConfigError: the suffix is wrong, the path is a folder, its folder does not exist or belongs to a run.
        WeightsError: it can't be written; an existing file is not changed.
    """
    path = Path(path)
    require_official(path)
    # In the order and with the dtype of the model; each tensor owns its memory.
    tensors: StateDict = {key: t.detach().cpu().contiguous() for key, t in found.model.state_dict().items()}
    with replacing(path) as temporary:
        try:
            if path.suffix == SAFETENSORS:
                save_file(tensors, temporary, metadata={"format": "pt"})
            else:
                torch.save(official_layout(tensors), temporary)
        except (SafetensorError, RuntimeError) as error:  # both wrap the system's error
            full = any(said in str(error).lower() for said in ("os error 28", "no space", "unexpected pos"))
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error).partition("\n")[0], str(path)) from error
    path.chmod(0o666 & ~_umask())
    return path


def require_timm(folder: Path) -> None:
    """Check the path of a timm folder before any work is done.

    Raises:
        ConfigError: a file, a folder of something else, one that can't be written to, or that belongs to a run.
    """
    require_folder(folder, "--out")
    require_replaceable(folder)
    _require_no_run(folder)


def require_official(path: Path) -> None:
    """Check the path of a file in the authors' layout before any work is done.

    Raises:
        ConfigError: the suffix is wrong, the path is a folder, its folder does not exist or belongs to a run.
    """
    if path.suffix not in OFFICIAL_SUFFIXES:  # exactly: readers recognise the format by it
        raise ConfigError(
            f"{path}: the file name must end in {' or '.join(OFFICIAL_SUFFIXES)} (got {path.suffix!r}).",
            remedy="The official layout is one file: .pth as the authors publish it, or .safetensors.",
        )
    require_file(path, (), "--out")
    _require_no_run(path)


def verify_timm(found: Resolved, folder: str | Path) -> Verification:
    """Load with timm what `write_timm` wrote, and compare tensors and logits.

    Raises:
        ConfigError: timm has no such network.
    """
    import timm

    require_known_to_timm(found.model.config)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    ours = found.model
    shape = (1, ours.config.in_chans, *image_size(ours.config))
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    changed, dtype = changed_keys(ours.state_dict(), theirs.state_dict()), next(ours.parameters()).dtype
    try:  # in float64: two logits may be so close that float32 rounding is large compared with their deviation
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
    """Raise if writing would replace the source model and files next to it (averaged weights)."""
    source = str(found.provenance.get("source") or found.spec)
    if any(os.path.realpath(folder) == os.path.realpath(place) for place in (source, found.spec)):
        raise ConfigError(f"{folder} is the folder of the source model.", remedy="Choose another folder for --out.")


def _require_no_run(place: Path) -> None:
    """Raise if writing would replace a part of a run, whose model could not be restored."""
    real = Path(os.path.realpath(place))
    for part in (real, *real.parents):
        if part.name in (*RUN_FOLDERS, "checkpoints") and (part.parent / "status.json").is_file():
            raise ConfigError(
                f"{place} is inside {part}, which belongs to the run {part.parent}.",
                remedy="Choose a path outside of runs for --out.",
            )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
