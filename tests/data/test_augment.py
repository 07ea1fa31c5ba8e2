"""Augmentation: bitwise timm's training transform, black where Pillow 13 refuses, no exception whatever is drawn."""

from __future__ import annotations

import io
import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL import __version__ as pillow_version
from timm.data import create_transform
from timm.data.auto_augment import NAME_TO_OP, RandAugment
from timm.data.random_erasing import RandomErasing

from deepcait.data import Preprocessing, open_source
from deepcait.data.augment import Augment, build_augmentation, collate, rand_augment
from deepcait.data.erasing import draw_erasing
from deepcait.data.image import open_image
from deepcait.data.policies import POLICIES, ThreeAugment
from deepcait.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from deepcait.data.seeding import derive_seed, seed_everything
from deepcait.data.slide import SLIDES, Slide
from deepcait.errors import ConfigError

PAPER = "rand-m9-mstd0.5-inc1"


def photograph(seed: int, width: int = 400, height: int = 300) -> Image.Image:
    """A generated image with gradients, a disc and noise, so that crops, warps and colours all show."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    slopes = generator.uniform(-0.5, 0.5, (3, 2))
    pixels = np.stack([128 + a * (x - width / 2) + b * (y - height / 2) for a, b in slopes], axis=-1)
    disc = (x - generator.uniform(0, width)) ** 2 + (y - generator.uniform(0, height)) ** 2 < (height / 4) ** 2
    pixels[disc] = generator.uniform(0, 255, 3)
    pixels += generator.normal(0, 20, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Real ones of 32 pixels, generated ones of 300 x 400 and of awkward shapes."""
    demo = open_source("builtin:demo", "train")
    real = [open_image(demo.read(index).data, name="demo") for index in range(0, len(demo), 50)]
    return [*real, *map(photograph, range(6)), photograph(6, 300, 400), photograph(7, 500, 20), photograph(8, 1, 3)]


def guard_posterize(transform) -> None:
    """Let timm's posterize give black at 0 bits, as it did before Pillow 13."""
    [ra] = [step for step in transform.transforms if isinstance(step, RandAugment)]
    for op in ra.ops:
        if op.name == "PosterizeIncreasing":
            original = op.aug_fn
            op.aug_fn = lambda image, bits, original=original, **kw: (
                image.point(lambda _: 0) if bits == 0 else original(image, bits, **kw)
            )


