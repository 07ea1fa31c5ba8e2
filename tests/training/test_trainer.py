"""The loop: what is not finite is skipped, counted and named; a run resumes bit-exactly; the best is kept."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
import threading

import pytest
import torch

from deepcait.data.mixing import Mix
from deepcait.data.order import Order
from deepcait.errors import ConfigError, DataError, DivergedError, RunError, Stopped
from deepcait.runtime import signals
from deepcait.runtime.processes import Processes
from deepcait.runtime.signals import StopRequest
from deepcait.training import trainer as loop
from deepcait.training.checkpoint import newest_checkpoint, read_checkpoint
from deepcait.training.journal import read_metrics, read_state
from deepcait.training.settings import About, Average, Compute, Keep, Optimizer
from deepcait.training.trainer import Trainer
from tests.training.tiny import K, Models, Pixels, Scores, section, tiny_job, tiny_model, tiny_recipe, train


def full_recipe(**changes):
    """All that has a state: mixing, depth, average, momentum; every step logged."""
    settings = {
        "mix": Mix(),
        "ema": Average(decay=0.9, evaluated=True),
        "optimizer": Optimizer(lr=1e-3, lr_batch=0, clip_norm=1.0, layer_decay=0.9),
        "keep": Keep(log_every_steps=3, checkpoint_every_steps=1, checkpoint_every_s=0, checkpoints=100),
    }
    return tiny_recipe(**(settings | changes))


def deep_model():
    return tiny_model(torch.float32, drop_path_rate=0.2)


def poisoned_in_step(step: int, recipe, num_samples: int = 32) -> int:
    """A sample that comes in this step."""
    job_order = Order(num_samples=num_samples, global_batch_size=8, replicas=2, seed=recipe.seed)
    return job_order.slots(step, 1)[2].index


def test_one_bad_step_is_skipped_and_counted(tmp_path):
    recipe = full_recipe(epochs=1)
    bad = poisoned_in_step(2, recipe)
    trainer = Trainer(tiny_job(tmp_path, recipe, samples=Pixels(poisoned=(bad,)), model=deep_model()))
    states = []
    wrapped = trainer.stepper

    def spy(step, batches, lr, **how):
        states.append([p.detach().clone() for p in trainer.job.model.parameters()])
        return wrapped(step, batches, lr, **how)

    spy.replicas = wrapped.replicas
    trainer.stepper = spy
    progress = trainer.fit()
    assert (progress.step, progress.skipped_total, progress.skipped_steps) == (4, 1, 0)
    assert all(torch.equal(a, b) for a, b in zip(states[2], states[3], strict=True))  # step 2 moved nothing
    assert not all(torch.equal(a, b) for a, b in zip(states[1], states[2], strict=True))
    assert all(p.isfinite().all() for p in trainer.job.model.parameters())
    assert all(p.isfinite().all() for p in trainer.average.module.parameters())
    assert int(trainer.average.n_averaged) == 3
    trains = [row for row in read_metrics(tmp_path) if row["kind"] == "train"]
    assert [row["skipped"] for row in trains] == [1, 1]
    assert all(isinstance(row["loss"], float) for row in trains)  # means of the good steps


def test_a_scale_that_is_still_looked_for_is_no_alarm(tmp_path):
    """In fp16 the first steps overflow until the scale fits: their losses are finite."""
    recipe = full_recipe(epochs=6, compute=Compute(device="cpu", precision="fp16"))
    trainer = Trainer(tiny_job(tmp_path, section(recipe, "keep", max_skipped_steps=2), model=deep_model()))
    trainer.scaler = trainer.stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**36)
    progress = trainer.fit()
    assert progress.skipped_total > 5
    assert (progress.step, progress.skipped_steps) == (24, 0)


def test_steps_are_taken_in_training_mode_whatever_an_evaluation_left(tmp_path):
    modes = []
    evaluate = lambda net: {"top1": float(not net.eval().training), "top5": 1.0, "loss": 0.5}  # noqa: E731
    trainer = Trainer(tiny_job(tmp_path, full_recipe(), model=deep_model(), validation=Scores(evaluate)))
    wrapped = trainer.stepper

    def spy(*args, **how):
        modes.append({module.training for module in trainer.job.model.modules()})
        return wrapped(*args, **how)

    spy.replicas = wrapped.replicas
    trainer.stepper = spy
    trainer.fit()
    assert modes == [{True}] * 8


@pytest.mark.parametrize(("epochs", "steps"), [(3, [8, 12]), (2, [8]), (1, [4])])
def test_the_last_step_is_evaluated_whatever_the_period(tmp_path, epochs, steps):
    tables = []

    def evaluate(net):
        tables.append((tmp_path / "metrics.csv").exists())
        return {"top1": 0.5, "top5": 1.0, "loss": 0.5}

    recipe = section(full_recipe(epochs=epochs, ema=Average(decay=0.0)), "keep", evaluate_every_epochs=2)
    train(tmp_path, recipe, model=deep_model(), validation=Scores(evaluate))
    assert [row["step"] for row in read_metrics(tmp_path) if row["kind"] == "eval"] == steps
    assert tables == [number > 0 for number in range(len(steps))]  # the table is there after the first


def test_a_checkpoint_now_and_then_by_the_clock(tmp_path, monkeypatch):
    clock = iter(range(0, 100_000, 10))
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(clock))
    for every_s, steps in ((10, [1, 2, 3, 4]), (10**6, [4])):
        recipe = section(full_recipe(epochs=1), "keep", checkpoint_every_steps=0, checkpoint_every_s=every_s)
        train(tmp_path / str(every_s), recipe, model=deep_model())
        names = sorted(path.name for path in (tmp_path / str(every_s) / "checkpoints").iterdir())
        assert [int(name[5:13]) for name in names] == steps


@pytest.mark.parametrize("max_skipped", [0, 2])
def test_too_many_bad_steps_stop_the_run_with_names(tmp_path, max_skipped):
    recipe = section(full_recipe(epochs=1), "keep", max_skipped_steps=max_skipped)
    samples, good_steps = Pixels(128), 3
    order = Order(num_samples=128, global_batch_size=8, replicas=2)
    samples.images[order.slots(1, 0)[3].index] = float("nan")  # alone: forgiven, and forgotten by the next good step
    for step in range(good_steps, 16):
        samples.images[order.slots(step, step % 2)[1].index] = float("nan" if step % 3 else "inf")
    if max_skipped == 0:
        samples.images[order.slots(1, 0)[3].index] = 0.0
    with pytest.raises(RunError) as caught:
        Trainer(tiny_job(tmp_path, recipe, samples=samples, model=deep_model())).fit()
    stopped_at = good_steps + max_skipped
    assert f"step {stopped_at + 1}: expected a finite loss" in caught.value.problem
    assert f"{max_skipped + 1} steps in a row" in caught.value.problem
    for slot in [*order.slots(stopped_at, 0), *order.slots(stopped_at, 1)]:
        assert samples.names[slot.index] in caught.value.problem
    assert "optimizer.lr" in caught.value.remedy
    path, _ = newest_checkpoint(tmp_path / "checkpoints")
    assert path.name in caught.value.problem
    _, tensors = read_checkpoint(path)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    state = read_state(tmp_path)
    assert state["state"] == "failed"
    assert samples.names[order.slots(stopped_at, 0)[0].index] in state["error"]


def outcome(folder) -> tuple[bytes, bytes]:
    path, _ = newest_checkpoint(folder / "checkpoints")
    return path.read_bytes(), (folder / "metrics.jsonl").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[bytes, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    train(folder, full_recipe(), model=deep_model())
    return outcome(folder)


class Interrupted(Exception):  # noqa: N818
    """Stands for a kill: nothing is tidied."""


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5, 7])
def test_interrupted_anywhere_it_ends_with_the_same_bytes(tmp_path, uninterrupted, after):
    reads = interrupt_and_resume(tmp_path, full_recipe(), after)
    assert outcome(tmp_path) == uninterrupted
    assert reads == 8 * (8 - after)  # nothing that was done before is read again


def test_rows_are_on_the_disk_before_the_checkpoint_says_so(tmp_path, monkeypatch):
    """After a power cut a checkpoint ahead of its rows would leave a gap."""
    done = []
    flush, save = loop.Journal.flush, loop.save_checkpoint
    monkeypatch.setattr(loop.Journal, "flush", lambda self: (done.append("flush"), flush(self))[1])
    monkeypatch.setattr(loop, "save_checkpoint", lambda *a, **k: (done.append("save"), save(*a, **k))[1])
    train(tmp_path, full_recipe(epochs=1), model=deep_model())
    assert done == ["flush", "save"] * 4


@pytest.mark.parametrize("memory", ["normal", "small"])
def test_bfloat16_resumes_to_the_same_bytes_whatever_is_kept(tmp_path, memory):
    outcomes = []
    for kept, after in (("normal", None), (memory, 5)):
        recipe = full_recipe(compute=Compute(device="cpu", precision="bf16", memory=kept))
        folder = tmp_path / f"{kept} {after}"
        if after is None:
            train(folder, recipe, model=deep_model())
        else:
            interrupt_and_resume(folder, recipe, after)
        outcomes.append(weights_of(folder))
    assert outcomes[0] == outcomes[1]


def test_fp16_resumes_to_the_same_bytes(tmp_path):
    """The scale of gradients goes on too: here it doubles every third step."""
    recipe = full_recipe(compute=Compute(device="cpu", precision="fp16"))
    whole, parts = (Trainer(tiny_job(tmp_path / name, recipe, model=deep_model())) for name in ("whole", "parts"))
    whole.scaler.set_growth_interval(3)
    whole.fit()
    assert whole.scaler.get_scale() > 65536  # it moved
    parts.scaler.set_growth_interval(3)
    stop_before(parts, 5)
    with pytest.raises(Interrupted):
        parts.fit()
    resumed = Trainer(tiny_job(tmp_path / "parts", recipe, model=deep_model().apply(forget)))
    resumed.scaler.set_growth_interval(3)
    resumed.fit()
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_a_process_that_is_not_the_main_one_writes_nothing(tmp_path):
    recipe = section(full_recipe(epochs=1), "keep", tensorboard=False)
    saved = []
    train(tmp_path, recipe, model=deep_model(), processes=Processes(rank=1), models=Models(lambda *_: saved.append(1)))
    assert list(tmp_path.iterdir()) == saved == []


def weights_of(folder) -> dict[str, bytes]:
    path, _ = newest_checkpoint(folder / "checkpoints")
    return {name: tensor.numpy().tobytes() for name, tensor in read_checkpoint(path)[1].items()}


def interrupt_and_resume(folder, recipe, after: int) -> int:
    """Train, stop in a step, train on; returns how many samples the second part read."""
    trainer = Trainer(tiny_job(folder, recipe, model=deep_model()))
    stop_before(trainer, after)
    with pytest.raises(Interrupted):
        trainer.fit()
    samples = Pixels()
    train(folder, recipe, samples=samples, model=tiny_model(torch.float32, drop_path_rate=0.2).apply(forget))
    return len(samples.reads)


def stop_before(trainer: Trainer, step: int) -> None:
    """Kill a training as it takes this step."""
    wrapped = trainer.stepper

    def dies(number, *args, **how):
        if number == step:
            raise Interrupted
        return wrapped(number, *args, **how)

    dies.replicas = wrapped.replicas
    trainer.stepper = dies


def forget(module) -> None:
    """Other weights than the run's: a resumed run must not lean on what the model started from."""
    for parameter in module.parameters(recurse=False):
        torch.nn.init.constant_(parameter, 0.3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_finishes_the_step_and_saves(tmp_path, uninterrupted, number):
    recipe = section(full_recipe(), "keep", checkpoint_every_steps=0)
    trainer = Trainer(tiny_job(tmp_path, recipe, model=deep_model()))
    wrapped = trainer.stepper

    def asked(step, *args, **how):
        if step == 1:
            signal.raise_signal(number)
        return wrapped(step, *args, **how)

    asked.replicas = wrapped.replicas
    trainer.stepper = asked
    before = signal.getsignal(number)
    with pytest.raises(Stopped):
        trainer.fit()
    assert signal.getsignal(number) is before
    assert read_state(tmp_path)["state"] == "stopped"
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + len(read_metrics(tmp_path)) > 1
    assert newest_checkpoint(tmp_path / "checkpoints")[0].name.startswith("step_00000003-")
    train(tmp_path, recipe, model=deep_model())
    assert outcome(tmp_path) == uninterrupted
    assert read_state(tmp_path)["state"] == "finished"


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("asked", [True, False])
def test_workers_that_a_signal_ended_are_a_stop(tmp_path, asked, world_size):
    """Of several processes the others would wait for the step that this one can't take."""
    trainer = Trainer(tiny_job(tmp_path, full_recipe(), model=deep_model()))
    wrapped = trainer.stepper

    def dies(step, *args, **how):
        if step < 2:
            return wrapped(step, *args, **how)
        trainer.job = dataclasses.replace(trainer.job, processes=Processes(world_size=world_size))
        if asked:
            signal.raise_signal(signal.SIGTERM)
        raise DataError("expected the worker processes to continue, got the end of one.", remedy="")

    dies.replicas = wrapped.replicas
    trainer.stepper = dies
    stops = asked and world_size == 1
    with pytest.raises(Stopped if stops else DataError):
        trainer.fit()
    assert read_state(tmp_path)["state"] == ("stopped" if stops else "failed")
    assert newest_checkpoint(tmp_path / "checkpoints")[0].name.startswith("step_00000002-")


@pytest.mark.parametrize("waits_in", ["a step", "an evaluation"])
def test_a_run_that_waits_for_its_workers_stops(tmp_path, uninterrupted, monkeypatch, waits_in):
    """The step, or the evaluation, that never ends is left to the resumed run, which ends as if nothing had been."""
    monkeypatch.setattr(signals, "_PATIENCE_S", 0.0)
    recipe = section(full_recipe(), "keep", checkpoint_every_steps=0)
    trainer = Trainer(tiny_job(tmp_path, recipe, model=deep_model()))
    wrapped, validate = trainer.stepper, trainer._validate

    def wait_for_ever():
        signal.raise_signal(signal.SIGTERM)
        with signals.waiting():
            threading.Event().wait(60)

    def steps(step, *args, **how):
        if step == 2 and waits_in == "a step":
            wait_for_ever()
        return wrapped(step, *args, **how)

    steps.replicas = wrapped.replicas
    trainer.stepper = steps
    if waits_in == "an evaluation":
        trainer._validate = lambda *args: (wait_for_ever(), validate(*args))[1]
    with pytest.raises(Stopped):
        trainer.fit()
    assert read_state(tmp_path)["state"] == "stopped"
    assert newest_checkpoint(tmp_path / "checkpoints")[0] is not None
    train(tmp_path, recipe, model=deep_model())
    assert outcome(tmp_path) == uninterrupted


def test_a_wish_that_came_too_late_goes_on_to_who_listened_before():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with StopRequest():
            pass
        assert heard == []
        with StopRequest():
            signal.raise_signal(signal.SIGTERM)
            assert heard == []
        assert heard == [signal.SIGTERM]
        granted = StopRequest()
        with contextlib.suppress(Stopped), granted:
            signal.raise_signal(signal.SIGTERM)
            raise Stopped("stopped")
        assert granted.asked
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_first_error_is_reported_where_there_is_no_room_for_the_state(tmp_path, monkeypatch):
    state = loop.Journal.state

    def full(self, name, *args, **how):
        if name == "failed":
            raise RunError("expected to write here, got a full disk.", remedy="")
        state(self, name, *args, **how)

    monkeypatch.setattr(loop.Journal, "state", full)
    recipe = section(full_recipe(epochs=1), "keep", max_skipped_steps=0)
    with pytest.raises(DivergedError, match="expected a finite loss"):
        Trainer(tiny_job(tmp_path, recipe, samples=Pixels(poisoned=tuple(range(32))), model=deep_model())).fit()


def test_a_second_interrupt_insists():
    with StopRequest() as request:
        signal.raise_signal(signal.SIGINT)
        assert request.asked
        signal.raise_signal(signal.SIGTERM)  # asks again, no more
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_skipped_checkpoints_are_named(tmp_path, uninterrupted, caplog):
    caplog.set_level("INFO", "deepcait")
    recipe = full_recipe()
    train(tmp_path, recipe, model=deep_model())
    newest, _ = newest_checkpoint(tmp_path / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-1])
    train(tmp_path, recipe, model=deep_model())
    assert any(newest.name in line and "skipped" in line for line in caplog.messages)
    assert any("resuming from step_0000000" in line for line in caplog.messages)
    assert outcome(tmp_path) == uninterrupted


