"""A model folder, which deepcait, timm (`local-dir:`) and the hub read.

    model.safetensors   the raw weights, keys of the released checkpoints
    config.json         timm's description, and a section `deepcait`
    ema/                the averaged weights (EMA) in the same form, if training kept them

timm has ten CaiTs. `architecture` names the most similar of them, and `model_args` has every size, so that timm can
load any model. A folder is replaced atomically, see `runtime/files.py`; since a reader opens two files, one after the
other, it compares the checksum and reads again if the folder was replaced in between.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from deepcait.errors import ConfigError, WeightsError
from deepcait.model.alternatives import AblationConfig
from deepcait.model.cait import CaiT
from deepcait.model.convnet import ConvNet
from deepcait.model.network import NetworkConfig, OwnConfig
from deepcait.model.networks import config_of
from deepcait.model.variants import CaiTConfig
from deepcait.model.wrappers import unwrap
from deepcait.runtime.device import to_host
from deepcait.runtime.files import current, replace_folder
from deepcait.weights.foreign import foreign_class, require_code
from deepcait.weights.layouts import (
    StateDict,
    canonical_keys,
    count_blocks,
    read_checkpoint,
    require_numbers,
    variant_name,
)
from deepcait.weights.timm_layout import (
    beyond_timm,
    describe_for_timm,
    foreign_config,
    read_classes,
    read_pretrained_cfg,
    require_cait,
    require_forms,
)

FORMAT = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
EMA_FOLDER = "ema"
FOREIGN_WEIGHTS = (WEIGHTS_FILE, "pytorch_model.bin")
OWN_ENTRIES = frozenset({WEIGHTS_FILE, CONFIG_FILE, EMA_FOLDER})
NUM_LOOKS = 5

Which = Literal["raw", "ema"]
Kind = Literal["name", "hub", "artefact", "run", "file", "keras", "builtin", "own"]


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """Weights as stored, with their description, before they are adapted to other sizes.

    Args:
        config: the model's, with the stored image size and number of classes; a `NetworkConfig`.
        state_dict: tensors that own their memory; on the meta device, or empty, if only facts were requested.
        classes: a name for each row of the head, None if unknown.
        pretrained_cfg: preprocessing and more, with timm's keys.
        kind: the kind of their source.
        provenance: the origin of the weights.
        section: a model folder's section `deepcait`: recipe, metrics, provenance, evaluated, ...; else empty.
        folder: path of a model folder.
        weights: which weights of a folder these are.
        counted: parameters and multiply-adds of one image, where the config does not know them.
    """

    config: Any
    state_dict: StateDict
    classes: list[str] | None
    pretrained_cfg: dict[str, Any]
    kind: Kind = "artefact"
    provenance: dict[str, Any] = field(default_factory=dict)
    section: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    weights: Which = "raw"
    counted: tuple[int, int] | None = None

    @property
    def name(self) -> str | None:
        """The model name with this configuration, None if there is none."""
        return variant_name(self.config)


def save_artefact(
    folder: str | Path,
    model: nn.Module,
    *,
    preprocessing: Mapping[str, Any],
    classes: Sequence[str] | None,
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    ema_state: Mapping[str, Tensor] | None = None,
    evaluated: Which = "raw",
) -> Path:
    """Write a model folder; an existing one is replaced in one step, and other files in it are kept.

    Args:
        folder: its path.
        model: a CaiT, or a user-defined network, whose class is recorded; possibly wrapped by torch.compile or
            DistributedDataParallel.
        preprocessing: with timm's keys (mean, std, crop_pct, interpolation, crop_mode, ...), a `pretrained_cfg`.
            What follows from the model, such as input_size, is taken from the model.
        classes: a name for each row of the head, or None (or empty) if there are none.
        recipe, metrics, provenance: stored unchanged; plain JSON.
        ema_state: averaged weights, saved in `ema/`.
        evaluated: which of the two was evaluated; a reader gets these.

    Raises:
        ConfigError: the number of classes is not that of the head's rows, or the folder holds something else.
        WeightsError: the disk is full or can't be written to; the old folder is untouched.
    """
    folder = Path(folder)
    core = _require_network(model)
    _require_classes(classes, core.config.num_classes)
    require_replaceable(folder)
    if evaluated == "ema" and ema_state is None:
        raise ConfigError("evaluated='ema' needs ema_state, which is missing.", remedy="Pass the averaged weights.")
    story = {"recipe": recipe, "metrics": metrics, "provenance": provenance, "evaluated": evaluated}
    if foreign := foreign_class(core):
        story["foreign"] = {"class": foreign, "factory": getattr(core, "part", None)}

    def fill(place: Path) -> None:
        _write_model(place, core.config, core.state_dict(), preprocessing, classes, story)
        if ema_state is not None:
            inner = story | {"evaluated": "raw", "averaged": True}
            (place / EMA_FOLDER).mkdir()
            _write_model(place / EMA_FOLDER, core.config, ema_state, preprocessing, classes, inner)
        for other in _foreign_entries(folder):
            copy = shutil.copytree if other.is_dir() else shutil.copy2
            copy(other, place / other.name)

    replace_folder(folder, fill)
    return folder


def read_artefact(
    folder: str | Path,
    *,
    weights: Which | Literal["evaluated"] = "evaluated",
    shapes_only: bool = False,
    foreign_code: bool = False,
) -> StoredModel:
    """Read a model folder of deepcait, or one in the layout of timm's models on the hub.

    Args:
        folder: with config.json and model.safetensors (timm's may have pytorch_model.bin instead).
        weights: "raw", "ema", or those that were evaluated, by the folder's description.
        shapes_only: read only the description: no tensors, no checksum.
        foreign_code: the caller has the code of a network that is not deepcait's.

    Raises:
        WeightsError: a file is missing or broken, the weights do not match the checksum (sha256) in the
            description, or they need code that is not deepcait's.
    """
    folder = Path(folder)
    for _ in range(NUM_LOOKS):
        place = current(folder)
        description = _read_description(place)
        found, failure = None, None
        try:
            require_code(folder, description, foreign_code or shapes_only)
            found = _read_described(place, description, weights, shapes_only)
        except WeightsError as error:
            failure = error
        if _read_description(current(folder)) == description:
            break  # else the folder was replaced between the two reads: try again
    if found is None:
        raise failure or AssertionError("neither read nor failed")
    return dataclasses.replace(found, folder=folder)


def is_artefact(folder: str | Path) -> bool:
    """Whether a folder looks like a model folder, of deepcait or timm."""
    folder = current(folder)
    return (folder / CONFIG_FILE).is_file() and any((folder / name).is_file() for name in FOREIGN_WEIGHTS)


def validate_config(path: Path, origin: str) -> None:
    """Raise if a config.json is that of another network, before its weights are downloaded.

    Raises:
        WeightsError: it is, or it is not JSON.
    """
    description = _read_description(path.parent)
    if not description.get("deepcait"):
        require_cait(origin, description)


def _write_model(
    place: Path,
    config: NetworkConfig,
    state_dict: Mapping[str, Tensor],
    preprocessing: Mapping[str, Any],
    classes: Sequence[str] | None,
    story: Mapping[str, Any],
) -> None:
    tensors = to_host(canonical_keys(state_dict))
    weights_path = place / WEIGHTS_FILE
    try:
        save_file(tensors, weights_path, metadata={"format": "pt"})
    except SafetensorError as error:
        # The writer wraps the system's error; the caller handles an OSError.
        full = "os error 28" in str(error).lower() or "no space" in str(error).lower()
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(weights_path)) from error
    description = describe_for_timm(config, preprocessing, classes, foreign=(story.get("foreign") or {}).get("class"))
    description["deepcait"] = {
        "format": FORMAT,
        "model": variant_name(config),
        **_own_description(config),
        "stored_grid": list(config.grid) if isinstance(config, CaiTConfig) else None,
        "sha256": _sha256(weights_path),
        "preprocessing": beyond_timm(preprocessing),
        **story,
    }
    text = json.dumps(description, indent=2, allow_nan=False) + "\n"
    (place / CONFIG_FILE).write_text(text, encoding="utf-8")
    # safetensors makes files readable by the owner only; use the user's default permissions.
    weights_path.chmod((place / CONFIG_FILE).stat().st_mode)


def _read_described(
    folder: Path, description: dict[str, Any], weights: Which | Literal["evaluated"], shapes_only: bool
) -> StoredModel:
    section = description.get("deepcait") or {}
    evaluated = section.get("evaluated", "raw")
    wanted: Which = evaluated if weights == "evaluated" else weights
    if wanted == "ema":
        inner = folder / EMA_FOLDER
        if not inner.is_dir():
            raise WeightsError(f"{folder}: no averaged weights in {EMA_FOLDER}/.", remedy="Use weights=raw.")
        found = read_artefact(inner, weights="raw", shapes_only=shapes_only, foreign_code=True)
        return dataclasses.replace(found, folder=folder, section=section, weights="ema")
    path = next((folder / name for name in FOREIGN_WEIGHTS if (folder / name).is_file()), folder / WEIGHTS_FILE)
    if section and not shapes_only:
        _require_checksum(path, section.get("sha256"))
    state_dict = read_checkpoint(path, shapes_only=shapes_only)
    pretrained_cfg = read_pretrained_cfg(description, section)
    if section:
        config = _own_config(folder, section)
        if not section.get("foreign"):
            _require_head(folder, config, state_dict)
            _require_sizes(folder, config, state_dict)
    else:
        config = foreign_config(folder, description, state_dict)
    return StoredModel(
        folder=folder,
        config=config,
        state_dict=state_dict,
        classes=read_classes(description, config.num_classes),
        pretrained_cfg=pretrained_cfg,
        provenance=dict(section.get("provenance") or {}),
        section=section,
    )


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    remedy = f"Give a model folder, which contains {CONFIG_FILE} and {WEIGHTS_FILE}."
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(
            f"{path}: can't read the description of the model: {error.strerror}.", remedy=remedy
        ) from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not valid JSON ({error}).", remedy=remedy) from error
    section = description.get("deepcait") or {} if isinstance(description, dict) else None
    if not isinstance(section, dict):
        raise WeightsError(f"{path}: not a JSON object.", remedy=remedy)
    if section.get("format", FORMAT) != FORMAT:
        raise WeightsError(
            f"{path}: expected format {FORMAT}, got {section.get('format')!r}.", remedy="Use a newer deepcait."
        )
    require_forms(path, description, section)
    return description


def _own_description(config: NetworkConfig) -> dict[str, Any]:
    """The description of the network: its configuration and its ablation options."""
    if not isinstance(config, AblationConfig):
        return {"config": dataclasses.asdict(cast("Any", config))}
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(CaiTConfig)}
    return {"config": own, "ablation": config.options}


def _own_config(folder: Path, section: Mapping[str, Any]) -> NetworkConfig:
    try:
        return config_of({**section["config"], **(section.get("ablation") or {})})
    except (KeyError, TypeError) as error:
        raise WeightsError(
            f"{folder / CONFIG_FILE}: the fields in deepcait.config are not those of a CaiT ({error}).",
            remedy="Save the model again, or restore the original file.",
        ) from error


def _require_head(folder: Path, config: Any, state_dict: StateDict) -> None:
    """Raise if the number of classes was edited: else a randomly initialised head would be used."""
    rows = len(state_dict["head.weight"]) if "head.weight" in state_dict else 0
    if rows != config.num_classes:
        raise WeightsError(
            f"{folder / CONFIG_FILE}: the weights have {rows} classes, but the file says {config.num_classes}.",
            remedy="Restore the file or save the model again; set other classes when you load the model.",
        )


def _require_sizes(folder: Path, config: Any, state_dict: StateDict) -> None:
    """Raise if the description has other blocks than the weights, or far more parameters, before building."""
    class_blocks = getattr(config, "class_blocks", getattr(config, "cls_depth", 0))
    fields = (("depth", "blocks", config.depth), ("cls_depth", "blocks_token_only", class_blocks))
    for name, stage, said in fields if isinstance(config, CaiTConfig) else ():
        got = count_blocks(state_dict, stage)
        if got != said:
            raise WeightsError(
                f"{folder / CONFIG_FILE}: the weights have {name} {got}, but the file says {said}.",
                remedy="Restore the file or save the model again.",
            )
    require_numbers(config, state_dict.values())


def _require_checksum(path: Path, expected: str | None) -> None:
    try:
        got = _sha256(path)
    except OSError as error:
        raise WeightsError(
            f"{path}: can't read the weights: {error.strerror}.", remedy="Copy the file again."
        ) from error
    if got != expected:
        raise WeightsError(
            f"{path}: the file's sha256 is {got}, but {CONFIG_FILE} says {expected}.",
            remedy="The file was changed or truncated after it was saved; download or copy the folder again.",
        )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_classes(classes: Sequence[str] | None, num_classes: int) -> None:
    if classes and len(classes) != num_classes:
        raise ConfigError(
            f"classes: expected {num_classes} names, one per row of the head, got {len(classes)}.",
            remedy="Give the names in the order of the head's rows.",
        )


def require_replaceable(folder: Path) -> None:
    """Raise unless a model folder may be written here: nothing, an empty folder, or another model folder.

    Raises:
        ConfigError: other files, which would be lost.
    """
    if not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not is_artefact(folder)):
        raise ConfigError(
            f"{folder}: the folder is not empty and not a model folder; nothing was changed.",
            remedy="Choose a new or empty folder, or an existing model folder.",
        )


def _foreign_entries(folder: Path) -> list[Path]:
    """Other files in a model folder, such as a README."""
    return sorted(path for path in folder.iterdir() if path.name not in OWN_ENTRIES) if folder.is_dir() else []


def _require_network(model: nn.Module) -> Any:
    core: Any = unwrap(model)
    if not isinstance(core, CaiT | ConvNet) and not isinstance(getattr(core, "config", None), OwnConfig):
        raise ConfigError(
            f"{type(core).__name__} can't be saved as a model folder; only a CaiT can.", remedy="Save the trained CaiT."
        )
    return core
