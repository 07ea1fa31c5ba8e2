"""A user-defined network: built by its factory, checked, and described as far as training and saving need it."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepcait.errors import ConfigError, WeightsError, some
from deepcait.model.mode import evaluation_mode
from deepcait.model.network import OwnConfig
from deepcait.parts import WEIGHTS, Part, blamed, build, split_weights, takes
from deepcait.weights.artefact import StoredModel, read_artefact
from deepcait.weights.registry import pretrained_cfg_of

_logger = logging.getLogger(__name__)
_PROTOCOL = "A network is a torch module: images (B, C, H, W) -> logits (B, K), its last layer called head."


def build_own(
    spec: str,
    weights: str | Path | None = None,
    *,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> tuple[Any, StoredModel | None]:
    """Return the network of a part, with the weights of a folder or as its factory drew it, and what the folder holds.

    Args:
        spec: a `Part` or its name. The factory is called with num_classes; an object is copied.
        weights: a model or run folder that such a network was saved to.
        num_classes: K; None takes as many as the weights have, else what the factory makes.
        img_size: used if the network does not declare it.
        changes: settings such as drop_path_rate: passed to a factory that takes them, else logged as a warning.

    Raises:
        ConfigError: the factory fails, or makes another thing than a network.
        WeightsError: weights of another network.
    """
    stored = None if weights is None else _read(Path(weights).expanduser())
    if num_classes is None and stored is not None:
        num_classes = stored.config.num_classes
    network = _build(spec, num_classes, dict(changes or {}))
    _complete(network, spec, img_size)
    _require_logits(network, spec)
    if stored is not None:
        _load(network, stored, spec)
    return network, stored


def describe_own(spec: str) -> StoredModel:
    """Return the facts of a user-defined network, without tensors. Raises as `build_own`."""
    part, path = split_weights(spec)
    network, stored = build_own(part, path)
    return StoredModel(
        kind="own",
        config=network.config,
        state_dict={},
        classes=stored.classes if stored else getattr(network, "classes", None),
        pretrained_cfg=network.pretrained_cfg,
        provenance={"source": str(spec)},
        section=stored.section if stored else {},
        counted=count_network(network),
    )


def count_network(network: Any) -> tuple[int, int]:
    """Return parameters, and multiply-adds of one image, of a network as it is.

    The config of a CaiT with other blocks describes a plain CaiT.
    """
    with evaluation_mode(network):
        return _count(network, network.config.in_chans, network.config.img_size)


def _count(network: Any, in_chans: int, img_size: tuple[int, int]) -> tuple[int, int]:
    from deepcait.runtime.flops import forward_flops  # imports what takes seconds

    flops = forward_flops(network, torch.zeros(1, in_chans, *img_size))
    return sum(parameter.numel() for parameter in network.parameters()), flops // 2


def _read(folder: Path) -> StoredModel:
    inner = next((folder / name for name in ("best", "last") if (folder / name / "config.json").is_file()), folder)
    return read_artefact(inner, foreign_code=True)


def _build(spec: str, num_classes: int | None, changes: dict[str, Any]) -> Any:
    taken = {key: value for key, value in changes.items() if takes(spec, "model", key)}
    if ignored := changes.keys() - taken.keys():
        names = ", ".join(sorted(ignored))
        _logger.warning("model %s: %s not applied, its factory has no such argument", spec, names)
    sized = {} if num_classes is None else {"num_classes": num_classes}
    network = build(spec, "model", **sized, **taken)
    if isinstance(spec, Part) and spec.arguments is None:
        network = copy.deepcopy(network)
    if not isinstance(network, nn.Module):
        raise ConfigError(f"model {spec}: expected a torch module, got {type(network).__name__}.", remedy=_PROTOCOL)
    network: Any = network
    if num_classes is not None and getattr(network, "num_classes", num_classes) != num_classes:
        with blamed(f"model {spec}: reset_classifier"):
            network.reset_classifier(num_classes)
    return network


def _complete(network: Any, spec: str, img_size: int | tuple[int, int] | None) -> None:
    """Add the attributes of the protocol that a network lacks."""
    network.part = str(spec)
    cfg = getattr(network, "pretrained_cfg", None) or {}
    cfg = dict(cfg) if isinstance(cfg, Mapping) else vars(cfg)
    if not hasattr(network, "no_weight_decay"):
        network.no_weight_decay = set
    if not hasattr(network, "set_grad_checkpointing"):
        network.set_grad_checkpointing = _no_checkpointing
    if not hasattr(getattr(network, "config", None), "macs"):
        size: Any = img_size or getattr(network, "img_size", None) or (cfg.get("input_size") or (None,))[-2:]
        size = (size, size) if isinstance(size, int) else tuple(size)
        if len(size) != 2 or None in size:
            problem = f"model {spec}: the image size is not known."
            raise ConfigError(problem, remedy="Give the network an attribute img_size, or set img_size.")
        chans = getattr(network, "in_chans", None) or (cfg.get("input_size") or (3,))[0]
        network.config = _describe(network, spec, size, chans)
    network.num_classes = network.config.num_classes
    known = {key: value for key, value in cfg.items() if value is not None}
    network.pretrained_cfg = pretrained_cfg_of(network.config) | known
    network.pretrained_cfg |= {"input_size": (network.config.in_chans, *network.config.img_size)}


def _describe(network: Any, spec: str, img_size: tuple[int, int], in_chans: int) -> OwnConfig:
    with blamed(f"model {spec}: images of (1, {in_chans}, {img_size[0]}, {img_size[1]})"), torch.no_grad():
        logits = network.eval()(torch.zeros(1, in_chans, *img_size))
        num_params, macs = _count(network, in_chans, img_size)
    blocks = getattr(network, "blocks", ())
    return OwnConfig(
        factory=str(spec),
        img_size=img_size,
        in_chans=in_chans,
        num_classes=logits.shape[-1] if isinstance(logits, Tensor) else 0,
        depth=len(blocks) if isinstance(blocks, Sequence | nn.ModuleList | nn.Sequential) else 0,
        params=num_params,
        multiply_adds=macs,
    )


def _require_logits(network: Any, spec: str) -> None:
    config = network.config
    with blamed(f"model {spec}"), torch.no_grad():
        logits = network.eval()(torch.zeros(2, config.in_chans, *config.img_size))
    if not isinstance(logits, Tensor) or logits.shape != (2, config.num_classes):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        problem = f"model {spec}: expected logits (2, {config.num_classes}) for two images, got {got}."
        raise ConfigError(problem, remedy=_PROTOCOL)


def _load(network: nn.Module, stored: StoredModel, spec: str) -> None:
    try:
        network.load_state_dict(stored.state_dict)
    except RuntimeError as error:
        lines = [_shortened(line.strip()) for line in str(error).splitlines()[1:3]]
        factory = (stored.section.get("foreign") or {}).get("factory")
        name = f": {factory}{WEIGHTS}{stored.folder}" if factory else ""
        raise WeightsError(
            f"{stored.folder}: the weights do not fit {spec} ({' '.join(lines)}).",
            remedy=f"Name the factory and the arguments that the weights were trained with{name}.",
        ) from error


def _shortened(line: str) -> str:
    """A line of torch's error with three of its keys."""
    head, *_ = line.partition('"')
    keys = re.findall(r'"[^"]*"', line)
    return f"{head}{some(keys, 3)}." if len(keys) > 3 else line


def _no_checkpointing(enable: bool = True) -> None:
    if enable:
        raise ConfigError(
            "compute.grad_checkpointing: this network has no set_grad_checkpointing.", remedy="Leave it false."
        )
