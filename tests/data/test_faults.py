"""Faults of loader workers beside the images: each an error of ours that names the cause, never a wait without end."""

from __future__ import annotations

import os
import resource
import signal

import pytest
import torch
from torch.utils.data import default_collate

from deepcait.data import faults
from deepcait.data.dataset import RaisingLoader
from deepcait.data.faults import lack
from deepcait.data.workers import start_worker, worker_context
from deepcait.errors import DataError


class Items:
    """A data set of numbers and the source that it names them by; item 5 carries a fault that a worker meets."""

    def __init__(self, plant=None) -> None:
        self.plant = plant
        self.source = self

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int):
        item = torch.full((1000,), index)
        return self.plant(item) if index == 5 and self.plant else item

    def locate(self, index: int) -> str:
        return f"image_{index}.png"


def no_shared_memory(item):
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # nothing can be written into a file, shared memory included
    return item


def no_handles(item):
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    return item


def no_memory(_):
    raise MemoryError


def kills(_):
    os.kill(os.getpid(), signal.SIGKILL)


def unsendable(_):
    return lambda: None


def first_of(items):
    return items[0]


def wrong(items):
    raise TypeError("no such thing")


def load(plant, collate=default_collate) -> list:
    dataset = Items(plant)
    loader = RaisingLoader(
        dataset,  # pyrefly: ignore[bad-argument-type]
        finish=lambda batch: batch,
        collate_fn=collate,
        batch_size=1,
        num_workers=1,
        worker_init_fn=start_worker,
        multiprocessing_context=worker_context(dataset),
        persistent_workers=True,
    )
    return list(loader)


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="limits of processes as Linux has them")
@pytest.mark.parametrize(
    ("plant", "collate", "problem", "remedy"),
    [
        (no_shared_memory, default_collate, "more shared memory than there is", "--shm-size"),
        (no_shared_memory, first_of, "more shared memory than there is", "--shm-size"),  # found by the sending thread
        (no_handles, first_of, "Too many open files", "ulimit -n"),
        (no_memory, default_collate, "ran out of memory", "smaller batches"),
        (unsendable, first_of, "failed while it sent a batch: ", "data.num_workers=0"),
        (None, wrong, "failed while it assembled a batch: TypeError: no such thing.", "data.num_workers=0"),
        (kills, default_collate, "was killed while it read image_5.png", "lack of memory"),
    ],
)
@pytest.mark.process
@pytest.mark.xdist_group("processes")
@pytest.mark.timeout(120)
def test_a_fault_is_our_error(plant, collate, problem, remedy):
    with pytest.raises(DataError) as caught:
        load(plant, collate)
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (OSError(24, "Too many open files"), "Too many open files"),
        (RuntimeError("received 0 items of ancdata"), "Too many open files"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), "shared memory"),
        (OSError(28, "No space left on device"), "shared memory"),
        (OSError(28, "No space left on device", "cache.bin"), None),
        (BlockingIOError(11, "Resource temporarily unavailable"), "starts no more processes"),
        (RuntimeError("the size of tensor a must match"), None),
        (OSError(5, "Input/output error"), None),
    ],
)
def test_what_libraries_say_of_a_lack(error, problem):
    found = lack(error)
    assert found is None if problem is None else problem in found.problem


def test_no_shared_memory_is_said_before_workers_start(monkeypatch):
    monkeypatch.setattr(faults, "shared_memory", lambda: 1000)
    with pytest.raises(DataError, match="more shared memory than there is"):
        load(None)


def test_too_few_handles_are_said_before_workers_start(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (24, 24))
    with pytest.raises(DataError, match="a process may open 24 here"):
        load(None)