def test_a_run_without_its_checkpoints_says_that_it_starts_again(tmp_path, uninterrupted, caplog):
    recipe = full_recipe()
    train(tmp_path, recipe, model=deep_model())
    assert not any("starts again" in line for line in caplog.messages)  # it is new
    shutil.rmtree(tmp_path / "checkpoints")
    for _ in range(2):
        train(tmp_path, recipe, model=deep_model())
    assert [line for line in caplog.messages if "starts again" in line] == [
        "no checkpoint is left to resume from: the run starts again"
    ]
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.parametrize(
    "changes", [{"train": "head"}, {"ema": Average(decay=0.5)}], ids=["a parameter without state", "an average"]
)
def test_a_checkpoint_of_another_recipe_is_one_paragraph(tmp_path, changes, monkeypatch):
    """Somebody edited config.yaml by hand, and the checkpoint is of a version that remembered no settings."""
    monkeypatch.setattr(loop, "read_settings", lambda path: {})
    plain = full_recipe(ema=Average(decay=0.0))
    train(tmp_path, plain, model=deep_model())
    with pytest.raises(RunError, match="the weights and states do not fit the run's recipe") as caught:
        train(tmp_path, dataclasses.replace(plain, **changes), model=deep_model())
    assert "config.yaml" in caught.value.remedy


