"""Published accuracies of CaiT models, each read in a source.

`REEVALUATED` holds timm's evaluation of the released weights: the values to reproduce. `PAPER_TOP1` and `PAPER_GFLOPS`
are the authors' values as read in README_cait.md of facebookresearch/deit or in tables of other papers (CoAtNet, NViT,
UniFormer, MViTv2, ResMLP). Values of the paper that were not read in such a source are left out.
"""

from __future__ import annotations

from deepcait.errors import ConfigError
from deepcait.model.variants import variant_names

RELEASE_TAG = "fb_dist_in1k"

# (size, resolution): the authors' FLOPs in 10^9, which are multiply-adds.
PAPER_GFLOPS: dict[tuple[str, int], float] = {
    ("xs24", 384): 19.3,
    ("s24", 224): 9.4,
    ("s24", 384): 32.2,
    ("s36", 384): 48.0,
    ("s48", 384): 63.8,
    ("m36", 384): 173.3,
    ("m36", 448): 247.8,
    ("m48", 448): 329.6,
}

# (size, resolution): the authors' top-1 on ImageNet val in percent, without and with distillation.
PAPER_TOP1: dict[tuple[str, int], tuple[float | None, float | None]] = {
    ("xxs24", 224): (77.6, None),
    ("xxs36", 384): (None, 82.2),
    ("xs24", 224): (81.8, 82.0),
    ("xs24", 384): (None, 84.1),
    ("xs36", 224): (82.6, 82.9),
    ("xs36", 384): (None, 84.8),
    ("s24", 224): (82.7, 83.5),
    ("s24", 384): (84.3, 85.1),
    ("s36", 224): (83.3, None),
    ("s36", 384): (85.0, 85.4),
    ("s48", 384): (85.1, None),
    ("m24", 224): (83.4, None),
    ("m24", 384): (84.5, None),
    ("m36", 384): (None, 86.1),
    ("m36", 448): (None, 86.3),
    ("m48", 448): (None, 86.5),
}

REEVALUATED_COLUMNS = (
    "top1",
    "top5",
    "real",
    "real_top5",
    "v2",
    "v2_top5",
    "imagenet_a",
    "imagenet_r",
    "sketch",
)

# The ten released models, all distilled, in percent; crop 1.0, bicubic. Source: timm, results/*.csv.
# imagenet_a and imagenet_r are evaluated over those sets' 200 classes.
REEVALUATED: dict[str, tuple[float, ...]] = {
    "cait_xxs24_224": (78.400, 94.326, 85.240, 96.714, 67.290, 87.510, 14.880, 41.430, 29.309),
    "cait_xxs36_224": (79.750, 94.866, 86.323, 97.113, 68.370, 88.600, 18.080, 43.800, 31.272),
    "cait_xxs24_384": (80.954, 95.638, 87.414, 97.619, 70.550, 89.770, 29.653, 42.153, 29.386),
    "cait_xxs36_384": (82.204, 96.148, 88.161, 97.899, 72.140, 90.780, 36.093, 44.757, 32.549),
    "cait_s24_224": (83.484, 96.586, 88.447, 97.950, 73.010, 91.200, 31.187, 50.243, 37.153),
    "cait_xs24_384": (84.064, 96.888, 89.169, 98.285, 74.110, 91.920, 43.627, 49.507, 36.409),
    "cait_s24_384": (85.048, 97.350, 89.510, 98.362, 75.380, 92.520, 49.413, 51.730, 37.908),
    "cait_s36_384": (85.458, 97.480, 89.829, 98.431, 76.010, 92.920, 54.213, 53.520, 39.767),
    "cait_m36_384": (86.060, 97.732, 90.049, 98.484, 76.370, 93.040, 57.667, 57.417, 42.392),
    "cait_m48_448": (86.480, 97.748, 90.181, 98.480, 76.840, 93.350, 62.067, 57.433, 44.251),
}


def hub_id(name: str) -> str:
    """Return the hub repository of a released model.

    Raises:
        ConfigError: the weights of this model were never published.
    """
    if name not in REEVALUATED:
        size = name.split("_")[1] if name.count("_") == 2 else ""
        same_size = [known for known in REEVALUATED if known.split("_")[1] == size]
        hint = f"The same size is released as {' and '.join(same_size)}; set img_size for another resolution. "
        raise ConfigError(
            f"{name} has no released weights.",
            remedy=(hint if same_size else "")
            + f"Released models: {', '.join(REEVALUATED)}. For random weights, use start=random or pretrained=False.",
        )
    return f"timm/{name}.{RELEASE_TAG}"


def published(name: str) -> dict[str, float | None]:
    """Return published accuracies of a model as fractions in [0, 1], None if no source was read.

    For the ten released models they are timm's evaluation of their weights. For other models top1 is the authors'
    value, of training without a teacher if there is one.

    Returns:
        top1, real, v2: on ImageNet val, ReaL, V2 matched-frequency. top1_plain, top1_distilled: the authors' values
        on ImageNet val, without and with a teacher.
    """
    result: dict[str, float | None] = dict.fromkeys(("top1", "real", "v2", "top1_plain", "top1_distilled"))
    if name not in variant_names() or name == "cait_nano_32":
        return result
    _, size, side = name.split("_")
    plain, distilled = PAPER_TOP1.get((size, int(side)), (None, None))
    result |= {"top1_plain": _fraction(plain), "top1_distilled": _fraction(distilled)}
    if name in REEVALUATED:
        measured = dict(zip(REEVALUATED_COLUMNS, REEVALUATED[name], strict=True))
        return result | {key: _fraction(measured[key]) for key in ("top1", "real", "v2")}
    return result | {"top1": _fraction(distilled if plain is None else plain)}


def _fraction(percent: float | None) -> float | None:
    # The tables have five digits; the division alone would return 0.7839999999999999.
    return None if percent is None else round(percent / 100, 5)
