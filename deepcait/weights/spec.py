"""Resolve a MODEL argument: names, hub repositories, folders, files, the model in the package."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from deepcait.errors import ConfigError, DeepcaitWarning, WeightsError
from deepcait.model.alternatives import apply_overrides
from deepcait.model.cait import CaiT
from deepcait.model.convnet import ConvNet
from deepcait.model.network import NetworkConfig
from deepcait.model.networks import TEACHERS, build_model, is_model_name, named_config
from deepcait.model.variants import CaiTConfig, variant_config, variant_names
from deepcait.parts import WEIGHTS, is_part, split_weights
from deepcait.weights.adapt import AdaptReport, build_loaded
from deepcait.weights.artefact import Kind, StoredModel, is_artefact, read_artefact, validate_config
from deepcait.weights.hints import listing, nowhere
from deepcait.weights.hub import HUB_PREFIX, fetch_released, fetch_repository, find_cached
from deepcait.weights.imagenet import NUM_CLASSES, is_imagenet, wnids
from deepcait.weights.keras import is_saved_model, read_saved_model
from deepcait.weights.layouts import (
    StateDict,
    image_size,
    infer_config,
    read_weights,
    variant_name,
)
from deepcait.weights.own import build_own, describe_own
from deepcait.weights.published import published
from deepcait.weights.registry import (
    NANO_NAME,
    RELEASED,
    for_channels,
    pretrained_cfg_of,
    released_as,
    released_cfg,
    require_nano,
)

BUILTIN_PREFIX = "builtin:"
# Model folders of a run, the preferred first.
RUN_FOLDERS = ("best", "last")


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A resolved MODEL.

    Args:
        spec: the argument. kind: its kind.
        model: in evaluation mode, its pretrained_cfg set; or another `Network`, of a `python:` MODEL.
        name: its model name, None if it has none.
        classes: a name for each row of the head, None if unknown.
        pretrained_cfg: preprocessing and more, with timm's keys.
        provenance: the origin of the weights.
        section: a model folder's section `deepcait` (recipe, metrics, ...), else empty.
        report: what was kept, resized and newly initialised.
    """

    spec: str
    kind: Kind
    model: CaiT | ConvNet
    name: str | None
    classes: list[str] | None
    pretrained_cfg: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)
    section: dict[str, Any] = field(default_factory=dict)
    report: AdaptReport | None = None


