"""Find the fastest engine, number of threads and batch size for a model on this machine, by measurement."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcait.bench.clock import Lane, require_count, take_turns
from deepcait.bench.inference import open_model, require_engines
from deepcait.data import Preprocessing
from deepcait.errors import ConfigError
from deepcait.inference.engines import ENGINES, build_engine
from deepcait.inference.export import MAX_DRIFT, sample_images
from deepcait.inference.precision import ON_CPU, require_offered
from deepcait.inference.tuned import Choice, write_choice
from deepcait.model import CaiT
from deepcait.runtime.environment import num_cpus
from deepcait.weights.spec import describe_config

# Callables by engine, precision and threads.
Runs = dict[tuple[str, str, int], Callable[[Tensor], Tensor]]
# Number of the package's images on which top-1 classes are compared.
_NUM_COMPARED = 100


def tune(
    spec: str,
    *,
    engines: Sequence[str] = ENGINES,
    precisions: Sequence[str] = (),
    tolerance: float = 0.0,
    threads: Sequence[int] = (),
    batches: Sequence[int] = (1, 8),
    rounds: int = 20,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Time a model on each engine, with each number of threads and images per call, in turns per batch size.

    The choice is what runs most images per second, by the median. Excluded are engines that can't run here, and engines
    whose predictions differ: in fp32, logits that differ by more than `MAX_DRIFT`; in shorter formats, more top-1
    classes than the tolerance allows, on images of the package.

    Args:
        spec: a MODEL; a model name gets random weights, since speed does not depend on them.
        engines: some of `ENGINES`.
        precisions: some of `MEASURED`; empty means fp32.
        tolerance: fraction of images whose top-1 class may differ from the model's.
        threads: threads per call; empty means 1, 2, 4, ... up to the processors of this process.
        batches: images per call.
        rounds: timed rounds.
        progress: called with the rounds done and the rounds in total, over all batch sizes.

    Returns:
        `choice` (engine, precision, threads, batch), its `images_per_s`, `rows` (all that ran, the fastest first, each
        with `agrees` and `same_top1`, the fraction of equal top-1 classes), `left_out` (engines that can't run here,
        and formats in whose place fp32 is computed, with the reason), `model` (its facts).

    Raises:
        ConfigError: a number is out of range, no engine offers a precision, or none runs and agrees.
    """
    threads = list(threads) or sorted({*(2**k for k in range(8) if 2**k < num_cpus()), num_cpus()})
    require_count("--rounds", rounds, least=2)
    require_count("--batch", *batches)
    require_count("--threads", *threads)
    require_engines(engines)
    require_offered(engines, precisions)
    if not 0 <= tolerance < 1:
        raise ConfigError(f"--tolerance: expected 0 to 1, got {tolerance}.", remedy="0.01 allows one image in 100.")
    before = torch.get_num_threads()
    model = open_model(spec)
    try:
        runs, left_out = _build(model, engines, list(precisions) or ["fp32"], threads)
        same = _same_top1(model, runs)
        rows = []
        for number, batch in enumerate(batches):

            def so_far(done: int, total: int, number: int = number) -> None:
                progress(number * (total + 1) + done, len(batches) * (total + 1))

            rows += _measure(model, runs, batch, rounds, so_far)
    finally:
        torch.set_num_threads(before)
    for row in rows:
        row["same_top1"] = same[row["engine"], row["precision"]]
        exact = row["drift"] <= MAX_DRIFT
        row["agrees"] = exact if row["precision"] == "fp32" else row["same_top1"] >= 1 - tolerance
    rows.sort(key=lambda row: -row["images_per_s"])
    best = next((row for row in rows if row["agrees"]), None)
    if best is None:
        raise ConfigError(
            f"bench --autotune: none of the engines {', '.join(engines)} both runs here and gives the model's logits. "
            f"{' '.join(left_out.values())}".rstrip(),
            remedy="Try other engines with --engine or fp32 with --precision, or allow differences with --tolerance.",
        )
    return {
        "choice": {key: best[key] for key in ("engine", "precision", "threads", "batch")},
        "tolerance": tolerance,
        "images_per_s": best["images_per_s"],
        "rounds": rounds,
        "rows": rows,
        "left_out": left_out,
        "model": describe_config(model.config) | {"spec": spec},
    }


