"""What computes the answers: the engine that was asked for, or the one that was measured to be the fastest here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from deepcait.cli.console import Console

if TYPE_CHECKING:
    from deepcait.inference.tuned import Choice


def choose_engine(
    spec: str,
    asked: str | None,
    console: Console,
    *,
    precision: str = "auto",
    device: str | None = None,
    img_size: object = None,
) -> Choice:
    """Return what `--engine` says; else what `bench --autotune` left beside the model, if it holds here; say which.

    Args:
        spec: the model; a choice lies in its folder.
        asked: what `--engine` was given.
        console: is told in one line what was found and whether it is used.
        precision: what `--precision` was given; a choice was measured with its own.
        device: where the model shall compute; None takes a GPU where there is one. A choice is for a CPU, and for
            one process that has it to itself.
        img_size: another image size than the model's; a choice is for that one alone.
    """
    import torch

    from deepcait.inference.precision import engine_for
    from deepcait.inference.tuned import FILE, Choice, ChoiceError, read_choice
    from deepcait.weights.spec import describe

    on_cpu = device == "cpu" if device else not torch.cuda.is_available()
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    named = asked is not None or precision != "auto"
    if named or img_size is not None or not on_cpu or not alone or not Path(spec, FILE).is_file():
        return Choice(engine=engine_for(asked, precision), precision=precision)
    try:
        choice = read_choice(Path(spec), describe(spec))
    except ChoiceError as error:
        console.note(f"not used: {error}")
        return Choice()
    console.note(
        f"engine {choice.engine}, {choice.precision}, {choice.threads} threads, {choice.batch} images per call: "
        f"measured on this machine ({Path(spec, FILE)}); --engine chooses another"
    )
    return choice
