"""Training batches from any step to any step: the order followed, each sample seeded, workers started once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.utils.data import Dataset, default_collate

from deepcait.data.dataset import RaisingLoader, worker_context
from deepcait.data.image import open_image
from deepcait.data.order import Order, ReplicaBatches, Slot
from deepcait.data.seeding import derive_seed, seed_everything
from deepcait.data.source import Source
from deepcait.errors import ImageError, RunError


class TrainingSet(Dataset[tuple[Tensor, int]]):
    """The samples of a source, augmented as their slot in the order says.

    The randomness of a sample depends on (seed, epoch, position) and on nothing else: not on the worker, the
    process, or what was read before.

    Args:
        source: where bytes and labels come from.
        transform: a PIL picture in, a tensor (C, H, W) out; may draw from the global generators.
        seed: of the run.
    """

    def __init__(self, source: Source, transform: Callable, seed: int) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed

    def __getitem__(self, index: Slot) -> tuple[Tensor, int]:
        """Return the augmented image (C, H, W) of a slot and its label."""
        slot = index
        sample = self.source.read(slot.index)
        image = open_image(sample.data, name=self.source.locate(slot.index))
        seed_everything(derive_seed("sample", self.seed, slot.epoch, slot.position))
        assert sample.label is not None, "training sources are labelled: see require_labels"
        return self.transform(image), sample.label


class Unreadable(NamedTuple):
    """A picture that could not be read, and why."""

    path: str
    problem: str


class Skipping(Dataset[tuple[Tensor, int, list[Unreadable]]]):
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

    def __getitem__(self, index: Slot) -> tuple[Tensor, int, list[Unreadable]]:
        """Return image, label, and what had to be passed over. Raises RunError when that is too much."""
        passed_over: list[Unreadable] = []
        for candidate in self.order.from_slot_on(index):
            try:
                return (*self.samples[index._replace(index=candidate)], passed_over)
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
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (B, C, H, W) and labels (B) for each step and each of these replicas, in order.

    One loader serves the whole run, so workers start once and no epoch begins with an empty queue.
    With `on_unreadable` unreadable pictures are replaced as `Skipping` does, and told to it as their batch is taken.

    Raises:
        ImageError: while iterating, names a picture that can't be read; without `on_unreadable`.
        RunError: while iterating, more than `max_errors` unreadable pictures in a row.
        DataError: while iterating, names the picture with which a worker process died.
    """
    loader = RaisingLoader(
        samples if on_unreadable is None else Skipping(samples, order, max_errors),
        collate_fn=None if on_unreadable is None else _collate_with_unreadable,
        batch_sampler=ReplicaBatches(order, replicas, first_step, last_step),
        num_workers=num_workers,
        worker_init_fn=_start_worker,
        multiprocessing_context=worker_context() if num_workers else None,
        pin_memory=pin_memory,
        prefetch_factor=4 if num_workers else None,
    )
    return iter(loader) if on_unreadable is None else _telling(loader, on_unreadable)


def _collate_with_unreadable(items: list[tuple[Tensor, int, list[Unreadable]]]) -> tuple:
    images, labels = default_collate([(image, label) for image, label, _ in items])
    return images, labels, [one for _, _, passed_over in items for one in passed_over]


def _telling(loader: RaisingLoader, tell: Callable[[Unreadable], None]) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels, passed_over in loader:
        for one in passed_over:
            tell(Unreadable(*one))
        yield images, labels


def _start_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group; the main process decides when to stop, workers serve until then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
