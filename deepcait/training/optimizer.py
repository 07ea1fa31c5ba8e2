"""Parameter groups (trainable or not, learning rate, weight decay) and the optimizer."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from deepcait.errors import ConfigError
from deepcait.model.network import Network
from deepcait.parts import split_call
from deepcait.runtime.device import sum_dtype
from deepcait.training.muon import with_fast_products
from deepcait.training.settings import TIMM, Optimizer

# Of a group, set when it is built and at every step.
_GROUP_SETTINGS = ("lr", "lr_scale", "weight_decay")
_NUMBERS = {"bool": bool, "int": int, "float": float}


def freeze(model: Network, train: str, patterns: Sequence[str] = (), num_blocks: int = 0) -> None:
    """Freeze all parameters except some.

    Args:
        model: whose parameters are marked.
        train: "all", "head", "attention" (self- and class attention, and the head), or "lora" (updates, and the head).
        patterns: names of others that stay, as `fnmatch` reads them: "blocks.0.*", "*.gamma_?".
        num_blocks: the embedding and the first blocks stay; 0 is off.

    Raises:
        ConfigError: a pattern that no name matches, more blocks than there are, or nothing left to train.
    """
    parts = {"attention": ".attn.", "lora": ".lora_"}
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        _require_match("freeze", pattern, names)
    if num_blocks > model.config.depth:
        problem = f"freeze_blocks: expected at most {model.config.depth}, the number of blocks, got {num_blocks}."
        raise ConfigError(problem, remedy="Give a smaller number; train=head trains only the head.")
    for name, parameter in model.named_parameters():
        wanted = train == "all" or is_head(model, name) or (train in parts and parts[train] in name)
        kept = any(fnmatchcase(name, pattern) for pattern in patterns)
        deep = num_blocks and layer_of(name, model.config.depth) <= num_blocks
        parameter.requires_grad_(wanted and not kept and not deep)
    if not any(parameter.requires_grad for _, parameter in model.named_parameters()):
        raise ConfigError("freeze: no parameter is left to train.", remedy="Freeze fewer names.")


def is_head(model: Network, name: str) -> bool:
    """Whether a parameter belongs to the last layer: called head, or as `pretrained_cfg["classifier"]` says."""
    found = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    return name.startswith(tuple(f"{one}." for one in ((found,) if isinstance(found, str) else found)))


def layer_of(name: str, depth: int) -> int:
    """Return the layer of a parameter: 0 the embedding, 1..depth the patch blocks, depth + 1 the rest.

    The class stage, the last norm and the head are one layer: they read the image, whatever the depth.
    """
    part, _, rest = name.partition(".")
    if part in ("cls_token", "pos_embed", "patch_embed"):
        return 0
    return int(rest.partition(".")[0]) + 1 if part == "blocks" else depth + 1


def parameter_groups(model: Network, optimizer: Optimizer) -> list[dict]:
    """Return the optimizer's groups, each with the learning rate of one layer and one weight decay.

    Not decayed: vectors, biases, the class token and positions (so LayerScale's gammas are not, the head-mixing
    matrices are). Each group carries `lr_scale`, the factor of its learning rate, and `is_head`.
    """
    depth = model.config.depth
    factors = [read_factor(text) for text in optimizer.lr_factors]
    for pattern, _ in factors:
        _require_match("optimizer.lr_factors", pattern, [name for name, _ in model.named_parameters()])
    groups: dict[tuple, dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not name.endswith(".bias") and name not in model.no_weight_decay()
        lr_scale = optimizer.layer_decay ** (depth + 1 - layer_of(name, depth))
        lr_scale *= next((factor for pattern, factor in factors if fnmatchcase(name, pattern)), 1.0)
        head = is_head(model, name)
        weight_decay = optimizer.weight_decay if decays else 0.0
        key = (lr_scale, weight_decay, head)
        settings = {"params": [], "names": [], "lr_scale": lr_scale, "weight_decay": weight_decay, "is_head": head}
        group = groups.setdefault(key, settings)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(groups: list[dict], optimizer: Optimizer, *, peak_lr: float | None = None) -> torch.optim.Optimizer:
    """Return an optimizer over these groups; their learning rates are set every step.

    Args:
        groups: of `parameter_groups`.
        optimizer: its name is adamw or sgd (fused), or timm:NAME or timm:NAME(key=value) for one of timm's.
        peak_lr: the highest learning rate, which some of timm's scale their decay by; None takes `optimizer.lr`.

    Raises:
        ConfigError: timm has no such optimizer, it can't be built, or it needs second derivatives.
    """
    if optimizer.name.startswith(TIMM):
        return _build_timm(groups, optimizer, optimizer.lr if peak_lr is None else peak_lr)
    if optimizer.name == "sgd":
        momentum = optimizer.momentum
        return torch.optim.SGD(groups, lr=optimizer.lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    betas = (optimizer.beta1, optimizer.beta2)
    return torch.optim.AdamW(groups, lr=optimizer.lr, betas=betas, eps=optimizer.eps, fused=True)


def num_states(optimizer: Optimizer) -> int:
    """Return how many numbers an optimizer keeps for each trained one: 2 for adamw, 1 for sgd with momentum, ...

    Counted after a step on a small matrix: timm's optimizers do not declare it. Some keep less for a large matrix.
    """
    parameter = nn.Parameter(torch.zeros(8, 8))
    built = build_optimizer([{"params": [parameter]}], optimizer)
    parameter.grad = torch.zeros_like(parameter)
    # Some of timm's compile their step, which takes a minute; else the compiler is not imported, which takes seconds.
    timm = optimizer.name.startswith(TIMM)
    with torch.compiler.set_stance("force_eager") if timm else contextlib.nullcontext():
        built.step()
    state = built.state[parameter].values()
    return sum(isinstance(value, torch.Tensor) and value.shape == parameter.shape for value in state)


def _build_timm(groups: list[dict], optimizer: Optimizer, lr: float) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

    name, arguments = split_call(optimizer.name.removeprefix(TIMM), "optimizer.name")
    if name.lower().startswith("lookahead_"):
        problem = f"optimizer.name: {name} keeps slow weights, which a checkpoint does not hold: no run would resume."
        raise ConfigError(problem, remedy=f"Choose timm:{name[10:]}; ema.decay averages weights too.")
    known = name.lower()
    if known not in list_optimizers():
        near = difflib.get_close_matches(known, [str(one) for one in list_optimizers()], n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else "timm.optim.list_optimizers() lists them."
        raise ConfigError(f"optimizer.name: expected an optimizer of timm, got {name!r}.", remedy=hint)
    if get_optimizer_info(known).second_order:
        problem = f"optimizer.name: {name} needs second derivatives, which training does not compute."
        raise ConfigError(problem, remedy="Choose another, for example timm:lamb.")
    how: dict[str, Any] = {"weight_decay": optimizer.weight_decay, "momentum": optimizer.momentum, **arguments}
    try:
        built = create_optimizer_v2(groups, opt=name, lr=lr, **how)
    except Exception as error:  # each has its own arguments, and some need packages
        problem = f"optimizer.name: timm could not build {optimizer.name}: {type(error).__name__}: {error}."
        raise ConfigError(problem, remedy="Correct its arguments, or choose another.") from error
    return with_fast_products(built)


def set_lr(optimizer: torch.optim.Optimizer, lr: float, *, head_only: bool = False) -> None:
    """Set the learning rate of every group; with `head_only` only the head is trained."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"] if group["is_head"] or not head_only else 0.0


