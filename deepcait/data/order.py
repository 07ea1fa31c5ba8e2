"""The order of training data as a pure function of (seed, epoch, position).

The samples of an epoch are permuted, each repeated `repeats` times in a row, and distributed in turn to the
replicas: position q of the dealt row belongs to replica q mod R. A replica corresponds to one GPU of the
paper. One step takes the next G / R cards of every replica. So copies of one image fall to different
replicas, and neither the number of processes nor a restart can change which samples a replica gets.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from deepcait.data.seeding import derive_seed
from deepcait.errors import ConfigError, together


class Slot(NamedTuple):
    """One position in the order of training: epoch, position within it, and sample."""

    epoch: int
    position: int
    index: int


@dataclass(frozen=True)
class Order:
    """The order of one training run.

    Args:
        num_samples: samples in the training set.
        global_batch_size: G, images of one optimizer step over all replicas.
        replicas: R, forward passes that make one step; divides G.
        repeats: copies of each sample in a row (the paper: 3), each augmented differently.
        seed: of the run.
        class_labels: label of every sample; given, samples are drawn so that classes are equally likely.

    Raises:
        ConfigError: numbers that do not fit together.
    """

    num_samples: int
    global_batch_size: int
    replicas: int = 1
    repeats: int = 1
    seed: int = 0
    class_labels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        errors = []
        if self.global_batch_size % self.replicas:
            problem = f"global_batch_size ({self.global_batch_size}) is not divisible by replicas ({self.replicas})."
            few = [str(n) for n in range(1, self.global_batch_size + 1) if self.global_batch_size % n == 0][:8]
            remedy = f"Set replicas to one of {', '.join(few)}, or change global_batch_size."
            errors.append(ConfigError(problem, remedy=remedy))
        if 1 < self.repeats > self.replicas:
            problem = f"augment.repeats ({self.repeats}) must not exceed replicas ({self.replicas})."
            remedy = f"Set replicas={self.repeats} or augment.repeats=1; each copy of an image goes to another replica."
            errors.append(ConfigError(problem, remedy=remedy))
        if errors:
            raise together(errors)

    @property
    def replica_batch_size(self) -> int:
        """Images of one forward pass."""
        return self.global_batch_size // self.replicas

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch: about as many images as there are samples, at least one step."""
        return max(1, self.num_samples // self.global_batch_size)

    def slots(self, step: int, replica: int) -> list[Slot]:
        """Return what a replica computes in a step, in order."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        permutation = self._permutation(epoch)
        first = step_in_epoch * self.replica_batch_size
        positions = range(first, first + self.replica_batch_size)
        dealt = [position * self.replicas + replica for position in positions]
        return [Slot(epoch, q, permutation[(q // self.repeats) % self.num_samples]) for q in dealt]

    def from_slot_on(self, slot: Slot) -> Iterator[int]:
        """Yield the sample of a slot, then the following ones of its epoch, cyclically, each once."""
        permutation = self._permutation(slot.epoch)
        first = slot.position // self.repeats
        for number in range(first, first + self.num_samples):
            yield permutation[number % self.num_samples]

    def _permutation(self, epoch: int) -> list[int]:
        if epoch not in self._drawn:
            self._drawn.clear()  # only one epoch is used at a time
            generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
            if self.class_labels is None:
                drawn = torch.randperm(self.num_samples, generator=generator)
            else:
                # torch.multinomial is limited to 2^24 samples; this is its algorithm.
                draws = torch.rand(self.num_samples, generator=generator, dtype=torch.float64)
                drawn = torch.searchsorted(self._reach, draws).clamp_(max=self.num_samples - 1)
            self._drawn[epoch] = drawn.tolist()
        return self._drawn[epoch]

    @functools.cached_property
    def _drawn(self) -> dict[int, list[int]]:
        return {}

    @functools.cached_property
    def _reach(self) -> torch.Tensor:
        """Cumulative sampling probability: inverse to the class size, so that classes are equally likely."""
        labels = torch.tensor(self.class_labels)
        chance = 1.0 / torch.bincount(labels).double()[labels]
        return chance.cumsum(0) / chance.sum()


class ReplicaBatches:
    """All batches between two steps for the replicas of one process; the batch sampler of the loader.

    Starting late costs nothing: skipped steps are not computed, let alone read.
    """

    def __init__(self, order: Order, replicas: Sequence[int], first_step: int, last_step: int) -> None:
        self.order = order
        self.replicas = replicas
        self.steps = range(first_step, last_step)

    def __iter__(self) -> Iterator[list[Slot]]:
        for step in self.steps:
            for replica in self.replicas:
                yield self.order.slots(step, replica)

    def __len__(self) -> int:
        return len(self.steps) * len(self.replicas)
