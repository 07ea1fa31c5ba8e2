"""A model folder gives the same model back, here and in timm; a changed one is refused."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import timm
import torch

from deepcait.errors import ConfigError, WeightsError
from deepcait.model import CaiT, variant_config
from deepcait.model.variants import variant_names
from deepcait.weights import artefact as artefact_module
from deepcait.weights.adapt import build_loaded
from deepcait.weights.artefact import is_artefact, read_artefact, save_artefact
from deepcait.weights.registry import pretrained_cfg_of
from deepcait.weights.spec import resolve
from deepcait.weights.timm_layout import describe_for_timm, nearest_architecture

CLASSES = ["ant", "bee", "cat", "dog", "elk"]


def save(folder, model, **more):
    more = {"preprocessing": pretrained_cfg_of(model.config), "classes": None} | more
    return save_artefact(folder, model, **more)


def load(folder, **how) -> CaiT:
    found = read_artefact(folder, **how)
    return build_loaded(found.config, found.state_dict)[0].eval()


def assert_in_timm(folder, expected, logits) -> torch.nn.Module:
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    got = logits(theirs)
    assert got.shape == expected.shape
    # timm computes the same function in another order.
    assert (got - expected).abs().max() <= 1e-5 * expected.std()
    return theirs


SHAPES = {
    "tiny": {},
    "not square": {"img_size": (32, 48)},
    "grey, three class blocks": {"in_chans": 1, "cls_depth": 3, "mlp_ratio": 2.0},
    "features": {"num_classes": 0},
    "deep": {"depth": 5, "patch_size": 4},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_round_trip_is_bitwise_here_and_equal_in_timm(tiny, logits, tmp_path, shape):
    model = tiny(**SHAPES[shape])
    save(tmp_path / "m", model)
    expected = logits(model)
    assert torch.equal(logits(load(tmp_path / "m")), expected)
    assert read_artefact(tmp_path / "m").config == model.config
    assert_in_timm(tmp_path / "m", expected, logits)


@pytest.mark.parametrize(("name", "num_classes"), [("cait_nano_32", 10), ("cait_xxs24_224", 7)])
def test_named_models_with_their_classes_load_in_timm(random_weights, logits, tmp_path, name, num_classes):
    with torch.device("meta"):
        model = CaiT(variant_config(name).replace(num_classes=num_classes))
    random_weights(model.to_empty(device="cpu"))
    classes = [f"class {index}" for index in range(num_classes)]
    save(tmp_path / "m", model, classes=classes)
    found = read_artefact(tmp_path / "m")
    assert (found.name, found.classes) == (name, classes)
    theirs = assert_in_timm(tmp_path / "m", logits(model), logits)
    assert list(theirs.pretrained_cfg["label_names"]) == classes
    for key, tensor in model.state_dict().items():
        assert torch.equal(theirs.state_dict()[key], tensor), key


# Resolution and depth only change how many tensors there are: one name a size and resolution is enough.
@pytest.mark.parametrize("name", [name for name in variant_names() if name.endswith(("24_224", "36_384", "_32"))])
def test_timm_builds_every_width_from_our_description(name, tmp_path):
    config = variant_config(name).replace(num_classes=7)
    description = describe_for_timm(config, pretrained_cfg_of(config), None)
    (tmp_path / "config.json").write_text(json.dumps(description))
    with torch.device("meta"):
        ours = CaiT(config).state_dict()
    theirs = timm.create_model(f"local-dir:{tmp_path}", device="meta")
    assert {key: t.shape for key, t in theirs.state_dict().items()} == {key: t.shape for key, t in ours.items()}
    assert theirs.pretrained_cfg["input_size"] == (3, *config.img_size)


def test_the_nearest_architecture_is_one_that_timm_knows():
    for name in variant_names():
        nearest = nearest_architecture(variant_config(name))
        assert timm.is_model(nearest)
        if timm.is_model(name):
            assert nearest == name
    assert nearest_architecture(variant_config("cait_xs36_224")) == "cait_xs24_384"


def test_whoever_may_read_the_description_may_read_the_weights(tiny, tmp_path):
    save(tmp_path / "m", tiny())
    modes = {(tmp_path / "m" / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1


def test_the_story_comes_back(tiny, tmp_path):
    cfg = pretrained_cfg_of(tiny().config) | {"mean": (0.1, 0.2, 0.3), "resize_mode": "squash", "crop_pct": 0.9}
    save(
        tmp_path / "m",
        tiny(),
        classes=CLASSES,
        preprocessing=cfg,
        recipe={"lr": 0.1},
        metrics={"top1": 0.5},
        provenance={"source": "random"},
    )
    found = read_artefact(tmp_path / "m")
    assert found.pretrained_cfg["mean"] == (0.1, 0.2, 0.3)
    assert found.pretrained_cfg["crop_pct"] == 0.9
    assert found.pretrained_cfg["resize_mode"] == "squash"  # ours, and timm still reads the folder
    timm.create_model(f"local-dir:{tmp_path / 'm'}", pretrained=True)
    assert found.section["recipe"] == {"lr": 0.1}
    assert found.section["metrics"] == {"top1": 0.5}
    assert found.section["provenance"] == {"source": "random"}
    assert found.section["stored_grid"] == [4, 4]
    assert found.classes == CLASSES


def test_averaged_weights_lie_beside_and_evaluated_says_which(tiny, logits, tmp_path):
    raw, averaged = tiny(0), tiny(1)
    state = {f"module.{key}": tensor for key, tensor in averaged.state_dict().items()}
    for evaluated, expected in (("raw", raw), ("ema", averaged)):
        save(tmp_path / "m", raw, ema_state=state, evaluated=evaluated, metrics={"top1": 1.0})
        found = read_artefact(tmp_path / "m")
        assert found.weights == evaluated
        assert found.section["evaluated"] == evaluated
        assert torch.equal(logits(load(tmp_path / "m")), logits(expected))
        assert torch.equal(logits(load(tmp_path / "m", weights="raw")), logits(raw))
        assert torch.equal(logits(load(tmp_path / "m", weights="ema")), logits(averaged))
    assert_in_timm(tmp_path / "m" / "ema", logits(averaged), logits)
    save(tmp_path / "m", raw)
    assert not (tmp_path / "m" / "ema").exists()
    with pytest.raises(WeightsError, match="averaged"):
        read_artefact(tmp_path / "m", weights="ema")
    with pytest.raises(ConfigError, match="ema_state"):
        save(tmp_path / "m", raw, evaluated="ema")


def test_a_moved_folder_gives_the_same_bits(tiny, logits, tmp_path):
    save(tmp_path / "m", tiny())
    shutil.move(tmp_path / "m", tmp_path / "elsewhere")
    assert torch.equal(logits(load(tmp_path / "elsewhere")), logits(tiny()))


def test_wrapped_models_save_as_themselves(tiny, tmp_path):
    wrapper = torch.nn.Module()
    wrapper.module = tiny()
    save_artefact(tmp_path / "m", wrapper, preprocessing={}, classes=None)
    assert list(read_artefact(tmp_path / "m").state_dict) == sorted(tiny().state_dict())
    with pytest.raises(ConfigError, match="Linear"):
        save_artefact(tmp_path / "n", torch.nn.Linear(1, 1), preprocessing={}, classes=None)


def flip(path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_one_changed_bit_is_refused(tiny, tmp_path):
    save(tmp_path / "m", tiny())
    flip(tmp_path / "m" / "model.safetensors", -5)
    with pytest.raises(WeightsError, match=r"model\.safetensors: the file's sha256 is"):
        read_artefact(tmp_path / "m")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ('{"deepcait": {"format": 99}}', "newer deepcait"),
        ('{"deepcait": {"format": 1, "sha256": "0"}}', "sha256"),
        (None, "No such file"),
    ],
)
def test_a_broken_description_is_an_error_with_its_path(tiny, tmp_path, text, message):
    save(tmp_path / "m", tiny())
    path = tmp_path / "m" / "config.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(WeightsError, match=message) as caught:
        read_artefact(tmp_path / "m")
    assert str(tmp_path / "m") in str(caught.value)


def test_unknown_fields_of_the_model_are_an_error(tiny, tmp_path):
    save(tmp_path / "m", tiny())
    path = tmp_path / "m" / "config.json"
    description = json.loads(path.read_text())
    description["deepcait"]["config"]["wings"] = 2
    path.write_text(json.dumps(description))
    with pytest.raises(WeightsError, match="wings"):
        read_artefact(tmp_path / "m")


def test_as_many_names_as_rows(tiny, tmp_path):
    with pytest.raises(ConfigError, match="expected 5 names.*got 2"):
        save(tmp_path / "m", tiny(), classes=["a", "b"])


def test_a_folder_with_other_things_is_not_replaced(tiny, tmp_path):
    (tmp_path / "photo.jpg").write_text("precious")
    with pytest.raises(ConfigError, match="not empty and not a model folder"):
        save(tmp_path, tiny())
    assert os.listdir(tmp_path) == ["photo.jpg"]


def test_what_others_put_into_a_model_folder_stays(tiny, tmp_path):
    save(tmp_path / "m", tiny())
    (tmp_path / "m" / "README.md").write_text("card")
    (tmp_path / "m" / "pictures").mkdir()
    (tmp_path / "m" / "pictures" / "1.txt").write_text("picture")
    save(tmp_path / "m", tiny(1))
    assert (tmp_path / "m" / "README.md").read_text() == "card"
    assert (tmp_path / "m" / "pictures" / "1.txt").read_text() == "picture"


def test_a_folder_that_a_kill_left_aside_is_read_and_put_back(tiny, logits, tmp_path):
    """Where the system can't exchange folders, a kill between two renamings leaves the old one under another name."""
    save(tmp_path / "m", tiny(0))
    (tmp_path / "m").rename(tmp_path / ".m.old")
    assert is_artefact(tmp_path / "m")
    assert torch.equal(logits(resolve(tmp_path / "m").model), logits(tiny(0)))
    save(tmp_path / "m", tiny(1))
    assert torch.equal(logits(load(tmp_path / "m")), logits(tiny(1)))
    assert os.listdir(tmp_path) == ["m"]


