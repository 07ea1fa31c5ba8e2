"""Every command and every piece of Python in docs/guides/weights.md runs as it stands, against a hub on 127.0.0.1."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import timm
import torch

import deepcait
from deepcait.cli.main import main
from deepcait.data import Preprocessing
from deepcait.weights.layouts import official_layout
from tests.hub_server import Hub, run_hub

PAGE = Path(__file__).parent.parent.parent / "docs" / "guides" / "weights.md"
DEMO = Path(deepcait.__file__).parent / "assets" / "demo"
KERAS = Path(__file__).parent / "keras" / "classifier"
# A training takes one epoch, and starts from a tiny model in place of the released one.
TINY = ["epochs=1", "global_batch_size=4", "replicas=1", "data.num_workers=0", "augment.repeats=1", "ema.decay=0"]


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of every block of code."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch, random_weights, tiny) -> Path:
    """A folder with what the page speaks of."""
    monkeypatch.chdir(tmp_path)
    released = random_weights(timm.create_model("cait_xxs24_224"))
    timm.models.save_for_hf(released, tmp_path / "on_the_hub", safe_serialization=True)
    (tmp_path / "downloads").mkdir()
    torch.save(official_layout(released.state_dict()), tmp_path / "downloads" / "XXS24_224.pth")
    shutil.copytree(KERAS, tmp_path / "downloads" / "cait_keras")
    (tmp_path / "photos").mkdir()
    for number, wnid in enumerate(("n02123045", "n02085620")):  # classes of ImageNet
        (tmp_path / "photos" / wnid).mkdir()
        for path in sorted((DEMO / "test" / ("cat", "dog")[number]).iterdir())[:4]:
            shutil.copy(path, tmp_path / "photos" / wnid)
    shutil.copy(path, tmp_path / "cat.jpg")
    classifier = deepcait.Classifier(tiny(num_classes=2), classes=["cat", "dog"], preprocessing=Preprocessing((32, 32)))
    classifier.save(tmp_path / "runs" / "pets" / "best")
    torch.save(tiny(num_classes=2, patch_size=16, img_size=64).state_dict(), tmp_path / "tiny.pth")
    return tmp_path


@pytest.fixture
def hub(place, monkeypatch):
    """A hub that has what the page fetches and takes what it pushes."""
    from huggingface_hub import constants

    (place / "pushed").mkdir()
    repositories = {
        "timm/cait_xxs24_224.fb_dist_in1k": place / "on_the_hub",
        "probing-vits/cait_xxs24_224_classification": KERAS,
        "owner/pets": place / "pushed",
    }
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with run_hub(Hub(repositories)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


def run_line(line: str, monkeypatch) -> int:
    """Run one line of a shell: variables, then the command."""
    from huggingface_hub import constants

    words = shlex.split(line)
    with monkeypatch.context() as patch:
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            patch.setattr(constants, name, bool(int(value)))
        assert words.pop(0) == "deepcait", line
        if words[0] == "train":
            words[words.index("--model") + 1] = "tiny.pth"
            words = [word.replace("depth=26", "depth=3") for word in words if not word.startswith("img_size")]
            words += TINY
        return main(words)


def test_the_page_runs(hub, place, monkeypatch, capsys):
    num_run = 0
    for language, text in blocks(PAGE.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, PAGE.name, "exec"), {})
            continue
        for line in text.splitlines():
            assert run_line(line, monkeypatch) == 0, f"{line}: {capsys.readouterr().err}"
            num_run += 1
    assert num_run >= 20
    assert len(hub.commits) == 1  # the dry run sent nothing
    printed = capsys.readouterr().out
    for part in ("changed channels 3 -> 1", "resampled patches 16 px -> 8 px", "added 1 blocks", "bit-identical"):
        assert part in printed


@pytest.mark.parametrize("line", ["deepcait predict gone cat.jpg", "deepcait models --gone", "deepcait gone"])
def test_a_wrong_line_would_fail(place, monkeypatch, capsys, line):
    assert run_line(line, monkeypatch) == 2
    capsys.readouterr()
