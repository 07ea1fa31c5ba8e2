"""What is pushed is a whole repository: deepcait and timm load it, its card is valid, and no secret leaves."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard, constants
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image

import deepcait
from deepcait.cli.main import main
from deepcait.weights.artefact import read_artefact, save_artefact
from deepcait.weights.card import model_card
from deepcait.weights.push import without_paths
from deepcait.weights.registry import pretrained_cfg_of
from deepcait.weights.spec import resolve
from tests.hub_server import Hub, run_hub

CLASSES = ["ant", "bee", "cat", "dog", "elk"]
DEMO = Path(deepcait.__file__).parent / "assets" / "demo" / "test"
IMAGE = ["--image", str(min((DEMO / "horse").iterdir()))]
METRICS = {"top1": 0.8125, "top5": 1.0, "correct1": 26, "correct5": 32, "num_images": 32, "loss": 0.5}


@pytest.fixture
def folder(tiny, tmp_path):
    """A model as training leaves it, with paths of this machine in its memory."""
    return save_artefact(
        tmp_path / "trained",
        tiny(),
        preprocessing=pretrained_cfg_of(tiny().config),
        classes=CLASSES,
        metrics=METRICS,
        recipe={
            "model": str(tmp_path / "start"),
            "data": f"folder:{tmp_path}/pets",
            "epochs": 3,
            "teacher": {"spec": f"timm:x,weights={tmp_path}/t.pth"},
        },
        provenance={"started_from": str(tmp_path / "start"), "start": "released", "teacher": None},
    )


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that takes commits, an empty cache, and no token anywhere."""
    repository = tmp_path / "on_the_hub"
    repository.mkdir()
    with run_hub(Hub({"owner/pets": repository})) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield server


