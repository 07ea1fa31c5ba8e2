"""From bytes to answers through one queue: a small pool decodes, one thread takes what waits as one batch."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deepcait.data import open_image
from deepcait.serve.counters import Counters
from deepcait.serve.limits import Limits
from deepcait.serve.refusal import overloaded
from deepcait.serve.upload import Upload

if TYPE_CHECKING:
    from deepcait.classifier import Classifier, Prediction


@dataclass
class Seen:
    """One image on its way: what the model sees of it, then what it says.

    Args:
        name: what the client calls the image.
        size: (width, height) of the upright image in pixels.
        box: the part that the model sees, (left, top, right, bottom) in those pixels.
        image: the preprocessed image, (C, H, W).
        placed_s: when it joined the queue.
        predictions: filled in by the network.
        attention: class attention, (class blocks, A, 1 + N), where it was asked for.
    """

    name: str
    size: tuple[int, int]
    box: tuple[float, float, float, float]
    image: Tensor
    placed_s: float = 0.0
    predictions: list[Prediction] = field(default_factory=list)
    attention: Tensor | None = None


@dataclass
class Timing:
    """How long each station took, in seconds; the largest batch that an image of the request was in."""

    decode_s: float = 0.0
    queue_s: float = 0.0
    network_s: float = 0.0
    batch: int = 0


@dataclass(eq=False)
class Job:
    """The images of one request, of `num_bytes` together; `done` gets the list of `Seen`, or what went wrong."""

    uploads: list[Upload]
    num_bytes: int
    explain: bool
    topk: int
    done: asyncio.Future[list[Seen]]
    seen: list[Seen] = field(default_factory=list)
    timing: Timing = field(default_factory=Timing)
    num_open: int = 0


class Pipeline:
    """Decodes and answers; every method but `close` belongs to the thread of the event loop.

    An answer does not depend on its batch but for the rounding of float32: images pass through the network side by
    side. A batch is dispatched when it is full, when no request is pending, or after `max_wait_s`.

    Args:
        classifier: the model; its `logits` and `class_attention` are called from one thread only.
        limits: sizes of queue and batch, pixels of an image.
        counters: where images, batches and times are counted.
    """

    def __init__(self, classifier: Classifier, limits: Limits, counters: Counters) -> None:
        self.classifier = classifier
        self.limits = limits
        self.counters = counters
        self._loop: asyncio.AbstractEventLoop | None = None
        self._to_decode: SimpleQueue[Job | None] = SimpleQueue()
        self._placed: deque[tuple[Job, Seen]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._num_coming = 0
        self._num_waiting = 0  # images that were let in and have not been taken by the network
        self._num_bytes = 0  # of the images that have not been decoded
        self._image_s = 0.0  # network time of an image, a moving average
        self._threads = [
            threading.Thread(target=self._decode_jobs, name=f"decoder-{i}") for i in range(limits.num_decoders)
        ]
        self._threads.append(threading.Thread(target=self._run_batches, name="network"))
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    @property
    def num_waiting(self) -> int:
        """Images that wait for the network."""
        return self._num_waiting

    @property
    def num_bytes(self) -> int:
        """Bytes of the images that wait to be decoded, or are being decoded."""
        return self._num_bytes

    def is_alive(self) -> bool:
        """Whether every thread runs."""
        return all(thread.is_alive() for thread in self._threads)

    def expect(self) -> None:
        """Say that a request is on its way: a batch waits a moment for it. `submit` or `forget` follows."""
        with self._changed:
            self._num_coming += 1

    def forget(self) -> None:
        """Say that a request that was expected does not come."""
        with self._changed:
            self._num_coming -= 1
            self._changed.notify_all()

    def submit(self, uploads: list[Upload], *, explain: bool, topk: int) -> Job:
        """Place the images of a request that was expected; cancelling its `done` takes them out again.

        What `done` may raise: ImageError where an image can't be read, WeightsError where the model gives no numbers.

        Raises:
            RequestError: the queue is full.
        """
        self._loop = asyncio.get_running_loop()
        num_bytes = sum(len(upload.data) for upload in uploads)
        with self._changed:
            full = self._closing or self._num_waiting + len(uploads) > self.limits.max_queue
            if full:
                self._num_coming -= 1
            else:
                self._num_waiting += len(uploads)
                self._num_bytes += num_bytes
        if full:
            raise overloaded(
                f"queue: expected room for {len(uploads)} images, got {self._num_waiting} waiting of at most "
                f"{self.limits.max_queue}.",
                retry_after_s=min(max(1, round(self._num_waiting * self._image_s)), 60),
            )
        job = Job(uploads, num_bytes, explain, topk, self._loop.create_future())
        self._to_decode.put(job)
        return job

    def close(self) -> None:
        """Finish what waits, then end the threads."""
        for _ in range(self.limits.num_decoders):
            self._to_decode.put(None)
        for thread in self._threads[:-1]:
            thread.join()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._threads[-1].join()

    # -- the decoders' side ----------------------------------------------------------------------------------------

    def _decode_jobs(self) -> None:
        while (job := self._to_decode.get()) is not None:
            began_s, num_images, error = time.perf_counter(), len(job.uploads), None
            try:
                while job.uploads and not job.done.done():  # a deadline may have passed, or the client gone
                    job.seen.append(self._decode(job.uploads[0]))
                    del job.uploads[0]
            except Exception as caught:
                error = caught
            job.timing.decode_s = time.perf_counter() - began_s
            job.num_open = len(job.seen)
            self.counters.add("decode_seconds_total", job.timing.decode_s)
            with self._changed:
                self._num_coming -= 1
                self._num_bytes -= job.num_bytes
                if job.uploads:
                    self._num_waiting -= num_images
                    job.uploads.clear()
                else:
                    self._placed.extend((job, seen) for seen in job.seen)
                self._changed.notify_all()
            if error is not None:
                self._tell([(job, error)])

    def _decode(self, upload: Upload) -> Seen:
        limits, preprocessing = self.limits, self.classifier.preprocessing
        image = open_image(
            bytes(upload.data),
            name=upload.name,
            options=self.classifier.image_options,
            max_bytes=limits.max_body_bytes,
            max_pixels=limits.max_pixels,
        )
        seen = Seen(upload.name, image.size, preprocessing.seen_box(*image.size), preprocessing(image))
        seen.placed_s = time.perf_counter()
        return seen

    # -- the network's side ----------------------------------------------------------------------------------------

    def _run_batches(self) -> None:
        while batch := self._take():
            began_s, error = time.perf_counter(), None
            jobs = list({id(job): job for job, _ in batch}.values())
            try:
                self._pass(batch)
            except Exception as caught:  # the thread lives on; all who were in the batch are told
                error = caught
            self._count(batch, jobs, began_s, time.perf_counter() - began_s)
            for job, _ in batch:
                job.num_open -= 1
            self._tell([(job, error) for job in jobs if error is not None or not job.num_open])

    def _take(self) -> list[tuple[Job, Seen]]:
        """What waits, up to a batch; waits for the first, and a moment for those on their way. Empty at the end."""
        batch: list[tuple[Job, Seen]] = []
        with self._changed:
            while not batch:
                self._changed.wait_for(lambda: self._placed or self._closing)
                if not self._placed:
                    break
                end_s = time.perf_counter() + self.limits.max_wait_s
                while self._num_coming and len(self._placed) < self.limits.max_batch and not self._closing:
                    left_s = end_s - time.perf_counter()
                    if left_s <= 0 or not self._changed.wait(left_s):
                        break
                while self._placed and len(batch) < self.limits.max_batch:
                    job, seen = self._placed.popleft()
                    self._num_waiting -= 1
                    if not job.done.done():
                        batch.append((job, seen))
        return batch

    def _pass(self, batch: list[tuple[Job, Seen]]) -> None:
        logits_BK = self.classifier.logits(torch.stack([seen.image for _, seen in batch]))
        ranked = self.classifier.rank(logits_BK, max(job.topk for job, _ in batch))
        for (job, seen), predictions in zip(batch, ranked, strict=True):
            seen.predictions = predictions[: job.topk]
        explained = [seen for job, seen in batch if job.explain]
        if explained:
            images_BCHW = torch.stack([seen.image for seen in explained]).to(self.classifier.device)
            with torch.no_grad():
                attention_BLAT = self.classifier.cait.class_attention(images_BCHW).cpu()
            for seen, attention_LAT in zip(explained, attention_BLAT, strict=True):
                seen.attention = attention_LAT

    def _count(self, batch: list[tuple[Job, Seen]], jobs: list[Job], began_s: float, network_s: float) -> None:
        each_s = network_s / len(batch)
        self._image_s = 0.8 * self._image_s + 0.2 * each_s if self._image_s else each_s
        waits_s = [began_s - seen.placed_s for _, seen in batch]
        for (job, _), wait_s in zip(batch, waits_s, strict=True):
            job.timing.queue_s = max(job.timing.queue_s, wait_s)
        for job in jobs:
            job.timing.network_s += network_s
            job.timing.batch = max(job.timing.batch, len(batch))
        self.counters.add("images_total", len(batch))
        self.counters.add("batches_total")
        self.counters.add("queue_seconds_total", sum(waits_s))
        self.counters.add("network_seconds_total", network_s)

    def _tell(self, told: list[tuple[Job, Exception | None]]) -> None:
        """Hand results and errors to the event loop, all in one call."""
        if told and self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(_resolve, told)
            except RuntimeError:  # the loop has ended: nothing waits any more
                return


def _resolve(told: list[tuple[Job, Exception | None]]) -> None:
    for job, error in told:
        if job.done.done():
            continue
        if error is not None:
            job.done.set_exception(error)
        else:
            job.done.set_result(job.seen)