def grad_norm(parameters: list[nn.Parameter]) -> torch.Tensor:
    """Return the norm of all gradients; non-finite if one of them is."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer's state as named tensors: `<parameter>/<what>`, and `group:<index>/<what>`.

    A number ends with its type, `#float` or `#int`; an item of a list with its place, `@0`.

    Raises:
        ConfigError: a state that is neither tensor nor number.
    """
    tensors: dict[str, torch.Tensor] = {}
    for index, group in enumerate(optimizer.param_groups):
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for what, value in optimizer.state.get(parameter, {}).items():
                tensors |= _tensors_of(f"{name}/{what}", value)
        for what, value in group.items():
            # Some of timm's count the steps of a group.
            counted = isinstance(value, int | float | torch.Tensor) and not isinstance(value, bool)
            if what not in _GROUP_SETTINGS and counted and value != optimizer.defaults.get(what):
                tensors |= _tensors_of(f"group:{index}/{what}", value)
    return tensors


def _tensors_of(name: str, value: Any) -> dict[str, torch.Tensor]:
    if value is None:
        return {}
    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, bool | int | float):
        kind = type(value).__name__
        dtype = torch.float64 if kind == "float" else torch.int64
        return {f"{name}#{kind}": torch.tensor(value, dtype=dtype)}
    if isinstance(value, list | tuple):
        items = [_tensors_of(f"{name}@{index}", item) for index, item in enumerate(value)]
        return {key: tensor for item in items for key, tensor in item.items()}
    problem = f"optimizer.name: its state {name} is {type(value).__name__}, which a checkpoint can't hold."
    raise ConfigError(problem, remedy="Choose another optimizer.")


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Load the tensors that `optimizer_tensors` returned."""
    parameters = {n: p for g in optimizer.param_groups for n, p in zip(g["names"], g["params"], strict=True)}
    for key, tensor in sorted(tensors.items(), key=lambda item: int(item[0].partition("@")[2].partition("#")[0] or 0)):
        name, _, what = key.rpartition("/")
        what, _, kind = what.partition("#")
        what, _, place = what.partition("@")  # items of a list come in their order
        group = optimizer.param_groups[int(name[6:])] if name.startswith("group:") else None
        state: dict = optimizer.state[parameters[name]] if group is None else group
        value: Any = tensor
        if kind:
            value = _NUMBERS[kind](tensor.item())
        elif group is None:
            value = _like(tensor, parameters[name])
        if not place:
            state[what] = value
        elif place == "0":
            state[what] = [value]
        else:
            state[what].append(value)


def _like(value: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """A tensor of the state on the parameter's device and in its memory layout."""
    # The step counter of a fused optimizer lives on the parameter's device too.
    value = value.to(parameter.device, sum_dtype(parameter.device) if value.dtype == torch.float64 else value.dtype)
    if value.shape != parameter.shape:
        return value
    # A fused update walks through memory: it must lie there as the parameter does, channels last or not.
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def chosen_class_weights(
    wanted: bool | tuple[float, ...], labels: Callable[[], list[int]], num_classes: int
) -> torch.Tensor | None:
    """Return the class weights (K) of `optimizer.class_weights`; None if it sets none.

    Raises:
        ConfigError: a list with another number of weights than classes, or one below 0.
    """
    if isinstance(wanted, bool):
        return class_weights(labels(), num_classes) if wanted else None
    if len(wanted) != num_classes or min(wanted) < 0 or not max(wanted):
        problem = f"optimizer.class_weights: expected {num_classes} weights of 0 or more, got {list(wanted)}."
        raise ConfigError(problem, remedy="Give one for each class, in the order of the class names, or true.")
    return torch.tensor(wanted)