def resolve(
    spec: str | Path,
    *,
    start: Literal["released", "random"] = "released",
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    classes: Sequence[str] | None = None,
    keep_rows: bool = False,
    ablation: Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    **overrides: Any,
) -> Resolved:
    """Resolve MODEL, and adapt it to other classes or another image size if requested.

    Args:
        spec: a model name, `hf-hub:owner/name`, a model or run folder, a Keras SavedModel of cait-tf, a weights
            file, `builtin:nano`, or a user-defined network, `python:package.module:factory[,weights=FOLDER]` or a
            `Part`. A model name has priority over a folder of the same name; `./name` means the folder.
        start: for a model name: its released weights, or random ones.
        num_classes, img_size: of the model; None means as stored. For a weights file whose patches do not form a
            square, img_size is that of its training.
        classes: class names of the model; with other names than stored, the head is newly initialised. The
            integers 0 to 999 mean the classes of an ImageNet model.
        keep_rows: but copy the rows of classes with equal names.
        ablation: ablation options to apply; see `AblationConfig`.
        weights: of a user-defined network, a model or run folder.
        overrides: other fields of `CaiTConfig`: those independent of weights, such as drop_path_rate, and those
            that weights can be adapted to: in_chans, patch_size, a larger depth.

    Raises:
        ConfigError: MODEL can't be resolved; the message has suggestions.
        WeightsError: the weights are broken, unsafe, not a CaiT's, or can't be downloaded.
    """
    spec = spec if isinstance(spec, str) else str(spec)
    if classes is not None and num_classes is None:
        num_classes = len(classes)
    if is_part(spec):
        changes = overrides | {key: value for key, value in (ablation or {}).items() if value is not None}
        return _resolve_own(spec, weights, classes, num_classes=num_classes, img_size=img_size, changes=changes)
    sizes = {"img_size": img_size, "num_classes": num_classes}
    wanted = {key: value for key, value in sizes.items() if value is not None} | overrides
    if start == "random" and is_model_name(spec):
        return _resolve_random(spec, apply_overrides(named_config(spec).replace(**wanted), ablation or {}), classes)
    stored = _find(spec, img_size, shapes_only=False)
    if "notes" in stored.provenance:
        warnings.warn(f"{spec}: {stored.provenance['notes']}.", DeepcaitWarning, stacklevel=2)
    config = apply_overrides(stored.config.replace(**wanted), ablation or {})
    # Integers are indices of the released classes: the head and the names are kept.
    classes = stored.classes if _are_indices(classes, stored.classes) else classes
    renormalised = for_channels(stored.pretrained_cfg, config.in_chans)
    model, report = build_loaded(
        config,
        stored.state_dict,
        stored_grid=stored.config.grid if isinstance(stored.config, CaiTConfig) else None,
        old_classes=stored.classes,
        new_classes=classes,
        keep_rows=keep_rows,
        old_norm=_norm(stored.pretrained_cfg),
        new_norm=_norm(renormalised),
        copy=False,
    )
    cfg = renormalised | {
        "input_size": (config.in_chans, *image_size(config)),
        "num_classes": config.num_classes,
    }
    model.pretrained_cfg = cfg
    names = classes if classes is not None else (stored.classes if report.head is None else None)
    return Resolved(
        spec=spec,
        kind=stored.kind,
        model=model.eval(),
        name=variant_name(config),
        classes=None if names is None else list(names),
        pretrained_cfg=cfg,
        provenance=stored.provenance,
        section=stored.section,
        report=report,
    )


def describe(spec: str | Path) -> dict[str, Any]:
    """Return facts about a model as JSON; reads only descriptions and shapes, and never downloads.

    Returns:
        name, params, gmacs, img_size (an integer for a square), released, top1, real, v2 (published fractions;
        None for your own weights), preprocessing, classes, provenance, kind, config, metrics, recipe.

    Raises:
        ConfigError, WeightsError: as `resolve`; also for a hub repository that is not cached.
    """
    spec = str(spec)
    stored = _find(spec, None, shapes_only=True)
    facts = describe_config(stored.config)
    if stored.counted:
        facts |= {"params": stored.counted[0], "gmacs": round(stored.counted[1] / 1e9, 4)}
    if spec in variant_names() or stored.provenance.get("hub_id") in {r.hub_id for r in RELEASED.values()}:
        name = facts["name"] or spec
        facts |= {"released": name in RELEASED} | _accuracies(name)
    section = stored.section
    return facts | {
        "kind": stored.kind,
        "preprocessing": _plain(stored.pretrained_cfg),
        "classes": stored.classes,
        "provenance": stored.provenance,
        "metrics": section.get("metrics"),
        "recipe": section.get("recipe"),
        "config": {key: _plain(value) for key, value in vars(stored.config).items()},
    }


def describe_config(config: NetworkConfig) -> dict[str, Any]:
    """Return parameters and multiply-adds of a configuration, with the keys of `describe`."""
    height, width = image_size(config)
    return {
        "name": variant_name(config),
        "params": config.num_params(),
        "gmacs": round(config.macs() / 1e9, 4),
        "img_size": height if height == width else [height, width],
        "released": False,
        "top1": None,
        "real": None,
        "v2": None,
    }


def describe_models() -> list[dict[str, Any]]:
    """Return one object per model name: name, params, gmacs, img_size, released, top1, real, v2."""
    return [
        describe_config(variant_config(name)) | {"released": name in RELEASED} | _accuracies(name)
        for name in variant_names()
    ]