def test_what_was_pushed_loads_here_and_in_timm(hub, folder, logits, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert main(["push", str(folder), "owner/pets", "--data", "CIFAR-10", "--license", "mit", "--json", *IMAGE]) == 0
    answer = capsys.readouterr()
    assert hub.token not in answer.out + answer.err
    printed = json.loads(answer.out)
    assert printed["files"] == ["README.md", "class_attention.png", "config.json", "model.safetensors"]
    assert printed["url"].startswith(f"{hub.endpoint}/owner/pets/commit/")
    (commit,) = hub.commits
    assert sorted(commit["paths"]) == printed["files"]
    monkeypatch.delenv("HF_TOKEN")
    expected = logits(resolve(folder).model)
    found = resolve("hf-hub:owner/pets")
    assert torch.equal(logits(found.model), expected)
    assert (found.classes, found.section["metrics"]) == (CLASSES, METRICS)
    theirs = timm.create_model("hf-hub:owner/pets", pretrained=True).eval()  # as the card says
    assert (logits(theirs) - expected).abs().max() <= 1e-5 * expected.std()
    assert ModelCard((tmp_path / "on_the_hub" / "README.md").read_text()).data.license == "mit"


def test_nothing_of_this_machine_is_pushed(folder, tmp_path, capsys):
    out = tmp_path / "dry"
    assert main(["push", str(folder), "owner/pets", "--dry-run", "--out", str(out)]) == 0
    assert "nothing was sent" in capsys.readouterr().out
    assert str(tmp_path) in (folder / "config.json").read_text()  # it was there to be found
    for path in out.rglob("*"):
        assert str(tmp_path).encode() not in path.read_bytes(), path
    assert read_artefact(out).section["recipe"] == {
        "model": "start",
        "data": "folder:pets",
        "epochs": 3,
        "teacher": {"spec": "timm:x,weights=t.pth"},
    }


def test_the_card_shows_no_image_of_other_classes(folder, tmp_path, capsys):
    """The package has images of CIFAR-10: for a model of its classes."""
    assert main(["push", str(folder), "owner/pets", "--dry-run", "--out", str(tmp_path / "pets")]) == 0
    assert "no class-attention image" in capsys.readouterr().err
    assert not (tmp_path / "pets" / "class_attention.png").exists()
    assert "class_attention.png" not in (tmp_path / "pets" / "README.md").read_text()
    assert main(["push", "builtin:nano", "owner/nano", "--dry-run", "--out", str(tmp_path / "nano")]) == 0
    assert (tmp_path / "nano" / "class_attention.png").exists()
    assert "class_attention.png" in (tmp_path / "nano" / "README.md").read_text()


def test_a_dry_run_needs_no_token_and_no_server(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert main(["push", str(folder), "owner/pets", "--dry-run", *IMAGE]) == 0
    assert main(["push", str(folder), "owner/pets", "--dry-run", *IMAGE]) == 0  # again, over the first
    capsys.readouterr()
    assert deepcait.load(tmp_path / "pets").classes == CLASSES
    with Image.open(tmp_path / "pets" / "class_attention.png") as picture:
        assert picture.size == (2 * 224 + 8, 224)
        left, right = picture.crop((0, 0, 224, 224)), picture.crop((232, 0, 456, 224))
        assert left.tobytes() != right.tobytes()
        assert len(set(right.convert("L").tobytes())) > 20
    assert (tmp_path / "pets" / "class_attention.png").stat().st_size < 200_000


@pytest.mark.parametrize(
    ("words", "token", "part"),
    [
        (["owner/pets"], None, "hf auth login"),
        (["owner/pets"], "hf_a_wrong_one", "did not accept the model"),
        (["pets"], "hf_x", "'pets' is not a repository name (owner/name). remedy: Write it as owner/name."),
        (["hf-hub:owner/pets"], "hf_x", "remedy: Write it as owner/name."),
        (["owner/pets@main"], "hf_x", "revision"),
        (["owner/pets", "--license", "All rights reserved"], "hf_x", "--license"),
        (["owner/pets", "--out", "x"], "hf_x", "--dry-run"),
        (["owner/pets", "--image", "missing.png"], "hf_x", "missing.png"),
    ],
)
def test_mistakes_are_one_paragraph_without_the_token(hub, folder, monkeypatch, capsys, words, token, part):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert main(["push", str(folder), *words]) == 2
    answer = capsys.readouterr()
    assert part in " ".join(answer.err.split())
    assert "remedy: " in answer.err
    assert "Traceback" not in answer.err
    assert token is None or token not in answer.out + answer.err
    assert hub.commits == []


def test_a_hub_that_is_not_there(folder, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(folder), "owner/pets"]) == 2
    assert "no connection" in " ".join(capsys.readouterr().err.split())


def test_the_card_is_valid_metadata_and_tells_the_figures(folder):
    text = model_card("owner/pets", resolve(folder), licence="cc-by-4.0", data="CIFAR-10, 1,000 of its images")
    metadata = ModelCard(text).data.to_dict()
    assert metadata["license"] == "cc-by-4.0"
    assert metadata["pipeline_tag"] == "image-classification"
    assert metadata["datasets"] == ["cifar10"]
    name, results = model_index_to_eval_results(metadata["model-index"])
    assert name == "pets"
    assert [(one.metric_type, one.metric_name, one.metric_value) for one in results] == [
        ("accuracy", "top-1", 0.8125),  # top-5 of five classes says nothing
    ]
    for word in ("81.25 %", "26 of 32", "hf-hub:owner/pets", "timm.create_model", "ant, bee", "2103.17239"):
        assert word in text
    # The hub's own form of identifiers.
    assert all(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) for name in metadata["datasets"])


@pytest.mark.parametrize(
    ("spec", "said", "known"),
    [
        ("cifar10:/data/c", "CIFAR-10", "cifar10"),
        ("cifar100:/data/c", "CIFAR-100", "cifar100"),
        ("imagenet:/data/in1k", "ImageNet-1k", "imagenet-1k"),
        ("builtin:demo", "CIFAR-10, 1,000 of its images", "cifar10"),
        ("folder:/home/me/pets", "folder:pets", None),
        ("/home/me/pets", "pets", None),
    ],
)
def test_the_card_says_what_the_run_was_trained_on(tiny, tmp_path, spec, said, known):
    cfg = pretrained_cfg_of(tiny().config)
    save_artefact(
        tmp_path / "m", tiny(), preprocessing=cfg, classes=CLASSES, metrics=METRICS, provenance={"trained_on": spec}
    )
    text = model_card("owner/x", resolve(tmp_path / "m"))
    assert f"| trained on | {said} |" in text
    metadata = ModelCard(text).data
    assert metadata.datasets == ([known] if known else None)
    assert {one.dataset_name for one in metadata.eval_results} == {said}


