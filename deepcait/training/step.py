"""One optimizer step: forward and backward pass of every replica, all-reduce, guard, update."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deepcait.data.mixing import Mixer
from deepcait.data.seeding import derive_seed
from deepcait.runtime.device import autocast, sum_dtype
from deepcait.runtime.processes import Processes
from deepcait.training.losses import build_loss
from deepcait.training.optimizer import grad_norm, set_lr
from deepcait.training.recipe import Recipe
from deepcait.training.teacher import Teacher


@dataclass(frozen=True)
class StepResult:
    """Result of a step, over all replicas of all processes.

    loss: mean over the images. correct: mean target mass on the predicted class. grad_norm: before clipping.
    updated: False if the guard skipped the update. stop: a stop of some process was requested.
    """

    loss: float
    correct: float
    grad_norm: float
    updated: bool
    stop: bool


class Stepper:
    """Takes optimizer steps.

    Args:
        net: the model, compiled and wrapped for several processes or not.
        optimizer: over the model's parameters.
        scaler: of gradients, enabled for fp16 only.
        mixer: of a replica's batch.
        recipe: loss, precision, clipping, seed.
        processes: who computes what.
        teacher: of distillation.
        class_weights_K: weight of each class in the label's loss.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        mixer: Mixer,
        recipe: Recipe,
        processes: Processes,
        *,
        teacher: Teacher | None = None,
        class_weights_K: Tensor | None = None,
    ) -> None:
        self.net = net
        self.optimizer = optimizer
        self.scaler = scaler
        self.mixer = mixer
        self.recipe = recipe
        self.processes = processes
        self.teacher = teacher
        t = recipe.teacher
        how = {"kind": t.kind, "alpha": t.alpha, "tau": t.tau, "label_smoothing": recipe.mix.label_smoothing}
        self.loss = build_loss(recipe.loss, class_weights_K, **how)
        self.replicas = processes.share_of(recipe.replicas)
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        self.device, self.dtype = self.parameters[0].device, self.parameters[0].dtype

    def __call__(self, step: int, batches: Iterator, lr: float, *, head_only: bool, stop: bool) -> StepResult:
        """Run the step with this number; `batches` yields one batch for each replica of this process."""
        set_lr(self.optimizer, lr, head_only=head_only)
        self.optimizer.zero_grad(set_to_none=True)
        sums_3 = torch.zeros(3, dtype=sum_dtype(self.device), device=self.device)
        for replica in self.replicas:
            images_BCHW, labels_B = next(batches)
            sums_3[:2] += self._replica(step, replica, images_BCHW, labels_B)
        sums_3[2].fill_(float(stop))  # an assignment would copy the number, and wait for the copy
        sums_3 = self.processes.sum(sums_3)
        self.scaler.unscale_(self.optimizer)
        norm = grad_norm(self.parameters)
        # The one value of the step that the host waits for; until here a GPU has all work in its queue.
        loss, correct, asked, norm_value = torch.cat([sums_3, norm.to(sums_3.dtype)[None]]).tolist()
        loss, correct = loss / self.recipe.replicas, correct / self.recipe.replicas
        updated = math.isfinite(loss) and math.isfinite(norm_value)
        if updated and self.recipe.optimizer.clip_norm:
            nn.utils.clip_grads_with_norm_(self.parameters, self.recipe.optimizer.clip_norm, norm)
        if updated:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        stop = asked > 0 if self.processes.world_size > 1 else stop
        return StepResult(loss, correct, norm_value, updated, stop)

    def warm_up_ddp(self, images_BCHW: Tensor) -> None:
        """Make a dummy all-reduce, so that every step of this process adds gradients up in the same order.

        DistributedDataParallel regroups its buckets after the first exchange. With three processes or more the
        groups decide the order of a sum: without this the first step after a resumption would round otherwise.

        Args:
            images_BCHW: a replica's batch of any content.
        """
        if not isinstance(self.net, DistributedDataParallel):
            return
        self.net.train()
        with autocast(self.recipe.compute.precision, self.device.type):
            logits_BK = self.net(images_BCHW.to(self.device, self.dtype))
        (logits_BK.sum() * 0.0).backward()
        self.optimizer.zero_grad(set_to_none=True)

    def _replica(self, step: int, replica: int, images_BCHW: Tensor, labels_B: Tensor) -> Tensor:
        """Forward and backward pass of one replica; returns loss and mean target mass on the predicted class, (2,)."""
        images_BCHW = images_BCHW.to(self.device, self.dtype, non_blocking=True)
        labels_B = labels_B.to(self.device, non_blocking=True)
        if self.recipe.compute.channels_last:
            images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        # Seeds the mixing and, right after it, stochastic depth.
        seed = derive_seed("replica", self.recipe.seed, step, replica)
        images_BCHW, targets_BK = self.mixer(images_BCHW, labels_B, seed)
        with self._synchronised(replica):
            with autocast(self.recipe.compute.precision, self.device.type):
                teacher_BK = self.teacher(images_BCHW) if self.teacher else None
                logits_BK = self.net(images_BCHW)
                loss = self.loss(logits_BK, targets_BK, teacher_BK)
            # DistributedDataParallel takes the mean over processes; we want the mean over replicas.
            share = self.processes.world_size / self.recipe.replicas
            self.scaler.scale(loss * share).backward()
        correct = targets_BK.gather(1, logits_BK.detach().argmax(1, keepdim=True)).mean()
        return torch.stack([loss.detach(), correct]).to(sum_dtype(self.device))

    def _synchronised(self, replica: int) -> contextlib.AbstractContextManager:
        # Gradients are exchanged once a step, with the last replica.
        last = replica == self.replicas[-1]
        if isinstance(self.net, DistributedDataParallel) and not last:
            return self.net.no_sync()
        return contextlib.nullcontext()
