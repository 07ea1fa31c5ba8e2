"""Examine every image of a source once, in worker processes: a crash in one image does not end the others."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import PurePath

from PIL import ExifTags, Image

from deepcait.data.duplicates import pixel_hash, thumbnail
from deepcait.data.formats import format_of, open_header
from deepcait.data.image import decode_image
from deepcait.data.png import only_pixels
from deepcait.data.source import Source, options_of
from deepcait.data.workers import worker_context
from deepcait.errors import DataError

_CHUNK = 32


@dataclass(frozen=True, kw_only=True)
class Look:
    """Properties of one image.

    fault: a kind of finding and what exactly, where the image can't be read; the rest is empty then.
    format, mode: as Pillow calls them, of the file. size: width, height as shown. pixels, thumb: see duplicates.
    levels: of 256, that an image of 16 bits in an unknown range can have used; 0 for others.
    """

    fault: tuple[str, str] | None = None
    name: str = ""
    format: str = ""
    mode: str = "RGB"
    size: tuple[int, int] = (0, 0)
    turned: bool = False
    animated: bool = False
    levels: int = 0
    pixels: bytes = b""
    thumb: bytes = b""


def look_at(source: Source, index: int) -> Look:
    """Read and decode one image, and return its properties; any error is recorded as a fault."""
    place = source.locate(index)
    try:
        sample = source.read(index)
    except DataError as error:
        empty = os.path.isfile(place) and not os.path.getsize(place)
        return Look(fault=("empty_file" if empty else "unreadable", error.problem))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        levels: list[int] = []
        try:
            image = decode_image(sample.data, name=place, options=options_of(source), levels=levels)
        except DataError as error:
            return Look(fault=(_kind_of_fault(sample.data, options_of(source).max_pixels), error.problem))
        with open_header(_sound(sample.data)) as header:
            return Look(
                name=PurePath(sample.name).name,
                format=header.format or "",
                mode=header.mode,
                size=image.size,
                turned=_is_turned(header),
                animated=_is_animated(header),
                levels=levels[0] if levels else 0,
                pixels=pixel_hash(image),
                thumb=thumbnail(image),
            )


def look_at_all(source: Source, num_workers: int, done: Callable[[int], None]) -> list[Look]:
    """Return the properties of every image, in the order of the source.

    A file that ends the process which reads it (too little memory, a crash in a decoder) is found by reading the
    files in question again, each alone.

    Args:
        source: must travel to other processes where num_workers > 0.
        num_workers: processes that read; 0 reads here.
        done: called with the number of images just looked at.
    """
    if num_workers == 0:
        looks = []
        for index in range(len(source)):
            looks.append(look_at(source, index))
            done(1)
        return looks
    found: dict[int, Look] = {}
    waiting = [range(first, min(first + _CHUNK, len(source))) for first in range(0, len(source), _CHUNK)][::-1]
    while waiting:
        suspects: list[int] = []
        for chunk, looks in _in_pool(source, waiting, num_workers):
            if looks is None:
                suspects += chunk
                continue
            found.update(zip(chunk, looks, strict=True))
            done(len(chunk))
        for index, look in _one_by_one(source, sorted(suspects)):
            found[index] = look
            done(1)
    return [found[index] for index in range(len(source))]


def _in_pool(source: Source, waiting: list[range], num_workers: int) -> Iterator[tuple[range, list[Look] | None]]:
    """Take chunks from the end of `waiting` and yield each with its results, or None if a worker crashed."""
    with _pool(source, num_workers) as pool:
        running: dict[Future, range] = {}
        broken = False
        while running or (waiting and not broken):
            while waiting and not broken and len(running) < 2 * num_workers:
                try:
                    running[pool.submit(_look_in_worker, waiting[-1])] = waiting[-1]
                    waiting.pop()
                except BrokenProcessPool:
                    broken = True
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                broken = broken or isinstance(future.exception(), BrokenProcessPool)
                yield running.pop(future), None if future.exception() else future.result()


def _one_by_one(source: Source, indices: list[int]) -> Iterator[tuple[int, Look]]:
    """Examine images one by one, which finds the one that crashes its worker."""
    waiting = indices[::-1]
    while waiting:
        with _pool(source, 1) as pool:
            while waiting:
                index = waiting.pop()
                try:
                    (look,) = pool.submit(_look_in_worker, range(index, index + 1)).result()
                    yield index, look
                except BrokenProcessPool:
                    text = f"{source.locate(index)}: the process that read this image crashed."
                    yield index, Look(fault=("ends_its_reader", text))
                    break


def _pool(source: Source, num_workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(num_workers, worker_context(), initializer=_start_worker, initargs=(source,))


_source_of_worker: Source | None = None


def _start_worker(source: Source) -> None:
    global _source_of_worker
    _source_of_worker = source


def _look_in_worker(indices: range) -> list[Look]:
    assert _source_of_worker is not None
    return [look_at(_source_of_worker, index) for index in indices]


def _sound(data: bytes) -> bytes:
    """The bytes that the opener decodes."""
    return only_pixels(data) if format_of(data) == "PNG" else data


def _kind_of_fault(data: bytes, max_pixels: int) -> str:
    """The kind of finding for bytes that could not be opened."""
    if not data:
        return "empty_file"
    if format_of(data) is None:
        return "not_an_image"
    try:
        with open_header(_sound(data)) as header:
            return "bomb" if header.width * header.height > max_pixels else "undecodable"
    except Image.DecompressionBombError:
        return "bomb"
    except Exception:  # the opener has said what is wrong
        return "undecodable"


def _is_turned(header: Image.Image) -> bool:
    try:
        return int(header.getexif().get(ExifTags.Base.Orientation, 1)) in range(2, 9)
    except Exception:  # a broken EXIF block turns nothing
        return False


def _is_animated(header: Image.Image) -> bool:
    try:
        return header.format in ("GIF", "PNG", "WEBP", "TIFF") and getattr(header, "n_frames", 1) > 1
    except Exception:  # later frames are never read
        return False
