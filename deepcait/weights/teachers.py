"""List timm's classifiers with published weights as teachers, with timm's accuracies if available."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepcait.errors import ConfigError, DataError
from deepcait.weights.imagenet import NUM_CLASSES
from deepcait.weights.published import REEVALUATED, RELEASE_TAG
from deepcait.weights.registry import matches

TABLE_FILE = "results-imagenet.csv"
TEACHER_PREFIX = "timm:"
# Columns of results/results-imagenet.csv of huggingface/pytorch-image-models (Apache-2.0) at aa4b5850, 2026-08-08.
PACKAGED_TABLE = Path(__file__).parent.parent / "assets" / TABLE_FILE


def find_table() -> Path:
    """Return timm's table of accuracies on ImageNet val: the installed timm's, else the one in this package.

    timm's wheel has no tables; a checkout that is installed in place (`pip install -e`) has them next to the package.
    """
    import timm

    package = Path(timm.__file__).parent
    places = (package.parent / "results" / TABLE_FILE, package / "results" / TABLE_FILE)
    return next((path for path in places if path.is_file()), PACKAGED_TABLE)


def read_table(path: str | Path) -> dict[str, dict[int, tuple[float, int]]]:
    """Return top-1 (a fraction) and number of parameters by model name and image size.

    Args:
        path: a `results-imagenet.csv` of timm, or a folder that holds one.

    Raises:
        DataError: the file does not exist or lacks the columns model, img_size, top1 and param_count.
    """
    path = Path(path)
    path = path / TABLE_FILE if path.is_dir() else path
    try:
        with open(path, encoding="utf-8", newline="") as file:
            found: dict[str, dict[int, tuple[float, int]]] = {}
            for row in csv.DictReader(file):
                # Millions of parameters, with a thousands separator.
                num_params = round(float(row["param_count"].replace(",", "")) * 1e6)
                at_size = found.setdefault(row["model"], {})
                at_size[int(row["img_size"])] = round(float(row["top1"]) / 100, 5), num_params
        if not found:
            raise ValueError("no model in it")
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path}: not timm's {TABLE_FILE} with the columns model, img_size, top1 and param_count ({reason}).",
            remedy="Get it from the folder results/ of timm's repository (huggingface/pytorch-image-models).",
        ) from error


def list_teachers(filters: Sequence[str] = (), *, table: str | Path | None = None) -> list[dict[str, Any]]:
    """Return timm's classifiers with published weights, the best first; nothing is built or downloaded.

    Args:
        filters: parts of names, or patterns with `*`; models that match any of them are listed. None: all.
        table: timm's results-imagenet.csv, or its folder; None uses the installed timm's, else the package's.

    Returns:
        One object per model: name, spec (for `--teacher`), num_classes, img_size (a side in pixels), params, top1 and
        top1_img_size, the image size of that evaluation (None if timm has not evaluated it), licence, hub_id.

    Raises:
        ConfigError: no name matches. DataError: as `read_table`.
    """
    import timm
    from timm.models import get_pretrained_cfg

    known = read_table(table or find_table())
    # Weights of one architecture have as many parameters, if their heads are equal.
    sizes = {name.partition(".")[0]: params for name, at in known.items() for _, params in at.values()}
    rows = []
    for name in timm.list_pretrained():
        cfg = get_pretrained_cfg(name)
        # Without a head (features only, image-text models) there are no logits to distil from.
        if cfg is None or not cfg.num_classes or not any(matches(name, one) for one in filters or [""]):
            continue
        size = sizes.get(name.partition(".")[0]) if cfg.num_classes == NUM_CLASSES else None
        at_size = known.get(name, {})
        # At the model's own size; some rows are of a larger one.
        img_size = cfg.input_size[-1]
        evaluated_at = img_size if img_size in at_size else next(iter(at_size), img_size)
        top1, params = at_size.get(evaluated_at, (_own_top1(name), size))
        rows.append(
            {
                "name": name,
                "spec": f"{TEACHER_PREFIX}{name}",
                "num_classes": cfg.num_classes,
                "img_size": img_size,
                "params": params,
                "top1": top1,
                "top1_img_size": None if top1 is None else evaluated_at,
                "licence": cfg.license,
                "hub_id": cfg.hf_hub_id,
            }
        )
    if not rows:
        raise ConfigError(
            f"--teachers: no timm classifier with weights matches {' '.join(filters)!r}.",
            remedy="Give a part of a name; for all of them, run `deepcait models --teachers`.",
        )
    return sorted(rows, key=lambda row: (-(row["top1"] or 0), row["name"]))


def _own_top1(name: str) -> float | None:
    """Released CaiTs have a table in this package."""
    model, _, tag = name.partition(".")
    return round(REEVALUATED[model][0] / 100, 5) if tag == RELEASE_TAG and model in REEVALUATED else None