@pytest.mark.parametrize(
    ("section_name", "changes", "expected", "got"),
    [
        ("optimizer", {"lr": 0.5}, "optimizer.lr: {}", "optimizer.lr: 0.5"),
        ("optimizer", {"clip_norm": 3.0, "class_weights": True}, "optimizer.clip_norm: {}", "optimizer.clip_norm: 3.0"),
        ("compute", {"backend": "reference"}, "compute.backend: auto", "compute.backend: reference"),
        ("mix", {"mixup": 0.25}, "mix.mixup: {}", "mix.mixup: 0.25"),
    ],
)
def test_settings_that_somebody_changed_in_between_are_reported(tmp_path, section_name, changes, expected, got):
    recipe = full_recipe()
    train(tmp_path, recipe, model=deep_model())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    name = next(iter(changes))
    value = getattr(getattr(recipe, section_name), name)
    with pytest.raises(RunError) as caught:
        train(tmp_path, section(recipe, section_name, **changes), model=deep_model())
    first, second = caught.value.problem.split(" to ")
    assert "config.yaml: settings were changed since the run began" in first
    assert expected.format(value) in first
    assert got in second
    assert all(other in second for other in changes)
    assert "Restore them" in caught.value.remedy
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_settings_that_another_version_knew_are_not_compared(tmp_path, uninterrupted, monkeypatch):
    recipe, read_settings = full_recipe(), loop.read_settings
    train(tmp_path, recipe, model=deep_model())
    monkeypatch.setattr(loop, "read_settings", lambda path: read_settings(path) | {"mix.gone": 0.5})
    train(tmp_path, recipe, model=deep_model())
    assert outcome(tmp_path) == uninterrupted


