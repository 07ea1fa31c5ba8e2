"""Benchmark the data loader against timm's: same images, recipe and workers, in alternating rounds."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from deepcait.bench.clock import Lane, ratio, require_count, take_turns
from deepcait.bench.page import conditions, markdown_table
from deepcait.data import Preprocessing, Sample, Source, evaluation_loader, open_image, open_source
from deepcait.data.augment import Augment, build_augmentation, guard_posterize
from deepcait.data.image import decode_image, decode_pixels, read_image_bytes
from deepcait.data.listing import is_image_file, list_images
from deepcait.data.loader import SlotReader, TrainingSet, training_loader
from deepcait.data.order import Slot
from deepcait.data.seeding import seed_everything

IMG_SIZE = (224, 224)
SEED = 0
_NUM_COMPARED = 250
_LEAST_BATCHES = 32


def compare_loaders(
    data: str,
    *,
    rounds: int = 20,
    num_workers: int = 2,
    batch_size: int = 32,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Measure images per second of deepcait's and timm's loaders.

    Rounds alternate. In each, every loader delivers all images, repeated if there are fewer than 32 batches. Workers
    are idle before and after a round, as in an epoch of training, so the time to start and to finish is included but
    small. One extra round at the start is not timed. timm's `create_loader` runs with its prefetcher (its default) and
    with the same guard on posterize. Both loaders read the same bytes through the same source.

    Args:
        data: a folder of images, or another DATA; labels are not used.
        rounds: timed rounds.
        num_workers: worker processes of each loader.
        batch_size: images per batch.
        progress: called with the rounds done and the rounds in total.

    Returns:
        `data_ratio`, `data_eval_ratio` and `data_eval_fast_ratio` (the resampler "torch"): deepcait / timm, medians;
        `images_per_s` of each loader; quartiles of the ratios per round; the settings and the machine.

    Raises:
        ConfigError: a number is out of range.
        DataError: there are no images.
    """
    require_count("--rounds", rounds, least=2)
    require_count("--batch-size", batch_size)
    require_count("--workers", num_workers, least=0)
    images = RepeatedImages(open_images(data), batch_size)
    lanes = build_lanes(images, batch_size, num_workers)
    take_turns(list(lanes.values()), rounds, progress, warm=False)
    pairs = {
        "data_ratio": ("train", "timm_train"),
        "data_eval_ratio": ("eval", "timm_eval"),
        "data_eval_fast_ratio": ("eval_fast", "timm_eval"),
    }
    ratios = {name: ratio(lanes[ours], lanes[peer]) for name, (ours, peer) in pairs.items()}
    return {
        **{name: found["ratio"] for name, found in ratios.items()},
        "images_per_s": {name: len(images) / lane.median_s for name, lane in lanes.items()},
        "quartiles": {name: found["quartiles"] for name, found in ratios.items()},
        "rounds": rounds,
        "num_images": len(images.source),
        "images_per_round": len(images),
        "workers": num_workers,
        "batch_size": batch_size,
        "img_size": list(IMG_SIZE),
        "resampler": compare_resamplers(images.source),
        "stages_ms": measure_stages(images.source),
        **conditions(),
    }


def open_images(data: str) -> Source:
    """Return the images of a flat folder, or of all splits of another DATA."""
    path = Path(data)
    if path.is_dir() and any(is_image_file(entry) for entry in path.iterdir()):
        return FlatFolder(path)
    return open_source(data)


class FlatFolder:
    """A folder of images as a source of one class."""

    kind, split = "folder of images", "all"

    def __init__(self, folder: Path) -> None:
        self.paths = [str(path) for path in list_images(folder)]
        self.names = [os.path.basename(path) for path in self.paths]
        self.labels: Sequence[int | None] = [0] * len(self.paths)
        self.classes = ["image"]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Sample:
        """The image's bytes, class 0. Raises ImageError."""
        return Sample(read_image_bytes(self.paths[index]), 0, self.names[index])

    def locate(self, index: int) -> str:
        """Its path."""
        return self.paths[index]


