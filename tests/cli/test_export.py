"""`deepcait export` to timm and to the authors' layout: written, read back, compared, and refused where it differs."""

from __future__ import annotations

import json

import pytest
import timm
import torch

import deepcait
from deepcait.weights import outgoing
from deepcait.weights.artefact import EMA_FOLDER, save_artefact
from deepcait.weights.registry import pretrained_cfg_of


def test_to_timm(run_json, model_folder, tmp_path):
    printed = run_json("export", model_folder, "--to", "timm", "--out", tmp_path / "pets")
    assert (printed["to"], printed["holds"]) == ("timm", True)
    assert printed["proof"]["reader"] == f"timm {timm.__version__}"
    assert printed["proof"]["drift"] <= 1e-5
    theirs = timm.create_model(f"local-dir:{tmp_path / 'pets'}", pretrained=True)
    ours = deepcait.load(model_folder).model.state_dict()
    assert printed["proof"]["num_tensors"] == len(ours)
    assert all(torch.equal(tensor, ours[key]) for key, tensor in theirs.state_dict().items())
    assert list(theirs.pretrained_cfg["label_names"]) == ["cat", "dog", "owl"]


@pytest.mark.parametrize("name", ["pets.pth", "pets.safetensors"])
def test_to_the_authors_layout(run, model_folder, tmp_path, name):
    code, out, err = run("export", model_folder, "--to", "official", "--out", tmp_path / name)
    assert code == 0, err
    assert "bit-identical" in out
    assert "only tensors" in out
    ours = deepcait.load(model_folder).model.state_dict()
    again = deepcait.load(tmp_path / name).model.state_dict()
    assert list(again) == list(ours)
    assert all(torch.equal(again[key], tensor) for key, tensor in ours.items())
    assert run("export", model_folder, "--to", "official", "--out", tmp_path / name)[0] == 0  # over the older one


def test_the_folder_of_the_model_itself_is_no_place(run, tiny_with_average):
    before = sorted(path.name for path in tiny_with_average.rglob("*"))
    code, _, err = run("export", tiny_with_average, "--to", "timm", "--out", f"{tiny_with_average}/../averaged")
    assert code == 2
    assert "is the folder of the source model" in " ".join(err.split())
    assert sorted(path.name for path in tiny_with_average.rglob("*")) == before
    assert (tiny_with_average / EMA_FOLDER).is_dir()


@pytest.mark.parametrize(("form", "name"), [("timm", "best"), ("timm", "last"), ("official", "best/model.safetensors")])
def test_a_model_of_another_run_is_not_replaced(run, model_folder, tiny_with_average, tmp_path, form, name):
    """What a training found is nowhere else."""
    first = tmp_path / "first"
    first.mkdir()
    (first / "status.json").write_text("{}")
    kept = tiny_with_average.rename(first / name.partition("/")[0])
    before = (kept / "model.safetensors").read_bytes()
    code, _, err = run("export", model_folder, "--to", form, "--out", first / name)
    assert code == 2
    assert "which belongs to the run" in " ".join(err.split())
    assert (kept / "model.safetensors").read_bytes() == before


def test_a_graph_of_another_program_is_no_weights_file(run, tmp_path):
    (tmp_path / "pets.onnx").write_bytes(b"graph")
    code, _, err = run("info", tmp_path / "pets.onnx")
    assert code == 2
    assert "give the run or model folder that was exported, and --engine" in " ".join(err.split())


@pytest.fixture
def tiny_with_average(tmp_path):
    model = deepcait.create_model("cait_nano_32", depth=1)
    average = {key: tensor + 1 for key, tensor in model.state_dict().items()}
    return save_artefact(
        tmp_path / "averaged",
        model,
        preprocessing=pretrained_cfg_of(model.config),
        classes=None,
        ema_state=average,
        evaluated="ema",
    )


def test_what_was_evaluated_is_written(run_json, tiny_with_average, tmp_path):
    run_json("export", tiny_with_average, "--to", "official", "--out", tmp_path / "w.pth")
    weight = torch.load(tmp_path / "w.pth", weights_only=True)["model"]["module.norm.weight"]
    assert torch.equal(weight, torch.full_like(weight, 2.0))  # the raw one is 1


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--to", "official", "--out", "w.onnx"], ".pth or .safetensors"),
        (["--to", "timm"], "--out"),
        (["--out", "x"], "--to"),
        (["--to", "tflite", "--out", "x"], "tflite"),
        (["--to", "timm", "--out", "full"], "not a model folder"),
        (["--to", "official", "--out", "full"], ".pth or .safetensors"),
        (["--to", "official", "--out", "missing/w.pth"], "the folder missing does not exist"),
        (["--to", "onnx", "--out", "missing/w.onnx"], "the folder missing does not exist"),
        (["--to", "openvino", "--out", "missing/w.xml"], "the folder missing does not exist"),
        (["--to", "pt2", "--out", "missing/w.pt2"], "the folder missing does not exist"),
    ],
)
def test_mistakes(run, model_folder, tmp_path, monkeypatch, words, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("notes")
    code, _, err = run("export", model_folder, *words)
    assert code == 2
    assert part in " ".join(err.split())
    assert not (tmp_path / "missing").exists()
    assert (tmp_path / "full" / "notes.txt").read_text() == "notes"


@pytest.mark.parametrize(("to", "out"), [("timm", "x"), ("official", "x.pth")])
def test_a_network_that_they_do_not_have_is_reported_before_anything_is_written(run, tmp_path, to, out):
    from deepcait.model.alternatives import apply_overrides
    from deepcait.model.networks import build_model
    from deepcait.model.variants import variant_config

    config = apply_overrides(variant_config("cait_nano_32").replace(depth=1), {"residual": "rezero"})
    save_artefact(tmp_path / "other", build_model(config), preprocessing=pretrained_cfg_of(config), classes=None)
    code, _, err = run("export", tmp_path / "other", "--to", to, "--out", tmp_path / out)
    assert code == 2
    assert "timm does not have" in " ".join(err.split())
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize(("to", "out"), [("timm", "x"), ("official", "x.pth")])
def test_what_reads_back_otherwise_is_refused(run, model_folder, tmp_path, monkeypatch, to, out):
    """The check can say no: what is written differs in one number."""
    original = outgoing.changed_keys

    def with_a_change(expected, got):
        key = "blocks.0.gamma_1"
        return original(expected, {**got, key: got[key].clone().index_fill_(0, torch.tensor([0]), 7.0)})

    monkeypatch.setattr(outgoing, "changed_keys", with_a_change)
    code, out_text, err = run("export", model_folder, "--to", to, "--out", tmp_path / out, "--json")
    assert code == 3
    assert json.loads(out_text)["holds"] is False
    assert "blocks.0.gamma_1" in err
