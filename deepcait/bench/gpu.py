"""Measure deepcait on a GPU in some minutes: ceilings, parity, training steps, inference, short trainings.

    python -m deepcait.bench.gpu --out FOLDER --minutes 9
    python -m deepcait.bench.gpu --out FOLDER --part parity,train

Each result is one JSON line in FOLDER/gpu.jsonl, written as soon as it is known, so that an interrupted call keeps what
it measured; a second call appends. A part that fails is recorded and does not end the others. Needs an NVIDIA GPU and
PyTorch with CUDA; compiled forms need a C compiler.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcait.bench.clock import require_count
from deepcait.bench.gpu_clock import Session, Timed, take_turns
from deepcait.bench.inference import SEED, build_pair, build_peer, open_model
from deepcait.errors import ConfigError, DeepcaitError
from deepcait.inference.engines import build_engine
from deepcait.inference.fold import fold
from deepcait.model import CaiT
from deepcait.runtime.device import autocast, choose_device
from deepcait.runtime.environment import environment
from deepcait.training.compute import SMALL_BUDGET, allows_tf32, compile_blocks, set_compute, tf32
from deepcait.training.settings import Compute

# Model, images per step, in the order in which they are measured. The first is measured in three precisions.
CASES = (("cait_xxs24_224", 128), ("cait_s24_224", 64), ("cait_m36_384", 8))
QUICK_CASES = (("cait_xxs24_224", 4),)
BATCHES = (1, 8, 64, 256)


@dataclass(frozen=True)
class Form:
    """One way to compute a training step.

    Args:
        name: its name in the results.
        backend: deepcait's backend; None is timm's network.
        compiled: "" for eager, "model" for the whole network, "blocks" for each block on its own.
        budget: fraction of activations that the compiler may save.
        memory: `compute.memory`.
        checkpointing: recompute each block in the backward pass.
    """

    name: str
    backend: str | None = None
    compiled: str = ""
    budget: float = 1.0
    memory: str = "normal"
    checkpointing: bool = False

    def compute(self, precision: str) -> Compute:
        """Return deepcait's settings of this form."""
        return Compute(
            precision=precision,
            backend=self.backend or "reference",
            memory=self.memory,
            grad_checkpointing=self.checkpointing,
        )


FORMS = (
    Form("timm"),
    Form("reference", "reference"),
    Form("lean", "lean"),
    Form("lean, memory small", "lean", memory="small"),
    Form("reference, checkpointing", "reference", checkpointing=True),
    Form("timm, compiled", compiled="model"),
    Form("reference, compiled", "reference", compiled="model"),
    Form("reference, compiled blocks", "reference", compiled="blocks"),
    Form("reference, compiled, memory small", "reference", compiled="model", budget=SMALL_BUDGET),
)
PLAIN_FORMS = tuple(form for form in FORMS if form.name in ("timm", "reference", "lean"))


# -- parts -------------------------------------------------------------------------------------------------------------


def measure_ceilings(session: Session) -> None:
    """Bandwidth of a copy, and arithmetic of a bf16 and an fp32 matrix product: the limits of everything else."""

    def ceilings() -> None:
        num_bytes, side = (1 << 20, 256) if session.quick else (1 << 30, 8192)
        source = torch.empty(num_bytes, dtype=torch.uint8, device=session.device)
        target = torch.empty_like(source)
        half = torch.zeros(side, side, dtype=torch.bfloat16, device=session.device)
        full = half.float()
        programs = [
            Timed("copy", lambda: target.copy_(source)),
            Timed("product bf16", lambda: half @ half),
            Timed("product fp32", lambda: full @ full),
        ]
        with tf32(session.device, True):
            take_turns(programs, session.rounds)
        copy_ms, half_ms, full_ms = (max(1e-6, program.facts()["gpu_ms"]) for program in programs)
        session.record(
            "ceilings",
            copy_TB_per_s=round(2 * num_bytes / copy_ms / 1e9, 3),
            bf16_TFLOP_per_s=round(2 * side**3 / half_ms / 1e9, 1),
            tf32_TFLOP_per_s=round(2 * side**3 / full_ms / 1e9, 1),
        )

    session.attempt("ceilings", ceilings)


def measure_parity(session: Session) -> None:
    """Errors of logits and gradients relative to float64 on the CPU, per precision and form."""
    forms = [form for form in FORMS if form.name in ("reference", "lean", "reference, compiled")]
    for precision in ("fp32-strict", "fp32", "bf16", "fp16"):
        for form in forms if not session.quick else forms[:2]:
            name = f"parity {form.name} {precision}"
            _attempt(session, name, precision, lambda form=form, precision=precision: _parity(session, form, precision))


