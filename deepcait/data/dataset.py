"""A source as a torch dataset: tensors, labels and indices, in batches."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from deepcait.data.faults import fault, killed, lack, require_means, too_many_files
from deepcait.data.image import decode_image
from deepcait.data.preprocessing import Preprocessing
from deepcait.data.source import Sample, Source, options_of
from deepcait.data.workers import start_worker, worker_context
from deepcait.errors import ConfigError, DeepcaitError
from deepcait.runtime.signals import waiting

NO_LABEL = -1
# A worker that broke off is gone as a process a moment later.
_WAIT_FOR_DEATH_S = 1.0


class ImageDataset(Dataset):
    """Decode and transform the images of a source; indices are those of the source.

    Args:
        source: where the bytes come from.
        transform: RGB image -> image_CHW, a `Preprocessing` for example.
    """

    def __init__(self, source: Source, transform: Callable[[Image.Image], Tensor]) -> None:
        self.source = source
        self.transform = transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        """(image_CHW, label or NO_LABEL, index). Raises ImageError that names the file."""
        sample = self.source.read(index)
        image = decode_image(sample.data, name=self.source.locate(index), options=options_of(self.source))
        return self.transform(image), _label(sample), index


class _PixelDataset(ImageDataset):
    """The same with the images still in 8-bit pixels if a `Preprocessing` makes them."""

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        if not isinstance(self.transform, Preprocessing):
            return super().__getitem__(index)
        sample = self.source.read(index)
        image = decode_image(sample.data, name=self.source.locate(index), options=options_of(self.source))
        return self.transform.pixels(image), _label(sample), index


def _label(sample: Sample) -> int:
    return NO_LABEL if sample.label is None else sample.label


class RaisingLoader(DataLoader):
    """A DataLoader that raises our errors as they are, from worker processes too.

    torch rebuilds a worker's exception from its text, which loses type and remedy; here the first
    error of a batch travels as a value. When a worker dies, the error names the image it was reading. What fails
    between reading and this process (assembling a batch, shared memory, file handles) is a DataError too.

    Args:
        dataset: over a `source`; an index leads to one item.
        finish: applied to each batch in this process, for example to normalise on the device.
        collate_fn: makes a batch of items, in the worker.
        options: of `DataLoader`.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        finish: Callable[[Any], Any],
        collate_fn: Callable[[list], Any] = default_collate,
        **options: Any,
    ) -> None:
        self._finish = finish
        self._reader = _BatchReader(dataset, collate_fn, options.get("num_workers", 0))
        super().__init__(self._reader, collate_fn=_as_it_is, **options)

    def __iter__(self) -> Iterator[Any]:  # pyrefly: ignore[bad-override]
        batches = super().__iter__() if self.num_workers == 0 else self._from_workers()
        for batch in batches:
            if isinstance(batch, DeepcaitError):
                raise batch
            yield self._finish(batch)

    def _from_workers(self) -> Iterator[Any]:
        """Yield the batches of workers; a failure of a worker is raised as one of our errors."""
        require_means(self.num_workers)
        try:
            batches = super().__iter__()
            while True:
                with waiting():
                    batch = next(batches)
                yield batch
        except StopIteration:
            return
        except (RuntimeError, EOFError, OSError) as error:
            if exhausted := self._reader.ended_by or lack(error):
                raise exhausted from error
            # torch reports it, or a batch that the worker had sent can't be fetched from it any more.
            places = self._reader.places_of_dead(error)
            if not places and not isinstance(error, (ConnectionError, EOFError, FileNotFoundError)):
                raise
            raise killed(places) from error


