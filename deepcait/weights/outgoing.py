"""A model in the forms that others read: timm's folder, and the authors' own checkpoint."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from deepcait.errors import ConfigError
from deepcait.model.mode import evaluation_mode
from deepcait.runtime.files import replace_file, require_file
from deepcait.weights.artefact import save_artefact
from deepcait.weights.layouts import SAFETENSORS, StateDict, image_size, official_layout, read_checkpoint
from deepcait.weights.spec import RUN_FOLDERS, Resolved
from deepcait.weights.timm_layout import require_known_to_timm

OFFICIAL_SUFFIXES = (".pth", SAFETENSORS)
# Largest difference of logits, in units of their spread, between two programs that compute the same in float64.
MAX_DRIFT = 1e-5


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What reading back showed.

    Args:
        reader: the program that read what was written, and its version.
        num_tensors: compared bit for bit.
        changed: keys that are missing there, or hold other values.
        drift: largest difference of the logits of a random image, in units of their spread; None where the reader
            only read.
    """

    reader: str
    num_tensors: int
    changed: tuple[str, ...]
    drift: float | None

    @property
    def holds(self) -> bool:
        """Whether what was written is the model."""
        return not self.changed and (self.drift is None or self.drift <= MAX_DRIFT)

    def __str__(self) -> str:
        text = f"{self.reader} reads {self.num_tensors} tensors, "
        text += f"{len(self.changed)} of them changed ({', '.join(self.changed[:3])})" if self.changed else "bit-equal"
        return text if self.drift is None else f"{text}; its logits differ by {self.drift:.1e} of their spread"


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

    def fill(place: Path) -> None:
        try:
            if path.suffix == SAFETENSORS:
                save_file(tensors, place, metadata={"format": "pt"})
            else:
                torch.save(official_layout(tensors), place)
        except (SafetensorError, RuntimeError) as error:  # both wrap what the system said
            full = any(said in str(error).lower() for said in ("os error 28", "no space", "unexpected pos"))
            raise OSError(errno.ENOSPC if full else errno.EIO, str(error).partition("\n")[0], str(path)) from error

    replace_file(path, fill)
    path.chmod(0o666 & ~_umask())
    return path


def prove_timm(found: Resolved, folder: str | Path) -> Proof:
    """Load with timm what `write_timm` wrote, and compare tensors and logits.

    Raises:
        ConfigError: timm has no such network.
    """
    import timm

    require_known_to_timm(found.model.config)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    ours = found.model
    images = torch.randn(1, ours.config.in_chans, *image_size(ours.config), generator=torch.Generator().manual_seed(0))
    changed, dtype = _changed(ours.state_dict(), theirs.state_dict()), next(ours.parameters()).dtype
    try:  # in float64: two classes may be so near each other that rounding in float32 is large beside their spread
        with evaluation_mode(ours), torch.inference_mode():
            expected = ours.double()(images.double())
            drift = (theirs.double()(images.double()) - expected).abs().max() / expected.std().clamp(min=1e-12)
    finally:
        ours.to(dtype)
    reader, num_tensors = f"timm {timm.__version__}", len(ours.state_dict())
    return Proof(reader=reader, num_tensors=num_tensors, changed=changed, drift=float(drift))


def prove_official(found: Resolved, path: str | Path) -> Proof:
    """Read back what `write_official` wrote, and compare the tensors."""
    state_dict = found.model.state_dict()
    changed = _changed(state_dict, read_checkpoint(path))
    return Proof(reader="deepcait", num_tensors=len(state_dict), changed=changed, drift=None)


def _changed(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Keys that are in one only, or hold other values (compared in the reader's dtype)."""
    keys = dict.fromkeys([*expected, *got])
    both = {key for key in keys if key in expected and key in got and expected[key].shape == got[key].shape}
    same = {key for key in both if torch.equal(expected[key].cpu().to(got[key].dtype), got[key].cpu())}
    return tuple(key for key in keys if key not in same)


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
