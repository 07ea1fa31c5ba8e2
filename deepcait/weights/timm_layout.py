"""timm's config.json: written for deepcait's models, and read from timm's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepcait.errors import ConfigError, WeightsError
from deepcait.model.alternatives import AblationConfig
from deepcait.model.network import NetworkConfig, OwnConfig
from deepcait.model.variants import CaiTConfig, variant_config
from deepcait.weights.layouts import StateDict, image_size, infer_config
from deepcait.weights.published import REEVALUATED

# The keys of timm's PretrainedCfg that callers may set; timm refuses others. Source: timm 1.0.31.
PREPROCESSING_KEYS = (
    "interpolation", "crop_pct", "test_crop_pct", "crop_mode", "mean", "std", "label_descriptions", "license",
    "description", "origin_url", "paper_name", "paper_ids", "notes",
)  # fmt: skip
# Keys that follow from the model, and keys for the origin of a timm release: these weights are new ones, and provenance
# has their origin.
MODEL_KEYS = (
    "architecture", "input_size", "test_input_size", "min_input_size", "fixed_input_size", "num_classes", "first_conv",
    "classifier", "pool_size", "test_pool_size", "custom_load", "label_names", "label_offset", "tag", "url", "file",
    "hf_hub_id", "hf_hub_filename", "source", "state_dict",
)  # fmt: skip

# Keys of the section `deepcait`.
OWN_OBJECTS = ("ablation", "foreign", "preprocessing", "recipe", "metrics", "provenance")

DEEPCAIT_ONLY = "deepcait_only"


def nearest_architecture(config: NetworkConfig) -> str:
    """Return timm's model that is most similar in width, depth and image size.

    For a network that timm does not have, return a name that it rejects as "Unknown model", so that it never builds
    another network around the weights.
    """
    if not isinstance(config, CaiTConfig) or unknown_to_timm(config):
        return DEEPCAIT_ONLY

    def distance(name: str) -> tuple[float, int, float]:
        known = variant_config(name)
        width = abs(math.log(known.embed_dim / config.embed_dim))
        pixels = math.prod(image_size(known)) / math.prod(image_size(config))
        return width, abs(known.depth - config.depth), abs(math.log(pixels))

    return min(sorted(REEVALUATED), key=distance)


def model_args(config: CaiTConfig) -> dict[str, Any]:
    """Return the arguments with which timm builds this model from any of its CaiTs."""
    return {
        "img_size": list(image_size(config)),
        "patch_size": config.patch_size,
        "in_chans": config.in_chans,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "mlp_ratio": config.mlp_ratio,
        "mlp_ratio_token_only": config.mlp_ratio,
        "depth_token_only": config.cls_depth,
        "init_values": config.layer_scale_init,
    }


def describe_for_timm(
    config: NetworkConfig,
    preprocessing: Mapping[str, Any],
    classes: Sequence[str] | None,
    *,
    foreign: str | None = None,
) -> dict[str, Any]:
    """Return timm's part of config.json: the most similar architecture, all sizes, preprocessing, classes.

    Args:
        config, preprocessing, classes: of the model.
        foreign: class of a network that neither deepcait nor timm has.
    """
    pretrained_cfg = {key: preprocessing[key] for key in PREPROCESSING_KEYS if preprocessing.get(key) is not None}
    pretrained_cfg |= {
        "input_size": [config.in_chans, *image_size(config)],
        "fixed_input_size": True,
        "num_classes": config.num_classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "pool_size": None,
        "custom_load": False,
    }
    reason = f"timm does not have this network: it is {foreign}." if foreign else unknown_to_timm(config)
    description: dict[str, Any] = {
        "architecture": DEEPCAIT_ONLY if foreign else nearest_architecture(config),
        "num_classes": config.num_classes,
        "global_pool": "token",
        "pretrained_cfg": pretrained_cfg,
    }
    if reason:
        description[DEEPCAIT_ONLY] = reason
    if isinstance(config, CaiTConfig) and not reason:
        description |= {"num_features": config.embed_dim, "model_args": model_args(config)}
    if classes:
        description["label_names"] = list(classes)
    return description


def unknown_to_timm(config: NetworkConfig) -> str:
    """Return why timm has no such network, in a sentence; an empty string if it has one."""
    if isinstance(config, OwnConfig):
        return f"timm does not have this network: {config.factory} builds it."
    if not isinstance(config, CaiTConfig):
        return "timm does not have this network: it is deepcait's convolutional teacher."
    if not isinstance(config, AblationConfig) or config.same_at_inference:
        return ""
    options = ", ".join(f"{name}={value}" for name, value in config.options.items())
    return f"timm does not have this network: it is a CaiT with {options}."


def require_known_to_timm(config: NetworkConfig) -> CaiTConfig:
    """Return the configuration if timm can build the network; called before anything is written in its layout.

    Raises:
        ConfigError: timm does not have it.
    """
    reason = unknown_to_timm(config)
    if reason or not isinstance(config, CaiTConfig):
        raise ConfigError(f"{reason}", remedy="Save it as a model folder of deepcait instead.")
    return config


def beyond_timm(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that timm does not have; it rejects a pretrained_cfg with unknown keys."""
    known = {*PREPROCESSING_KEYS, *MODEL_KEYS}
    return {key: value for key, value in preprocessing.items() if key not in known}


