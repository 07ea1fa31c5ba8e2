"""A job small enough for a test: a network of 2 + 2 blocks on random images, trained without the command."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn

from deepcait.data.augment import Changed
from deepcait.data.mixing import Mix, Mixer
from deepcait.data.order import Order
from deepcait.data.source import Sample
from deepcait.model import CaiT
from deepcait.runtime.processes import Processes
from deepcait.training.job import Job
from deepcait.training.optimizer import build_optimizer, parameter_groups
from deepcait.training.recipe import Recipe
from deepcait.training.schedule import Schedule
from deepcait.training.settings import Average, Compute, Data, Keep, Optimizer
from deepcait.training.step import Stepper
from deepcait.training.trainer import Trainer
from deepcait.training.validation import Validation
from tests.model.wild import tiny_config, wild_model

# A run through deepcait.train in half a second: beside model="cait_nano_32" and recipe="demo".
SMALL_RUN = {
    "start": "random",
    "shape": {"embed_dim": 8, "depth": 1, "num_heads": 2, "patch_size": 16, "cls_depth": 1},
    "data": {"limit": 40, "val_limit": 20, "num_workers": 0},
    "global_batch_size": 20,
    "replicas": 1,
    "keep.log_every_steps": 1,
}
CPU = torch.device("cpu")
NO_MIX = Mix(mixup=0.0, cutmix=0.0)
K = 7


def tiny_model(dtype: torch.dtype = torch.float64, **changes) -> CaiT:
    """Wild weights, so that every branch shows."""
    return wild_model(tiny_config(img_size=16, **changes), seed=0, dtype=dtype)


def tiny_recipe(**changes) -> Recipe:
    """Eight images a step in two replicas, plain settings; sections may be given by name."""
    plain = {
        "epochs": 2,
        "global_batch_size": 8,
        "replicas": 2,
        "data": Data(num_workers=0),
        "mix": NO_MIX,
        "optimizer": Optimizer(lr=1e-2, lr_batch=0),
        "schedule": Schedule(warmup_epochs=0, warmup_lr=1e-4, min_lr=1e-4),
        "compute": Compute(device="cpu"),
        "keep": Keep(log_every_steps=1, checkpoint_every_s=0),
        "ema": Average(decay=0.0),
    }
    return Recipe(**(plain | changes))


class Pixels:
    """Stands where a TrainingSet does: random tensors, which may be poisoned by index."""

    def __init__(self, num_samples: int = 32, poisoned: tuple[int, ...] = ()) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(num_samples, 3, 16, 16, generator=generator)
        self.images[list(poisoned)] = float("nan")
        self.labels = [index % K for index in range(num_samples)]
        self.names = [f"image_{index:02d}.png" for index in range(num_samples)]
        self.source = self.transform = self
        self.reads: list[int] = []

    def __len__(self) -> int:
        return len(self.labels)

    def change(self, slot) -> tuple[Changed, int]:
        self.reads.append(slot.index)
        return Changed(self.images[slot.index], [[]], torch.empty(0)), self.labels[slot.index]

    def finish(self, changed: Changed) -> torch.Tensor:
        return changed.pixels

    def read(self, index: int) -> Sample:
        raise AssertionError("pixels have no file")


class Scores(Validation):
    """Stands where a Validation does: metrics that a function gives for each model."""

    def __init__(self, score, best_by: str = "top1") -> None:
        self.score = score
        self.best_by = best_by

    def measure(self, models) -> dict[str, dict]:
        return {name: self.score(model) for name, model in models.items()}


class Models:
    """Stands where ModelFolders do: a function hears what would be written."""

    def __init__(self, save=lambda *_: None) -> None:
        self.save = save


def tiny_job(
    folder: Path, recipe: Recipe, *, samples: Pixels | None = None, model: CaiT | None = None, **changes
) -> Job:
    """A job on this process alone; evaluation gives a number that follows from the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = samples or Pixels()
    model = model or tiny_model(torch.float32)
    order = Order(
        num_samples=len(samples),
        global_batch_size=recipe.global_batch_size,
        replicas=recipe.replicas,
        repeats=1,
        seed=recipe.seed,
    )
    plain = {
        "recipe": recipe,
        "folder": folder,
        "model": model,
        "samples": samples,
        "order": order,
        "validation": Scores(lambda net: {"top1": float(net.head.bias.detach().abs().sum()), "top5": 1.0, "loss": 0.5}),
        "models": Models(),
        "processes": Processes(),
        "device": CPU,
        "teacher": None,
    }
    return Job(**(plain | changes))


def train(folder: Path, recipe: Recipe, **changes) -> Trainer:
    """Train to the end and return what trained."""
    trainer = Trainer(tiny_job(folder, recipe, **changes))
    trainer.fit()
    return trainer


def make_stepper(model: CaiT, recipe: Recipe, *, optimizer: torch.optim.Optimizer | None = None, **changes) -> Stepper:
    """A stepper on this process alone."""
    model.train()
    optimizer = optimizer or build_optimizer(parameter_groups(model, recipe.optimizer), recipe.optimizer)
    fp16 = recipe.compute.precision == "fp16"
    scaler = changes.pop("scaler", None) or torch.amp.GradScaler("cpu", enabled=fp16)
    mixer = Mixer(recipe.mix, K, recipe.global_batch_size // recipe.replicas)
    return Stepper(model, optimizer, scaler, mixer, recipe, Processes(), **changes)


def some_batches(recipe: Recipe, seed: int = 1, img_size: int = 16):
    """One global batch, cut into the replicas of the recipe."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(recipe.global_batch_size, 3, img_size, img_size, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, K, (recipe.global_batch_size,), generator=generator)
    each = recipe.global_batch_size // recipe.replicas
    return [
        (images[first : first + each].float().double(), labels[first : first + each])
        for first in range(0, recipe.global_batch_size, each)
    ]


def gradients(model: nn.Module) -> torch.Tensor:
    """All of them, as one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def section(recipe: Recipe, name: str, **changes) -> Recipe:
    """The recipe with other values in one section."""
    return dataclasses.replace(recipe, **{name: dataclasses.replace(getattr(recipe, name), **changes)})