@pytest.mark.parametrize(("interpolation", "img_size"), [("bicubic", (64, 64)), ("bilinear", (48, 80))])
def test_bitwise_the_training_transform_of_timm(photographs, interpolation, img_size):
    ours = build_augmentation(Augment(resampler="pillow"), Preprocessing(img_size, interpolation=interpolation))
    theirs = create_transform(
        (3, *img_size),
        is_training=True,
        auto_augment=PAPER,
        re_prob=0.25,
        re_mode="pixel",
        re_count=1,
        interpolation=interpolation,
        color_jitter=0.4,
        hflip=0.5,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    guard_posterize(theirs)
    erasing = theirs.transforms[-1]
    assert (ours.augment.erase, erasing.probability, erasing.per_pixel, erasing.max_count) == (0.25, 0.25, True, 1)
    theirs.transforms[-1].device = "cpu"
    results = set()
    for number in range(150):
        image = photographs[number % len(photographs)]
        seed_everything(number)
        got = ours(image.copy())
        seed_everything(number)
        assert torch.equal(got, theirs(image.copy())), number
        results.add(float(got.sum()))
    assert got.shape == (3, *img_size)
    assert len(results) > 140  # it is random at all


def draws_of(resampler: str, seed: int, picture: Image.Image, **settings) -> tuple[torch.Tensor, float]:
    """The image in levels of 255, and what the generators give next."""
    transform = build_augmentation(Augment(resampler=resampler, **settings), Preprocessing((64, 48)))
    seed_everything(seed)
    image = transform(picture)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (image * std + mean) * 255, random.random() + np.random.rand() + float(torch.rand(1))


def test_the_fast_resampler_draws_the_same_and_stays_within_two_levels(photographs):
    for number in range(60):
        image = photographs[number % len(photographs)]
        fast, exact = (draws_of(name, number, image, rand_augment="", erase=number % 2) for name in ("torch", "pillow"))
        assert fast[1] == exact[1]
        assert (fast[0] - exact[0]).abs().max() <= 2.01, number
        fast, exact = (draws_of(name, number, image) for name in ("torch", "pillow"))
        assert fast[1] == exact[1], number


@pytest.mark.parametrize("name", SLIDES)
def test_sliding_is_pillows_warp_within_one_level(photographs, name):
    original, fill = NAME_TO_OP[name], (124, 116, 104)
    slide, apart, differing = Slide(name, original), 0, 0
    for number, amount in enumerate((-0.45, -0.3, -0.1, 0.0, 0.017, 0.2, 0.3, 0.45, 1.5, -2.0)):
        for image in (photographs[number], photograph(number, 61, 40), Image.new("RGB", (30, 20), (7, 99, 201))):
            options = {"resample": Image.Resampling.BICUBIC, "fillcolor": fill}
            got, wanted = (np.asarray(op(image, amount, **options)).astype(int) for op in (slide, original))
            assert got.shape == wanted.shape
            apart = max(apart, np.abs(got - wanted).max())
            differing += (got != wanted).mean() / 30
    assert apart <= 1
    assert differing < 1e-3
    grey = photographs[0].convert("L")
    options = {"resample": Image.Resampling.BICUBIC, "fillcolor": 124}
    assert slide(grey, 0.2, **options).tobytes() == original(grey, 0.2, **options).tobytes()


def jpeg(image: Image.Image, orientation: int | None = None) -> bytes:
    held, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    image.save(held, "JPEG", quality=95, exif=exif)
    return held.getvalue()


@pytest.mark.parametrize(
    ("scale", "size", "divisor"),
    [(1.0, (900, 700), 8), (1.0, (400, 300), 4), (1.0, (255, 260), 2), (1.0, (127, 300), 1), (0.02, (900, 700), 1)],
)
def test_a_jpeg_is_decoded_no_larger_than_needed_and_never_too_small(monkeypatch, scale, size, divisor):
    image = photograph(3, *size)
    augmentation = build_augmentation(
        Augment(scale=(scale, scale), ratio=(0.999, 1.001), rand_augment="", erase=0, flip=0), Preprocessing((64, 64))
    )
    seen, divisors, original = [], set(), augmentation._cut_pixels

    def cut(pixels, box, divisor=1):
        seen.append((pixels.shape[1::-1], box, divisor))
        return original(pixels, box, divisor)

    monkeypatch.setattr(augmentation, "_cut_pixels", cut)
    for seed in range(20):
        seed_everything(seed)
        got = augmentation.finish(augmentation.read(jpeg(image), "image"))
        (decoded, box, found), *_ = seen
        divisors.add(found)
        assert decoded == tuple(-(-side // found) for side in size)
        assert found == 1 or min(box[2] // found, box[3] // found) >= 64  # no pixel is made up
        larger = found * 2
        assert found == 8 or min(box[2] // larger, box[3] // larger) < 64  # nor decoded for nothing
        seed_everything(seed)
        assert (got - augmentation(open_image(jpeg(image)))).abs().mean() < 0.12  # the same part, slightly softer
        seen.clear()
    assert divisors == {divisor}


def test_turned_jpegs_and_exact_recipes_are_decoded_whole(monkeypatch):
    sizes = []
    augmentation = build_augmentation(Augment(scale=(1.0, 1.0), rand_augment=""), Preprocessing((32, 32)))
    monkeypatch.setattr(augmentation, "_divisor", lambda box: sizes.append(box) or 1)
    augmentation.read(jpeg(photograph(1, 300, 200), orientation=6), "image")
    assert sizes == []
    exact = build_augmentation(Augment(resampler="pillow"), Preprocessing((32, 32)))
    for orientation in (None, 6):
        data = jpeg(photograph(1, 300, 200), orientation)
        for seed in range(5):
            seed_everything(seed)
            got = exact.finish(exact.read(data, "image"))
            seed_everything(seed)
            assert torch.equal(got, exact(open_image(data)))


def test_a_batch_is_finished_like_its_images(photographs):
    augmentation = build_augmentation(Augment(erase=0.5), Preprocessing((32, 48)))
    seed_everything(0)
    items = [augmentation.change(picture) for picture in photographs]
    assert 0 < sum(len(item.patches[0]) for item in items) < len(items)
    images = augmentation.finish(collate(items))
    assert images.dtype == torch.float32
    for image, item in zip(images, items, strict=True):
        assert torch.equal(image, augmentation.finish(item))


def test_every_part_shows(photographs):
    """Without one of the parts the same seeds give other pixels: the golden test can fail by each of them."""
    changes = [
        {"rand_augment": ""},
        {"rand_augment": "rand-m9-mstd0.5"},
        {"erase": 0.0},
        {"flip": 0.0},
        {"scale": (0.5, 1.0)},
        {"ratio": (1.0, 1.0)},
        {"crop": "none"},
    ]
    preprocessing = Preprocessing((32, 32))
    paper = build_augmentation(Augment(), preprocessing)
    for change in changes:
        other = build_augmentation(Augment(**change), preprocessing)
        different = 0
        for seed in range(12):
            images = []
            for transform in (paper, other):
                seed_everything(seed)
                images.append(transform(photographs[-4]))
            different += not torch.equal(*images)
        assert different > 1, change


def test_only_the_seed_decides(photographs):
    transform = build_augmentation(Augment(), Preprocessing((32, 32)))
    seed_everything(7)
    first = transform(photographs[0])
    transform(photographs[1])
    seed_everything(7)
    assert torch.equal(transform(photographs[0]), first)


def test_zero_bits_are_black_as_before_pillow_13(photographs):
    if int(pillow_version.split(".")[0]) >= 13:
        with pytest.raises(ValueError, match="bits must be"):
            ImageOps.posterize(photographs[0], 0)
    transform = rand_augment("rand-m10-p1-inc1", Preprocessing((32, 32)))
    [op] = [op for op in transform.ops if op.name == "PosterizeIncreasing"]
    for picture in (photographs[0], photographs[0].convert("L")):
        assert op.level_fn(10, op.hparams) == (0,)
        black = op(picture)
        assert (black.mode, black.size, black.getextrema()) == (
            picture.mode,
            picture.size,
            ((0, 0),) * 3 if picture.mode == "RGB" else (0, 0),
        )
    image = photographs[0]
    assert op.aug_fn(image, 1).tobytes() == ImageOps.posterize(image, 1).tobytes()
    assert op.aug_fn(image, 8).tobytes() == image.tobytes()


def test_the_fill_and_the_shift_are_those_of_timm():
    [rotate] = [op for op in rand_augment(PAPER, Preprocessing((32, 64))).ops if op.name == "Rotate"]
    assert rotate.kwargs["fillcolor"] == (124, 116, 104)
    assert rotate.kwargs["resample"] == Image.Resampling.BICUBIC
    assert rotate.hparams["translate_const"] == 14  # int(0.45 * the shorter side)


@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
def test_travels_to_a_worker(photographs, crop):
    transform = build_augmentation(Augment(crop=crop), Preprocessing((32, 32)))
    copy = pickle.loads(pickle.dumps(transform))
    for seed in range(10):
        seed_everything(seed)
        wanted = transform(photographs[-5])
        seed_everything(seed)
        assert torch.equal(copy(photographs[-5]), wanted)


@pytest.mark.parametrize(
    "text",
    ["foo", "augmix-m3", "rand-z9", "rand-mX", "rand-m", "rand-m9.5", "rand-m-3", "rand-m9-mstdx", "rand-m9-mstd0.5.5"]
    + ["rand-tfoo", "rand-p2", "rand-inc2", "rand-m9-", "rand-m9 ", "Rand-m9", "rand-n0", "rand-mmaxx"],
)
def test_a_string_that_means_nothing(text):
    with pytest.raises(ConfigError, match="augment.rand_augment") as caught:
        rand_augment(text, Preprocessing((32, 32)))
    assert repr(text) in caught.value.problem


@pytest.mark.parametrize(
    "text", [PAPER, "rand", "rand-m6-mstd0.5-inc1", "rand-n3-p0.5-m10-mstd101-mmax12-inc0", "rand-mstd1-tweights-inc1"]
)
def test_strings_that_timm_knows(text, photographs):
    transform = rand_augment(text, Preprocessing((32, 32)))
    for seed in range(20):
        seed_everything(seed)
        assert transform(photographs[0]).size == photographs[0].size


@pytest.mark.parametrize(
    "settings",
    [{"crop": "centre"}, {"repeats": 0}, {"erase": 1.5}, {"erase": -0.1}, {"flip": 2.0}, {"pad_px": -1}]
    + [{"pad_mode": "wrap"}, {"policy": "autoaugment", "rand_augment": ""}, {"policy": "3-augment"}]
    + [{"scale": s} for s in ((-1.0, 1.0), (0.0, 1.0), (1.0, 0.5), (0.5, 2.0))]
    + [{"ratio": r} for r in ((0.0, 1.0), (2.0, 1.0))],
)
def test_settings_that_do_not_fit(settings):
    with pytest.raises(ConfigError, match="augment"):
        Augment(**settings)


@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
def test_grey_models_get_grey_images(photographs, crop):
    transform = build_augmentation(Augment(crop=crop), Preprocessing((32, 48), mean=(0.5,), std=(0.5,)))
    for seed in range(30):
        seed_everything(seed)
        assert transform(photographs[seed % len(photographs)]).shape == (1, 32, 48)


def test_pad_shifts_by_no_more_than_it_pads():
    image = photograph(0, 32, 32)
    transform = build_augmentation(
        Augment(crop="pad", pad_px=4, flip=0, rand_augment="", erase=0), Preprocessing((32, 32))
    )
    plain = Preprocessing((32, 32))(image)
    shifts = set()
    for seed in range(60):
        seed_everything(seed)
        got = transform(image)
        found = [
            (dy, dx)
            for dy in range(-4, 5)
            for dx in range(-4, 5)
            if torch.allclose(got[:, 4 - dy : 28 - dy, 4 - dx : 28 - dx], plain[:, 4:28, 4:28], atol=1e-6)
        ]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) > 30


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "symmetric"])
def test_what_pad_adds(mode):
    """Of a white image only constant padding shows."""
    augment = Augment(crop="pad", pad_px=4, pad_mode=mode, flip=0, rand_augment="", erase=0)
    transform, white = build_augmentation(augment, Preprocessing((32, 32))), Image.new("RGB", (32, 32), "white")
    darkest = []
    for seed in range(10):
        seed_everything(seed)
        darkest.append(int(transform.change(white).pixels.min()))
    assert set(darkest) == ({0} if mode == "constant" else {255})


@pytest.mark.parametrize("policy", ["3-augment", "trivial-augment"])
def test_a_policy_is_seeded_and_keeps_size_and_mode(photographs, policy):
    augment = Augment(policy=policy, rand_augment="", crop="none", flip=0, erase=0)
    for mode, mean in (("RGB", IMAGENET_MEAN), ("L", (0.5,))):
        transform = build_augmentation(augment, Preprocessing((32, 32), mean=mean, std=mean))
        image, seen = photographs[0].convert(mode), []
        for seed in (*range(8), 0):
            seed_everything(seed)
            seen.append(transform.change(image).pixels)
        assert {pixels.shape for pixels in seen} == {(len(mean), 32, 32)}
        assert torch.equal(seen[0], seen[-1])
        assert not all(torch.equal(seen[0], other) for other in seen[1:8])


def test_the_three_of_3_augment(photographs):
    """Without jitter: greyscale, solarized or blurred, a third each."""
    three, image = ThreeAugment(), photograph(0, 32, 32)
    three.jitter = lambda image: image
    found = Counter()
    for seed in range(300):
        seed_everything(seed)
        changed = three(image)
        red, green, blue = changed.split()
        if red.tobytes() == green.tobytes() == blue.tobytes():
            found["grey"] += 1
        elif changed.tobytes() == ImageOps.solarize(image, 128).tobytes():
            found["solarized"] += 1
        else:
            found["blurred"] += 1
    assert set(found) == {"grey", "solarized", "blurred"}
    assert min(found.values()) > 70


POLICY_SETTINGS = [{"rand_augment": "", "policy": name} for name in POLICIES]


def random_configuration(generator: random.Random) -> tuple[Augment, Preprocessing]:
    """Any recipe's augmentation: magnitudes 0..10, noise, kinds of crop, sizes square and not."""
    parts = [f"m{generator.randint(0, 10)}", f"mstd{generator.choice(['0', '0.5', '1', '2.5', '101'])}"]
    parts += [f"inc{generator.randint(0, 1)}", f"n{generator.randint(1, 4)}", f"p{generator.choice(['0.5', '1'])}"]
    parts += generator.choice([[], [], ["mmax12"], ["tweights"]])
    low = generator.uniform(0.01, 0.9)
    augment = Augment(
        crop=generator.choice(["random_resized", "random_resized", "pad", "none"]),
        scale=(low, generator.uniform(low, 1.0)),
        ratio=generator.choice([(0.75, 4 / 3), (1.0, 1.0), (0.2, 5.0)]),
        pad_px=generator.randint(0, 12),
        flip=generator.choice([0.0, 0.5, 1.0]),
        **generator.choice([{"rand_augment": "-".join(["rand", *parts])}] * 8 + POLICY_SETTINGS),
        erase=generator.choice([0.0, 0.25, 1.0]),
    )
    size = generator.choice([(32, 32), (32, 48), (64, 16), (96, 96), (16, 16), (224, 224), (8, 8)])
    interpolation = generator.choice(["bicubic"] * 3 + ["nearest", "bilinear", "box", "hamming", "lanczos"])
    return augment, Preprocessing(size, interpolation=interpolation, crop_ratio=generator.choice([1.0, 0.875]))


def run_configurations(photographs: list[Image.Image], numbers: range) -> None:
    for number in numbers:
        generator = random.Random(derive_seed("augmentation", number))
        augment, preprocessing = random_configuration(generator)
        picture = generator.choice(photographs)
        seed_everything(number)
        try:
            image = build_augmentation(augment, preprocessing)(picture)
        except Exception as error:
            pytest.fail(f"configuration {number}: {error!r} for {augment}, {preprocessing}, {picture.size}")
        assert image.shape == (3, *preprocessing.img_size), number
        assert image.dtype == torch.float32
        assert image.isfinite().all(), number


def test_random_configurations(photographs):
    run_configurations(photographs, range(400))


@pytest.mark.soak
def test_ten_thousand_random_configurations(photographs):
    run_configurations(photographs, range(10_000))


@pytest.mark.parametrize(("probability", "size"), [(1.0, (3, 64, 48)), (0.25, (1, 16, 16)), (1.0, (3, 2, 40))])
def test_erasing_draws_what_timm_draws(probability, size):
    """The rectangles, the noise and what the generators give next, also if no rectangle fits."""
    theirs = RandomErasing(probability, mode="pixel", device="cpu")
    num_erased = 0
    for seed in range(100):
        seed_everything(seed)
        expected = theirs(torch.zeros(size))
        after = random.random(), torch.rand(1)
        seed_everything(seed)
        patches, filling = draw_erasing(probability, *size)
        assert (random.random(), torch.rand(1)) == after
        got = torch.zeros(size)
        for top, left, height, width in patches:
            got[:, top : top + height, left : left + width] = filling.view(size[0], height, width)
        assert torch.equal(got, expected)
        num_erased += len(patches)
    assert 0 < num_erased < 100 or probability == 1.0
