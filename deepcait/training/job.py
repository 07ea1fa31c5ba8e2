"""What a training needs before its first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from deepcait.data.loader import TrainingSet
from deepcait.data.order import Order
from deepcait.model.network import Network
from deepcait.runtime.processes import Processes
from deepcait.training.events import Callback
from deepcait.training.recipe import Recipe
from deepcait.training.run_folder import ModelFolders
from deepcait.training.teacher import Teacher
from deepcait.training.validation import Validation


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run needs, found and checked before anything is written.

    model: on its device, not wrapped. samples and order: the training data. validation: measures models; None: the last
        epoch is the model.
    models: writes model folders. callbacks: called with each event.
    """

    recipe: Recipe
    folder: Path
    model: Network
    samples: TrainingSet
    order: Order
    validation: Validation | None
    models: ModelFolders
    processes: Processes
    device: torch.device
    teacher: Teacher | None
    callbacks: Sequence[Callback] = ()
