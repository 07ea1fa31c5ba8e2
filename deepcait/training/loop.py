"""The one training loop: steps, evaluations, checkpoints, and a stop at any of them."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deepcait.data.loader import TrainingSet, training_batches
from deepcait.data.mixing import Mixer
from deepcait.data.order import Order
from deepcait.data.source import require_labels
from deepcait.errors import DataError, DeepcaitError, DivergedError, ImageError, RunError, Stopped
from deepcait.model import CaiT
from deepcait.runtime.processes import Processes
from deepcait.training.average import WeightAverage
from deepcait.training.checkpoint import Progress, newest_checkpoint, read_checkpoint, read_settings, save_checkpoint
from deepcait.training.compute import set_compute
from deepcait.training.journal import Journal, read_state
from deepcait.training.optimizer import (
    build_optimizer,
    class_weights,
    freeze,
    load_optimizer_tensors,
    optimizer_tensors,
    parameter_groups,
)
from deepcait.training.recipe import Recipe
from deepcait.training.resume import deciding_settings, require_same_settings
from deepcait.training.schedule import LearningRate
from deepcait.training.skips import Skips
from deepcait.training.step import Stepper, StepResult
from deepcait.training.teacher import TeacherView
from deepcait.training.validation import Validation
from deepcait.training.watch import Watch


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a run needs, found and checked before anything is written.

    model: on its device, raw. samples and order: the training data. num_classes: K.
    validation: measures models, see `Validation`.
    save_model: writes a model folder: (name, model, average or None, metrics).
    """

    recipe: Recipe
    folder: Path
    model: CaiT
    samples: TrainingSet
    order: Order
    num_classes: int
    validation: Validation
    save_model: Callable[[str, CaiT, WeightAverage | None, dict], None]
    processes: Processes
    device: torch.device
    teacher: TeacherView | None
    watch: Watch


