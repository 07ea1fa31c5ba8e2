"""What training minimises: cross entropy with soft targets, and distillation of a one-head model."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(logits_BK: Tensor, targets_BK: Tensor, class_weights_K: Tensor | None = None) -> Tensor:
    """Return the mean over images of - sum over classes of target * log softmax(logits), in nats.

    Computed in at least float32, whatever precision the logits came in.
    """
    logits_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
    return F.cross_entropy(logits_BK, targets_BK.to(logits_BK.dtype), weight=class_weights_K)


def distillation(
    logits_BK: Tensor,
    targets_BK: Tensor,
    teacher_BK: Tensor,
    *,
    kind: str,
    alpha: float,
    tau: float,
    class_weights_K: Tensor | None = None,
) -> Tensor:
    """Return the loss of a student that listens to its labels and to a teacher with the same head.

        hard:  (1 - alpha) CE(logits, targets) + alpha CE(logits, argmax teacher)
        soft:  (1 - alpha) CE(logits, targets) + alpha tau^2 KL(softmax(teacher / tau) || softmax(logits / tau))

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
    label_term = cross_entropy(logits_BK, targets_BK, class_weights_K)
    logits_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
    if kind == "hard":
        teacher_term = F.cross_entropy(logits_BK, teacher_BK.argmax(dim=-1))
    else:
        teacher_log_BK = (teacher_BK.to(logits_BK.dtype) / tau).log_softmax(-1)
        student_log_BK = (logits_BK / tau).log_softmax(-1)
        teacher_term = tau**2 * F.kl_div(student_log_BK, teacher_log_BK, log_target=True, reduction="batchmean")
    return (1.0 - alpha) * label_term + alpha * teacher_term
