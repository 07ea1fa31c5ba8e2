"""train: lora: what moves, exact resume, models saved merged and as PEFT's adapters."""

from __future__ import annotations

import json

import pytest
import torch

import deepcait
from deepcait.cli import main
from deepcait.errors import ConfigError
from deepcait.training.lora import add_lora, merged
from deepcait.training.settings import Lora
from tests.processes.harness import DEMO

peft = pytest.importorskip("peft")

TINY = {
    "data": {"limit": 40, "val_limit": 20, "num_workers": 0},
    "epochs": 2,
    "global_batch_size": 20,
    "replicas": 1,
    "keep.log_every_steps": 1,
    "img_size": 32,
    "ema.decay": 0.5,
    "schedule": {"warmup_epochs": 0},
    "optimizer.lr": 3e-3,
    "lora": {"rank": 2, "alpha": 8.0, "save": "adapters"},
}
IMAGE = min((DEMO / "test" / "ship").iterdir())


def train(out, **more):
    settings = TINY | more.pop("settings", {})
    return deepcait.train("builtin:demo", out, model="builtin:nano", recipe="lora", settings=settings, **more)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> deepcait.Run:
    return train(tmp_path_factory.mktemp("lora") / "run")


def test_only_updates_and_head_move(run):
    before, after = deepcait.load("builtin:nano").model.state_dict(), run.last.model.state_dict()
    assert before.keys() == after.keys()  # merged: the plain network again
    moved = {name for name in before if before[name].shape != after[name].shape or not before[name].equal(after[name])}
    attention = {"qkv", "q", "k", "v", "proj"}
    for name in before:
        parts = ["", *name.split(".")]
        expected = parts[1] == "head" or (parts[-2] in attention and parts[-1] == "weight" and "attn" in parts)
        assert (name in moved) == expected, name
    changes = [after[name] - before[name] for name in moved if not name.startswith("head")]
    assert max(int(torch.linalg.matrix_rank(change.double(), rtol=1e-3)) for change in changes) <= 2


def test_the_saved_model_is_the_trained_one_and_adapters_are_pefts(run):
    classifier = run.last
    assert classifier.predict(IMAGE)
    base = deepcait.load("builtin:nano").model
    base.reset_classifier(len(classifier.classes))
    again = peft.PeftModel.from_pretrained(base, run.folder / "last" / "adapters").eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = classifier.logits(images)
        assert torch.allclose(again(images), expected, atol=1e-4)
    sizes = [path.stat().st_size for path in (run.folder / "last").rglob("*.safetensors") if "ema" not in path.parts]
    assert min(sizes) < 0.1 * max(sizes)
    config = json.loads((run.folder / "last" / "adapters" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (2, 8.0, ["head"])
    assert (run.folder / "last" / "ema" / "model.safetensors").is_file()


def test_merging_copies_only_what_it_changes():
    model = deepcait.load("builtin:nano").model
    add_lora(model, Lora(rank=2, targets=("blocks.0.attn.qkv",)), seed=0)
    torch.nn.init.ones_(model.blocks[0].attn.qkv.lora_B["default"].weight)
    before = model.blocks[0].attn.qkv.base_layer.weight.clone()
    plain = merged(model)
    assert torch.equal(model.blocks[0].attn.qkv.base_layer.weight, before)
    assert not torch.equal(plain.blocks[0].attn.qkv.weight, before)
    assert plain.blocks[1].attn.qkv.weight.data_ptr() == model.blocks[1].attn.qkv.weight.data_ptr()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(plain.eval()(images), model.eval()(images), atol=1e-5)


def test_what_is_saved_may_change_on_resume(run, tmp_path):
    out = tmp_path / "run"
    stopped = train(out, callbacks=[lambda event: event.stop() if event.step == 1 else None])
    merged_only = {"lora.save": "merged"}
    assert deepcait.train(None, out, resume=True, settings=merged_only).state == "finished"
    assert stopped.folder == out
    assert not (out / "last" / "adapters").exists()
    assert (out / "metrics.jsonl").read_bytes() == (run.folder / "metrics.jsonl").read_bytes()


def test_a_resumed_run_has_the_same_bits(run, tmp_path):
    out = tmp_path / "run"
    stopped = train(out, callbacks=[lambda event: event.stop() if event.step == 1 else None])
    assert stopped.state == "stopped"
    assert main.main(["train", "--out", str(out), "--resume"]) == 0
    for name in ("metrics.jsonl", "last/model.safetensors", "last/adapters/adapter_model.safetensors"):
        assert (out / name).read_bytes() == (run.folder / name).read_bytes(), name


def test_merged_alone_is_the_default(tmp_path):
    settings = {"lora": {"rank": 2}, "epochs": 1, "lora.targets": ["*.fc1", "blocks.0.attn.proj_l"]}
    run = train(tmp_path / "run", settings=settings)
    assert not (run.folder / "best" / "adapters").exists()
    assert (run.folder / "best" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lora.targets": ["*.nothing"]}, r"no linear layer has a name like '\*.nothing'"),
        ({"lora.targets": ["head"]}, "no linear layer has a name like 'head'"),
        ({"lora.targets": []}, "at least one pattern"),
        ({"lora.rank": 0}, "rank of 1 or more"),
        ({"lora.alpha": 0.0}, "alpha above 0"),
        ({"lora.save": "both"}, "expected merged or adapters"),
    ],
)
def test_mistakes(tmp_path, settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        train(tmp_path / "run", settings=settings)
    assert caught.value.remedy
    assert not (tmp_path / "run").exists()