def _attempt(session: Session, name: str, precision: str, work: Callable[[], None]) -> None:
    """Do a part of the work with TF32 for what stays fp32, as a run of this precision does."""
    with tf32(session.device, allows_tf32(precision)):
        session.attempt(name, work)


def _parity(session: Session, form: Form, precision: str) -> None:
    depth = 2 if session.quick else 4
    torch.manual_seed(SEED)
    model = cast("CaiT", open_model("cait_xxs24_224"))
    model.blocks = model.blocks[:depth]
    images_BCHW, labels_B = torch.randn(4, 3, 224, 224), torch.arange(4)
    model.set_backend("reference")
    expected = _gradients(model.double(), model, images_BCHW.double(), labels_B, "fp32")
    model = model.float().to(session.device)
    net = _prepare(model, form, precision)
    got = _gradients(model, net, images_BCHW.to(session.device), labels_B.to(session.device), precision)
    errors = [_relative_error(one, other) for one, other in zip(got, expected, strict=True)]
    session.record("parity", form=form.name, precision=precision, logits_error=errors[0], gradient_error=errors[1])


def _gradients(
    model: nn.Module, net: nn.Module, images_BCHW: Tensor, labels_B: Tensor, precision: str
) -> tuple[Tensor, Tensor]:
    """Logits, and all gradients in one vector, float64 on the CPU."""
    model.zero_grad(set_to_none=True)
    scale = 2.0**10 if precision == "fp16" else 1.0
    with autocast(precision, images_BCHW.device.type):
        logits_BK = net(images_BCHW)
    wide_BK = logits_BK.to(torch.promote_types(images_BCHW.dtype, torch.float32))
    (scale * F.cross_entropy(wide_BK, labels_B)).backward()
    grads = [p.grad.flatten().double().cpu() / scale for p in model.parameters() if p.grad is not None]
    return logits_BK.detach().double().cpu(), torch.cat(grads)


def _relative_error(got: Tensor, expected: Tensor) -> float | None:
    """Norm of the difference over the norm; None if it is not finite."""
    error = ((got - expected).norm() / expected.norm()).item()
    return error if error == error and abs(error) != float("inf") else None


def measure_training(session: Session) -> None:
    """Training steps of every form in turns: time, images per second, memory above the weights."""
    for index, (name, batch) in enumerate(QUICK_CASES if session.quick else CASES):
        for precision in ("bf16", "fp32", "fp32-strict") if index == 0 else ("bf16",):
            forms = FORMS if precision == "bf16" and not session.quick else PLAIN_FORMS
            part = f"train {name} {precision}"
            _attempt(
                session,
                part,
                precision,
                lambda name=name, batch=batch, precision=precision, forms=forms: _train_case(
                    session, name, batch, precision, forms
                ),
            )


def _train_case(session: Session, name: str, batch: int, precision: str, forms: tuple[Form, ...]) -> None:
    config = open_model(name).config
    images_BCHW = torch.randn(batch, config.in_chans, *config.img_size, device=session.device)
    labels_B = torch.randint(0, config.num_classes, (batch,), device=session.device)
    programs, facts = [], {}
    for form in forms:

        def set_up(form: Form = form) -> None:
            step = _build_step(session, form, name, images_BCHW, labels_B, precision)
            began_s = time.monotonic()
            step()
            torch.cuda.synchronize()
            first_s = round(time.monotonic() - began_s, 1)
            facts[form.name] = {"first_s": first_s, "peak_above_weights_bytes": _peak_of(step)}
            programs.append(Timed(form.name, step))

        session.attempt(f"train {name} {precision}: {form.name}", set_up)
    take_turns(programs, session.rounds)
    for program in programs:
        found = program.facts()
        rate = round(1e3 * batch / max(1e-6, found["gpu_ms"]), 1)
        row = {"model": name, "batch": batch, "precision": precision, "form": program.name, "images_per_s": rate}
        session.record("train", **row, **found, **facts[program.name])


def _build_step(
    session: Session, form: Form, name: str, images_BCHW: Tensor, labels_B: Tensor, precision: str
) -> Callable[[], None]:
    """Return forward, cross-entropy, backward and fused AdamW of a form."""
    torch.manual_seed(SEED)
    ours = open_model(name)
    model = (build_peer(ours.config) if form.backend is None else ours).to(session.device).train()
    net = _prepare(model, form, precision)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with autocast(precision, session.device.type):
            logits_BK = net(images_BCHW)
        F.cross_entropy(logits_BK.float(), labels_B).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _prepare(model: nn.Module, form: Form, precision: str) -> nn.Module:
    """Apply the settings of a form; return what computes the logits."""
    if form.backend is not None:
        set_compute(cast("CaiT", model), form.compute("fp32" if precision.startswith("fp32") else precision))
    if not form.compiled:
        return model
    torch.compiler.reset()
    torch._functorch.config.activation_memory_budget = form.budget
    if form.compiled == "model":
        return cast("nn.Module", torch.compile(model, dynamic=False))
    compile_blocks(model)
    return model


