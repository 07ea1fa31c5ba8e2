"""Whole: fine-tuning on a folder of photographs is one command, with data and output alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.hub_server import serve_hub

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("processes")]
REPOSITORY = "timm/cait_xxs24_224.fb_dist_in1k"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    generator = torch.Generator().manual_seed(0)
    for name, colour in (("leaf", (40, 160, 60)), ("brick", (170, 70, 50))):
        (folder / name).mkdir()
        for i in range(6):
            noise = torch.randint(-30, 30, (48, 64, 3), generator=generator)
            pixels = (torch.tensor(colour) + noise).clamp(0, 255).byte().numpy()
            Image.fromarray(pixels).save(folder / name / f"{i}.jpg")
    return folder


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """Random weights in the exact layout of the released ones, written by timm."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    model = timm.create_model("cait_xxs24_224")
    timm.models.save_for_hf(model, folder, model_config={"num_classes": 1000}, safe_serialization=True)
    if not (folder / "model.safetensors").exists():
        save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def deepcait(*words: str, home: Path, endpoint: str, offline: bool = False) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "1" if offline else "0"}
    env |= {"OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-m", "deepcait", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)


@pytest.mark.timeout(600)
def test_data_and_output_are_enough_where_the_released_weights_are_reachable(photographs, repository, tmp_path):
    few = ["--set", "epochs=1", "global_batch_size=4", "replicas=1", "data.num_workers=0", "ema.decay=0"]
    command = ["train", "--data", str(photographs), "--out"]
    with serve_hub({REPOSITORY: repository}) as (endpoint, requests):
        first = deepcait(*command, str(tmp_path / "first"), *few, home=tmp_path / "home", endpoint=endpoint)
    assert first.returncode == 0, first.stderr
    assert any("model.safetensors" in request for request in requests)
    lines = first.stdout.splitlines()
    assert lines[0] == "start: the released weights of cait_xxs24_224"
    assert "head" in first.stdout
    assert "1000" in first.stdout
    assert any(line.startswith("next:") for line in lines)
    # The layers that the schedule hardly moved are the released ones, not others.
    released = load_file(repository / "model.safetensors")["blocks.0.attn.qkv.weight"]
    trained = load_file(tmp_path / "first" / "last" / "model.safetensors")["blocks.0.attn.qkv.weight"]
    assert (trained - released).norm() < 0.05 * released.norm()
    assert json.loads((tmp_path / "first" / "best" / "config.json").read_text())["num_classes"] == 2
    # The server is gone; the cache is enough.
    second = deepcait(*command, str(tmp_path / "second"), *few, home=tmp_path / "home", endpoint=endpoint, offline=True)
    assert second.returncode == 0, second.stderr


def test_unreachable_weights_are_one_paragraph_at_once_and_never_another_model(photographs, tmp_path):
    command = ["train", "--data", str(photographs), "--out", str(tmp_path / "run")]
    end = deepcait(*command, home=tmp_path / "home", endpoint="http://127.0.0.1:9")
    assert end.returncode == 2
    assert "Traceback" not in end.stderr
    assert "remedy: " in end.stderr
    assert "model.safetensors" in end.stderr
    assert not (tmp_path / "run").exists()
