"""Commands and engines run to their end with `device=cuda` on the pretended GPU; its values are junk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.nullgpu.library import run

pytestmark = pytest.mark.process

# No guard for values that are not finite: the pretended GPU's are junk.
TINY = (
    "--data", "builtin:demo", "--recipe", "demo", "--set", "compute.device=cuda", "compute.precision=bf16",
    "data.limit=64", "data.val_limit=32", "data.num_workers=0", "global_batch_size=16", "replicas=2", "ema.decay=0.9",
    "optimizer.clip_norm=1", "mix.mixup=0.2", "augment.erase=0.5", "keep.max_skipped_steps=1000000",
    "compute.compile=false",
)  # fmt: skip
PROGRAM = ("-m", "tests.nullgpu.program")


@pytest.fixture(scope="module")
def trained(nullgpu, tmp_path_factory) -> tuple[Path, dict]:
    """A run of one epoch on the pretended GPU, and what it asked of it."""
    folder = tmp_path_factory.mktemp("nullgpu")
    done = run(nullgpu, *PROGRAM, "train", "--out", str(folder / "run"), *TINY, "epochs=1", COUNTS=str(folder / "c"))
    assert done.returncode == 0, done.stderr
    assert "cuda:0, bf16" in done.stdout
    return folder / "run", json.loads((folder / "c").read_text())


def test_a_training_runs_on_the_device(trained):
    folder, asked = trained
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    # Forward and backward pass of two replicas, four steps and an evaluation of two models.
    assert asked["counts"]["gemm"] > 1000
    assert asked["counts"]["to_device_pinned"] >= 8


@pytest.mark.soak
def test_a_training_with_compiled_blocks(nullgpu, tmp_path):
    """The default where there is a compiler, which takes a minute or more."""
    command = ["train", "--out", str(tmp_path / "run"), *TINY, "epochs=1", "compute.compile=auto"]
    settings = {"COUNTS": str(tmp_path / "c"), "timeout": 1800}
    done = run(nullgpu, *PROGRAM, *command, "compute.memory=small", **settings)
    assert done.returncode == 0, done.stderr
    assert "compiled blocks (auto)" in done.stdout
    assert json.loads((tmp_path / "c").read_text())["counts"]["gemm"] > 1000


def test_without_a_compiler_the_plan_says_so(nullgpu, tmp_path):
    command = ["train", "--out", str(tmp_path / "run"), *TINY, "epochs=1", "compute.compile=auto", "--dry-run"]
    done = run(nullgpu, *PROGRAM, *command, PATH="", CC="")
    assert "not compiled (no C compiler)" in done.stdout + done.stderr


def test_it_is_evaluated_and_a_second_run_resumes(nullgpu, trained, tmp_path):
    folder, _ = trained
    done = run(nullgpu, *PROGRAM, "eval", str(folder), "--data", "builtin:demo", "--device", "cuda", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_images"] == 500
    command = ["train", "--out", str(tmp_path / "run"), *TINY, "epochs=2", "keep.checkpoint_every_steps=3"]
    stopped = run(nullgpu, *PROGRAM, *command, STOP_AFTER="5")
    assert stopped.returncode == 75, stopped.stderr
    state = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (state["state"], state["step"] in (5, 6)) == ("stopped", True)
    resumed = run(nullgpu, *PROGRAM, "train", "--out", str(tmp_path / "run"), "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert f"step {state['step']} of 8" in resumed.stdout


def test_a_folded_model_launches_less_than_timm(nullgpu):
    """At batch 64, two blocks of the patch stage: in fp32, and under autocast."""
    program = """
import json, timm, torch, deepcait
from tests.nullgpu.meter import Meter
torch.backends.cudnn.enabled = False
torch.backends.cuda.enable_cudnn_sdp(False)
images_BCHW = torch.zeros(64, 3, 224, 224, device="cuda")
models = {"timm": timm.create_model("cait_xxs24_224", depth=2).cuda().eval()}
models["fold"] = deepcait.fold(deepcait.create_model("cait_xxs24_224", depth=2).cuda().eval())
launches = {}
for name, model in models.items():
    for bf16 in (False, True):
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            assert model(images_BCHW).device.type == "cuda"
            with Meter() as meter:
                model(images_BCHW)
        launches[f"{name} {bf16}"] = meter.launches
print(json.dumps(launches))
"""
    done = run(nullgpu, "-c", program)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["fold False"] < found["timm False"], found
    assert found["fold True"] < found["timm True"], found


def test_without_the_library_there_is_no_gpu(nullgpu):
    """The pretended GPU comes from the library alone: the same program ends with one paragraph without it."""
    done = run(
        nullgpu, "-m", "deepcait", "eval", "builtin:nano", "--data", "builtin:demo", "--device", "cuda", LD_PRELOAD=""
    )
    assert done.returncode == 2
    assert "cuda" in done.stderr
    assert "Traceback" not in done.stderr