def _accuracies(name: str) -> dict[str, Any]:
    figures = published(name)
    return {key: figures[key] for key in ("top1", "real", "v2")}


def _norm(cfg: dict[str, Any]) -> tuple[Any, Any]:
    return cfg["mean"], cfg["std"]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _resolve_random(name: str, config: NetworkConfig, classes: Sequence[str] | None) -> Resolved:
    model = build_model(config)
    model.pretrained_cfg = pretrained_cfg_of(config)
    return Resolved(
        spec=name,
        kind="name",
        model=model.eval(),
        name=variant_name(model.config),
        classes=None if classes is None else list(classes),
        pretrained_cfg=model.pretrained_cfg,
        provenance={"source": "random"},
    )


def _resolve_own(spec: str, weights: str | Path | None, classes: Sequence[str] | None, **how: Any) -> Resolved:
    part, path = split_weights(spec)
    weights = weights or path
    model, stored = build_own(part, weights, **how)
    spec = f"{part}{WEIGHTS}{weights}" if weights else str(spec)  # the run of these weights is found by it
    names = classes if classes is not None else stored.classes if stored else getattr(model, "classes", None)
    known = stored.provenance if stored else {}
    return Resolved(
        spec=spec,
        kind="own",
        model=model.eval(),
        name=None,
        classes=None if names is None else list(names),
        pretrained_cfg=model.pretrained_cfg | (stored.pretrained_cfg if stored else {}),
        provenance=known | {"source": spec},
        section=stored.section if stored else {},
    )


def _find(spec: str, img_size: int | tuple[int, int] | None, *, shapes_only: bool) -> StoredModel:
    """The kind of a MODEL is decided here only."""
    if is_part(spec):
        return describe_own(spec)
    if spec.startswith(BUILTIN_PREFIX):
        return _find_builtin(spec, shapes_only)
    if spec.startswith(HUB_PREFIX):
        return _find_hub(spec.removeprefix(HUB_PREFIX), shapes_only)
    if is_model_name(spec):
        return _find_name(spec, shapes_only)
    path = Path(os.path.expanduser(spec))
    if not spec:
        raise nowhere(spec, path)
    if path.is_dir() or is_artefact(path):
        return _find_folder(path, shapes_only)
    if path.exists():
        return _find_file(path, img_size, shapes_only)
    raise nowhere(spec, path)


def _find_name(name: str, shapes_only: bool) -> StoredModel:
    config = named_config(name)
    released = RELEASED.get(name)
    if shapes_only:
        cfg = released_cfg(name, config) if released else pretrained_cfg_of(config)
        state_dict: StateDict = {}
    elif name in TEACHERS:
        raise ConfigError(
            f"{name} has no trained weights: the package contains no teacher.",
            remedy="Train one with `deepcait train --recipe teacher_32`, and give its run folder.",
        )
    elif name == NANO_NAME:
        return _find_builtin(f"{BUILTIN_PREFIX}nano", shapes_only)
    else:
        folder = fetch_released(name)  # raises if there is no release
        cfg, state_dict = released_cfg(name, config), read_artefact(folder).state_dict
    provenance = {"source": f"{HUB_PREFIX}{released.hub_id}"} | released.metadata if released else {"source": "table"}
    return StoredModel(
        kind="name",
        config=config,
        state_dict=state_dict,
        classes=wnids() if released else None,
        pretrained_cfg=cfg,
        provenance=provenance,
    )


def _are_indices(classes: Sequence[str] | None, stored: Sequence[str] | None) -> bool:
    return classes is not None and is_imagenet(stored) and list(classes) == [str(index) for index in range(NUM_CLASSES)]


