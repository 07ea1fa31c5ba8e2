"""The fastest engine on this machine, measured once and stored with the model; used while it is valid."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from deepcait.errors import DeepcaitError
from deepcait.inference.engines import ENGINES
from deepcait.inference.precision import PRECISIONS
from deepcait.runtime.environment import num_cpus, processor, version
from deepcait.runtime.files import write_bytes

FILE = "tuned.json"
_PACKAGES = ("deepcait", "torch", "onnxruntime", "openvino")
_MODEL_FACTS = ("params", "img_size")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An engine with its settings.

    Args:
        engine: one of `ENGINES`; None means the network itself.
        precision: one of `PRECISIONS`.
        threads: threads per call; None means the engine's default.
        batch: images per call; None means the command's default.
    """

    engine: str | None = None
    precision: str = "auto"
    threads: int | None = None
    batch: int | None = None


class ChoiceError(DeepcaitError):
    """A choice is not valid on this machine, or for this model."""


def write_choice(folder: Path, choice: Choice, model: Mapping[str, Any], figures: Mapping[str, Any]) -> Path:
    """Store a choice in a folder, with the machine and the model for which it is valid.

    Args:
        folder: a model folder, a run folder, or any other.
        choice: the fastest engine and settings.
        model: facts about the model, as returned by `describe`.
        figures: the speeds of all engines, plain JSON, for information.

    Raises:
        WeightsError: the folder can't be written to.
    """
    content = asdict(choice) | {"model": _model(model), "machine": machine(), **figures}
    write_bytes(folder / FILE, (json.dumps(content, indent=2) + "\n").encode())
    return folder / FILE


def read_choice(folder: Path, model: Mapping[str, Any]) -> Choice:
    """Return the choice stored in a folder.

    Args:
        folder: the folder of `write_choice`.
        model: facts about the model to run.

    Raises:
        ChoiceError: it was measured on another machine, with other versions or another model, or is not readable.
    """
    path = folder / FILE
    again = "Measure again on this machine: deepcait bench MODEL --autotune."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content.setdefault("precision", "fp32")  # written by 0.1
        choice = Choice(**{field.name: content[field.name] for field in fields(Choice)})
        found = {**content["model"], **content["machine"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ChoiceError(
            f"{path}: the file has no valid engine, threads and batch: {error!r}.", remedy=again
        ) from error
    for key, wanted in {**_model(model), **machine()}.items():
        if found.get(key) != wanted:
            raise ChoiceError(
                f"{path}: measured with {key} {found.get(key)}, but this machine has {wanted}.", remedy=again
            )
    counts = (choice.threads, choice.batch)
    known = choice.engine in ENGINES and choice.precision in PRECISIONS
    if not known or not all(type(count) is int and count > 0 for count in counts):
        raise ChoiceError(f"{path}: the stored choice is not valid: {choice}.", remedy=again)
    return choice


def machine() -> dict[str, Any]:
    """Facts on which the speed depends, apart from the model."""
    return {"cpu": processor(), "num_cpus": num_cpus(), **{name: version(name) for name in _PACKAGES}}


def _model(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in _MODEL_FACTS}
