"""The effect of a precision on a model, per engine: predictions, logits and time, on labelled images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepcait.bench.clock import Lane, ratio, set_up, take_turns
from deepcait.bench.engine_page import fallbacks
from deepcait.bench.inference import logit_error
from deepcait.bench.page import conditions, markdown_table
from deepcait.data import Preprocessing
from deepcait.errors import ConfigError, EvaluationWarning
from deepcait.evaluation import evaluate, open_for
from deepcait.inference.engines import build_engine
from deepcait.inference.precision import MEASURED, ON_CPU, require_offered
from deepcait.weights import resolve

COLUMNS = ("engine", "precision", "top-1", "correct", "same top-1", "rms error", "largest error", "images/s", "ratio")


def compare_precisions(
    spec: str,
    data: str,
    *,
    engines: Sequence[str],
    precisions: Sequence[str] = MEASURED,
    batch: int = 8,
    rounds: int = 20,
    threads: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Predict all images with each engine in each precision that it offers, then time them in turns.

    Args:
        spec: a MODEL.
        data: labelled images; their split test, else val, else all.
        engines: some of `ENGINES`.
        precisions: some of `MEASURED`. Those that an engine does not offer are left out for it.
        batch: images per call.
        rounds: timed rounds.
        threads: threads of every engine; None keeps PyTorch's number.
        progress: called with the networks done and the networks in total.

    Returns:
        `rows`, one per engine and precision: `correct` and `same_top1` (numbers of images), `rms` and `drift` (root
        mean square and largest error of the logits against the network itself, over their standard deviation),
        `images_per_s`, and `ratio`, the speedup over the same engine in fp32. `not_offered`: the precisions left out,
        by engine. `in_fp32`: as in `compare_engines`.

    Raises:
        ConfigError: no engine offers a precision, there is nothing to compare, or an engine can't run here.
    """
    threads = set_up(rounds, [batch], threads)
    found = resolve(spec)
    model = found.model.eval()
    preprocessing = Preprocessing.from_pretrained_cfg(found.pretrained_cfg)
    source = open_for(data)
    runs = {
        (engine, name): build_engine(engine, model, threads=threads, precision=name)
        for engine, name in _pairs(engines, precisions)
    }
    answers: dict[tuple[str, str], _Recorder] = {}
    for number, (key, run) in enumerate({("network", "fp32"): model, **runs}.items()):
        answers[key] = recorder = _Recorder(run)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EvaluationWarning)
            metrics = evaluate(
                recorder, source, preprocessing=preprocessing, batch_size=batch, classes=found.classes, device="cpu"
            )
        recorder.correct, recorder.logits_NK = metrics.correct1, torch.cat(recorder.parts)
        progress(number + 1, len(runs) + 1)
    images_BCHW = torch.randn(batch, model.config.in_chans, *model.config.img_size)
    lanes = {key: Lane(" ".join(key), lambda run=run: run(images_BCHW)) for key, run in runs.items()}
    with torch.inference_mode():
        take_turns(list(lanes.values()), rounds)
    expected_NK = answers["network", "fp32"].logits_NK
    return {
        "model": spec,
        "data": data,
        "num_images": len(expected_NK),
        "batch": batch,
        "threads": threads,
        "rounds": rounds,
        "network_correct": answers["network", "fp32"].correct,
        "not_offered": _not_offered(engines, precisions),
        "in_fp32": [" ".join(key) for key, run in runs.items() if run.computed_in != run.precision],
        "rows": [
            {
                "engine": key[0],
                "precision": key[1],
                "correct": answers[key].correct,
                "same_top1": int((answers[key].logits_NK.argmax(1) == expected_NK.argmax(1)).sum()),
                **logit_error(answers[key].logits_NK, expected_NK),
                "median_s": lane.median_s,
                "images_per_s": batch / lane.median_s,
                **ratio(lane, lanes[key[0], "fp32"]),
            }
            for key, lane in lanes.items()
        ],
        **conditions(),
    }


def _pairs(engines: Sequence[str], precisions: Sequence[str]) -> list[tuple[str, str]]:
    """Each engine with fp32, and with the precisions that it offers.

    Raises:
        ConfigError: no engine offers a precision, or there is only fp32.
    """
    require_offered(engines, precisions)
    every = dict.fromkeys((engine, name) for engine in engines for name in ("fp32", *precisions))
    offered = [(engine, name) for engine, name in every if name in ON_CPU[engine]]
    if len(offered) < 2:
        raise ConfigError(
            f"bench --data: there is only one precision to compare: fp32 of {', '.join(engines)}.",
            remedy="Name a precision and an engine that offers it, such as --engine eager --precision int8.",
        )
    return offered


def _not_offered(engines: Sequence[str], precisions: Sequence[str]) -> dict[str, list[str]]:
    lacking = {engine: [name for name in dict.fromkeys(precisions) if name not in ON_CPU[engine]] for engine in engines}
    return {engine: names for engine, names in lacking.items() if names}


class _Recorder(nn.Module):
    """A network that stores the logits it returns."""

    correct: int
    logits_NK: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.num_classes = network.num_classes
        self.pretrained_cfg = network.pretrained_cfg
        self.parts: list[Tensor] = []
        super().train(False)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits (B, K)."""
        self.parts.append(self.network(images_BCHW).clone())
        return self.parts[-1]


def table(result: dict[str, Any]) -> list[list[str]]:
    """One row of text cells per engine and precision, for `COLUMNS`."""
    num_images = result["num_images"]
    return [
        [
            row["engine"],
            row["precision"],
            f"{100 * row['correct'] / num_images:.2f} %",
            f"{row['correct']:,}",
            f"{row['same_top1']:,} of {num_images:,}",
            f"{row['rms']:.1e}",
            f"{row['drift']:.1e}",
            f"{row['images_per_s']:.1f}",
            f"{row['ratio']:.2f}",
        ]
        for row in result["rows"]
    ]


def markdown(result: dict[str, Any], command: str) -> str:
    """The results as a page."""
    lines = [
        f"# Precision: {result['model']} on {result['num_images']:,} images",
        "",
        f"    {command}",
        "",
        f"{result['threads']} threads, {result['batch']} images per call, medians of {result['rounds']} alternating "
        f"rounds; {result['cpu']}; commit {result['environment']['commit']}. The network itself, in fp32, predicts "
        f"{result['network_correct']:,} images correctly. Same top-1: images with the network's own top-1 class. "
        "Errors are those of the logits over their standard deviation. Ratio: speedup over the same engine in fp32.",
        "",
        *markdown_table(COLUMNS, table(result)),
    ]
    missing = [f"{engine} in {' and '.join(names)}" for engine, names in result["not_offered"].items()]
    if missing:
        lines += ["", f"Not offered: {'; '.join(missing)}."]
    if noted := fallbacks(result):
        lines += ["", *noted]
    return "\n".join(lines) + "\n"