def test_the_model_in_the_package_has_a_card_with_licence_and_data():
    metadata = ModelCard(model_card("owner/nano", resolve("builtin:nano"))).data
    assert (metadata.license, metadata.datasets) == ("apache-2.0", ["cifar10"])


def test_a_model_that_says_little_has_a_card_too(tiny, tmp_path):
    torch.save(tiny().state_dict(), tmp_path / "w.pth")
    metadata = ModelCard(model_card("owner/x", resolve(tmp_path / "w.pth"))).data
    assert metadata.license == "unknown"
    assert metadata.datasets is None
    assert metadata.eval_results is None


def test_a_released_model_s_card_names_source_licence_and_measured_accuracy(random_weights, tmp_path, monkeypatch):
    found = resolve("cait_nano_32", start="random")
    released = {"hub_id": "timm/cait_xxs24_224.fb_dist_in1k", "licence": "apache-2.0"}
    object.__setattr__(found, "provenance", released)
    object.__setattr__(found, "name", "cait_xxs24_224")
    metadata = ModelCard(model_card("owner/copy", found)).data
    assert metadata.license == "apache-2.0"
    assert metadata.base_model == released["hub_id"]
    assert metadata.datasets == ["imagenet-1k"]
    assert [one.metric_value for one in metadata.eval_results] == [0.784, 0.94326]


def test_hostile_names_stay_in_their_cell(tiny, tmp_path):
    names = ["a|b", "c\n---\nlicense: mit", "`rm`", "<script>", "e"]
    save_artefact(tmp_path / "m", tiny(), preprocessing=pretrained_cfg_of(tiny().config), classes=names)
    text = model_card("owner/x", resolve(tmp_path / "m"), data="d\n---\nlicense: mit")
    assert text.count("\n---\n") == 1
    assert "<script>" not in text
    assert ModelCard(text).data.license == "unknown"


def test_only_paths_are_cut(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert without_paths(["cait_s24_224", "hf-hub:o/n", "runs/a", "~/m.pth", 3, None]) == [
        "cait_s24_224", "hf-hub:o/n", "a", "m.pth", 3, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("folder:/home/me/pets", "folder:pets"),
        ("folder:home/me/pets/", "folder:pets"),
        ("tar:/data/secret/x-{0..3}.tar", "tar:x-{0..3}.tar"),
        ("imagenet:~me/in1k", "imagenet:in1k"),
        ("C:\\Users\\me\\pets", "pets"),
        ("folder:C:\\Users\\me\\pets", "folder:pets"),
        ("/", "a local path"),
        ("https://h/x.tar?sig=SECRET", "https://h/x.tar"),
        ("tar:https://u:SECRET@h:80/x.tar?sig=SECRET#SECRET", "tar:https://h:80/x.tar"),
        ("s3://u:p/SECRET@b/x", "s3://b/x"),
        ("file:///home/me/pets.tar", "pets.tar"),
        ("read /home/me/pets, then ~/a/b.pth\nand '/srv/x/y'", "read pets, then b.pth\nand 'y'"),
        ("x" * 5000 + " /home/me/pets", "x" * 5000 + " pets"),
        ("timm:regnety_160,weights=/home/me/t.pth", "timm:regnety_160,weights=t.pth"),
        ("hf-hub:timm/cait_s24@main", "hf-hub:timm/cait_s24@main"),
        ("https://github.com/facebookresearch/deit", "https://github.com/facebookresearch/deit"),
        ("the mean and/or median; note: 3 / 4", "the mean and/or median; note: 3 / 4"),
    ],
)
def test_specs_urls_and_sentences_lose_paths_and_secrets(text, bare):
    assert without_paths({"a": [text]}) == {"a": [bare]}
