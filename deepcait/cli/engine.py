"""Choose the engine: the one of --engine, or the one that `bench --autotune` found fastest on this machine."""

from __future__ import annotations

import os
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
    """Return the engine of `--engine`, else the stored choice of `bench --autotune` if it is valid here.

    Args:
        spec: the MODEL; a choice is stored in its folder.
        asked: the value of `--engine`.
        console: prints which choice was found and whether it is used.
        precision: the value of `--precision`; a choice has its own.
        device: the device; None means a GPU if there is one. A choice is for a CPU and a single process.
        img_size: another image size than the model's; a choice is only valid for the model's.
    """
    import torch

    from deepcait.inference.precision import engine_for
    from deepcait.inference.tuned import FILE, Choice, ChoiceError, read_choice
    from deepcait.parts import path_of
    from deepcait.weights.spec import describe

    folder = path_of(spec)

    on_cpu = device == "cpu" if device else not torch.cuda.is_available()
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    named = asked is not None or precision != "auto"
    if named or img_size is not None or not on_cpu or not alone or not (folder / FILE).is_file():
        return Choice(engine=engine_for(asked, precision), precision=precision)
    try:
        choice = read_choice(folder, describe(spec))
    except ChoiceError as error:
        console.note(f"the stored choice of an engine is not used: {error}")
        return Choice()
    console.note(
        f"engine {choice.engine}, {choice.precision}, {choice.threads} threads, {choice.batch} images per call: "
        f"measured on this machine ({folder / FILE}); --engine chooses another"
    )
    return choice
