"""The model card for the hub: description, training data, accuracy, usage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcait.errors import ConfigError
from deepcait.model.variants import variant_names
from deepcait.weights.hub import HUB_PREFIX
from deepcait.weights.layouts import image_size
from deepcait.weights.published import REEVALUATED, hub_id
from deepcait.weights.push import without_paths
from deepcait.weights.spec import Resolved, describe_config

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

IMAGE_FILE = "class_attention.png"
TEMPLATE = Path(__file__).parent.parent / "assets" / "card.md.j2"
UNKNOWN = "unknown"

# Names of data sets -> their identifiers on the hub, if known.
HUB_DATASETS = {r"imagenet-?1k\b": "imagenet-1k", r"cifar-?10\b": "cifar10", r"cifar-?100\b": "cifar100"}
# DATA arguments that name a data set -> the data set's usual name.
NAMED_DATA = {
    "builtin:demo": "CIFAR-10, 1,000 of its images",
    "imagenet": "ImageNet-1k",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "flowers102": "Oxford 102 Flowers",
    "cars": "Stanford Cars",
    "inat18": "iNaturalist 2018",
    "inat19": "iNaturalist 2019",
}


def model_card(
    repository: str, found: Resolved, *, licence: str | None = None, data: str | None = None, image: bool = False
) -> str:
    """Return the README.md of a model's repository: metadata in the hub's format, then text.

    Args:
        repository: owner/name.
        found: the model.
        licence: the hub's identifier of one, such as apache-2.0; None means the model's own, else "unknown".
        data: what the model was trained on; None means as stored in the model.
        image: show `class_attention.png`, which is in the same folder.

    Raises:
        ConfigError: the licence is not a valid identifier.
    """
    from huggingface_hub import ModelCard, ModelCardData

    licence = licence or _licence(found)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise ConfigError(
            f"--license: {licence!r} is not a license identifier of the hub.",
            remedy="Use apache-2.0, mit, cc-by-4.0 or other: https://huggingface.co/docs/hub/repositories-licenses.",
        )
    data = _line(data or _data(found))
    known = next((name for form, name in HUB_DATASETS.items() if re.search(form, data.lower())), None)
    results = _results(found, data, known)
    metadata = ModelCardData(
        license=licence,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "deepcait", "cait", "pytorch"],
        datasets=[known] if known else None,
        base_model=_base_model(found, repository),
        metrics=["accuracy"] if results else None,
        model_name=repository.partition("/")[2],
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEMPLATE),
        repository=repository,
        facts=[(name, value.replace("|", "\\|")) for name, value in _facts(found, licence, data).items()],
        accuracies=_accuracies(found),
        num_classes=f"{found.model.num_classes:,}",
        image_file=IMAGE_FILE if image else None,
    )
    return str(card)


def _facts(found: Resolved, licence: str, data: str) -> dict[str, str]:
    facts = describe_config(found.model.config)
    size = " x ".join(map(str, image_size(found.model.config)))
    return {
        "model": found.name or "a CaiT with custom sizes",
        "parameters": f"{facts['params']:,}",
        "multiply-adds": f"{facts['gmacs']:.2f} G for one image",
        "image": f"{size} px, {found.model.config.in_chans} channel{'s' * (found.model.config.in_chans > 1)}",
        "classes": _classes(found),
        "trained on": data,
        "licence": licence,
    } | {key.replace("_", " "): _line(value) for key, value in _provenance(found).items()}


def _accuracies(found: Resolved) -> list[tuple[str, str, str]]:
    """Rows of the table of accuracies: metric, percent, images."""
    metrics = found.section.get("metrics") or {}
    rows = []
    for key, label in _metric_labels(found):
        if _is_fraction(metrics.get(key)):
            counts = [metrics.get(f"correct{key[-1]}"), metrics.get("num_images")]
            of = f"{counts[0]:,} of {counts[1]:,}" if all(isinstance(count, int) for count in counts) else ""
            rows.append((label, f"{100 * metrics[key]:.2f} %", of))
    if found.name in REEVALUATED and _is_released(found):
        top1, top5 = REEVALUATED[found.name][:2]
        rows += [
            ("top-1", f"{top1:.2f} %", "ImageNet val, re-evaluated by timm"),
            ("top-5", f"{top5:.2f} %", "the same"),
        ]
    return rows


def _results(found: Resolved, data: str, known: str | None) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    metrics = found.section.get("metrics") or {}
    if _is_released(found) and found.name in REEVALUATED:
        metrics = dict(zip(("top1", "top5"), (value / 100 for value in REEVALUATED[found.name][:2]), strict=True))
    return [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=known or re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-")[:60] or UNKNOWN,
            dataset_name=data,
            metric_type="accuracy",
            metric_name=label,
            metric_value=round(metrics[key], 6),
        )
        for key, label in _metric_labels(found)
        if _is_fraction(metrics.get(key))
    ]


def _metric_labels(found: Resolved) -> list[tuple[str, str]]:
    """Meaningful metrics: with five classes or fewer, top-5 is always 1."""
    return [("top1", "top-1"), ("top5", "top-5")][: 1 + (found.model.num_classes > 5)]


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def _is_released(found: Resolved) -> bool:
    return found.provenance.get("hub_id") in {hub_id(name) for name in REEVALUATED}


def _licence(found: Resolved) -> str:
    own = found.pretrained_cfg.get("license") or found.provenance.get("licence")
    return str(own).lower() if own else UNKNOWN


def _data(found: Resolved) -> str:
    if _is_released(found):
        return "ImageNet-1k, with RegNetY-16GF as the teacher"
    spec = str(found.provenance.get("trained_on") or UNKNOWN)
    return NAMED_DATA.get(spec) or NAMED_DATA.get(spec.partition(":")[0]) or without_paths(spec)


def _base_model(found: Resolved, repository: str) -> str | None:
    """The repository that training started from, if any."""
    start = str(found.provenance.get("started_from") or "")
    if start in variant_names() and start in REEVALUATED and found.provenance.get("start") == "released":
        start = hub_id(start)
    elif start.startswith(HUB_PREFIX):
        start = start.removeprefix(HUB_PREFIX).partition("@")[0]
    elif _is_released(found):
        start = str(found.provenance["hub_id"])
    else:
        return None
    return start if start != repository else None


def _provenance(found: Resolved) -> Mapping[str, Any]:
    """A model's provenance without local paths."""
    shown = ("started_from", "recipe", "teacher", "unfinished", "notes")
    past = {key: without_paths(found.provenance.get(key)) for key in shown}
    return {key: value for key, value in past.items() if value}


def _classes(found: Resolved) -> str:
    if not found.classes:
        return f"{found.model.num_classes:,}"
    few = ", ".join(_line(name) for name in found.classes[:8])
    return f"{len(found.classes):,}: {few}" + (" ..." if len(found.classes) > 8 else "")


def _line(text: object) -> str:
    """One line of plain text, so that a class name can't end a table or a block."""
    return " ".join(str(text).replace("`", "'").replace("<", "&lt;").split())