def test_a_figure_that_is_no_number_is_not_written(tiny, tmp_path):
    """NaN is no JSON: others could not read the folder."""
    save(tmp_path / "m", tiny(0), metrics={"top1": 0.5})
    with pytest.raises(ValueError, match="JSON"):
        save(tmp_path / "m", tiny(1), metrics={"top1": float("nan")})
    assert read_artefact(tmp_path / "m").section["metrics"] == {"top1": 0.5}
    assert os.listdir(tmp_path) == ["m"]


def test_a_full_disk_leaves_the_old_model(tiny, logits, tmp_path, monkeypatch):
    save(tmp_path / "m", tiny(0))

    def full(*_, **__):
        raise artefact_module.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(artefact_module, "save_file", full)
    with pytest.raises(WeightsError, match="No space left.*Free space"):
        save(tmp_path / "m", tiny(1))
    assert torch.equal(logits(load(tmp_path / "m")), logits(tiny(0)))
    assert os.listdir(tmp_path) == ["m"]


def test_a_reader_looks_again_when_the_folder_was_replaced_between_its_files(tiny, logits, tmp_path, monkeypatch):
    save(tmp_path / "m", tiny(0))
    checksum = artefact_module._sha256
    left = [1]

    def replaced_meanwhile(path):
        if left:
            left.pop()
            save(tmp_path / "m", tiny(1))
        return checksum(path)

    monkeypatch.setattr(artefact_module, "_require_checksum", _late(replaced_meanwhile))
    assert torch.equal(logits(load(tmp_path / "m")), logits(tiny(1)))
    assert not left


