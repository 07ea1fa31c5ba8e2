"""Training batches from any step to any step: the order followed, each sample seeded, workers started once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from deepcait.data.augment import Augmentation, Changed, collate
from deepcait.data.dataset import RaisingLoader
from deepcait.data.order import Order, ReplicaBatches, Slot
from deepcait.data.seeding import derive_seed, seed_sample
from deepcait.data.source import Source
from deepcait.data.workers import start_worker, worker_context
from deepcait.errors import ImageError, RunError


class TrainingSet(Dataset[tuple[Tensor, int]]):
    """The samples of a source, augmented as their slot in the order says.

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
        """The same before it is normalised: what workers send."""
        sample = self.source.read(slot.index)
        name = self.source.locate(slot.index)
        assert sample.label is not None, "training sources are labelled: see require_labels"
        seed_sample(derive_seed("sample", self.seed, slot.epoch, slot.position))
        return self.transform.read(sample.data, name), sample.label


class _Changing(Dataset[tuple[Changed, int]]):
    """A training set whose pictures are normalised later, a batch at a time."""

    def __init__(self, samples: TrainingSet) -> None:
        self.source = samples.source
        self.samples = samples

    def __getitem__(self, index: Slot) -> tuple[Changed, int]:
        return self.samples.change(index)


class Unreadable(NamedTuple):
    """A picture that could not be read, and why."""

    path: str
    problem: str


class Skipping(Dataset[tuple[Changed, int, list[Unreadable]]]):
    """A training set where the place of an unreadable picture is taken by the next readable one of the row.

    So what stands in a slot still follows from the slot and the files alone; it is augmented with the slot's seed.

    Args:
        samples: the training set.
        order: of the run.
        max_errors: so many unreadable pictures in a row are passed over.
    """

    def __init__(self, samples: TrainingSet, order: Order, max_errors: int) -> None:
        self.source = samples.source
        self.samples = samples
        self.order = order
        self.max_errors = max_errors

    def __getitem__(self, index: Slot) -> tuple[Changed, int, list[Unreadable]]:
        """Return image (not normalised yet), label, and what was passed over. Raises RunError when that is too much."""
        passed_over: list[Unreadable] = []
        for candidate in self.order.from_slot_on(index):
            try:
                return (*self.samples.change(index._replace(index=candidate)), passed_over)
            except ImageError as error:
                passed_over.append(Unreadable(self.source.locate(candidate), error.problem))
            if len(passed_over) > self.max_errors:
                break
        raise too_many_unreadable([one.path for one in passed_over], self.max_errors)


def too_many_unreadable(paths: Sequence[str], max_errors: int) -> RunError:
    """The error of a run whose budget of unreadable pictures is used up; it names them."""
    named = ", ".join(paths[:16]) + (" ..." if len(paths) > 16 else "")
    return RunError(
        f"data.max_errors: expected at most {max_errors} unreadable training images, got {len(paths)}: {named}.",
        remedy="`deepcait doctor --data D --fix-list FILE` lists them; start anew with data.exclude=FILE, or "
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

    Pictures travel as 8-bit pixels, from worker to process and on to the device; a batch is normalised there.
    One loader serves the whole run, so workers start once and no epoch begins with an empty queue.
    With `on_unreadable` unreadable pictures are replaced as `Skipping` does, and told to it as their batch is taken.

    Raises:
        ImageError: while iterating, names a picture that can't be read; without `on_unreadable`.
        RunError: while iterating, more than `max_errors` unreadable pictures in a row.
        DataError: while iterating, names the picture with which a worker process died.
    """
    return iter(
        training_loader(
            samples if on_unreadable is None else Skipping(samples, order, max_errors),
            ReplicaBatches(order, replicas, first_step, last_step),
            num_workers=num_workers,
            pin_memory=pin_memory,
            device=device,
            on_unreadable=on_unreadable,
        )
    )


def training_loader(
    samples: Dataset,
    batches: Iterable[list[Slot]],
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
    device: torch.device | str = "cpu",
    on_unreadable: Callable[[Unreadable], None] | None = None,
) -> RaisingLoader:
    """Return the loader behind `training_batches`: the batches of slots that it is given, each time it is iterated."""
    changing = _Changing(samples) if isinstance(samples, TrainingSet) else samples
    transform = getattr(getattr(changing, "samples", changing), "transform", None)
    place = torch.device(device)
    tell = on_unreadable or (lambda unreadable: None)

    def finish(batch: tuple) -> tuple[Tensor, Tensor]:
        images, labels, passed_over = batch
        for one in passed_over:
            tell(Unreadable(*one))
        if isinstance(transform, Augmentation):
            pixels, *erased = images
            images = transform.finish(Changed(pixels.to(place, non_blocking=True), *erased))
        return images.to(place, non_blocking=True), labels

    return RaisingLoader(
        changing,
        collate_fn=_collate,
        finish=finish,
        batch_sampler=batches,
        num_workers=num_workers,
        worker_init_fn=start_worker,
        multiprocessing_context=worker_context() if num_workers else None,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        prefetch_factor=4 if num_workers else None,
    )


def _collate(items: list[tuple]) -> tuple:
    """Batch of images, labels, and what was passed over, where the items say so."""
    images, labels, *passed_over = zip(*items, strict=True)
    batch = collate(images) if isinstance(images[0], Changed) else default_collate(list(images))
    return batch, torch.tensor(labels), [one for several in passed_over for row in several for one in row]
