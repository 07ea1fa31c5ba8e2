"""The training loop: steps, evaluations, checkpoints; it can be stopped at any of them."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NoReturn

import torch
from torch import nn

from deepcait.data.loader import training_batches
from deepcait.data.mixing import Mixer
from deepcait.data.source import require_labels
from deepcait.errors import DataError, DeepcaitError, ImageError, Stopped
from deepcait.model.network import as_module
from deepcait.runtime.processes import is_lost_process
from deepcait.runtime.signals import StopRequest, WaitedTooLongError
from deepcait.training.average import WeightAverage
from deepcait.training.best import is_better, score_of
from deepcait.training.checkpoint import (
    Progress,
    load_tensors,
    read_checkpoint,
    read_settings,
    save_checkpoint,
    state_tensors,
)
from deepcait.training.compute import compiled_memory, not_compiled, set_compute, tf32, uses_tf32, wrap
from deepcait.training.events import Event
from deepcait.training.guard import Guard
from deepcait.training.job import Job
from deepcait.training.journal import Journal, read_state
from deepcait.training.losses import OwnLoss
from deepcait.training.optimizer import build_optimizer, chosen_class_weights, freeze, parameter_groups
from deepcait.training.prolong import keep_stable_models, restore_point, stable_folder
from deepcait.training.resume import deciding_settings, require_same_settings
from deepcait.training.schedule import LearningRate
from deepcait.training.skips import Skips
from deepcait.training.step import Stepper, StepResult
from deepcait.training.trackers import Tracker
from deepcait.training.validation import Validation
from deepcait.training.watch import Watch

_logger = logging.getLogger(__name__)


class Trainer:
    """A training run in progress.

    Everything that changes is in the model, the average, the optimizer, the user's loss, the scaler and `progress`:
    what a checkpoint holds.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        recipe = self.recipe = job.recipe
        model = self.model = as_module(job.model)
        freeze(job.model, recipe.train, recipe.freeze, recipe.freeze_blocks)
        set_compute(job.model, recipe.compute)
        if recipe.compute.channels_last:
            model.to(memory_format=torch.channels_last)
        self.average = WeightAverage(model, recipe.ema) if recipe.ema.decay else None
        self.optimizer = build_optimizer(
            parameter_groups(job.model, recipe.optimizer), recipe.optimizer, peak_lr=recipe.peak_lr
        )
        fp16 = recipe.compute.precision == "fp16"
        self.scaler = torch.amp.GradScaler(job.device.type, enabled=fp16)
        self.lr = LearningRate(recipe.schedule, recipe.peak_lr, recipe.epochs, job.order.steps_per_epoch)
        self.last_step = recipe.epochs * job.order.steps_per_epoch
        self.progress = Progress()
        num_classes, source = job.model.num_classes, job.samples.source
        weights_K = chosen_class_weights(recipe.optimizer.class_weights, lambda: require_labels(source), num_classes)
        self.stepper = Stepper(
            wrap(model, recipe.compute, job.processes),
            self.optimizer,
            self.scaler,
            Mixer(recipe.mix, num_classes, job.order.replica_batch_size),
            recipe,
            job.processes,
            teacher=job.teacher,
            class_weights_K=None if weights_K is None else weights_K.to(job.device),
        )
        self.loss = self.stepper.loss.module if isinstance(self.stepper.loss, OwnLoss) else None
        shape = job.model.config
        self.stepper.warm_up_ddp(torch.zeros(job.order.replica_batch_size, shape.in_chans, *shape.img_size))
        self.guard = Guard(job.folder, recipe.keep.max_skipped_steps, scales_gradients=fp16)
        self.journal = Journal(job.folder, active=job.processes.is_main)
        skips = recipe.data.on_error == "skip"
        self.skips = Skips(recipe.data.max_errors, self.journal, job.processes) if skips else None

    def fit(self, trackers: Sequence[Tracker] = ()) -> Progress:
        """Train to the end of the recipe.

        Args:
            trackers: called with every row of metrics, in the main process.

        Raises:
            Stopped: a signal requested a stop (`STOP_SIGNALS`); the run is saved and resumable.
            DivergedError: losses or weights stopped being finite; the last checkpoint is named.
            RunError: too many images are unreadable, or the disk is full.
            ImageError: an image is unreadable, and the recipe's data.on_error is raise.
        """
        self.journal.listeners = list(trackers)
        self._restore()
        self._state("running")
        self.watch = Watch(self.last_step, self.recipe.global_batch_size)
        with contextlib.closing(self.watch), StopRequest() as request:
            self.request = request
            try:
                self._run(request)
            except Stopped:
                self.journal.write_table()
                self._state("stopped")
                raise
            except DeepcaitError as error:
                # A full disk may have no room for this either; the first error is the one to report.
                with contextlib.suppress(DeepcaitError):
                    self._state("failed", error=error.problem)
                if isinstance(error, ImageError):
                    more = (
                        "`deepcait doctor` finds all of them; --resume with --set data.on_error=skip continues without "
                        "them. More: `deepcait help unreadable-images`."
                    )
                    raise ImageError(error.problem, remedy=f"{error.remedy} {more}") from error
                raise
        self.journal.write_table()
        self._state("finished")
        if self.job.processes.is_main and not self.recipe.keep.optimizer:
            shutil.rmtree(self.job.folder / "checkpoints", ignore_errors=True)
        self._emit("end")
        return self.progress

    def _run(self, request: StopRequest) -> None:
        try:
            self._steps(request)
        except WaitedTooLongError:
            _logger.warning("the data-loading workers sent nothing since the stop was requested; not waiting for them")
            self._stop()
        except (DataError, RuntimeError) as error:
            # Workers leave signals to this process, but for two instants of their start. A signal that ended them then
            # was meant for this process too; what they were to read has changed nothing yet. With several processes,
            # one that waits for its workers ends without the others, in the middle of a step that changes nothing.
            several = self.job.processes.world_size > 1
            lost = is_lost_process(error) if isinstance(error, RuntimeError) else not several
            if not (request.asked and lost):
                raise
            self._stop()

    def _steps(self, request: StopRequest) -> None:
        batches, self._saved_at = None, time.monotonic()
        while True:
            if self._evaluation_due():
                self._evaluate()
            if self.progress.step >= self.last_step or self.progress.stopped_early:
                return
            if self.progress.step == self.lr.decay_start > 0:
                self._checkpoint(stable=True)
            batches = batches or self._batches()
            result = self._step(batches, request)
            # An evaluation that is due is left to the resumed run: a stop was requested now.
            if result.stop:
                self._stop()
            if self._checkpoint_due() and not self._evaluation_due():
                self._checkpoint()

    def _stop(self) -> NoReturn:
        self._checkpoint()
        raise Stopped(f"stopped after step {self.progress.step} of {self.last_step}")

    def _batches(self) -> Iterator:
        return training_batches(
            self.job.samples,
            self.job.order,
            replicas=self.stepper.replicas,
            first_step=self.progress.step,
            last_step=self.last_step,
            num_workers=self.recipe.num_workers,
            pin_memory=self.job.device.type == "cuda",
            device=self.job.device,
            on_unreadable=self.skips.record if self.skips else None,
            max_errors=self.recipe.data.max_errors,
        )

    def _step(self, batches: Iterator, request: StopRequest) -> StepResult:
        step, lr = self.progress.step, self.lr(self.progress.step)
        head_only = step < self.recipe.head_warmup_epochs * self.job.order.steps_per_epoch
        self.model.train()
        with tf32(self.job.device, uses_tf32(self.recipe)), compiled_memory(self.recipe.compute):
            result = self.stepper(step, self.watch.timed(batches), lr, head_only=head_only, stop=request.asked)
        self.guard.count(self.progress, result, self.job.samples.source, self.job.order)
        if self.skips:
            self.skips.sync(step + 1, self.progress)
        if result.updated and self.average:
            self.average.update_parameters(self.model)
        self._log(step + 1, lr, result)
        return result

    def _log(self, step: int, lr: float, result: StepResult) -> None:
        p = self.progress
        p.step = step
        if result.updated:
            p.loss_sum += result.loss
            p.correct_sum += result.correct
            p.loss_steps += 1
        accuracy = self._accuracy(result.correct)
        self.watch.step(step, result, lr, accuracy)
        values = {"loss": result.loss, "accuracy": result.correct if accuracy is None else accuracy}
        values |= {"grad_norm": result.grad_norm, "lr": lr}
        self._emit("step", **values, updated=result.updated)
        if step % self.recipe.keep.log_every_steps and step % self.job.order.steps_per_epoch:
            return
        # Where every step was skipped there is no loss; 0 would be the best possible.
        loss, correct = (total / p.loss_steps if p.loss_steps else None for total in (p.loss_sum, p.correct_sum))
        row = {"epoch": step / self.job.order.steps_per_epoch, "lr": lr, "loss": loss}
        row |= {"target_mass": correct, "grad_norm": result.grad_norm, "skipped": p.skipped_total}
        if self.skips:
            row["unreadable"] = len(p.unreadable)
        self.journal.metrics("train", step, **row)
        self.journal.timing(step=step, **self.watch.speed(self.job.processes))
        self.watch.log(step, row, None if correct is None else self._accuracy(correct))
        p.loss_sum, p.correct_sum, p.loss_steps = 0.0, 0.0, 0

    def _accuracy(self, target_mass: float) -> float | None:
        return self.recipe.mix.accuracy_of(target_mass, self.job.model.num_classes)

    def _evaluation_due(self) -> bool:
        steps = self.job.order.steps_per_epoch * self.recipe.keep.evaluate_every_epochs
        due = self.progress.step % steps == 0 or self.progress.step == self.last_step
        return due and 0 < self.progress.step != self.progress.evaluated_step

    def _evaluate(self) -> None:
        """Evaluate the model if there is validation data; save models and a checkpoint."""
        p, job = self.progress, self.job
        self.guard.require_finite_weights(self.model, p.step)
        epoch = p.step // job.order.steps_per_epoch
        row, better = self._validate(job.validation, epoch) if job.validation else ({}, True)
        p.evaluated_step = p.step
        if better:
            p.best_step = p.step
        patience = self.recipe.keep.patience_epochs * job.order.steps_per_epoch
        p.stopped_early = bool(patience) and p.step - p.best_step >= patience
        if p.stopped_early and p.step < self.last_step:
            epochs = self.recipe.keep.patience_epochs
            _logger.info("stops early: no better in %d epochs (keep.patience_epochs)", epochs)
        if job.processes.is_main:
            facts = {"step": p.step, "epoch": epoch, **row}
            for name in ("best", "last") if better else ("last",):
                job.models.save(name, job.model, self.average, facts)
        self._checkpoint()
        self.journal.write_table()
        self._emit("evaluation", **row, best=better)

    def _validate(self, validation: Validation, epoch: int) -> tuple[dict, bool]:
        """Measure the raw weights, and the averaged ones where they are kept; return the row, and if it is the best."""
        p = self.progress
        models: dict[str, nn.Module] = {"raw": self.model}
        if self.average:
            models["ema"] = self.average.module
        with not_compiled(self.recipe.compute):
            row = validation.row(models, "ema" if self.average and self.recipe.ema.evaluated else "raw")
        score = score_of(row, validation.best_by)
        better = is_better(score, p.best_score)
        if better:
            p.best_top1, p.best_score = row["top1"], score
        self.journal.metrics("eval", p.step, epoch=epoch, **row)
        self.watch.evaluated(epoch, row, better)
        return row, better

    def _checkpoint_due(self) -> bool:
        keep = self.recipe.keep
        by_step = keep.checkpoint_every_steps and self.progress.step % keep.checkpoint_every_steps == 0
        by_time = keep.checkpoint_every_s and time.monotonic() - self._saved_at >= keep.checkpoint_every_s
        return bool(by_step or by_time)

    def _checkpoint(self, *, stable: bool = False) -> None:
        """Save what the run needs to continue; `stable`: what a longer run continues from, see `prolong`."""
        self._saved_at = time.monotonic()
        self.guard.require_finite_weights(self.model, self.progress.step)
        if not self.job.processes.is_main:
            return
        self.journal.flush()
        self.progress.scaler = self.scaler.state_dict()
        tensors = state_tensors(self.model, self.optimizer, self.average, self.loss)
        keep, settings = self.recipe.keep.checkpoints, deciding_settings(self.recipe)
        if stable:
            save_checkpoint(stable_folder(self.job.folder), self.progress, tensors, keep=1, settings=settings)
            keep_stable_models(self.job.folder)
            return
        save_checkpoint(self.job.folder / "checkpoints", self.progress, tensors, keep=keep, settings=settings)
        self._emit("checkpoint")

    def _state(self, state: str, **values: str) -> None:
        """Write status.json."""
        chosen = {"best_by": self.job.validation.best_by} if self.job.validation else {}
        self.journal.state(state, self.progress.step, **chosen, **values)

    def _emit(self, kind: Literal["step", "evaluation", "checkpoint", "end"], **values: Any) -> None:
        """Call the callbacks with an event."""
        step = self.progress.step
        for callback in self.job.callbacks:
            epoch = step / self.job.order.steps_per_epoch
            folder, request = self.job.folder, self.request
            callback(Event(kind=kind, step=step, epoch=epoch, folder=folder, values=values, request=request))

    def _restore(self) -> None:
        """Resume from the newest valid checkpoint, if there is one.

        Raises:
            RunError: it is of another recipe or version, or of other settings than config.yaml has now.
        """
        path = None
        if self.job.processes.is_main:
            path, damaged = restore_point(self.job.folder, self.recipe, self.job.order.steps_per_epoch)
            for line in damaged:
                _logger.warning("skipped %s", line)
        path = self.job.processes.broadcast(path)
        if path is None:
            if read_state(self.job.folder).get("step"):
                _logger.warning("no checkpoint is left to resume from: the run starts again")
            self.journal.cut(0, 0)
            return
        require_same_settings(self.job.folder, read_settings(path), self.recipe)
        self.progress, tensors = read_checkpoint(path)
        load_tensors(tensors, path, self.model, self.optimizer, self.average, self.loss)
        if self.loss is not None and self.loss.state_dict() and not any(key.startswith("loss/") for key in tensors):
            _logger.warning("%s has no state of the loss, which starts again", path.name)
        if self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)
        self.journal.cut(self.progress.step, self.progress.evaluated_step)
        _logger.info("resuming from %s: step %d of %d", path.name, self.progress.step, self.last_step)