def evaluation_loader(
    source: Source,
    preprocessing: Callable[[Image.Image], Tensor],
    *,
    batch_size: int,
    num_workers: int = 0,
    pin_memory: bool = False,
    device: torch.device | str = "cpu",
) -> RaisingLoader:
    """Return a loader of every image once, in the order of the source; the last batch can be smaller.

    Yields (images_BCHW float32, labels_B int64, indices_B int64); label NO_LABEL if there is none. Where the
    transform is a `Preprocessing`, images travel to the device as 8-bit pixels and are normalised there.

    Raises:
        ConfigError: batch_size < 1 or num_workers < 0.
        ImageError: while iterating, names the first image that can't be read; nothing is substituted.
    """
    if batch_size < 1 or num_workers < 0:
        raise ConfigError(
            f"Loader: expected batch_size >= 1 and num_workers >= 0, got {batch_size} and {num_workers}.",
            remedy="Choose e.g. 32 and 2.",
        )
    dataset = _PixelDataset(source, preprocessing)
    return RaisingLoader(
        dataset,
        finish=lambda batch: _normalise(batch, preprocessing, torch.device(device)),
        batch_size=batch_size,
        shuffle=False,
        drop_last=False,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=start_worker,
        multiprocessing_context=worker_context(dataset) if num_workers else None,
        persistent_workers=num_workers > 0,
    )


def _normalise(batch: list[Tensor], transform: Callable, device: torch.device) -> list[Tensor]:
    images = batch[0].to(device, non_blocking=True)
    return [transform.normalise(images) if isinstance(transform, Preprocessing) else images, *batch[1:]]


class _BatchReader(Dataset):
    """Reads whole batches, in a worker: the collated items, or the first error as a value.

    It also notes for the main process which item each worker reads.
    """

    def __init__(self, dataset: Dataset, collate: Callable[[list], Any], num_workers: int) -> None:
        self.dataset = dataset
        self.collate = collate
        # Shared by all processes. Per worker: its process id, the index of the item that it read last, and 1 where it
        # ended itself because it could open no file.
        self.reading = torch.full((num_workers, 3), -1).share_memory_() if num_workers else None

    def __len__(self) -> int:
        return len(self.dataset)  # pyrefly: ignore[bad-argument-type]

    def __getitems__(self, indices: list) -> Any:
        """Return a batch or an error; torch's loader calls this with the indices of a batch."""
        try:
            items = [self._read(index) for index in indices]
        except DeepcaitError as error:
            return error
        except Exception as error:  # an error that is not an exhausted resource is raised again
            if get_worker_info() is None or (exhausted := lack(error)) is None:
                raise
            return exhausted
        try:
            return self.collate(items)
        except Exception as error:  # of any kind: own collate functions, shared memory
            if get_worker_info() is None:
                raise
            return fault(error, "assembled a batch")

    def _read(self, index: Any) -> Any:
        worker = get_worker_info()
        if self.reading is not None and worker is not None:
            # A slot of the training order has an index; elsewhere it is the number itself.
            self.reading[worker.id, :2] = torch.tensor([os.getpid(), getattr(index, "index", index)])
            sys.excepthook = self._end_without_handles
        return self.dataset[index]

    def _end_without_handles(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        """Called for an exception in multiprocessing's sending thread, which would otherwise retry forever."""
        worker = get_worker_info()
        if lack(error) is None or self.reading is None or worker is None:
            sys.__excepthook__(kind, error, trace)
            return
        self.reading[worker.id, 2] = 1
        os._exit(1)

    @property
    def ended_by(self) -> DeepcaitError | None:
        """Return the error for which a worker ended itself; None if none did."""
        return too_many_files() if self.reading is not None and (self.reading[:, 2] == 1).any() else None

    def places_of_dead(self, error: Exception) -> list[str]:
        """Return what workers were reading when they were killed; empty if the error has another cause."""
        rows = [] if self.reading is None else [(pid, index) for pid, index, _ in self.reading.tolist() if pid > 0]
        source: Source = self.dataset.source  # pyrefly: ignore[missing-attribute]
        named = re.match(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
        if named:
            pids = [int(pid) for pid in named[1].split(",")]
            return [source.locate(index) for pid, index in rows if pid in pids] or ["its first image"]
        end = time.monotonic() + _WAIT_FOR_DEATH_S
        while rows and os.name == "posix" and time.monotonic() < end:
            places = [source.locate(index) for pid, index in rows if not _runs(pid)]
            if places:
                return places
            time.sleep(0.05)
        return []


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _as_it_is(batch: Any) -> Any:
    return batch