class RepeatedImages:
    """A source repeated to fill whole batches, for both loaders; every label is 0."""

    kind, split, classes = "bench", "all", ["image"]

    def __init__(self, source: Source, batch_size: int) -> None:
        self.source = source
        self.num_batches = max(_LEAST_BATCHES, -(-len(source) // batch_size))
        self.num_images = self.num_batches * batch_size
        self.names = [source.names[index % len(source)] for index in range(self.num_images)]
        self.labels: Sequence[int | None] = [0] * self.num_images

    def __len__(self) -> int:
        return self.num_images

    def read(self, index: int) -> Sample:
        """The sample, with label 0."""
        return self.source.read(index % len(self.source))._replace(label=0)

    def locate(self, index: int) -> str:
        """The sample's location."""
        return self.source.locate(index % len(self.source))

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        return io.BytesIO(self.read(index).data), 0


class _Epochs:
    """Batches of slots; each iteration is another epoch."""

    def __init__(self, num_images: int, batch_size: int) -> None:
        self.num_images, self.batch_size, self.epoch = num_images, batch_size, 0

    def __iter__(self) -> Iterator[list[Slot]]:
        self.epoch += 1
        row = np.random.default_rng(self.epoch).permutation(self.num_images).tolist()
        slots = [Slot(index, self.epoch, position) for position, index in enumerate(row)]
        return iter([slots[start : start + self.batch_size] for start in range(0, len(slots), self.batch_size)])

    def __len__(self) -> int:
        return self.num_images // self.batch_size


def build_lanes(images: RepeatedImages, batch_size: int, num_workers: int) -> dict[str, Lane]:
    """Return the loaders to compare by name, deepcait's and timm's; each run delivers all images once."""
    preprocessing = Preprocessing(IMG_SIZE)
    samples = TrainingSet(images, build_augmentation(Augment(repeats=1), preprocessing), SEED)
    train = training_loader(SlotReader(samples), _Epochs(len(images), batch_size), num_workers=num_workers)
    plain = {"batch_size": batch_size, "num_workers": num_workers}
    fast = Preprocessing(IMG_SIZE, resampler="torch")
    loaders = {
        "train": train,
        "timm_train": _timm_loader(images, batch_size, num_workers, training=True),
        "eval": evaluation_loader(images, preprocessing, **plain),
        "eval_fast": evaluation_loader(images, fast, **plain),
        "timm_eval": _timm_loader(images, batch_size, num_workers, training=False),
    }
    return {name: Lane(name, lambda loader=loader: _deliver(loader, len(images))) for name, loader in loaders.items()}


def _deliver(loader: Iterable, num_images: int) -> None:
    delivered = sum(len(batch[0]) for batch in loader)
    if delivered != num_images:
        raise RuntimeError(f"loader: expected {num_images} images, got {delivered}")


def _timm_loader(images: RepeatedImages, batch_size: int, num_workers: int, *, training: bool) -> Any:
    from timm.data import ImageDataset, create_loader
    from timm.data.auto_augment import RandAugment

    paper = Augment()
    recipe: dict[str, Any] = {
        "is_training": True,
        "auto_augment": paper.rand_augment,
        "re_prob": paper.erase,
        "re_mode": "pixel",
        "hflip": paper.flip,
        "scale": paper.scale,
        "ratio": paper.ratio,
    }
    dataset = ImageDataset("", reader=images)
    loader = create_loader(
        dataset,
        input_size=(3, *IMG_SIZE),
        batch_size=batch_size,
        interpolation="bicubic",
        num_workers=num_workers,
        crop_pct=1.0,
        device=torch.device("cpu"),
        persistent_workers=num_workers > 0,
        **(recipe if training else {}),
    )
    for step in getattr(dataset.transform, "transforms", ()):
        if isinstance(step, RandAugment):
            guard_posterize(step)
    return loader


def compare_resamplers(source: Source) -> dict[str, float | int]:
    """Compare the pixels of the two resamplers on some images of a source, in levels from 0 to 255."""
    exact, fast = (Preprocessing(IMG_SIZE, resampler=name) for name in ("pillow", "torch"))
    largest, total, differing, num_images = 0, 0, 0, min(len(source), _NUM_COMPARED)
    for index in range(num_images):
        image = open_image(source.read(index).data, name=source.locate(index))
        difference = (exact.pixels(image).int() - fast.pixels(image).int()).abs()
        largest = max(largest, int(difference.max()))
        total += int(difference.sum())
        differing += int((difference > 0).sum())
    num_values = num_images * 3 * IMG_SIZE[0] * IMG_SIZE[1]
    return {
        "num_images": num_images,
        "largest_difference": largest,
        "mean_difference": total / num_values,
        "share_differing": differing / num_values,
    }


def measure_stages(source: Source) -> dict[str, float]:
    """Measure the steps of reading an image, without workers: median milliseconds over passes of some images."""
    from timm.data import create_transform

    paper, preprocessing = Augment(repeats=1), Preprocessing(IMG_SIZE)
    ours = build_augmentation(paper, preprocessing)
    theirs: Any = create_transform(
        (3, *IMG_SIZE), is_training=True, auto_augment=paper.rand_augment, interpolation="bicubic", use_prefetcher=True
    )
    for step in theirs.transforms:
        if step.__class__.__name__ == "RandAugment":
            guard_posterize(step)
    files = [source.read(index).data for index in range(min(len(source), _NUM_COMPARED // 2))]
    decoded = [decode_image(data, name="image") for data in files]
    arrays = [decode_pixels(data, name="image") for data in files]
    cut = [ours._cut(image, ours._box(*image.size)) for image in decoded]
    pixels = [ours._color(image).pixels for image in cut]
    stages: dict[str, tuple[Callable, Sequence]] = {
        "decode": (lambda data: decode_pixels(data, name="image"), files),
        "decode with Pillow alone": (lambda data: decode_image(data, name="image"), files),
        "crop and resize": (lambda pixels: ours._cut_pixels(pixels, ours._box(*pixels.shape[1::-1])), arrays),
        "crop and resize, timm": (theirs.transforms[0], decoded),
        "flip, RandAugment, erasing": (ours._color, cut),
        "flip, RandAugment, timm": (lambda image: theirs.transforms[2](theirs.transforms[1](image)), cut),
        "resize and crop of evaluation": (preprocessing.pixels, decoded),
        "the same, resampler torch": (Preprocessing(IMG_SIZE, resampler="torch").pixels, decoded),
        "normalise": (preprocessing.normalise, pixels),
        "training, all but normalise": (lambda data: ours.read(data, "image"), files),
        "training, timm, all but normalise": (lambda data: theirs(open_image(data)), files),
    }
    times: dict[str, list[float]] = {name: [] for name in stages}
    for number in range(7):
        for name, (run, items) in stages.items():
            seed_everything(number)
            began = time.process_time()
            for item in items:
                run(item)
            times[name].append(1e3 * (time.process_time() - began) / len(items))
    return {name: round(median(values), 3) for name, values in times.items()}


def markdown(result: dict[str, Any], command: str) -> str:
    """The results as a page."""
    speed, quartiles, pixels = result["images_per_s"], result["quartiles"], result["resampler"]
    compared = [
        ("training, the paper's recipe", "train", "timm_train", "data_ratio"),
        ("evaluation, bit-identical to timm", "eval", "timm_eval", "data_eval_ratio"),
        ("evaluation, resampler torch", "eval_fast", "timm_eval", "data_eval_fast_ratio"),
    ]
    rows = [
        (what, f"{speed[ours]:.1f}", f"{speed[peer]:.1f}", f"{result[key]:.2f}",
         f"{quartiles[key][0]:.2f} to {quartiles[key][2]:.2f}")
        for what, ours, peer, key in compared
    ]  # fmt: skip
    lines = [
        "# The data loader against timm's",
        "",
        f"    {command}",
        "",
        f"{result['num_images']} images, {result['workers']} workers, batches of {result['batch_size']}, "
        f"{result['img_size'][0]} px, medians of {result['rounds']} alternating rounds; {result['cpu']}.",
        "",
        *markdown_table(["", "deepcait, images/s", "timm, images/s", "ratio", "quartiles over rounds"], rows),
        "",
        f"Pixels of the resampler torch compared with Pillow's, {pixels['num_images']} images: at most "
        f"{pixels['largest_difference']} of 255 levels, {pixels['mean_difference']:.5f} on average, "
        f"{100 * pixels['share_differing']:.2f} % of the values differ.",
        "",
        "Time per image by step, one process, milliseconds of processor time:",
        "",
        *markdown_table(["stage", "ms"], [(name, f"{value:.2f}") for name, value in result["stages_ms"].items()]),
        "",
        "Environment: " + ", ".join(f"{name} {value}" for name, value in _flat(result["environment"])) + ".",
    ]
    return "\n".join(lines) + "\n"


def _flat(content: dict[str, Any]) -> list[tuple[str, Any]]:
    pairs = []
    for name, value in content.items():
        pairs += _flat(value) if isinstance(value, dict) else [(name, value)]
    return [(name, value) for name, value in pairs if not isinstance(value, list)]
