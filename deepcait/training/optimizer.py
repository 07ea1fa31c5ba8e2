"""Which parameters move, how fast, and with how much decay; and the optimizer that moves them."""

from __future__ import annotations

import torch
from torch import nn

from deepcait.model.network import Network
from deepcait.training.settings import Optimizer


def freeze(model: Network, train: str) -> None:
    """Leave only some parameters trainable: "all", "head", or "attention" (self- and class attention, and the head)."""
    for name, parameter in model.named_parameters():
        wanted = train == "all" or name.startswith("head.") or (train == "attention" and ".attn." in name)
        parameter.requires_grad_(wanted)


def layer_of(name: str, depth: int) -> int:
    """Return which layer a parameter belongs to: 0 the embedding, 1..depth the patch blocks, depth + 1 the rest.

    The class stage, the last norm and the head are one layer: they read the image, whatever the depth.
    """
    part, _, rest = name.partition(".")
    if part in ("cls_token", "pos_embed", "patch_embed"):
        return 0
    return int(rest.partition(".")[0]) + 1 if part == "blocks" else depth + 1


def parameter_groups(model: Network, optimizer: Optimizer) -> list[dict]:
    """Return the optimizer's groups, each of one layer's rate and one decay.

    Not decayed: vectors, biases, the class token and positions (so LayerScale's gammas are not, the head-mixing
    matrices are). Each group carries `lr_scale`, the factor of its learning rate, and `is_head`.
    """
    depth = model.config.depth
    groups: dict[tuple, dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and not name.endswith(".bias") and name not in model.no_weight_decay()
        lr_scale = optimizer.layer_decay ** (depth + 1 - layer_of(name, depth))
        is_head = name.startswith("head.")
        weight_decay = optimizer.weight_decay if decays else 0.0
        key = (lr_scale, weight_decay, is_head)
        settings = {"params": [], "names": [], "lr_scale": lr_scale, "weight_decay": weight_decay, "is_head": is_head}
        group = groups.setdefault(key, settings)
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def build_optimizer(groups: list[dict], optimizer: Optimizer) -> torch.optim.Optimizer:
    """Return fused AdamW or SGD over these groups; their learning rates are set every step."""
    if optimizer.name == "sgd":
        momentum = optimizer.momentum
        return torch.optim.SGD(groups, lr=optimizer.lr, momentum=momentum, nesterov=momentum > 0, fused=True)
    betas = (optimizer.beta1, optimizer.beta2)
    return torch.optim.AdamW(groups, lr=optimizer.lr, betas=betas, eps=optimizer.eps, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float, *, head_only: bool = False) -> None:
    """Set the rate of every group; with `head_only` everything but the head stands still."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"] if group["is_head"] or not head_only else 0.0


def grad_norm(parameters: list[nn.Parameter]) -> torch.Tensor:
    """Return the norm of all gradients together; not finite as soon as one of them is not."""
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer's state as named tensors, `<parameter>/<what>`."""
    tensors = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for what, value in optimizer.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"{name}/{what}"] = torch.as_tensor(value)
    return tensors


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    parameters = {n: p for g in optimizer.param_groups for n, p in zip(g["names"], g["params"], strict=True)}
    for key, value in tensors.items():
        name, _, what = key.rpartition("/")
        parameter = parameters[name]
        # The step counter of a fused optimizer lives on the parameter's device too.
        value = value.to(parameter.device)
        if value.shape == parameter.shape:
            # A fused update walks through memory: it must lie there as the parameter does, channels last or not.
            value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        optimizer.state[parameter][what] = value


def class_weights(labels: list[int], num_classes: int) -> torch.Tensor:
    """Return weights (K), images / (classes * images of the class): mean 1 over the samples; 0 for an absent class."""
    counts = torch.bincount(torch.tensor(labels), minlength=num_classes).double()
    weights = len(labels) / ((counts > 0).sum() * counts)
    return torch.where(counts > 0, weights, 0.0).float()
