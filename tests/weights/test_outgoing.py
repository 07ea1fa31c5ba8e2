"""What we write loads where people already work: timm for every variant, the authors' layout, and back, bit for bit."""

from __future__ import annotations

import shutil

import pytest
import timm
import torch

from deepcait.errors import ConfigError, WeightsError
from deepcait.model import CaiT, variant_config
from deepcait.model.variants import variant_names
from deepcait.weights import outgoing
from deepcait.weights.artefact import save_artefact
from deepcait.weights.outgoing import write_official, write_timm
from deepcait.weights.registry import pretrained_cfg_of
from deepcait.weights.spec import resolve

# Every variant is tried; these in everyday tests. XS36 is one that timm has no model for, and so is nano.
EVERYDAY = ("cait_nano_32", "cait_xs36_224")


@pytest.fixture
def room(tmp_path):
    """A folder that goes at once: all variants together are 100 GB."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def sized(names):
    return [
        pytest.param(name, num, marks=[] if name in EVERYDAY else pytest.mark.soak)
        for name in names
        for num in (1000, 7)
        if not (name == "cait_xs36_224" and num == 1000)
    ] + [pytest.param("cait_xs36_224", 1000, marks=pytest.mark.soak)]


@pytest.mark.parametrize(("name", "num_classes"), sized(variant_names()))
def test_timm_loads_every_variant_and_gives_its_logits(random_weights, logits, room, name, num_classes):
    config = variant_config(name).replace(num_classes=num_classes)
    with torch.device("meta"):
        model = CaiT(config)
    random_weights(model.to_empty(device="cpu"))
    classes = [f"class {index}" for index in range(num_classes)]
    save_artefact(room / "ours", model, preprocessing=pretrained_cfg_of(config), classes=classes)
    expected = logits(model)
    del model
    write_timm(resolve(room / "ours"), room / "timm")
    theirs = timm.create_model(f"local-dir:{room / 'timm'}", pretrained=True).eval()
    got = logits(theirs)
    assert got.shape == expected.shape == (expected.shape[0], num_classes)
    assert (got - expected).abs().max() <= 1e-5 * expected.std()
    assert list(theirs.pretrained_cfg["label_names"]) == classes
    assert theirs.pretrained_cfg["input_size"] == (3, *config.img_size)


def timm_random(random_weights) -> torch.nn.Module:
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 8, "img_size": 32, "num_classes": 5}
    return random_weights(timm.create_model("cait_xxs24_224", **sizes))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_official_to_ours_to_timm_to_ours_is_bit_equal(random_weights, tmp_path, suffix):
    theirs = timm_random(random_weights)
    state_dict = theirs.state_dict()
    torch.save({"model": {f"module.{key}": tensor for key, tensor in state_dict.items()}}, tmp_path / "official.pth")
    ours = resolve(tmp_path / "official.pth")
    write_timm(ours, tmp_path / "timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    timm.models.save_for_hf(again, tmp_path / "by_timm", safe_serialization=True)
    back = resolve(tmp_path / "by_timm")
    write_official(back, tmp_path / f"again{suffix}")
    last = resolve(tmp_path / f"again{suffix}").model.state_dict()
    assert list(last) == list(state_dict)
    for stage in (ours.model.state_dict(), again.state_dict(), back.model.state_dict(), last):
        for key, tensor in state_dict.items():
            assert torch.equal(stage[key], tensor), key
    if suffix == ".pth":  # what the authors' own code does with it
        content = torch.load(tmp_path / "again.pth", weights_only=True)
        assert list(content) == ["model"]
        theirs.load_state_dict({key.removeprefix("module."): value for key, value in content["model"].items()})
        assert list(content["model"]) == [f"module.{key}" for key in state_dict]


def same_bits(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[key]) for key, tensor in one.items())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "cait_nano_32" else pytest.mark.soak) for name in variant_names()]
)
def test_the_round_trip_at_full_size(random_weights, room, name):
    with torch.device("meta"):
        model = CaiT(variant_config(name))
    random_weights(model.to_empty(device="cpu"))
    torch.save({"model": {f"module.{key}": t for key, t in model.state_dict().items()}}, room / "official.pth")
    expected = model.state_dict()
    found = resolve(room / "official.pth")
    assert found.name == name
    assert same_bits(expected, found.model.state_dict())
    write_timm(found, room / "timm")
    del found
    theirs = timm.create_model(f"local-dir:{room / 'timm'}", pretrained=True)
    assert same_bits(expected, theirs.state_dict())
    timm.models.save_for_hf(theirs, room / "by_timm", safe_serialization=True)
    del theirs
    back = resolve(room / "by_timm")
    assert (back.name, same_bits(expected, back.model.state_dict())) == (name, True)


@pytest.mark.parametrize("name", ["out.onnx", "out", "folder.pth"])
def test_another_ending_is_an_error(tiny, tmp_path, name):
    torch.save(tiny().state_dict(), tmp_path / "w.pth")
    if name == "folder.pth":
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=r"must end in \.pth or \.safetensors|is a folder, not a file"):
        write_official(resolve(tmp_path / "w.pth"), tmp_path / name)


@pytest.mark.parametrize("said", ["No space left on device (os error 28)", "[enforce fail] . unexpected pos 64 vs 0"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_full_disk_leaves_the_old_file(tiny, tmp_path, monkeypatch, suffix, said):
    torch.save(tiny().state_dict(), tmp_path / "w.pth")
    found, path = resolve(tmp_path / "w.pth"), tmp_path / f"out{suffix}"
    path.write_bytes(b"old")

    def full(*_, **__):
        raise RuntimeError(said)

    monkeypatch.setattr(outgoing.torch, "save", full)
    monkeypatch.setattr(outgoing, "save_file", full)
    with pytest.raises(WeightsError, match="Free space"):
        write_official(found, path)
    assert path.read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["w.pth", path.name])
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="does not exist"):
        write_official(found, tmp_path / "missing" / f"out{suffix}")


def test_two_classes_near_each_other_are_no_drift(tmp_path):
    """What rounding in float32 makes of such logits is many times what is allowed beside their spread."""
    found = resolve("builtin:nano", num_classes=2)
    with torch.no_grad():
        found.model.head.weight[1] = found.model.head.weight[0] + 1e-6
        found.model.head.bias.fill_(1.0)
    write_timm(found, tmp_path / "timm")
    before = {key: tensor.clone() for key, tensor in found.model.state_dict().items()}
    assert outgoing.verify_timm(found, tmp_path / "timm").holds
    after = found.model.state_dict()
    assert all(after[key].dtype == tensor.dtype and torch.equal(after[key], tensor) for key, tensor in before.items())
