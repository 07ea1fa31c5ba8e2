"""`python -m deepcait.bench.gpu` runs to its end on the pretended GPU, which measures nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.nullgpu.library import ROOT, run

pytestmark = pytest.mark.process

PROGRAM = """
import sys, torch
from deepcait.bench.gpu import main
from deepcait.training.guard import Guard

torch.backends.cudnn.enabled = False
torch.backends.cuda.enable_cudnn_sdp(False)
Guard.require_finite_weights = lambda *_: None  # no kernel computes, so the values are junk
sys.exit(main(sys.argv[1:]))
"""


def test_every_part_runs_to_its_end(nullgpu, tmp_path):
    done = run(nullgpu, "-c", PROGRAM, "--out", str(tmp_path), "--minutes", "4", "--quick")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert [row for row in rows if row["kind"] in ("failed", "skipped")] == []
    kinds = [row["kind"] for row in rows]
    assert {kind: kinds.count(kind) for kind in ("device", "ceilings", "parity", "train", "inference", "run")} == {
        **{"device": 1, "ceilings": 1, "run": 2},
        "parity": 4 * 2,  # precisions, forms
        "train": 3 * 3,
        "inference": 2 * 2 * 3,  # precisions, batch sizes, forms
    }


def test_engines_are_compared_on_the_device(nullgpu, tmp_path):
    program = PROGRAM.replace("deepcait.bench.gpu", "deepcait.cli.main")
    program = "import deepcait.bench.inference as b\nb.logit_error = lambda *_: {'rms': 0.0, 'drift': 0.0}\n" + program
    command = ["bench", "builtin:nano", "--device", "cuda", "--engine", "eager", "--batch", "2", "--rounds", "2"]
    done = run(nullgpu, "-c", program, *command, "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["models"]
    assert set(found["batches"][0]["engines"]) == {"eager", "eager bf16"}
    assert set(found["batches"][0]["best"]) == {"fp32", "bf16"}
    assert "gpu" in found
    for engine in ("openvino", "eager,onnx"):
        refused = run(nullgpu, "-c", program, *command[:4], "--engine", engine)
        assert refused.returncode == 2
        assert f"--engine: {engine.split(',')[-1]} computes on the CPU only." in refused.stderr


def test_a_failed_part_does_not_end_the_others(nullgpu, tmp_path):
    broken = PROGRAM.replace("sys.exit", "import deepcait.bench.gpu as gpu\ngpu._train_case = None\nsys.exit")
    done = run(nullgpu, "-c", broken, "--out", str(tmp_path), "--quick", "--part", "train,ceilings")
    assert done.returncode == 0, done.stderr
    assert "failed: train cait_xxs24_224 bf16" in done.stdout
    assert '"kind": "ceilings"' in (tmp_path / "gpu.jsonl").read_text()


def test_after_the_time_parts_are_skipped_and_named(nullgpu, tmp_path):
    done = run(nullgpu, "-c", PROGRAM, "--out", str(tmp_path), "--quick", "--minutes", "0.02", "--part", "parity,run")
    rows = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert done.returncode == 0, done.stderr
    assert {"kind": "skipped", "part": "run fp16", "reason": "the time is over"} in rows


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "device 'cuda' is not available"),
        (["--part", "speed"], "unknown part 'speed'"),
        (["--minutes", "0"], "--minutes: expected 1 or more"),
    ],
)
def test_without_a_gpu_or_with_wrong_options_it_is_one_paragraph(tmp_path, words, named):
    env = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "deepcait.bench.gpu", "--out", str(tmp_path / "out"), *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
