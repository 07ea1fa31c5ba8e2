"""Runs parts of a training through deepcait.training itself, in float64 where asked: what the command does not offer.

`torchrun ... tests/processes/float64_worker.py PLAN.json` runs a list of parts, one after another, on all processes
together; a test runs the same parts in its own process. A part trains the run in a folder up to a step (going on
with it where there is one) and returns weights, average and the last step's gradients; every process writes down
which slots it read.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from deepcait.data import Preprocessing, open_split
from deepcait.data.augment import build_augmentation
from deepcait.data.erasing import Patch
from deepcait.data.loader import TrainingSet
from deepcait.errors import RunError
from deepcait.runtime.messages import shown
from deepcait.runtime.processes import Processes, join_processes, leave_processes
from deepcait.training.data import build_order
from deepcait.training.job import Job
from deepcait.training.recipe import load_recipe
from deepcait.training.trainer import Trainer
from deepcait.training.validation import Validation
from deepcait.weights.spec import resolve


@dataclass(frozen=True, kw_only=True)
class Part:
    """What to train.

    folder: of the run. last_step: where to stop. settings: laid over the recipe. poisoned_step: in this step the
    first image of the last replica is NaN.
    """

    data: str
    recipe: str
    model: str
    folder: str
    last_step: int
    float64: bool = True
    settings: tuple[str, ...] = ()
    poisoned_step: int | None = None


class RecordingSet(TrainingSet):
    """Writes down every slot that is read, and spoils one."""

    def __init__(self, *args, poisoned=None) -> None:
        super().__init__(*args)
        self.read = []
        self.poisoned = poisoned

    def change(self, slot):
        self.read.append(list(slot))
        image, label = super().change(slot)
        if slot == self.poisoned:
            whole = Patch(0, 0, *image.pixels.shape[-2:])
            image = image._replace(patches=[[whole]], filling=torch.full([image.pixels.numel()], torch.nan))
        return image, label


class Scores(Validation):
    """Stands where a Validation does, and measures nothing."""

    def __init__(self) -> None:
        self.best_by = "top1"

    def measure(self, models) -> dict[str, dict]:
        return {name: {"top1": 0.0, "top5": 0.0, "loss": 0.0} for name in models}


class Models:
    """Stands where ModelFolders do, and writes nothing."""

    def save(self, *_) -> None:
        pass


def run_part(part: Part, processes: Processes) -> dict[str, Tensor]:
    """Train one part; returns what came of it on this process."""
    folder = Path(part.folder)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe(part.recipe, list(part.settings))
    source = open_split(part.data, "train")
    order = build_order(recipe, source)
    found = resolve(part.model, classes=source.classes, drop_path_rate=recipe.drop_path_rate)
    model = found.model.double() if part.float64 else found.model
    preprocessing = Preprocessing.from_pretrained_cfg(found.pretrained_cfg)
    poisoned = None if part.poisoned_step is None else order.slots(part.poisoned_step, recipe.replicas - 1)[0]
    samples = RecordingSet(source, build_augmentation(recipe.augment, preprocessing), recipe.seed, poisoned=poisoned)
    trainer = Trainer(
        Job(
            recipe=recipe,
            folder=folder,
            model=model,
            samples=samples,
            order=order,
            validation=Scores(),
            models=Models(),
            processes=processes,
            device=torch.device("cpu"),
            teacher=None,
        )
    )
    trainer.last_step = part.last_step
    trainer.fit()
    (folder / f"read_{processes.rank}_of_{processes.world_size}.json").write_text(json.dumps(samples.read))
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"ema/{name}": value for name, value in trainer.average.state_dict().items()}
    tensors |= {f"grad/{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.detach().clone() for name, value in tensors.items()}


def write_plan(path: Path, parts: list[Part]) -> None:
    path.write_text(json.dumps([asdict(part) for part in parts]), encoding="utf-8")


def main(path: Path) -> int:
    """Run a plan; the main process writes the tensors of each part into its folder."""
    processes = join_processes(timeout_s=240)
    try:
        for entry in json.loads(path.read_text(encoding="utf-8")):
            part = replace(Part(**entry), settings=tuple(entry["settings"]))
            with shown(on_stdout=True):
                tensors = run_part(part, processes)
            if processes.is_main:
                save_file(tensors, Path(part.folder) / f"after_{part.last_step}.safetensors")
    except RunError as error:
        (path.parent / f"error_{processes.rank}.txt").write_text(error.problem, encoding="utf-8")
        return 2
    finally:
        leave_processes()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