def _late(checksum):
    def require(path, expected):
        if checksum(path) != expected:
            raise WeightsError("sha256", remedy="")

    return require


def test_shapes_only_describes_and_reads_nothing(tiny, tmp_path):
    save(tmp_path / "m", tiny(), classes=CLASSES)
    flip(tmp_path / "m" / "model.safetensors", -5)
    found = read_artefact(tmp_path / "m", shapes_only=True)
    assert found.classes == CLASSES
    assert all(tensor.is_meta for tensor in found.state_dict.values())


def timm_folder(folder, model, *, bin_file: bool = False, **config):
    """A folder as timm itself saves one, without our section."""
    timm.models.save_for_hf(model, folder, model_config=config, safe_serialization=not bin_file)
    return folder


@pytest.mark.parametrize("bin_file", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (32, 48)])
def test_folders_that_timm_saved_are_read(random_weights, logits, tmp_path, bin_file, size):
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 4, "patch_size": 8, "img_size": size}
    theirs = random_weights(timm.create_model("cait_xxs24_224", num_classes=5, **sizes))
    timm_folder(tmp_path / "t", theirs, bin_file=bin_file, label_names=CLASSES)
    found = read_artefact(tmp_path / "t")
    assert found.classes == CLASSES
    assert found.section == {}
    assert found.pretrained_cfg["crop_pct"] == 1.0
    expected = logits(theirs)
    assert (logits(load(tmp_path / "t")) - expected).abs().max() <= 1e-5 * expected.std()