def _peak_of(step: Callable[[], None]) -> int:
    """The largest memory of a step above what is allocated before it, in bytes."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure_inference(session: Session) -> None:
    """Forward passes of the model, the folded model and timm's network, eager and compiled, in turns."""
    for precision in ("fp32", "bf16"):
        for batch in BATCHES[:2] if session.quick else BATCHES:
            part = f"inference {precision} batch {batch}"
            _attempt(
                session, part, precision, lambda batch=batch, precision=precision: _infer(session, batch, precision)
            )


def _infer(session: Session, batch: int, precision: str) -> None:
    ours, peer = (model.to(session.device).eval() for model in build_pair("cait_xxs24_224"))
    images_BCHW = torch.randn(batch, 3, 224, 224, device=session.device)
    nets: dict[str, Callable[[Tensor], Tensor]] = {"model": ours, "timm": peer, "folded": fold(cast("CaiT", ours))}
    if not session.quick:
        nets |= {"folded, compiled": build_engine("compile", ours), "timm, compiled": torch.compile(peer)}

    def program(net: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with torch.inference_mode(), autocast(precision, session.device.type):
                return net(images_BCHW)

        return call

    programs = [Timed(name, program(net)) for name, net in nets.items()]
    with torch.inference_mode():
        expected_BK = ours(images_BCHW).double().cpu()
    take_turns(programs, session.rounds)
    for one in programs:
        got_BK = cast("Tensor", one.call()).double().cpu()
        row = {"form": one.name, "batch": batch, "precision": precision}
        session.record("inference", **row, **one.facts(), logits_error=_relative_error(got_BK, expected_BK))


def measure_runs(session: Session) -> None:
    """Short trainings as a user runs them, in bf16 and fp16, and their evaluation."""
    from deepcait.training.recipe import load_recipe
    from deepcait.training.run import train

    for precision in ("bf16", "fp16"):

        def run(precision: str = precision) -> None:
            folder = session.out / f"run_{precision}_{time.time_ns()}"
            given = [f"compute.device={session.device}", f"compute.precision={precision}", "data.num_workers=0"]
            quick = ["epochs=1", "data.limit=64", "data.val_limit=32", "compute.compile=false"]
            given += quick if session.quick else ["epochs=3"]
            began_s = time.monotonic()
            outcome = train(load_recipe("demo", given), folder)
            seconds = round(time.monotonic() - began_s, 1)
            session.record("run", precision=precision, seconds=seconds, best_top1=outcome.best_top1)

        session.attempt(f"run {precision}", run)


PARTS: dict[str, Callable[[Session], None]] = {
    "ceilings": measure_ceilings,
    "parity": measure_parity,
    "train": measure_training,
    "inference": measure_inference,
    "run": measure_runs,
}


# -- the program -------------------------------------------------------------------------------------------------------


def measure(out: Path, parts: list[str], *, minutes: float, quick: bool = False) -> list[dict[str, Any]]:
    """Measure parts in this order and return all rows; see the module.

    Raises:
        ConfigError: a part is unknown, the time is not positive, or there is no GPU.
    """
    for part in parts:
        if part not in PARTS:
            raise ConfigError(f"--part: unknown part {part!r}.", remedy=f"Choose among {', '.join(PARTS)}.")
    require_count("--minutes", int(minutes * 60))
    device = choose_device("cuda")
    out.mkdir(parents=True, exist_ok=True)
    session = Session(out, time.monotonic() + 60 * minutes, quick, device)
    properties = torch.cuda.get_device_properties(device)
    capability = list(torch.cuda.get_device_capability(device))
    session.record("device", gpu=properties.name, capability=capability, cuda=torch.version.cuda, quick=quick)
    session.record("environment", **environment())
    for part in parts:
        PARTS[part](session)
    return session.rows


def main(argv: list[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deepcait.bench.gpu", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.jsonl")
    parser.add_argument("--minutes", type=float, default=9, help="no part begins after this time (default: 9)")
    parser.add_argument("--part", default=",".join(PARTS), help="parts, separated by commas (default: all of them)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, nothing compiled: tests this program")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        rows = measure(args.out, args.part.split(","), minutes=args.minutes, quick=args.quick)
    except DeepcaitError as error:
        print(f"error: {error.problem}\n{error.remedy}", file=sys.stderr)
        return 2
    failed = [row["part"] for row in rows if row["kind"] == "failed"]
    print(f"{args.out / 'gpu.jsonl'}: {len(rows)} rows" + (f"; failed: {'; '.join(failed)}" if failed else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
