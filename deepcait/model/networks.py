"""Which network a configuration stands for, and which configuration a name."""

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
from deepcait.model.network import NetworkConfig
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
    """Return the network of a configuration, freshly drawn: a CaiT, one with alternatives, or a teacher."""
    if isinstance(config, ConvConfig):
        return ConvNet(config)
    if isinstance(config, AblationConfig):
        return AblatedCaiT(config)
    assert isinstance(config, CaiTConfig), config
    return CaiT(config)


def require_cait(model: object) -> CaiT:
    """Return the CaiT inside what torch.compile or DistributedDataParallel made of it.

    Raises:
        ConfigError: it is another network, without class attention.
    """
    core = unwrap(model) if isinstance(model, nn.Module) else model
    if not isinstance(core, CaiT):
        raise ConfigError(
            f"expected a CaiT, got {type(core).__name__}, which has no class attention.",
            remedy="Give a model with class attention; in place of a folded one, the model that it was folded from.",
        )
    return core


def config_of(fields: Mapping[str, Any]) -> CaiTConfig | ConvConfig:
    """Return the configuration with these fields: a teacher's, or a CaiT's with or without alternatives.

    Raises:
        TypeError: fields of no network that we have.
        ConfigError: a value that no model can be built from.
    """
    if "widths" in fields:
        return ConvConfig(**fields)
    own = {field.name for field in dataclasses.fields(CaiTConfig)}
    if fields.keys() <= own:
        return CaiTConfig(**fields)
    return AblationConfig(**fields)


def is_model_name(spec: str) -> bool:
    """Whether a SPEC is the name of a model, and not a path or the like."""
    return spec in TEACHERS or spec in variant_names()


def named_config(name: str) -> CaiTConfig | ConvConfig:
    """Return the configuration behind the name of a CaiT or of a teacher.

    Raises:
        ConfigError: unknown name.
    """
    return TEACHERS[name] if name in TEACHERS else variant_config(name)
