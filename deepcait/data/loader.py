"""Training batches between any two steps: in the run's order, each sample seeded, workers started once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from deepcait.data.augment import Augmentation, Changed, collate
from deepcait.data.dataset import RaisingLoader
from deepcait.data.order import Order, ReplicaBatches, Slot
from deepcait.data.seeding import derive_seed, seed_sample
from deepcait.data.source import Source, options_of
from deepcait.data.workers import start_worker, worker_context
from deepcait.errors import ImageError, RunError

# Batches that each worker reads ahead.
_PREFETCHED = 4


class TrainingSet(Dataset[tuple[Tensor, int]]):
    """The samples of a source, augmented with the seed of their slot in the order.

    The randomness of a sample depends on (seed, epoch, position) and on nothing else: not on the worker, the
    process, or what was read before.

    Args:
        source: where bytes and labels come from.
        transform: draws from the global generators.
        seed: of the run.
    """

    def __init__(self, source: Source, transform: Augmentation, seed: int) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed

    def __getitem__(self, index: Slot) -> tuple[Tensor, int]:
        """Return the augmented image (C, H, W) of a slot and its label."""
        changed, label = self.change(index)
        return self.transform.finish(changed), label

    def change(self, slot: Slot) -> tuple[Changed, int]:
        """Return the image before normalisation, as workers send it, and its label."""
        sample = self.source.read(slot.index)
        name = self.source.locate(slot.index)
        assert sample.label is not None, "training sources are labelled: see require_labels"
        seed_sample(derive_seed("sample", self.seed, slot.epoch, slot.position))
        return self.transform.read(sample.data, name, options_of(self.source)), sample.label


class Unreadable(NamedTuple):
    """An image that could not be read, and why."""

    path: str
    problem: str


class SlotReader(Dataset[tuple[Changed, int, list[Unreadable]]]):
    """What loader workers read: the image of a slot before it is normalised, its label, and the images skipped.

    Args:
        samples: the training set.
        order: if given, an unreadable image is replaced by the next readable one of the order's row, augmented with
            the slot's seed: what a slot holds follows from the slot and the files alone.
        max_errors: how many unreadable images in a row may be skipped.
    """

    def __init__(self, samples: TrainingSet, order: Order | None = None, max_errors: int = 0) -> None:
        self.source = samples.source
        self.samples = samples
        self.order = order
        self.max_errors = max_errors

    def __getitem__(self, index: Slot) -> tuple[Changed, int, list[Unreadable]]:
        """Return image, label and what was skipped. Raises ImageError without an order, RunError for too many."""
        if self.order is None:
            return (*self.samples.change(index), [])
        skipped: list[Unreadable] = []
        for candidate in self.order.from_slot_on(index):
            try:
                return (*self.samples.change(index._replace(index=candidate)), skipped)
            except ImageError as error:
                skipped.append(Unreadable(self.source.locate(candidate), error.problem))
            if len(skipped) > self.max_errors:
                break
        raise too_many_unreadable([one.path for one in skipped], self.max_errors)


def too_many_unreadable(paths: Sequence[str], max_errors: int) -> RunError:
    """Return the error of a run with too many unreadable images; it names them."""
    named = ", ".join(paths[:16]) + (" ..." if len(paths) > 16 else "")
    return RunError(
        f"data.max_errors: expected at most {max_errors} unreadable training images, got {len(paths)}: {named}.",
        remedy="`deepcait doctor --data D --fix-list FILE` lists them; start again with data.exclude=FILE, or "
        "--resume with a larger data.max_errors.",
    )


def training_batches(
    samples: TrainingSet,
    order: Order,
    *,
    replicas: Sequence[int],
    first_step: int,
    last_step: int,
    num_workers: int = 0,
    pin_memory: bool = False,
    on_unreadable: Callable[[Unreadable], None] | None = None,
    max_errors: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (B, C, H, W) on the device and labels (B) for each step and each of these replicas, in order.

    Images travel as 8-bit pixels, from worker to process and on to the device; a batch is normalised there.
    One loader serves the whole run, so workers start once and no epoch begins with an empty queue.
    With `on_unreadable` unreadable images are replaced as `SlotReader` does, and passed to it with their batch.

    Raises:
        ImageError: while iterating, names an image that can't be read; without `on_unreadable`.
        RunError: while iterating, more than `max_errors` unreadable images in a row.
        DataError: while iterating, names the image with which a worker process died.
    """
    return iter(
        training_loader(
            SlotReader(samples, order if on_unreadable else None, max_errors),
            ReplicaBatches(order, replicas, first_step, last_step),
            num_workers=num_workers,
            pin_memory=pin_memory,
            device=device,
            on_unreadable=on_unreadable,
        )
    )


def shared_bytes(num_workers: int, batch_bytes: int) -> int:
    """Return the shared memory that batches on their way from workers take at most, with the one that is used."""
    return (_PREFETCHED * num_workers + 1) * batch_bytes if num_workers else 0


def training_loader(
    reader: SlotReader,
    batches: Iterable[list[Slot]],
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
    device: torch.device | str = "cpu",
    on_unreadable: Callable[[Unreadable], None] | None = None,
) -> RaisingLoader:
    """Return the loader behind `training_batches`, which reads the given batches each time it is iterated."""

    def finish(batch: tuple[Changed, Tensor, list[Unreadable]]) -> tuple[Tensor, Tensor]:
        changed, labels, skipped = batch
        if on_unreadable is not None:
            for one in skipped:
                on_unreadable(Unreadable(*one))
        pixels = changed.pixels.to(device, non_blocking=True)
        return reader.samples.transform.finish(changed._replace(pixels=pixels)), labels

    return RaisingLoader(
        reader,
        finish=finish,
        collate_fn=_collate,
        batch_sampler=batches,
        num_workers=num_workers,
        worker_init_fn=start_worker,
        multiprocessing_context=worker_context(reader) if num_workers else None,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        prefetch_factor=_PREFETCHED if num_workers else None,
    )


def _collate(items: list[tuple[Changed, int, list[Unreadable]]]) -> tuple[Changed, Tensor, list[Unreadable]]:
    images, labels, skipped = zip(*items, strict=True)
    return collate(images), torch.tensor(labels), [one for several in skipped for one in several]