def test_settings_that_decide_no_result_may_change_in_between(tmp_path, uninterrupted):
    recipe = full_recipe()
    train(tmp_path, recipe, model=deep_model())
    changed = section(recipe, "compute", memory="small")
    changed = section(changed, "data", source="the same, elsewhere", max_errors=7)
    train(tmp_path, dataclasses.replace(changed, about=About(summary="edited")), model=deep_model())
    assert outcome(tmp_path) == uninterrupted


def test_what_fails_before_the_first_step_leaves_the_folder_as_it_was(tmp_path):
    odd = tiny_recipe(global_batch_size=6, mix=Mix())
    with pytest.raises(ConfigError):
        Trainer(tiny_job(tmp_path, odd))
    assert list(tmp_path.iterdir()) == []


def test_a_validation_loss_that_is_none_is_logged_and_no_failure(tmp_path, caplog):
    caplog.set_level("INFO", "deepcait")
    metrics = {"top1": 0.0, "top5": 0.5, "loss": None}
    train(tmp_path, full_recipe(epochs=1), validation=Scores(lambda net: metrics))
    assert any("top-1 0.00 %, loss not finite (ema weights" in line for line in caplog.messages)
    assert read_state(tmp_path)["state"] == "finished"


@pytest.mark.parametrize(("step", "every"), [(4, 0), (6, 1), (8, 0)])
def test_weights_that_an_update_destroyed_are_neither_measured_nor_saved(tmp_path, step, every):
    """The loss before the update was finite, so the guard of losses has not seen it."""
    recipe = section(full_recipe(), "keep", checkpoint_every_steps=every)
    measured: list[float] = []
    model = deep_model()
    evaluate = lambda net: {"top1": float(net.head.bias.detach().sum()), "top5": 1.0, "loss": 0.5}  # noqa: E731
    trainer = Trainer(
        tiny_job(tmp_path, recipe, model=model, validation=Scores(lambda net: (measured.append(1), evaluate(net))[1]))
    )
    wrapped = trainer.stepper

    def destroys(number, *args, **how):
        result = wrapped(number, *args, **how)
        if number + 1 == step:
            model.head.bias.data[3] = float("nan")
        return result

    destroys.replicas = wrapped.replicas
    trainer.stepper = destroys
    with pytest.raises(DivergedError, match=f"step {step}: the weights are not finite after the update, in head"):
        trainer.fit()
    assert len(measured) == (0 if step == 4 else 2)
    assert read_state(tmp_path)["state"] == "failed"
    path, _ = newest_checkpoint(tmp_path / "checkpoints")
    assert (path is None) == (step == 4)
    assert path is None or all(tensor.isfinite().all() for tensor in read_checkpoint(path)[1].values())


