"""The words of timm: its config.json written for our models, and read from foreign ones."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepcait.errors import ConfigError, WeightsError
from deepcait.model.alternatives import AblationConfig
from deepcait.model.network import NetworkConfig
from deepcait.model.variants import CaiTConfig, variant_config
from deepcait.weights.layouts import StateDict, image_size, infer_config
from deepcait.weights.published import REEVALUATED

# The keys of timm's PretrainedCfg that may come from outside; timm refuses any other. Source: timm 1.0.31.
PREPROCESSING_KEYS = (
    "interpolation", "crop_pct", "test_crop_pct", "crop_mode", "mean", "std", "label_descriptions", "license",
    "description", "origin_url", "paper_name", "paper_ids", "notes",
)  # fmt: skip
# Those that follow from the model; and those that say which release of timm's this is and where: these weights
# are a new one, and provenance tells where they came from.
MODEL_KEYS = (
    "architecture", "input_size", "test_input_size", "min_input_size", "fixed_input_size", "num_classes", "first_conv",
    "classifier", "pool_size", "test_pool_size", "custom_load", "label_names", "label_offset", "tag", "url", "file",
    "hf_hub_id", "hf_hub_filename", "source", "state_dict",
)  # fmt: skip

# Of our own section.
OWN_OBJECTS = ("ablation", "preprocessing", "recipe", "metrics", "provenance")

DEEPCAIT_ONLY = "deepcait_only"


def nearest_architecture(config: NetworkConfig) -> str:
    """Return the model that timm knows and that is nearest in width, depth and image size.

    For a network that timm does not have, a name that it answers "Unknown model" to, so that it never builds
    another one around the weights.
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
    config: NetworkConfig, preprocessing: Mapping[str, Any], classes: Sequence[str] | None
) -> dict[str, Any]:
    """Return what timm reads of config.json: the nearest architecture, every size, preprocessing and classes."""
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
    reason = unknown_to_timm(config)
    description: dict[str, Any] = {
        "architecture": nearest_architecture(config),
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
    """Return why timm has no such network, in a sentence; an empty text where it has one."""
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
        raise ConfigError(
            f"expected a CaiT as it was published. {reason}", remedy="Save it as a model folder of deepcait."
        )
    return config


def beyond_timm(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Return what timm has no words for; it refuses a pretrained_cfg with unknown keys."""
    known = {*PREPROCESSING_KEYS, *MODEL_KEYS}
    return {key: value for key, value in preprocessing.items() if key not in known}


def require_forms(origin: str | Path, description: Mapping[str, Any], section: Mapping[str, Any]) -> None:
    """Raise unless what is read of a config.json has the form in which it is read.

    Args:
        origin: for messages.
        description: the whole of it.
        section: our own section, empty in a foreign one.

    Raises:
        WeightsError: names the first field that is something else.
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
        f"{origin}: expected {field} as {expected}, got {shown}.", remedy="Mend it there, or fetch the model again."
    )


def require_cait(origin: str | Path, description: Mapping[str, Any]) -> None:
    """Raise unless a config.json without our section describes a CaiT.

    Raises:
        WeightsError: another network.
    """
    architecture = str(description.get("architecture", ""))
    pool = description.get("global_pool", "token")
    if not architecture.startswith("cait_") or pool != "token":
        raise WeightsError(
            f"{origin}: expected a CaiT that classifies its class token, got {architecture!r} with pooling {pool!r}.",
            remedy="Another network can only be a teacher (`timm:NAME`).",
        )


def foreign_config(folder: Path, description: Mapping[str, Any], state_dict: StateDict) -> CaiTConfig:
    """Return the sizes in a folder without our section: from the tensors; the description only settles the grid."""
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
    """Return the pretrained_cfg in a config.json, old form or new, with what only our section knows.

    Raises:
        WeightsError: mean or std are no lists of numbers.
    """
    cfg = dict(description.get("pretrained_cfg", description)) | dict(section.get("preprocessing") or {})
    for key in ("mean", "std"):
        value = cfg.get(key, [0.5])
        if not (isinstance(value, list) and value and all(type(one) in (int, float) for one in value)):
            raise _other_form("config.json", key, "a list of numbers, one a channel", value)
    cfg["architecture"] = description.get("architecture")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in cfg.items()}


def read_classes(description: Mapping[str, Any], num_classes: int) -> list[str] | None:
    """Return a name for each row of the head, None where the description has not as many."""
    pretrained_cfg = description.get("pretrained_cfg", {})
    names = description.get("label_names") or description.get("labels") or pretrained_cfg.get("label_names")
    if isinstance(names, dict):  # timm allows {index: name}
        names = [names[key] for key in sorted(names, key=int)]
    return [str(name) for name in names] if names and len(names) == num_classes else None
