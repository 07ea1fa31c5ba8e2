"""Build the network of a configuration; find the configuration of a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, overload

from torch import nn

from deepcait.errors import ConfigError
from deepcait.model.ablation import AblatedCaiT
from deepcait.model.alternatives import AblationConfig
from deepcait.model.cait import CaiT
from deepcait.model.convnet import ConvConfig, ConvNet
from deepcait.model.network import NetworkConfig, OwnConfig
from deepcait.model.variants import CaiTConfig, variant_config, variant_names
from deepcait.model.wrappers import unwrap

# Teacher architectures; they are not in the paper's table.
TEACHERS = {"convnet_32": ConvConfig(), "quicknet_32": ConvConfig(quick=True)}


@overload
def build_model(config: CaiTConfig) -> CaiT: ...
@overload
def build_model(config: ConvConfig) -> ConvNet: ...
@overload
def build_model(config: NetworkConfig) -> CaiT | ConvNet: ...
def build_model(config: NetworkConfig) -> CaiT | ConvNet:
    """Return a newly initialised network: a CaiT, one with alternatives, or a teacher."""
    if isinstance(config, ConvConfig):
        return ConvNet(config)
    if isinstance(config, AblationConfig):
        return AblatedCaiT(config)
    assert isinstance(config, CaiTConfig), config
    return CaiT(config)


def require_cait(model: object) -> CaiT:
    """Return the CaiT inside wrappers such as torch.compile or DistributedDataParallel.

    Raises:
        ConfigError: it is another network, without class attention.
    """
    core = unwrap(model) if isinstance(model, nn.Module) else model
    if not isinstance(core, CaiT):
        raise ConfigError(
            f"{type(core).__name__} has no class attention; only a CaiT has.",
            remedy="Use a model with class attention; instead of a folded model, the model that it was folded from.",
        )
    return core


def config_of(fields: Mapping[str, Any]) -> CaiTConfig | ConvConfig | OwnConfig:
    """Return the configuration with these fields: a user-defined network's, a teacher's, or a CaiT's.

    Raises:
        TypeError: no network has these fields.
        ConfigError: a value is not valid.
    """
    if "factory" in fields:
        height, width = fields["img_size"]
        sized: dict[str, Any] = dict(fields, img_size=(height, width))
        return OwnConfig(**sized)
    if "widths" in fields:
        return ConvConfig(**fields)
    own = {field.name for field in dataclasses.fields(CaiTConfig)}
    if fields.keys() <= own:
        return CaiTConfig(**fields)
    return AblationConfig(**fields)


def is_model_name(spec: str) -> bool:
    """Whether a MODEL is a model name, not a path or another kind."""
    return spec in TEACHERS or spec in variant_names()


def named_config(name: str) -> CaiTConfig | ConvConfig:
    """Return the configuration behind the name of a CaiT or of a teacher.

    Raises:
        ConfigError: the name is unknown.
    """
    return TEACHERS[name] if name in TEACHERS else variant_config(name)