def _find_hub(repository: str, shapes_only: bool) -> StoredModel:
    provenance = {"source": f"{HUB_PREFIX}{repository}", "hub_id": repository.partition("@")[0]}
    if shapes_only:
        folder = find_cached(repository)
    else:
        folder = fetch_repository(repository, look=lambda path: validate_config(path, f"{HUB_PREFIX}{repository}"))
    known = next((name for name, one in RELEASED.items() if one.hub_id == provenance["hub_id"]), None)
    if folder is None and known is not None:
        return _find_name(known, shapes_only)
    if folder is not None and is_artefact(folder):
        return _from_artefact("hub", read_artefact(folder, shapes_only=shapes_only), provenance)
    if folder is not None and is_saved_model(folder):
        return _find_keras(folder, shapes_only, provenance)
    raise WeightsError(
        f"{HUB_PREFIX}{repository}: not in the local cache; `info` never downloads.",
        remedy="Download it with a command that needs the weights (`predict`, `eval`), then run `info` again.",
    )


def _find_builtin(spec: str, shapes_only: bool) -> StoredModel:
    if spec != f"{BUILTIN_PREFIX}nano":
        raise ConfigError(f"there is no {spec!r}; the package contains builtin:nano only.", remedy="Use builtin:nano.")
    return _from_artefact("builtin", read_artefact(require_nano(), shapes_only=shapes_only), {"source": spec})


def _find_folder(path: Path, shapes_only: bool) -> StoredModel:
    if is_artefact(path):
        return _from_artefact("artefact", read_artefact(path, shapes_only=shapes_only), {"source": str(path)})
    for name in RUN_FOLDERS:
        if is_artefact(path / name):
            found = read_artefact(path / name, shapes_only=shapes_only)
            return _from_artefact("run", found, {"source": str(path / name)})
    if is_saved_model(path):
        return _find_keras(path, shapes_only, {"source": str(path)})
    raise ConfigError(
        f"{path}: this folder is neither a model folder (config.json and model.safetensors) nor a run folder (best/ or "
        f"last/); it contains {listing(path)}.",
        remedy="Give the folder written by `train` or `.save`, or a weights file in this folder.",
    )


def _find_keras(path: Path, shapes_only: bool, provenance: dict[str, Any]) -> StoredModel:
    state_dict, notes = read_saved_model(path, shapes_only=shapes_only)
    config = infer_config(state_dict)
    return StoredModel(
        kind="keras",
        config=config,
        state_dict=state_dict,
        classes=wnids() if config.num_classes == NUM_CLASSES else None,
        pretrained_cfg=pretrained_cfg_of(config),
        provenance=provenance | ({"notes": " ".join(notes)} if notes else {}),
    )


def _find_file(path: Path, img_size: int | tuple[int, int] | None, shapes_only: bool) -> StoredModel:
    state_dict, notes = read_weights(path, shapes_only=shapes_only)
    try:
        config = infer_config(state_dict)
    except WeightsError:
        if img_size is None:
            raise
        config = infer_config(state_dict, img_size=img_size)
    released = released_as(path.name, config)  # the authors' own file, judging by name and sizes
    return StoredModel(
        kind="file",
        config=config,
        state_dict=state_dict,
        classes=wnids() if released else None,
        pretrained_cfg=released_cfg(released.name, config) if released else pretrained_cfg_of(config),
        provenance={"source": str(path)}
        | (released.metadata if released else {})
        | ({"notes": "; ".join(notes)} if notes else {}),
    )


def _from_artefact(kind: Kind, found: StoredModel, provenance: dict[str, Any]) -> StoredModel:
    metrics = found.section.get("metrics") or {}
    # A folder saved from averaged weights has no others; its metrics still say which were evaluated.
    weights = "ema" if found.section.get("averaged") else metrics.get("weights", found.weights)
    classes = found.classes
    if classes is None and provenance.get("hub_id") in {source.hub_id for source in RELEASED.values()}:
        classes = wnids() if found.config.num_classes == NUM_CLASSES else None
    return replace(
        found,
        kind=kind,
        classes=classes,
        # timm's description may lack some keys.
        pretrained_cfg=pretrained_cfg_of(found.config) | found.pretrained_cfg,
        provenance=found.provenance | provenance | {"weights": weights},
    )