def keep(result: dict[str, Any], folder: Path) -> Path:
    """Write the choice to a folder, with all results. Raises WeightsError."""
    figures = {key: result[key] for key in ("images_per_s", "rounds", "rows", "left_out", "tolerance")}
    return write_choice(folder, Choice(**result["choice"]), result["model"], figures)


def _build(
    model: CaiT, engines: Sequence[str], precisions: Sequence[str], threads: Sequence[int]
) -> tuple[Runs, dict[str, str]]:
    runs: Runs = {}
    left_out: dict[str, str] = {}
    for engine, precision in ((engine, name) for engine in engines for name in precisions if name in ON_CPU[engine]):
        try:
            for count in threads:
                run = build_engine(engine, model, threads=count, precision=precision)
                if precision != "fp32" and run.computed_in != precision:
                    # Its speed is that of fp32; on another machine its errors would not be those compared here.
                    left_out[f"{engine} {precision}"] = f"{engine} {precision}: fp32 is computed in its place here."
                    break
                runs[engine, precision, count] = _with_threads(run, count)
        except ConfigError as error:
            left_out[engine] = str(error)
    return runs, left_out


def _same_top1(model: CaiT, runs: Runs) -> dict[tuple[str, str], float]:
    """The fraction of images with the model's own top-1 class; threads do not matter."""
    images_BCHW = sample_images(Preprocessing.from_pretrained_cfg(model.pretrained_cfg), _NUM_COMPARED)
    parts = images_BCHW.split(8)
    with torch.inference_mode():
        expected_B = torch.cat([model(part).argmax(1) for part in parts])
        return {
            key[:2]: (torch.cat([run(part).argmax(1) for part in parts]) == expected_B).double().mean().item()
            for key, run in {key[:2]: (key, run) for key, run in runs.items()}.values()
        }


def _with_threads(run: Callable[[Tensor], Tensor], count: int) -> Callable[[Tensor], Tensor]:
    """PyTorch's number of threads is per process, so each call sets its own."""

    def call(images_BCHW: Tensor) -> Tensor:
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)
        return run(images_BCHW)

    return call


def _measure(
    model: CaiT, runs: Runs, batch: int, rounds: int, progress: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    images_BCHW = torch.randn(batch, model.config.in_chans, *model.config.img_size)
    with torch.inference_mode():
        expected_BK = model(images_BCHW)
    lanes, drift = {}, {}
    for key, run in runs.items():
        # The first call, in which torch.compile compiles, is outside the rounds.
        drift[key] = ((run(images_BCHW) - expected_BK).abs().max() / expected_BK.std()).item()
        lanes[key] = Lane(f"{key[0]} {key[1]}, {key[2]} threads", lambda run=run: run(images_BCHW))
    take_turns(list(lanes.values()), rounds, progress)
    return [
        {
            "engine": engine,
            "precision": precision,
            "threads": threads,
            "batch": batch,
            "median_s": lane.median_s,
            "p95_s": lane.p95_s,
            "images_per_s": batch / lane.median_s,
            "drift": drift[engine, precision, threads],
        }
        for (engine, precision, threads), lane in lanes.items()
    ]


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The table's head and rows, as text; the fastest first."""
    head = ["engine", "precision", "threads", "batch", "ms", "p95", "images/s", "same top-1", "agrees"]
    lines = []
    for row in result["rows"]:
        times = [f"{1e3 * row[key]:.1f}" for key in ("median_s", "p95_s")]
        agrees = "yes" if row["agrees"] else f"no, {row['drift']:.1e}"
        same = f"{100 * row['same_top1']:.0f} %"
        names = [row[key] for key in ("engine", "precision", "threads", "batch")]
        lines.append([*names, *times, f"{row['images_per_s']:.1f}", same, agrees])
    return head, [[str(cell) for cell in line] for line in lines]