def test_old_descriptions_in_one_piece_are_read(random_weights, tmp_path):
    theirs = random_weights(timm.create_model("cait_xxs24_224", num_classes=5, depth=1))
    timm_folder(tmp_path / "t", theirs)
    old = {"architecture": "cait_xxs24_224", "num_classes": 5, "labels": CLASSES, "mean": [0.5] * 3, "crop_pct": 0.9}
    (tmp_path / "t" / "config.json").write_text(json.dumps(old))
    found = read_artefact(tmp_path / "t")
    assert (found.classes, found.pretrained_cfg["mean"]) == (CLASSES, (0.5, 0.5, 0.5))


def test_another_network_in_timm_s_layout_is_an_error(tmp_path):
    timm_folder(tmp_path / "t", timm.create_model("test_vit"))
    with pytest.raises(WeightsError, match="test_vit"):
        read_artefact(tmp_path / "t")


def test_official_to_ours_to_timm_to_ours_is_bit_equal(tiny, tmp_path):
    model = tiny()
    save(tmp_path / "a", model)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True)
    back, _ = build_loaded(model.config, theirs.state_dict())
    save(tmp_path / "b", back)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_description_of_other_classes_is_refused_not_answered_by_a_random_head(tiny, tmp_path):
    save_artefact(tmp_path / "m", tiny(), preprocessing=pretrained_cfg_of(tiny().config), classes=None)
    path = tmp_path / "m" / "config.json"
    description = json.loads(path.read_text())
    description["deepcait"]["config"]["num_classes"] = 7
    path.write_text(json.dumps(description))
    for shapes_only in (False, True):
        with pytest.raises(WeightsError, match="the weights have 5 classes, but the file says 7"):
            read_artefact(tmp_path / "m", shapes_only=shapes_only)


@pytest.mark.parametrize("change", [{"depth": 30_000_000}, {"cls_depth": 30_000_000}, {"embed_dim": 4_000_000}])
def test_sizes_beyond_the_weights_build_nothing(tiny, tmp_path, change):
    folder = save_artefact(tmp_path / "m", tiny(), preprocessing=pretrained_cfg_of(tiny().config), classes=None)
    description = json.loads((folder / "config.json").read_text())
    description["deepcait"]["config"] |= change
    (folder / "config.json").write_text(json.dumps(description))
    with pytest.raises(WeightsError, match="the weights have .*, but (the file says|their shapes describe)"):
        resolve(folder)


OF_TIMM = [
    ("pretrained_cfg", None),
    ("pretrained_cfg", "x"),
    ("pretrained_cfg", [1]),
    ("label_names", 5),
    ("label_names", {"a": "ant"}),
    ("label_names", "abcde"),
    ("model_args", [1]),
]
OF_OURS = [
    ("deepcait.preprocessing", "x"),
    ("deepcait.provenance", "x"),
    ("deepcait.metrics", "x"),
    ("deepcait.evaluated", 7),
    ("deepcait.config", None),
]


@pytest.mark.parametrize(
    ("own", "field", "value"),
    [(True, *one) for one in OF_TIMM + OF_OURS] + [(False, *one) for one in OF_TIMM],
)
def test_fields_of_another_form_are_named(tiny, tmp_path, own, field, value):
    folder = save(tmp_path / "m", tiny())
    description = json.loads((folder / "config.json").read_text())
    place, _, key = field.rpartition(".")
    if not own:
        del description["deepcait"]
    (description[place] if place else description)[key] = value
    (folder / "config.json").write_text(json.dumps(description))
    with pytest.raises(WeightsError, match=f"{key if key == 'config' else field} must be"):
        resolve(folder)


def test_json_of_a_hundred_thousand_brackets(tiny, tmp_path):
    folder = save(tmp_path / "m", tiny())
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(WeightsError, match="not valid JSON"):
        read_artefact(folder)


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize("value", [None, 5, "abc", [], ["a", "b", "c"], {"a": 1}, [[1], 2, 3]])
def test_means_that_are_no_numbers(tiny, tmp_path, key, value):
    folder = save(tmp_path / "m", tiny())
    description = json.loads((folder / "config.json").read_text())
    description["pretrained_cfg"][key] = value
    (folder / "config.json").write_text(json.dumps(description))
    with pytest.raises(WeightsError, match=f"{key} must be a list of numbers"):
        resolve(folder)
