"""Compare ways to train the small CaiT, 15 epochs each, before one of them is trained in full.

    python docs/results/nano_candidates.py --data folder:ROOT/train --teacher TEACHER --out FOLDER [NAME ...]
    python docs/results/nano_candidates.py --data folder:ROOT/train --teacher TEACHER --out FOLDER --estimate [NAME ...]

ROOT/train holds CIFAR-10's training images in class folders; a twentieth of them is held out, the same 2,500 by which
the teacher was chosen, and the candidates are compared by these alone. The test images take no part.
TEACHER: the run of `teacher_32` or its model folder.
NAME: candidates, in the order in which they are trained; without any, all. A run that was stopped (SIGTERM) resumes
when the same command is given again. `--estimate` takes 60 steps of each and writes the processor time of its
training, in hours, without that of the worker that reads images.
Writes nano_candidates.json beside this file: commands, curve and hours of each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from deepcait.cli.main import main as deepcait

RESULTS = Path(__file__).parent / "nano_candidates.json"
NUM_IMAGES = 47_500
ALWAYS = ("data.val_fraction=0.05", "keep.evaluate_every_epochs=3")
SOFT = ("teacher.kind=soft", "teacher.alpha=0.9", "teacher.tau=2")
# What each candidate sets beside the recipe nano_32, stage by stage; a later stage starts from the one before.
CANDIDATES: dict[str, list[tuple[str, ...]]] = {
    "hard": [("epochs=15",)],
    "soft": [("epochs=15", *SOFT)],
    # Beyer et al. 2022, arXiv:2106.05237: the teacher answers for the student's own, strongly mixed images.
    "soft-mixed": [("epochs=15", "teacher.kind=soft", "teacher.alpha=1", "mix.mixup=0.8", "mix.cutmix=1.0")],
    "soft-3-augment": [("epochs=15", *SOFT, "augment.policy=3-augment")],
    # A quarter of the tokens first, for about the hours of the others.
    "soft-8-px-first": [
        ("epochs=11", *SOFT, "shape.patch_size=8"),
        ("epochs=10", *SOFT, "shape.patch_size=4", "optimizer.lr=1e-3", "seed=1"),
    ],
    "soft-batch-256": [("epochs=15", *SOFT, "global_batch_size=256", "optimizer.lr=2.5e-3")],
    "soft-repeats": [("epochs=15", *SOFT, "augment.repeats=2")],
}


def command(args: argparse.Namespace, stage: tuple[str, ...], out: Path, before: Path | None) -> list[str]:
    """The words of one training."""
    words = ["train", "--recipe", "nano_32", "--data", args.data, "--teacher", args.teacher, "--out", str(out)]
    start = ["--model", str(before)] if before else []
    return [*words, *start, "--resume", "--set", *ALWAYS, *stage]


def shown(words: list[str], args: argparse.Namespace) -> str:
    """A command without the paths of one machine."""
    names = {args.data: "folder:ROOT/train", args.teacher: "TEACHER", words[words.index("--out") + 1]: "RUN"}
    if "--model" in words:
        names[words[words.index("--model") + 1]] = "RUN_BEFORE"
    return " ".join(["deepcait", *(names.get(word, word) for word in words)])


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def estimate(args: argparse.Namespace, name: str) -> float:
    """Processor hours of a candidate, from 50 steps of each stage less 10: what starting costs cancels."""
    hours = 0.0
    with tempfile.TemporaryDirectory() as folder:
        before = None
        for number, stage in enumerate(CANDIDATES[name]):
            settings = {"global_batch_size": 128} | dict(word.split("=") for word in stage)
            batch, spent = int(settings["global_batch_size"]), {}
            for steps in (10, 50):
                out = Path(folder) / f"{number}-{steps}"
                short = ("epochs=1", f"data.limit={steps * batch}", "data.val_limit=50", "schedule.warmup_epochs=0.1")
                begun = time.process_time()
                code = deepcait(command(args, (*stage, *short), out, before))
                if code:
                    raise SystemExit(code)
                spent[steps] = time.process_time() - begun
            hours += int(settings["epochs"]) * (NUM_IMAGES // batch) * (spent[50] - spent[10]) / 40 / 3600
            before = out
    return hours


def train(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Train a candidate, or resume it; return its result.

    Raises:
        SystemExit: with the command's exit code, where it did not end: 75 for a run that can be resumed.
    """
    stages, before = [], None
    for number, stage in enumerate(CANDIDATES[name]):
        out = args.out / f"{name}-{number + 1}"
        words = command(args, stage, out, before)
        code = deepcait(words)
        if code:
            raise SystemExit(code)
        rows = rows_of(out / "metrics.jsonl")
        curve = {row["epoch"]: row["top1"] for row in rows if row["kind"] == "eval"}
        where = json.loads((out / "environment.json").read_text(encoding="utf-8"))
        stages.append({"command": shown(words, args), "val_top1_after_epoch": curve, "environment": where})
        before = out
    return {"val_top1": list(stages[-1]["val_top1_after_epoch"].values())[-1], "stages": stages}


def main() -> None:
    """Estimate or train the candidates named, and write what is known of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*CANDIDATES, []], metavar="NAME")
    parser.add_argument("--data", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--estimate", action="store_true")
    args = parser.parse_args()
    for name in args.names or CANDIDATES:
        new = {"processor_hours": round(estimate(args, name), 2)} if args.estimate else train(args, name)
        found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"candidates": {}}
        found |= {
            "command": "python docs/results/nano_candidates.py --data folder:ROOT/train --teacher TEACHER --out FOLDER",
            "what": "ways to train cait_nano_32, by accuracy of 2,500 held-out training images of CIFAR-10; one seed",
            "date": str(date.today()),
        }
        found["candidates"][name] = found["candidates"].get(name, {}) | new
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(name, {key: value for key, value in new.items() if key != "stages"}, flush=True)


if __name__ == "__main__":
    main()
