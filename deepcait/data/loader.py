"""Training batches from any step to any step: the order followed, each sample seeded, workers started once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor
from torch.utils.data import Dataset

from deepcait.data.dataset import RaisingLoader, worker_context
from deepcait.data.image import open_image
from deepcait.data.order import Order, ReplicaBatches, Slot
from deepcait.data.seeding import derive_seed, seed_everything
from deepcait.data.source import Source


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


def training_batches(
    samples: TrainingSet,
    order: Order,
    *,
    replicas: Sequence[int],
    first_step: int,
    last_step: int,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images (B, C, H, W) and labels (B) for each step and each of these replicas, in order.

    One loader serves the whole run, so workers start once and no epoch begins with an empty queue.
    """
    loader = RaisingLoader(
        samples,
        batch_sampler=ReplicaBatches(order, replicas, first_step, last_step),
        num_workers=num_workers,
        worker_init_fn=_start_worker,
        multiprocessing_context=worker_context() if num_workers else None,
        pin_memory=pin_memory,
        prefetch_factor=4 if num_workers else None,
    )
    return iter(loader)


def _start_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group; the main process decides when to stop, workers serve until then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