class Trainer:
    """A training run in progress.

    Everything that changes is in the model, the average, the optimizer, the scaler and `progress`: what a
    checkpoint holds.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        recipe = self.recipe = job.recipe
        freeze(job.model, recipe.train)
        set_compute(job.model, recipe.compute)
        if recipe.compute.channels_last:
            job.model.to(memory_format=torch.channels_last)
        self.average = WeightAverage(job.model, recipe.ema) if recipe.ema.decay else None
        self.optimizer = build_optimizer(parameter_groups(job.model, recipe.optimizer), recipe.optimizer)
        fp16 = recipe.compute.precision == "fp16"
        self.scaler = torch.amp.GradScaler(job.device.type, enabled=fp16)
        self.lr = LearningRate(recipe.schedule, recipe.peak_lr, recipe.epochs, job.order.steps_per_epoch)
        self.last_step = recipe.epochs * job.order.steps_per_epoch
        self.progress = Progress()
        self.stepper = Stepper(
            wrap(job.model, recipe, job.processes),
            self.optimizer,
            self.scaler,
            Mixer(recipe.mix, job.num_classes, job.order.replica_batch_size),
            recipe,
            job.processes,
            teacher=job.teacher,
            class_weights_K=self._class_weights(),
        )
        shape = job.model.config
        self.stepper.rehearse(torch.zeros(job.order.replica_batch_size, shape.in_chans, *shape.img_size))
        # Last: a listener may write into the run's folder, which what fails above shall leave as it was.
        self.journal = Journal(job.folder, active=job.processes.is_main, listeners=job.watch.listeners(job.folder))
        data = recipe.data
        skips = data.on_error == "skip"
        self.skips = Skips(data.max_errors, self.journal, job.processes, job.watch.say) if skips else None

    def fit(self) -> Progress:
        """Train to the end of the recipe.

        Raises:
            Stopped: SIGTERM or SIGINT came; the run is saved and resumable.
            DivergedError: losses or weights stopped being finite; the last checkpoint is named.
            RunError: too many pictures are unreadable, or the disk is full.
            ImageError: a picture is unreadable, and the recipe's data.on_error is raise.
        """
        self._restore()
        self.journal.state("running", self.progress.step)
        with StopRequest() as request:
            try:
                self._train(request)
            except Stopped:
                self.journal.write_table()
                self.journal.state("stopped", self.progress.step)
                raise
            except DeepcaitError as error:
                # A full disk may have no room for this either; the first error is the one to tell.
                with contextlib.suppress(DeepcaitError):
                    self.journal.state("failed", self.progress.step, error=error.problem)
                if isinstance(error, ImageError):
                    more = "`deepcait doctor` finds all of them; more: `deepcait help unreadable-images`."
                    raise ImageError(error.problem, remedy=f"{error.remedy} {more}") from error
                raise
        self.journal.write_table()
        self.journal.state("finished", self.progress.step)
        return self.progress

    def _train(self, request: StopRequest) -> None:
        try:
            self._advance(request)
        except DataError:
            # Workers leave signals to this process, but for two instants of their start. One that ended them then was
            # for this process too; what they were to read has changed nothing yet.
            if not request.asked or self.job.processes.world_size > 1:
                raise
            self._stop()

    def _stop(self) -> NoReturn:
        self._checkpoint()
        raise Stopped(f"stopped after step {self.progress.step} of {self.last_step}")

    def _advance(self, request: StopRequest) -> None:
        batches, self._saved_at = None, time.monotonic()
        while True:
            if self._evaluation_due():
                self._evaluate()
            if self.progress.step >= self.last_step or self.progress.stopped_early:
                return
            batches = batches or self._batches()
            result = self._step(batches, request)
            # An evaluation that is due is left to the resumed run: whoever asks to stop wants it now.
            if result.stop:
                self._stop()
            if self._checkpoint_due() and not self._evaluation_due():
                self._checkpoint()

    def _batches(self) -> Iterator:
        return training_batches(
            self.job.samples,
            self.job.order,
            replicas=self.stepper.replicas,
            first_step=self.progress.step,
            last_step=self.last_step,
            num_workers=self.recipe.data.num_workers,
            pin_memory=self.job.device.type == "cuda",
            device=self.job.device,
            on_unreadable=self.skips.hear if self.skips else None,
            max_errors=self.recipe.data.max_errors,
        )

    def _step(self, batches: Iterator, request: StopRequest) -> StepResult:
        step, watch = self.progress.step, self.job.watch
        lr = self.lr(step)
        head_only = step < self.recipe.head_warmup_epochs * self.job.order.steps_per_epoch
        self.job.model.train()
        result = self.stepper(step, watch.timed(batches), lr, head_only=head_only, stop=request.asked)
        self._guard(step, result)
        if self.skips:
            self.skips.settle(step + 1, self.progress)
        if result.updated and self.average:
            self.average.update_parameters(self.job.model)
        self._log(step + 1, lr, result)
        return result

    def _guard(self, step: int, result: StepResult) -> None:
        """Count steps that were not finite; too many in a row stop the run on every process together."""
        p = self.progress
        # The fp16 scaler finds its scale by overflowing now and then: a finite loss is no alarm there.
        searching = self.scaler.is_enabled() and math.isfinite(result.loss)
        p.skipped_steps = 0 if result.updated or searching else p.skipped_steps + 1
        p.skipped_total += not result.updated
        if p.skipped_steps <= self.recipe.keep.max_skipped_steps:
            return
        names = [
            self.job.samples.source.names[slot.index]
            for replica in range(self.recipe.replicas)
            for slot in self.job.order.slots(step, replica)
        ]
        raise self._diverged(
            f"step {step + 1}: expected a finite loss and gradient, got loss {result.loss} and gradient norm "
            f"{result.grad_norm}, for {p.skipped_steps} steps in a row.",
            f" Images of the batch: {', '.join(names[:16])}{' ...' if len(names) > 16 else ''}.",
        )

    def _require_finite_weights(self) -> None:
        """Stop before weights that an update has destroyed are measured, or saved over good ones."""
        state = self.job.model.state_dict()
        broken = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
        if broken:
            problem = f"step {self.progress.step}: expected finite weights after the update, got others in {broken[0]}"
            raise self._diverged(f"{problem}{f' and {len(broken) - 1} more' if len(broken) > 1 else ''}.")

    def _diverged(self, problem: str, more: str = "") -> DivergedError:
        path, _ = newest_checkpoint(self.job.folder / "checkpoints")
        return DivergedError(
            f"{problem} The last good checkpoint is {path.name if path else 'none yet'}.{more}",
            remedy="Start another run (--out) with a lower optimizer.lr, optimizer.clip_norm=1, or without fp16; "
            "--model with this run's folder begins with its best weights, where it has some. More in "
            "`deepcait help non-finite-loss`.",
        )

    def _log(self, step: int, lr: float, result: StepResult) -> None:
        p = self.progress
        p.step = step
        if result.updated:
            p.loss_sum += result.loss
            p.correct_sum += result.correct
            p.loss_steps += 1
        self.job.watch.step(step, result, lr)
        if step % self.recipe.keep.log_every_steps and step % self.job.order.steps_per_epoch:
            return
        # Where every step was skipped there is no loss to tell; 0 would be the best there is.
        loss, met = (total / p.loss_steps if p.loss_steps else None for total in (p.loss_sum, p.correct_sum))
        row = {"epoch": step / self.job.order.steps_per_epoch, "lr": lr, "loss": loss}
        row |= {"target_mass": met, "grad_norm": result.grad_norm, "skipped": p.skipped_total}
        if self.skips:
            row["unreadable"] = len(p.unreadable)
        self.journal.metrics("train", step, **row)
        self.journal.timing(step=step, **self.job.watch.speed(self.job.processes))
        self.job.watch.log(step, row)
        p.loss_sum, p.correct_sum, p.loss_steps = 0.0, 0.0, 0

    def _evaluation_due(self) -> bool:
        steps = self.job.order.steps_per_epoch * self.recipe.keep.evaluate_every_epochs
        due = self.progress.step % steps == 0 or self.progress.step == self.last_step
        return due and 0 < self.progress.step != self.progress.evaluated_step

    def _evaluate(self) -> None:
        """Measure the raw weights, and the averaged ones where they are kept; save models and a checkpoint."""
        self._require_finite_weights()
        p, job = self.progress, self.job
        models: dict[str, nn.Module] = {"raw": job.model}
        if self.average:
            models["ema"] = self.average.module
        metrics = job.validation.measure(models)
        which = "ema" if self.average and self.recipe.ema.evaluated else "raw"
        row = dict(metrics[which]) | {"weights": which}
        row |= {
            f"{other}_{key}": value
            for other, values in metrics.items()
            for key, value in values.items()
            if other != which
        }
        p.evaluated_step = p.step
        better = metrics[which]["top1"] > p.best_top1
        if better:
            p.best_top1, p.best_step = metrics[which]["top1"], p.step
        epoch = p.step // job.order.steps_per_epoch
        self.journal.metrics("eval", p.step, epoch=epoch, **row)
        job.watch.evaluated(epoch, row, better)
        patience = self.recipe.keep.patience_epochs * job.order.steps_per_epoch
        p.stopped_early = bool(patience) and p.step - p.best_step >= patience
        if p.stopped_early and p.step < self.last_step:
            job.watch.say(f"stops early: no better in {self.recipe.keep.patience_epochs} epochs (keep.patience_epochs)")
        if job.processes.is_main:
            facts = {"step": p.step, "epoch": epoch, **row}
            if better:
                job.save_model("best", job.model, self.average, facts)
            job.save_model("last", job.model, self.average, facts)
        self._checkpoint()
        self.journal.write_table()

    def _checkpoint_due(self) -> bool:
        keep = self.recipe.keep
        by_step = keep.checkpoint_every_steps and self.progress.step % keep.checkpoint_every_steps == 0
        by_time = keep.checkpoint_every_s and time.monotonic() - self._saved_at >= keep.checkpoint_every_s
        return bool(by_step or by_time)

    def _checkpoint(self) -> None:
        self._saved_at = time.monotonic()
        self._require_finite_weights()
        if not self.job.processes.is_main:
            return
        self.journal.flush()
        self.progress.scaler = self.scaler.state_dict()
        folder = self.job.folder / "checkpoints"
        how = {"keep": self.recipe.keep.checkpoints, "settings": deciding_settings(self.recipe)}
        save_checkpoint(folder, self.progress, self._tensors(), **how)

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = {f"model/{name}": value for name, value in self.job.model.state_dict().items()}
        tensors |= {f"optimizer/{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        if self.average:
            tensors |= {f"ema/{name}": value for name, value in self.average.state_dict().items()}
        return tensors

    def _restore(self) -> None:
        """Go on from the newest valid checkpoint, where there is one.

        Raises:
            RunError: it is of another recipe or version, or of other settings than config.yaml has now.
        """
        path, passed_over = newest_checkpoint(self.job.folder / "checkpoints")
        for line in passed_over:
            self.job.watch.say(f"passed over {line}")
        path = self.job.processes.broadcast(path)
        if path is None:
            if read_state(self.job.folder).get("step"):
                self.job.watch.say("no checkpoint is left to go on from: the run starts anew")
            self.journal.cut(0, 0)
            return
        require_same_settings(self.job.folder, read_settings(path), self.recipe)
        self.progress, tensors = read_checkpoint(path)
        parts: dict[str, dict] = {"model": {}, "optimizer": {}, "ema": {}}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = value
        try:
            self.job.model.load_state_dict(parts["model"])
            load_optimizer_tensors(self.optimizer, parts["optimizer"])
            if self.average:
                self.average.load_state_dict(parts["ema"])
        except (RuntimeError, KeyError) as error:
            raise RunError(
                f"{path}: expected the weights and states of the run's recipe, got others "
                f"({str(error).splitlines()[0].rstrip(':')}).",
                remedy="Bring config.yaml back to what the run began with, or start a new run in another --out.",
            ) from error
        if self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)
        self.journal.cut(self.progress.step, self.progress.evaluated_step)
        self.job.watch.resumed(path.name, self.progress.step, self.last_step)

    def _class_weights(self) -> torch.Tensor | None:
        if not self.recipe.optimizer.class_weights:
            return None
        return class_weights(require_labels(self.job.samples.source), self.job.num_classes).to(self.job.device)


def wrap(model: CaiT, recipe: Recipe, processes: Processes) -> nn.Module:
    """Return the model compiled, and wrapped for several processes, as far as asked for; the weights are shared."""
    net = cast("nn.Module", torch.compile(model)) if recipe.compute.compile else model
    if processes.world_size == 1:
        return net
    devices = [processes.local_rank] if next(model.parameters()).is_cuda else None
    return DistributedDataParallel(net, device_ids=devices)


class StopRequest:
    """Turns SIGTERM and SIGINT into a wish that is granted after the step; a second SIGINT insists.

    A wish that came too late to be granted, in the last evaluation, goes on to whoever listened before in Python.
    """

    def __init__(self) -> None:
        self.asked = False
        self._number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        listener = self._before.get(self._number)
        if self.asked and kind is None and callable(listener) and listener is not signal.default_int_handler:
            listener(self._number, None)

    def _ask(self, number: int, _: object) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked, self._number = True, number
