"""All model names, and the sources of the ten released models."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcait.errors import ConfigError
from deepcait.model.network import NetworkConfig
from deepcait.model.variants import IMAGENET_MEAN, IMAGENET_STD, CaiTConfig, variant_config, variant_names
from deepcait.weights.artefact import is_artefact
from deepcait.weights.layouts import image_size
from deepcait.weights.published import REEVALUATED, REEVALUATED_COLUMNS, RELEASE_TAG, hub_id
from deepcait.weights.reshape import norm_of
from deepcait.weights.timm_layout import nearest_architecture

NANO_NAME = "cait_nano_32"
BUILTIN_NANO = Path(__file__).parent.parent / "assets" / "nano"
OFFICIAL_PREFIX = "https://dl.fbaipublicfiles.com/deit/"


@dataclass(frozen=True, kw_only=True)
class Released:
    """The origin of released weights.

    Args:
        name: of the model. hub_id: repository on the Hugging Face hub. url: the authors' own file.
        accuracies: fractions in [0, 1] of an independent re-evaluation, by column of `REEVALUATED_COLUMNS`.
    """

    name: str
    hub_id: str
    url: str
    accuracies: dict[str, float]
    licence: str = "apache-2.0"
    distilled: bool = True
    teacher: str = "RegNetY-16GF"

    @property
    def metadata(self) -> dict[str, Any]:
        """Provenance of a model that starts from these weights."""
        return {key: getattr(self, key) for key in ("hub_id", "url", "licence", "distilled", "teacher")}

    @property
    def file(self) -> str:
        """The name of the authors' file, such as XXS24_224.pth."""
        return self.url.rpartition("/")[2]


def _released(name: str) -> Released:
    _, size, side = name.split("_")
    percents = zip(REEVALUATED_COLUMNS, REEVALUATED[name], strict=True)
    return Released(
        name=name,
        hub_id=hub_id(name),
        url=f"{OFFICIAL_PREFIX}{size.upper()}_{side}.pth",
        accuracies={column: round(percent / 100, 5) for column, percent in percents},
    )


RELEASED: dict[str, Released] = {name: _released(name) for name in variant_names() if name in REEVALUATED}


def released_as(file: str, config: CaiTConfig) -> Released | None:
    """Return the released model whose authors' file has this name and these sizes; None if there is none.

    >>> released_as("M48_448.pth", variant_config("cait_m48_448")).name
    'cait_m48_448'
    """
    return next((one for one in RELEASED.values() if one.file == file and variant_config(one.name) == config), None)


def list_models(filter: str = "") -> list[str]:
    """Return the names for `create_model` that contain a text or match a pattern with `*`.

    >>> list_models("xxs24")
    ['cait_xxs24_224', 'cait_xxs24_384', 'cait_xxs24_448']
    >>> list_models("cait_n*")
    ['cait_nano_32']
    """
    return [name for name in variant_names() if matches(name, filter)]


def matches(name: str, filter: str) -> bool:
    """Whether a name contains a text, or matches a pattern with `*`."""
    return fnmatch.fnmatchcase(name, filter if "*" in filter else f"*{filter}*")


def require_nano() -> Path:
    """Return the model folder inside the package.

    Raises:
        ConfigError: this installation has none.
    """
    if not is_artefact(BUILTIN_NANO):
        raise ConfigError(
            "builtin:nano's weights are missing from this installation of deepcait.",
            remedy="Reinstall deepcait, or use a released model such as cait_xxs24_224.",
        )
    return BUILTIN_NANO


def for_channels(cfg: dict[str, Any], in_chans: int) -> dict[str, Any]:
    """Return a pretrained_cfg with means and deviations for this number of channels.

    >>> for_channels({"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}, 4)["std"]
    (1.0, 1.0, 1.0, 1.0)
    """
    return cfg | {key: norm_of(cfg[key], in_chans) for key in ("mean", "std")}


def pretrained_cfg_of(config: NetworkConfig) -> dict[str, Any]:
    """Return a pretrained_cfg (timm's term) with the paper's preprocessing."""
    return {
        "architecture": nearest_architecture(config),
        "input_size": (config.in_chans, *image_size(config)),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": norm_of(IMAGENET_MEAN, config.in_chans),
        "std": norm_of(IMAGENET_STD, config.in_chans),
        "num_classes": config.num_classes,
        "pool_size": None,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "custom_load": False,
    }


def released_cfg(name: str, config: NetworkConfig) -> dict[str, Any]:
    """Return the pretrained_cfg of a model that starts from released weights: with source and licence."""
    source = RELEASED[name]
    origin = {
        "architecture": name,
        "tag": RELEASE_TAG,
        "license": source.licence,
        "hf_hub_id": source.hub_id,
        "url": source.url,
    }
    return pretrained_cfg_of(config) | origin