def test_best_last_patience_and_which_weights(tmp_path, caplog):
    caplog.set_level("INFO", "deepcait")
    saved: list[tuple[str, int]] = []
    accuracies = iter([0.2, 0.9, 0.5, 0.9, 0.4, 0.3, 0.2, 0.1] + [0.0] * 9)
    recipe = section(full_recipe(epochs=9, ema=Average(decay=0.0)), "keep", patience_epochs=2)
    trainer = train(
        tmp_path,
        recipe,
        validation=Scores(lambda net: {"top1": next(accuracies), "top5": 1.0, "loss": 0.0}),
        models=Models(lambda name, model, average, facts: saved.append((name, facts["epoch"]))),
    )
    assert trainer.progress.best_top1 == 0.9
    assert trainer.progress.best_step == 8
    assert trainer.progress.stopped_early
    assert "stops early: no better in 2 epochs (keep.patience_epochs)" in caplog.messages
    assert saved == [("best", 1), ("last", 1), ("best", 2), ("last", 2), ("last", 3), ("last", 4)]


@pytest.mark.parametrize("evaluated", [False, True])
def test_raw_and_averaged_weights_are_both_measured(tmp_path, evaluated):
    recipe = full_recipe(epochs=1, ema=Average(decay=0.9, evaluated=evaluated))
    trainer = train(tmp_path, recipe, model=deep_model())
    [row] = [row for row in read_metrics(tmp_path) if row["kind"] == "eval"]
    raw = float(trainer.job.model.head.bias.detach().abs().sum())
    averaged = float(trainer.average.module.head.bias.abs().sum())
    assert raw != averaged
    assert row["weights"] == ("ema" if evaluated else "raw")
    assert row["top1"] == (averaged if evaluated else raw)
    assert row["raw_top1" if evaluated else "ema_top1"] == (raw if evaluated else averaged)


def test_the_head_warms_up_alone(tmp_path):
    recipe = dataclasses.replace(full_recipe(epochs=1), head_warmup_epochs=0.5)
    model = deep_model()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = Trainer(tiny_job(tmp_path, recipe, model=model))
    wrapped, moved = trainer.stepper, []

    def spy(*args, **how):
        result = wrapped(*args, **how)
        moved.append({name for name, p in model.named_parameters() if not torch.equal(p, start[name])})
        return result

    spy.replicas = wrapped.replicas
    trainer.stepper = spy
    trainer.fit()
    assert moved[0] == moved[1] == {"head.weight", "head.bias"}
    # The softmax cancels the bias of the first mixing, so it never moves.
    assert moved[2] == {name for name in start if not name.endswith("proj_l.bias")}


def test_it_learns(tmp_path):
    """Small numbers fit: the loss of fixed images falls, whatever else is tested."""
    recipe = tiny_recipe(epochs=15, optimizer=Optimizer(lr=3e-3, lr_batch=0))
    train(tmp_path, recipe, model=tiny_model(torch.float32))
    losses = [row["loss"] for row in read_metrics(tmp_path) if row["kind"] == "train"]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])
    assert len(losses) == 60
    assert K == 7
