"""Losses: cross-entropy and others with soft targets, and distillation of a model with one head."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcait.errors import ConfigError
from deepcait.parts import Part, blamed, build, is_part, split_call

LOSSES = ("ce", "bce", "focal")
# Of logits (B, K), targets (B, K) and the teacher's logits (B, K), if there is a teacher.
Loss: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class OwnLoss:
    """A user's loss, which also receives the teacher's logits.

    Args:
        part: a callable of (logits, targets, teacher's logits or None) that returns a scalar; a torch module is moved
            to the device of the logits.
        name: of the part, for messages.

    Raises:
        ConfigError: not a callable, or a module with a trainable parameter or a state that is not a tensor.
    """

    def __init__(self, part: Callable[..., Tensor], name: str) -> None:
        if not callable(part):
            problem = f"loss {name}: expected a callable of (logits, targets, teacher), got {type(part).__name__}."
            raise ConfigError(problem, remedy="Let the factory return one, for example a torch module.")
        if isinstance(part, nn.Module):
            _require_storable(part, name)
        self.part = part
        self.name = name

    @property
    def module(self) -> nn.Module | None:
        """The part if it is a torch module, whose state a checkpoint holds."""
        return self.part if isinstance(self.part, nn.Module) else None

    def __call__(self, logits_BK: Tensor, targets_BK: Tensor, teacher_BK: Tensor | None) -> Tensor:
        """Return the loss, a scalar; logits are at least float32.

        Raises:
            ConfigError: the part fails, or returns something else.
        """
        logits_BK = _float(logits_BK)
        if isinstance(self.part, nn.Module):
            self.part.to(logits_BK.device)
        with blamed(f"loss {self.name}"):
            loss = self.part(logits_BK, targets_BK.to(logits_BK.dtype), teacher_BK)
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"a tensor of {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ConfigError(f"loss {self.name}: expected a scalar tensor, got {got}.", remedy="Return its mean.")
        return loss


def _build_own(name: str) -> Callable[..., Tensor]:
    """The part of this name; a module given as an object is copied, as a network is: another run begins as this one."""
    part = build(name, "loss")
    if isinstance(part, nn.Module) and isinstance(name, Part) and name.arguments is None:
        with blamed(f"loss {name}: copying it"):
            return copy.deepcopy(part)
    return part


def _require_storable(part: nn.Module, name: str) -> None:
    """Raise unless a run can restore the module: the optimizer has only the parameters of the network."""
    trainable = [key for key, parameter in part.named_parameters() if parameter.requires_grad]
    if trainable:
        raise ConfigError(
            f"loss {name}: its parameter {trainable[0]} would not be trained, only those of the network are.",
            remedy="Make it a buffer (register_buffer), freeze it (requires_grad_(False)), or put it into the network.",
        )
    other = [key for key, value in part.state_dict().items() if not isinstance(value, Tensor)]
    if other:
        problem = f"loss {name}: expected a state of tensors, which a checkpoint can hold, got another {other[0]}."
        raise ConfigError(problem, remedy="Keep it in a buffer (register_buffer).")


def build_loss(
    name: str, class_weights_K: Tensor | None = None, *, label_smoothing: float = 0.0, **settings: Any
) -> Loss:
    """Return a loss by its name.

    Args:
        name: ce, bce, focal or focal(gamma=2.0), or a user-defined part.
        class_weights_K: weight of each class in the label's term.
        label_smoothing: of the targets, which bce does without.
        settings: kind, alpha and tau of `distillation`, which adds a teacher's term to a loss of ours.

    Raises:
        ConfigError: no such loss, or arguments that it does not take.
    """
    if is_part(name):
        if class_weights_K is not None:
            problem = f"optimizer.class_weights: expected false with the loss {name}, got true."
            raise ConfigError(problem, remedy="A user-defined loss has to weight the classes itself.")
        return OwnLoss(_build_own(name), name)
    kind, arguments = split_call(name, "loss")
    functions = {"ce": cross_entropy, "bce": binary_cross_entropy, "focal": focal}
    if kind not in functions or arguments.keys() - ({"gamma"} if kind == "focal" else set()):
        raise ConfigError(
            f"loss: expected {', '.join(LOSSES)}, focal(gamma=2.0) or python:package.module:factory, got {name!r}.",
            remedy="Choose one.",
        )
    if kind == "bce" and label_smoothing:
        problem = f"loss: bce takes every target above 0 as 1, got mix.label_smoothing={label_smoothing:g}."
        raise ConfigError(problem, remedy="Set mix.label_smoothing=0.")
    label_loss = functools.partial(functions[kind], **arguments)

    def loss(logits_BK: Tensor, targets_BK: Tensor, teacher_BK: Tensor | None) -> Tensor:
        if teacher_BK is None:
            return label_loss(logits_BK, targets_BK, class_weights_K)
        how = settings | {"class_weights_K": class_weights_K, "label_loss": label_loss}
        return distillation(logits_BK, targets_BK, teacher_BK, **how)

    return loss


def cross_entropy(logits_BK: Tensor, targets_BK: Tensor, class_weights_K: Tensor | None = None) -> Tensor:
    """Return the mean over images of - sum over classes of target * log softmax(logits), in nats.

    Computed in at least float32, whatever precision the logits came in.
    """
    logits_BK = _float(logits_BK)
    return F.cross_entropy(logits_BK, targets_BK.to(logits_BK.dtype), weight=class_weights_K)


def binary_cross_entropy(logits_BK: Tensor, targets_BK: Tensor, class_weights_K: Tensor | None = None) -> Tensor:
    """Return the mean binary cross-entropy over images and classes; every mixed class is a full target.

    Source: Touvron et al. 2022 (DeiT III), arXiv:2204.07118, section 3.2, and its code: targets above 0 count as 1,
        so there is no label smoothing in addition.
    """
    logits_BK = _float(logits_BK)
    return F.binary_cross_entropy_with_logits(logits_BK, (targets_BK > 0).to(logits_BK.dtype), weight=class_weights_K)


def focal(
    logits_BK: Tensor, targets_BK: Tensor, class_weights_K: Tensor | None = None, *, gamma: float = 2.0
) -> Tensor:
    """Return the mean over images of - sum over classes of target * (1 - p)^gamma * log p, p the softmax of the logits.

    Source: Lin et al. 2017, arXiv:1708.02002, there with a sigmoid for each class; gamma 0 is cross-entropy.
    """
    log_p_BK = _float(logits_BK).log_softmax(-1)
    # Above 0, where the power of a gamma below 1 has no derivative.
    rest_BK = (1 - log_p_BK.exp()).clamp(min=torch.finfo(log_p_BK.dtype).tiny)
    terms_BK = targets_BK.to(log_p_BK.dtype) * rest_BK**gamma * log_p_BK
    if class_weights_K is not None:
        terms_BK = terms_BK * class_weights_K
    return -terms_BK.sum(-1).mean()


def distillation(
    logits_BK: Tensor,
    targets_BK: Tensor,
    teacher_BK: Tensor,
    *,
    kind: str,
    alpha: float,
    tau: float,
    class_weights_K: Tensor | None = None,
    label_loss: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Return the loss of a student that learns from its labels and from a teacher with the same head.

        hard:  (1 - alpha) CE(logits, targets) + alpha CE(logits, argmax teacher)
        soft:  (1 - alpha) CE(logits, targets) + alpha tau^2 KL(softmax(teacher / tau) || softmax(logits / tau))

    CE of the labels may be another `label_loss` of (logits, targets, class_weights_K), None is `cross_entropy`.
    Both terms use the same logits, since CaiT has one class token and one head.

    Source: hard distillation: Touvron et al. 2020 (DeiT), arXiv:2012.12877, two heads there. That CaiT put
    both terms on its one head is inferred, not published: its checkpoints hold one head, and the same group's
    XCiT returns its one output for both terms. tau^2: Hinton et al. 2015, arXiv:1503.02531.
    Deviation: the public DeiT code divides the soft term by B K; we divide by B, so it is K times larger.

    Args:
        logits_BK: the student's.
        targets_BK: distributions, mixed and smoothed.
        teacher_BK: the teacher's logits for the same mixed images.
        kind: "hard" or "soft".
        alpha: weight of the teacher's term, in [0, 1]; the paper's: 0.5.
        tau: temperature, used by "soft".
        class_weights_K: weight of each class in the label's term.
    """
    label_term = (label_loss or cross_entropy)(logits_BK, targets_BK, class_weights_K)
    logits_BK = _float(logits_BK)
    if kind == "hard":
        teacher_term = F.cross_entropy(logits_BK, teacher_BK.argmax(dim=-1))
    else:
        teacher_log_BK = (teacher_BK.to(logits_BK.dtype) / tau).log_softmax(-1)
        student_log_BK = (logits_BK / tau).log_softmax(-1)
        teacher_term = tau**2 * F.kl_div(student_log_BK, teacher_log_BK, log_target=True, reduction="batchmean")
    return (1.0 - alpha) * label_term + alpha * teacher_term


def _float(logits_BK: Tensor) -> Tensor:
    """Logits converted to at least float32."""
    return logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