def class_weights(labels: list[int], num_classes: int) -> torch.Tensor:
    """Return weights (K), images / (classes * images of the class): mean 1 over the samples; 0 for an absent class."""
    counts = torch.bincount(torch.tensor(labels), minlength=num_classes).double()
    weights = len(labels) / ((counts > 0).sum() * counts)
    return torch.where(counts > 0, weights, 0.0).float()


def read_factor(text: str) -> tuple[str, float]:
    """Return pattern and factor of a text such as blocks.*=0.1. Raises ConfigError for other text."""
    pattern, equals, factor = text.rpartition("=")
    try:
        value = float(factor)
    except ValueError:
        value = -1.0
    if not equals or not 0 <= value < float("inf"):
        problem = f"optimizer.lr_factors: expected PATTERN=FACTOR, the factor 0 or more, got {text!r}."
        raise ConfigError(problem, remedy="For example 'blocks.*=0.1'.")
    return pattern, value


def _require_match(setting: str, pattern: str, names: Sequence[str]) -> None:
    if not any(fnmatchcase(name, pattern) for name in names):
        near = difflib.get_close_matches(pattern, names, n=2, cutoff=0.3) or names[:2]
        problem = f"{setting}: no parameter name matches {pattern!r}."
        raise ConfigError(problem, remedy=f"Names are {' and '.join(near)}, for example; * matches any text.")
