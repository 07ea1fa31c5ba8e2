"""Which network a configuration stands for, and which configuration a name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from deepcait.model.ablation import AblatedCaiT
from deepcait.model.alternatives import AblationConfig
from deepcait.model.cait import CaiT
from deepcait.model.convnet import ConvConfig, ConvNet
from deepcait.model.variants import CaiTConfig, variant_config, variant_names

# Networks that are no CaiT and that our loop trains: teachers. They are no models of the paper's table.
TEACHERS = {"convnet_32": ConvConfig(), "quicknet_32": ConvConfig(quick=True)}


def build_model(config: CaiTConfig) -> CaiT:
    """Return the network of a configuration, freshly drawn: a CaiT, one with alternatives, or a teacher.

    A teacher offers what training, evaluation and saving ask of a CaiT, and goes by its type.
    """
    if isinstance(config, ConvConfig):
        return cast("CaiT", ConvNet(config))
    return AblatedCaiT(config) if isinstance(config, AblationConfig) else CaiT(config)


def config_of(fields: Mapping[str, Any]) -> CaiTConfig:
    """Return the configuration with these fields: a teacher's, or a CaiT's with or without alternatives.

    Raises:
        TypeError: fields of no network that we have.
        ConfigError: a value that no model can be built from.
    """
    if "widths" in fields:
        return cast("CaiTConfig", ConvConfig(**fields))
    own = {field.name for field in dataclasses.fields(CaiTConfig)}
    if fields.keys() <= own:
        return CaiTConfig(**fields)
    return AblationConfig(**fields)


def is_model_name(spec: str) -> bool:
    """Whether a SPEC is the name of a model, and not a path or the like."""
    return spec in TEACHERS or spec in variant_names()


def named_config(name: str) -> CaiTConfig:
    """Return the configuration behind the name of a CaiT or of a teacher.

    Raises:
        ConfigError: unknown name.
    """
    return cast("CaiTConfig", TEACHERS[name]) if name in TEACHERS else variant_config(name)
