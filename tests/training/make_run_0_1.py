"""Make `run_0_1`: an interrupted run of deepcait 0.1, and what 0.1 itself reaches when it resumes that run.

Done once, with the code of commit 8611b8a on PYTHONPATH:

    python tests/train/make_run_0_1.py tests/train/run_0_1
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

SETTINGS = """
start=random seed=5 epochs=6 global_batch_size=8 replicas=2
shape.embed_dim=12 shape.num_heads=2 shape.depth=2 shape.cls_depth=1 shape.patch_size=8 img_size=16
drop_path_rate=0.2 layer_scale_init=0.1
augment.crop=random_resized augment.flip=0.5 augment.scale=[0.6,1.0] augment.repeats=1 augment.erase=0.25
mix.mixup=0.2 mix.cutmix=0.0 ema.decay=0.9 ema.evaluated=false
optimizer.lr=1e-2 optimizer.lr_batch=0 schedule.warmup_epochs=1
compute.device=cpu data.num_workers=0 keep.log_every_steps=1 keep.checkpoints=1
""".split()
STEPS_PER_EPOCH = 5
CLASSES = ("cat", "dog", "owl")
TRAIN = (sys.executable, "-m", "deepcait", "train", "--out", "run")


def make_data(folder: Path) -> None:
    """Noise with a coloured square, its colour is the class; `train` and `test`, no `val`."""
    for split, count in (("train", 14), ("test", 6)):
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                rng = np.random.default_rng([label, number, split == "test"])
                pixels = rng.integers(0, 160, (12, 12, 3), dtype=np.uint8)
                pixels[2:10, 2:10, label] = 200
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")


def stop_half_way() -> None:
    """Start the run and end it by SIGTERM within its third epoch."""
    given = ["--data", "photos", "--recipe", "scratch_32", "--set", *SETTINGS]
    process = subprocess.Popen([*TRAIN, *given])
    log = Path("run/metrics.jsonl")
    while not log.exists() or log.read_text().count('"train"') < 12:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    assert log.read_text().count('"train"') % STEPS_PER_EPOCH, "the signal came at the end of an epoch: try again"


def digest(path: Path) -> str:
    """Of the tensors in a file, whatever else its header says."""
    tensors = load_file(path)
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()


def main(out: Path) -> None:
    """Write data, run and reference into a folder."""
    make_data(out / "photos")
    os.chdir(out)
    stop_half_way()
    for name in ("environment.json", "timing.jsonl", "metrics.csv"):
        Path("run", name).unlink(missing_ok=True)
    shutil.copytree("run", "stopped")
    subprocess.run([*TRAIN, "--resume"], check=True)
    files = ("best/model.safetensors", "last/model.safetensors", "last/ema/model.safetensors")
    reference = {
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "metrics": [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()],
        "sha256": {name: digest(Path("run", name)) for name in files},
    }
    Path("resumed.json").write_text(json.dumps(reference, indent=1) + "\n")
    shutil.rmtree("run")
    Path("stopped").rename("run")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