def require_forms(origin: str | Path, description: Mapping[str, Any], section: Mapping[str, Any]) -> None:
    """Raise unless the fields of a config.json have the expected form.

    Args:
        origin: for messages.
        description: the content of config.json.
        section: its section `deepcait`, empty if there is none.

    Raises:
        WeightsError: a field has another form; the message names it.
    """
    own = {f"deepcait.{key}": section.get(key) for key in OWN_OBJECTS}
    objects = {"model_args": description.get("model_args"), "config": section.get("config", {})} | own
    objects["pretrained_cfg"] = description.get("pretrained_cfg", {})
    for field, value in objects.items():
        required = field in ("pretrained_cfg", "config")
        if not isinstance(value, Mapping) and (required or value is not None):
            raise _other_form(origin, field, "an object", value)
    names = {key: description.get(key) for key in ("label_names", "labels")}
    names["pretrained_cfg.label_names"] = description.get("pretrained_cfg", {}).get("label_names")
    for field, value in names.items():
        by_index = isinstance(value, Mapping) and all(re.fullmatch("[0-9]{1,9}", str(key)) for key in value)
        if not (value is None or isinstance(value, list) or by_index):
            raise _other_form(origin, field, "a list of names, or names by index", value)
    if section.get("evaluated", "raw") not in ("raw", "ema"):
        raise _other_form(origin, "deepcait.evaluated", "raw or ema", section["evaluated"])


def _other_form(origin: str | Path, field: str, expected: str, got: object) -> WeightsError:
    shown = repr(got) if len(repr(got)) <= 60 else f"{repr(got)[:60]}..."
    return WeightsError(
        f"{origin}: {field} must be {expected}, got {shown}.", remedy="Correct the file, or download the model again."
    )


def require_cait(origin: str | Path, description: Mapping[str, Any]) -> None:
    """Raise unless a config.json without the section `deepcait` describes a CaiT.

    Raises:
        WeightsError: it is another network.
    """
    architecture = str(description.get("architecture", ""))
    pool = description.get("global_pool", "token")
    if not architecture.startswith("cait_") or pool != "token":
        raise WeightsError(
            f"{origin}: not a CaiT that classifies its class token ({architecture!r} with pooling {pool!r}).",
            remedy="Other networks can only be teachers (--teacher timm:NAME).",
        )


def foreign_config(folder: Path, description: Mapping[str, Any], state_dict: StateDict) -> CaiTConfig:
    """Return the sizes in timm's folder: inferred from the tensors; the description only decides the grid."""
    require_cait(folder, description)
    pretrained_cfg = description.get("pretrained_cfg", description)
    said: Any = (description.get("model_args") or {}).get("img_size")
    if not said:
        size = pretrained_cfg.get("input_size")
        said = size[1:] if isinstance(size, list) else ()
    said = (said, said) if isinstance(said, int) else said
    fits = isinstance(said, list | tuple) and len(said) == 2 and all(type(side) is int and side > 0 for side in said)
    try:
        return infer_config(state_dict)
    except WeightsError:
        if not fits or "pos_embed" not in state_dict:
            raise
        return infer_config(state_dict, img_size=(said[0], said[1]))


def read_pretrained_cfg(description: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pretrained_cfg in a config.json, old form or new, with the keys of the section `deepcait`.

    Raises:
        WeightsError: mean or std is not a list of numbers.
    """
    cfg = dict(description.get("pretrained_cfg", description)) | dict(section.get("preprocessing") or {})
    for key in ("mean", "std"):
        value = cfg.get(key, [0.5])
        if not (isinstance(value, list) and value and all(type(one) in (int, float) for one in value)):
            raise _other_form("config.json", key, "a list of numbers, one per channel", value)
    cfg["architecture"] = description.get("architecture")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in cfg.items()}


def read_classes(description: Mapping[str, Any], num_classes: int) -> list[str] | None:
    """Return a name for each row of the head, None if their number differs."""
    pretrained_cfg = description.get("pretrained_cfg", {})
    names = description.get("label_names") or description.get("labels") or pretrained_cfg.get("label_names")
    if isinstance(names, dict):  # timm allows {index: name}
        names = [names[key] for key in sorted(names, key=int)]
    return [str(name) for name in names] if names and len(names) == num_classes else None
