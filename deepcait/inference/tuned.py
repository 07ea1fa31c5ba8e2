"""The engine that was the fastest on this machine: measured once, kept beside the model, used where it still holds."""

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
    """What computes, and how.

    Args:
        engine: of `ENGINES`; None is the network as it is.
        precision: of the engine's products, of `PRECISIONS`.
        threads: of one call; None leaves it to the engine.
        batch: images per call; None leaves it to the command.
    """

    engine: str | None = None
    precision: str = "auto"
    threads: int | None = None
    batch: int | None = None


class ChoiceError(DeepcaitError):
    """A choice that does not hold on this machine, or for this model."""


def write_choice(folder: Path, choice: Choice, model: Mapping[str, Any], figures: Mapping[str, Any]) -> Path:
    """Keep a choice in a folder, with the machine and the model that it holds for.

    Args:
        folder: a model folder, a run folder, or any other.
        choice: what was the fastest.
        model: facts of the model, as `describe` gives them.
        figures: how fast everything was; plain JSON, for people.

    Raises:
        WeightsError: the folder can't be written to.
    """
    content = asdict(choice) | {"model": _model(model), "machine": machine(), **figures}
    write_bytes(folder / FILE, (json.dumps(content, indent=2) + "\n").encode())
    return folder / FILE


def read_choice(folder: Path, model: Mapping[str, Any]) -> Choice:
    """Return the choice that lies in a folder.

    Args:
        folder: where `write_choice` put it.
        model: facts of the model that shall run.

    Raises:
        ChoiceError: measured on another machine, with other versions or another model, or not readable.
    """
    path = folder / FILE
    again = "Measure here: deepcait bench SPEC --autotune."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content.setdefault("precision", "fp32")  # written by 0.1
        choice = Choice(**{field.name: content[field.name] for field in fields(Choice)})
        found = {**content["model"], **content["machine"]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ChoiceError(
            f"{path}: expected an engine's name, threads and batch, got: {error!r}.", remedy=again
        ) from error
    for key, wanted in {**_model(model), **machine()}.items():
        if found.get(key) != wanted:
            raise ChoiceError(f"{path}: measured with {key} {found.get(key)}, here it is {wanted}.", remedy=again)
    counts = (choice.threads, choice.batch)
    known = choice.engine in ENGINES and choice.precision in PRECISIONS
    if not known or not all(type(count) is int and count > 0 for count in counts):
        raise ChoiceError(f"{path}: expected one of {', '.join(ENGINES)}, got {choice}.", remedy=again)
    return choice


def machine() -> dict[str, Any]:
    """What speed depends on besides the model."""
    return {"cpu": processor(), "num_cpus": num_cpus(), **{name: version(name) for name in _PACKAGES}}


def _model(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: facts[name] for name in _MODEL_FACTS}
