"""What a user writes leads to a model, or to one paragraph that says where it might have led."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deepcait.errors import ConfigError, DeepcaitError, WeightsError
from deepcait.model import CaiT, variant_config
from deepcait.model.variants import variant_names
from deepcait.weights import hub, registry
from deepcait.weights.artefact import save_artefact
from deepcait.weights.create import create_model
from deepcait.weights.layouts import official_layout
from deepcait.weights.published import PAPER_GFLOPS, REEVALUATED, published
from deepcait.weights.registry import RELEASED, list_models, pretrained_cfg_of
from deepcait.weights.spec import describe, describe_models, resolve

CLASSES = ["ant", "bee", "cat", "dog", "elk"]


def save(folder, model, **more):
    return save_artefact(folder, model, preprocessing=pretrained_cfg_of(model.config), classes=CLASSES, **more)


@pytest.fixture
def cached(monkeypatch, random_weights, tmp_path) -> CaiT:
    """The released xxs24_224, with random weights in timm's layout, as if it lay in the hub's cache."""
    with torch.device("meta"):
        model = CaiT(variant_config("cait_xxs24_224"))
    random_weights(model.to_empty(device="cpu"))
    folder = tmp_path / "cache"
    save_artefact(folder, model, preprocessing=pretrained_cfg_of(model.config), classes=None)
    description = json.loads((folder / "config.json").read_text())
    del description["deepcait"]
    (folder / "config.json").write_text(json.dumps(description))
    monkeypatch.setattr(hub, "_download", lambda repository, filename, revision, **_: folder / filename)
    return model


def test_files_and_folders_lead_to_the_same_logits(tiny, logits, tmp_path):
    model = tiny()
    save(tmp_path / "m", model, provenance={"start": "random"})
    for place in ("run_a/best", "run_a/last", "run_b/last"):
        save(tmp_path / place, model if place != "run_a/last" else tiny(1))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save(official_layout(model.state_dict()), tmp_path / "w.pth")
    kinds = {"m": "artefact", "run_a": "run", "run_b": "run", "w.safetensors": "file", "w.pth": "file"}
    for name, kind in kinds.items():
        found = resolve(tmp_path / name)
        assert found.kind == kind
        assert not found.model.training
        assert torch.equal(logits(found.model), logits(model)), name
        assert found.classes == (None if kind == "file" else CLASSES)
        assert found.model.pretrained_cfg["input_size"] == (3, 32, 32)
        assert str(tmp_path / name) in found.provenance["source"]
    assert resolve(tmp_path / "m").provenance["start"] == "random"


def test_a_file_that_is_no_square_takes_its_size(tiny, logits, tmp_path):
    model = tiny(img_size=(32, 48))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="img_size"):
        resolve(tmp_path / "w.safetensors")
    found = resolve(tmp_path / "w.safetensors", img_size=(32, 48))
    assert torch.equal(logits(found.model), logits(model))


def test_size_and_classes_are_fitted_and_reported(tiny, tmp_path):
    save(tmp_path / "m", tiny())
    found = resolve(tmp_path / "m", img_size=48, num_classes=7)
    assert "4x4 -> 6x6" in str(found.report)
    assert "head 5 -> 7" in str(found.report)
    assert found.classes is None
    assert found.pretrained_cfg["input_size"] == (3, 48, 48)
    assert found.pretrained_cfg["num_classes"] == 7
    found = resolve(tmp_path / "m", classes=["elk", "yak"], keep_rows=True, drop_path_rate=0.3)
    assert found.classes == ["elk", "yak"]
    assert torch.equal(found.model.head.weight[0], tiny().head.weight[4])
    assert found.model.config.drop_path_rate == 0.3


def assert_same_weights(got: CaiT, expected: CaiT) -> None:
    assert list(got.state_dict()) == list(expected.state_dict())
    for key, tensor in expected.state_dict().items():
        assert torch.equal(got.state_dict()[key], tensor), key


def test_a_name_leads_to_its_released_weights(cached):
    found = resolve("cait_xxs24_224")
    assert_same_weights(found.model, cached)
    assert found.name == "cait_xxs24_224"
    assert found.provenance["hub_id"] == "timm/cait_xxs24_224.fb_dist_in1k"
    assert found.pretrained_cfg["tag"] == "fb_dist_in1k"
    assert_same_weights(resolve("hf-hub:timm/any").model, cached)
    model = create_model("cait_xxs24_224", pretrained=True, num_classes=7, img_size=64)
    assert torch.equal(model.norm.weight, cached.norm.weight)
    assert (model.num_classes, model.config.grid) == (7, (4, 4))
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_a_name_may_start_from_random_weights():
    found = resolve("cait_nano_32", start="random", num_classes=3, drop_path_rate=0.1)
    assert found.provenance == {"source": "random"}
    assert found.model.num_classes == 3
    assert found.model.config.drop_path_rate == 0.1


def test_create_model_has_the_table_s_classes_by_default():
    assert create_model("cait_nano_32").num_classes == 10
    with torch.device("meta"):
        assert create_model("cait_xxs24_224").num_classes == 1000
        assert create_model("cait_m48_448", num_classes=0, img_size=(32, 64)).config.grid == (2, 4)
    with pytest.raises(ConfigError, match="drop_path_rate"):
        create_model("cait_nano_32", drop_path=0.1)
    assert list_models() == variant_names()


@pytest.mark.parametrize("call", [resolve, lambda name: create_model(name, pretrained=True)])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cait_xs24_224", "cait_xs24_384"),
        ("cait_xs36_224", "Released models"),
    ],
)
def test_models_that_were_never_released_say_so(call, name, message):
    with pytest.raises(ConfigError, match=message):
        call(name)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("cait_xxs24_225", "cait_xxs24_224"),
        ("cait_XXS24_224", "Did you mean cait_xxs24_224"),
        ("timm/cait_s24_384.fb_dist_in1k", "Did you mean cait_s24_384"),
        ("downloads/M48_448.pth", "The same model is cait_m48_448"),
        ("cait_xxs24", "Did you mean cait_xxs24_224 or"),
        ("zebra", "deepcait models"),
        ("someone/model", "hf-hub:someone/model"),
        ("no/such/folder/w.pth", "no such file or folder"),
        ("builtin:huge", "builtin:nano"),
        ("", "deepcait models"),
    ],
)
def test_a_wrong_spec_is_answered_with_a_hint(wrong, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (resolve, describe):
        with pytest.raises(DeepcaitError, match=hint) as caught:
            call(wrong)
        assert "\n" not in str(caught.value)


def test_a_neighbour_is_suggested(tiny, tmp_path):
    save(tmp_path / "my_model", tiny())
    with pytest.raises(ConfigError, match=r"Did you mean .*my_model\?"):
        resolve(tmp_path / "my_modle")


def test_folders_of_other_things_are_named(tmp_path):
    with pytest.raises(ConfigError, match="nothing in it"):
        resolve(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"variables\.index"):
        resolve(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(WeightsError, match=r"'\.txt'"):
        resolve(tmp_path / "a.txt")


def test_offline_and_uncached_names_the_file_and_the_way_out(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for call in (resolve, lambda name: create_model(name, pretrained=True)):
        with pytest.raises(WeightsError, match="timm/cait_s24_224.fb_dist_in1k.*model.safetensors") as caught:
            call("cait_s24_224")
        assert "HF_HUB_OFFLINE" in str(caught.value)
        assert "/resolve/main/" in caught.value.remedy
        assert "\n" not in str(caught.value)
    with monkeypatch.context() as patch:
        # Nobody answers on this port: one question, no retries, no hang.
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
        pauses = []
        patch.setattr(time, "sleep", pauses.append)
        with pytest.raises(WeightsError, match="no connection"):
            resolve("cait_s24_224")
        assert not pauses
    with pytest.raises(ConfigError, match="owner/name"):
        resolve("hf-hub:a/b/c")
    with pytest.raises(WeightsError, match="never downloads"):
        describe("hf-hub:someone/model")


def test_describe_knows_names_without_weights():
    facts = describe("cait_m48_448")
    assert facts["params"] == variant_config("cait_m48_448").num_params()
    assert facts["gmacs"] == pytest.approx(329.11, abs=0.01)
    assert (facts["released"], facts["top1"], facts["img_size"]) == (True, 0.8648, 448)
    assert facts["preprocessing"]["crop_pct"] == 1.0
    assert describe("cait_nano_32")["released"] is False
    json.dumps(facts)


def test_describe_reads_no_weights(tiny, tmp_path):
    save(tmp_path / "m", tiny(img_size=(32, 48)), metrics={"top1": 0.5}, recipe={"lr": 1})
    weights = tmp_path / "m" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    facts = describe(tmp_path / "m")
    assert facts["classes"] == CLASSES
    assert facts["img_size"] == [32, 48]
    assert (facts["name"], facts["top1"], facts["metrics"]) == (None, None, {"top1": 0.5})
    assert facts["params"] == sum(p.numel() for p in tiny(img_size=(32, 48)).parameters())
    json.dumps(facts)
    torch.save(tiny().state_dict(), tmp_path / "w.pth")
    assert describe(tmp_path / "w.pth")["params"] == sum(p.numel() for p in tiny().parameters())


def test_a_trained_model_does_not_claim_the_published_accuracy(random_weights, tmp_path):
    with torch.device("meta"):
        model = CaiT(variant_config("cait_xxs24_224"))
    save_file(random_weights(model.to_empty(device="cpu")).state_dict(), tmp_path / "w.safetensors")
    facts = describe(tmp_path / "w.safetensors")
    assert (facts["name"], facts["top1"], facts["released"]) == ("cait_xxs24_224", None, False)


def test_describe_models_lists_them_all():
    rows = describe_models()
    assert [row["name"] for row in rows] == variant_names()
    assert sum(row["released"] for row in rows) == 10
    assert all(row.keys() == {"name", "params", "gmacs", "img_size", "released", "top1", "real", "v2"} for row in rows)


def test_the_builtin_model_is_found_when_it_is_there(tiny, tmp_path, monkeypatch):
    save(tmp_path / "nano", tiny())
    monkeypatch.setattr(registry, "BUILTIN_NANO", tmp_path / "nano")
    assert resolve("builtin:nano").kind == "builtin"
    shutil.rmtree(tmp_path / "nano")
    for call in (lambda: resolve("builtin:nano"), lambda: create_model("cait_nano_32", pretrained=True)):
        with pytest.raises(ConfigError, match="missing from this installation"):
            call()


def test_the_weights_in_the_package_come_by_name_too(logits):
    found = resolve("builtin:nano")
    model = create_model("cait_nano_32", pretrained=True).eval()
    assert torch.equal(logits(model), logits(found.model))
    assert model.pretrained_cfg["mean"] == found.pretrained_cfg["mean"]
    grey = create_model("cait_nano_32", pretrained=True, in_chans=1, num_classes=3, img_size=(16, 64))
    assert grey.pretrained_cfg["input_size"] == (1, 16, 64)
    assert len(grey.pretrained_cfg["mean"]) == 1
    assert torch.equal(grey.norm.weight, model.norm.weight)


def test_the_authors_file_is_known_by_its_name_and_sizes(random_weights, tmp_path):
    with torch.device("meta"):
        model = CaiT(variant_config("cait_xxs24_224"))
    random_weights(model.to_empty(device="cpu"))
    torch.save(official_layout(model.state_dict()), tmp_path / "XXS24_224.pth")
    facts = describe(tmp_path / "XXS24_224.pth")
    assert (facts["released"], facts["top1"], facts["classes"][0]) == (True, 0.784, "n01440764")
    assert facts["provenance"]["teacher"] == "RegNetY-16GF"
    assert facts["provenance"]["source"] == str(tmp_path / "XXS24_224.pth")
    found = resolve(tmp_path / "XXS24_224.pth")
    assert (len(found.classes), found.pretrained_cfg["license"]) == (1000, "apache-2.0")
    assert_same_weights(found.model, model)
    (tmp_path / "XXS24_224.pth").rename(tmp_path / "S24_224.pth")  # the name of another
    assert describe(tmp_path / "S24_224.pth")["released"] is False
    model.reset_classifier(7)  # or somebody's own
    torch.save(official_layout(model.state_dict()), tmp_path / "XXS24_224.pth")
    facts = describe(tmp_path / "XXS24_224.pth")
    assert (facts["released"], facts["classes"]) == (False, None)


def test_info_of_a_released_repository_needs_no_cache(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    facts = describe("hf-hub:timm/cait_m36_384.fb_dist_in1k")
    by_name = describe("cait_m36_384")
    assert {key: facts[key] for key in ("name", "params", "top1", "released")} == {
        key: by_name[key] for key in ("name", "params", "top1", "released")
    }


def test_the_table_of_released_models():
    assert len(RELEASED) == 10
    assert RELEASED["cait_m48_448"].file == "M48_448.pth"
    assert RELEASED["cait_m48_448"].accuracies["top5"] == 0.97748
    timm_names = pytest.importorskip("timm").list_pretrained("cait*")
    assert sorted(f"{name}.fb_dist_in1k" for name in RELEASED) == sorted(timm_names)
    from timm.models import get_pretrained_cfg

    for name, released in RELEASED.items():
        theirs = get_pretrained_cfg(released.hub_id.removeprefix("timm/")).to_dict()
        assert theirs["url"] == released.url
        ours = registry.released_cfg(name, variant_config(name))
        for key in ("input_size", "mean", "std", "crop_pct", "interpolation", "num_classes", "first_conv", "license"):
            assert ours[key] == theirs[key], (name, key)


def test_published_figures_are_fractions_and_name_models():
    for name in variant_names():
        figures = published(name)
        for key in ("top1", "real", "v2", "top1_plain", "top1_distilled"):
            assert figures[key] is None or 0.5 < figures[key] < 1
    assert published("cait_xxs24_224")["top1"] == 0.784
    unread = {"real": None, "v2": None, "top1_distilled": None}
    assert published("cait_s36_224") == {"top1": 0.833, "top1_plain": 0.833} | unread
    assert published("cait_xxs36_224")["top1_plain"] is None  # not read in a source
    assert published("cait_m36_448")["top1"] == 0.863  # only the distilled one is reported
    assert published("no_such_model")["top1"] is None
    assert set(REEVALUATED) <= set(variant_names())


@pytest.mark.parametrize(("size", "side"), PAPER_GFLOPS)
def test_multiply_adds_are_within_the_stated_distance_of_the_paper_s(size, side):
    gmacs = variant_config(f"cait_{size}_{side}").macs() / 1e9
    assert gmacs == pytest.approx(PAPER_GFLOPS[size, side], rel=0.015)


def test_no_machine_s_path_is_in_a_package_file():
    package = Path(registry.__file__).resolve().parents[1]
    files = [path for path in package.rglob("*") if path.suffix in (".py", ".yaml", ".json")]
    assert {path.suffix for path in files} == {".py", ".yaml", ".json"}
    for path in files:
        text = path.read_text(encoding="utf-8")
        for place in (package.parent, Path.home(), tempfile.gettempdir()):
            assert not re.search(rf"(?<![\w.]){re.escape(str(place))}/", text), (path, place)


def test_facts_name_the_weights_that_answer(tmp_path):
    """A folder saved from averaged weights has these alone: beside figures of `ema` it said `raw`."""
    assert describe("builtin:nano")["metrics"]["weights"] == "ema"
    assert describe("builtin:nano")["provenance"]["weights"] == "ema"
    model = create_model("cait_nano_32", num_classes=3, depth=1)
    for evaluated, other in (("raw", "ema"), ("ema", "raw")):
        metrics = {"top1": 0.5, "weights": evaluated, f"{other}_top1": 0.4}
        folder = save_artefact(
            tmp_path / evaluated,
            model,
            preprocessing={},
            classes=None,
            metrics=metrics,
            ema_state=model.state_dict(),
            evaluated=evaluated,
        )
        assert describe(folder)["provenance"]["weights"] == evaluated
        assert describe(folder / "ema")["provenance"]["weights"] == "ema"


@pytest.mark.parametrize("overrides", [{}, {"num_classes": 3, "img_size": (16, 64)}, {"layer_scale_init": None}])
def test_create_model_is_what_resolve_finds_ready_for_training(overrides):
    for start in ("random", "released"):
        torch.manual_seed(5)
        found = resolve("cait_nano_32", start=start, **overrides)
        torch.manual_seed(5)
        model = create_model("cait_nano_32", pretrained=start == "released", **overrides)
        assert model.training
        assert not found.model.training
        assert (model.config, model.pretrained_cfg) == (found.model.config, found.pretrained_cfg)
        expected = found.model.state_dict()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["hf-hub:owner/name", ".", "builtin:nano", "cait_xxs25_224"])
def test_create_model_takes_names_alone(name):
    with pytest.raises(ConfigError):
        create_model(name)
