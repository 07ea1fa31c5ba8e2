"""From bytes to predictions through one queue: some threads decode, one thread computes batches."""

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
    """One image in the pipeline: the model's input, then its predictions.

    Args:
        name: the client's name of the image.
        size: (width, height) of the upright image in pixels.
        box: the part that is the model's input, (left, top, right, bottom) in these pixels.
        image: the preprocessed image, (C, H, W).
        placed_s: when it joined the queue.
        predictions: filled in by the network.
        attention: class attention, (class blocks, A, 1 + N), if requested.
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
    """How long each stage took, in seconds; the largest batch with an image of the request."""

    decode_s: float = 0.0
    queue_s: float = 0.0
    network_s: float = 0.0
    batch: int = 0


@dataclass(eq=False)
class Job:
    """The images of one request, of `num_bytes` in total; `done` gets the list of `Seen`, or an exception."""

    uploads: list[Upload]
    num_bytes: int
    explain: bool
    topk: int
    done: asyncio.Future[list[Seen]]
    seen: list[Seen] = field(default_factory=list)
    timing: Timing = field(default_factory=Timing)
    num_open: int = 0


class Pipeline:
    """Decodes and predicts; every method except `close` belongs to the thread of the event loop.

    Results do not depend on the batch, except for float32 rounding. A batch is dispatched when it is full,
    when no request is pending, or after `max_wait_s`.

    Args:
        classifier: the model; its methods are called from one thread only.
        limits: sizes of queue and batch, pixels of an image.
        counters: of images, batches and times.
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
        self._num_waiting = 0  # accepted images that the network has not started
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
        """Images in the queue."""
        return self._num_waiting

    @property
    def num_bytes(self) -> int:
        """Bytes of the images that are not decoded yet."""
        return self._num_bytes

    def is_alive(self) -> bool:
        """Whether every thread runs."""
        return all(thread.is_alive() for thread in self._threads)

    def expect(self) -> None:
        """Announce a request: a batch waits a moment for it. `submit` or `forget` follows."""
        with self._changed:
            self._num_coming += 1

    def forget(self) -> None:
        """Cancel the announcement of a request."""
        with self._changed:
            self._num_coming -= 1
            self._changed.notify_all()

    def submit(self, uploads: list[Upload], *, explain: bool, topk: int) -> Job:
        """Queue the images of an announced request; cancelling its `done` removes them.

        `done` may raise ImageError if an image can't be read, WeightsError if the logits are not finite.

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
                f"the queue is full: {self._num_waiting} images of at most {self.limits.max_queue}.",
                retry_after_s=min(max(1, round(self._num_waiting * self._image_s)), 60),
            )
        job = Job(uploads, num_bytes, explain, topk, self._loop.create_future())
        self._to_decode.put(job)
        return job

    def close(self) -> None:
        """Finish waiting requests, then end the threads."""
        for _ in range(self.limits.num_decoders):
            self._to_decode.put(None)
        for thread in self._threads[:-1]:
            thread.join()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._threads[-1].join()

    # -- decoders -----------------------------------------------------------------------------------------------

    def _decode_jobs(self) -> None:
        while (job := self._to_decode.get()) is not None:
            began_s, num_images, error = time.perf_counter(), len(job.uploads), None
            try:
                while job.uploads and not job.done.done():  # the deadline may have passed, or the client left
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
                self._report([(job, error)])

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

    # -- network ------------------------------------------------------------------------------------------------

    def _run_batches(self) -> None:
        while batch := self._take():
            began_s = time.perf_counter()
            jobs = list({id(job): job for job, _ in batch}.values())
            errors: dict[int, Exception] = {}
            for explain in (False, True):
                chosen = [(job, seen) for job, seen in batch if job.explain == explain]
                try:
                    self._pass(chosen, explain=explain)
                except Exception as error:  # the thread continues; these requests get the error
                    errors |= {id(job): error for job, _ in chosen}
            self._count(batch, jobs, began_s, time.perf_counter() - began_s)
            for job, _ in batch:
                job.num_open -= 1
            self._report([(job, errors.get(id(job))) for job in jobs if id(job) in errors or not job.num_open])

    def _take(self) -> list[tuple[Job, Seen]]:
        """Return a batch; wait for its first image, and a moment for announced requests. Empty at the end."""
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

    def _pass(self, chosen: list[tuple[Job, Seen]], *, explain: bool) -> None:
        """Pass images through the network once: the engine predicts, the network itself explains."""
        if not chosen:
            return
        images_BCHW = torch.stack([seen.image for _, seen in chosen])
        if explain:
            logits_BK, attention_BLAT = self.classifier.logits_and_attention(images_BCHW)
            for (_, seen), attention_LAT in zip(chosen, attention_BLAT, strict=True):
                seen.attention = attention_LAT
        else:
            logits_BK = self.classifier.logits(images_BCHW)
        ranked = self.classifier.rank(logits_BK, max(job.topk for job, _ in chosen))
        for (job, seen), predictions in zip(chosen, ranked, strict=True):
            seen.predictions = predictions[: job.topk]

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

    def _report(self, ended: list[tuple[Job, Exception | None]]) -> None:
        """Pass results and errors to the event loop in one call."""
        if ended and self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(_resolve, ended)
            except RuntimeError:  # the loop has ended
                return


def _resolve(ended: list[tuple[Job, Exception | None]]) -> None:
    for job, error in ended:
        if job.done.done():
            continue
        if error is not None:
            job.done.set_exception(error)
        else:
            job.done.set_result(job.seen)
