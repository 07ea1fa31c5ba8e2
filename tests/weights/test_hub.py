"""The real client against a server on 127.0.0.1: released models by name, and every way in which a hub fails."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch

import deepcait
from deepcait.cli.main import main
from deepcait.data import Preprocessing
from deepcait.errors import WeightsError
from deepcait.weights import hub as hub_module
from deepcait.weights.create import create_model
from deepcait.weights.registry import RELEASED
from deepcait.weights.spec import describe, resolve
from tests.hub_server import Hub, run_hub, timm_repository

EVERYDAY = ("cait_xxs24_224", "cait_xxs36_224", "cait_xxs24_384")
CHUNK_BYTES = 4096
SMALL = "hf-hub:owner/small"


@pytest.fixture
def client(monkeypatch, tmp_path):
    """Return a function that points the client, in this process, at a hub and an empty cache of its own."""
    from huggingface_hub import constants

    def point(endpoint: str, *, cache: Path | None = None, offline: bool = False) -> Path:
        cache = cache or tmp_path / "cache"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 30)
        # Else nothing of a small file is written before all of it is there.
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK_BYTES)
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        return cache

    return point


@pytest.fixture
def impatient(monkeypatch):
    """The client waits ten seconds for a byte, and sleeps a second before each of its tries; here it does not."""
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda _: None))


def assert_equal(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-5 * expected.std()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in EVERYDAY else pytest.mark.soak) for name in RELEASED]
)
def test_a_released_model_loads_by_name(client, random_weights, logits, tmp_path, name):
    folder = tmp_path / "repository"
    theirs = timm_repository(folder, random_weights, name)
    expected = logits(theirs)
    del theirs
    hub = Hub({RELEASED[name].hub_id: folder})
    with run_hub(hub):
        client(hub.endpoint)
        found = resolve(name)
        assert_equal(logits(found.model), expected)
        del found
        assert f"HEAD /{RELEASED[name].hub_id}/resolve/main/config.json" in hub.requests
        asked = len(hub.requests)
    assert any("model.safetensors" in line for line in hub.requests)
    # All files are of the commit that the first one was of, whatever was pushed meanwhile.
    assert not any("/resolve/main/model.safetensors" in line for line in hub.requests)
    # The server is gone.
    assert_equal(logits(resolve(name).model), expected)
    assert_equal(logits(create_model(name, pretrained=True).eval()), expected)
    assert len(hub.requests) == asked
    client(hub.endpoint, offline=True)
    assert describe(f"hf-hub:{RELEASED[name].hub_id}")["name"] == name


def test_a_repository_of_anyone(client, small, logits):
    folder, theirs = small
    hub = Hub({"owner/small": folder}, private=("owner/small",))
    with run_hub(hub):
        client(hub.endpoint)
        os.environ["HF_TOKEN"] = hub.token
        try:
            found = resolve(SMALL)
        finally:
            del os.environ["HF_TOKEN"]
    assert_equal(logits(found.model), logits(theirs))
    assert (found.kind, found.provenance["hub_id"]) == ("hub", "owner/small")


def test_a_repository_without_safetensors_and_a_revision(client, small, logits, tmp_path):
    folder, theirs = small
    (tmp_path / "old").mkdir()
    shutil.copy(folder / "config.json", tmp_path / "old")
    torch.save(theirs.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    with run_hub(Hub({"owner/old": tmp_path / "old"})) as hub:
        client(hub.endpoint)
        assert_equal(logits(resolve("hf-hub:owner/old@v1").model), logits(theirs))
        assert any("/resolve/v1/config.json" in line for line in hub.requests)


def test_a_keras_repository(client):
    fixture = Path(__file__).parent / "keras" / "classifier"
    hub = Hub({"probing-vits/cait_tiny": fixture})
    with run_hub(hub):
        client(hub.endpoint)
        found = resolve("hf-hub:probing-vits/cait_tiny")
    local = resolve(fixture)
    assert all(torch.equal(tensor, local.model.state_dict()[key]) for key, tensor in found.model.state_dict().items())
    assert found.provenance["hub_id"] == "probing-vits/cait_tiny"
    assert resolve("hf-hub:probing-vits/cait_tiny").kind == "keras"  # from the cache


def test_a_connection_that_breaks_is_resumed_where_it_broke(client, small, impatient, logits):
    folder, theirs = small
    hub = Hub({"owner/small": folder}, faults={"model.safetensors": "cut once"})
    with run_hub(hub):
        client(hub.endpoint)
        found = resolve(SMALL)
    assert_equal(logits(found.model), logits(theirs))
    half = (folder / "model.safetensors").stat().st_size // 2
    assert hub.ranges == [f"bytes={half // CHUNK_BYTES * CHUNK_BYTES}-"]


@pytest.mark.parametrize("fault", ["truncated", "stalled"])
def test_a_file_that_never_comes_whole_is_our_error_and_leaves_nothing(client, small, impatient, logits, fault):
    folder, theirs = small
    hub = Hub({"owner/small": folder}, faults={"model.safetensors": fault})
    reason = "connection stalled; try again" if fault == "stalled" else "connection broke repeatedly; try again"
    with run_hub(hub):
        cache = client(hub.endpoint)
        with pytest.raises(WeightsError, match=reason) as caught:
            # Each try gets half of what is left; the client goes on as long as anything comes.
            with patience(tries=2, then="ReadTimeout" if fault == "stalled" else "RemoteProtocolError"):
                resolve(SMALL)
        assert "\n" not in str(caught.value)
        assert "/resolve/" in caught.value.remedy
        assert not [path for path in cache.rglob("*") if "safetensors" in path.name or path.suffix == ".incomplete"]
        hub.faults.clear()
        assert_equal(logits(resolve(SMALL).model), logits(theirs))


@contextlib.contextmanager
def patience(tries: int, then: str):
    """Let the client give up after so many tries; it would try five times after every byte that came."""
    from huggingface_hub import file_download

    original, count = file_download.http_stream_backoff, [0]

    def limited(*args, **kwargs):
        count[0] += 1
        if count[0] > tries:
            raise getattr(file_download.httpx2, then)("as it is at the end of the client's patience")
        return original(*args, **kwargs)

    file_download.http_stream_backoff = limited
    try:
        yield
    finally:
        file_download.http_stream_backoff = original


def test_wrong_bytes_are_refused_and_removed(client, small, logits, monkeypatch):
    folder, theirs = small
    hub = Hub({"owner/small": folder}, faults={"model.safetensors": "wrong bytes"})
    with run_hub(hub):
        cache = client(hub.endpoint)
        with pytest.raises(WeightsError, match="the sha256 of model.safetensors") as caught:
            resolve(SMALL)
        assert "removed from the cache" in caught.value.remedy
        assert not [path for path in cache.rglob("*") if path.is_file() and path.stat().st_size > 10_000]
        hub.faults.clear()
        assert_equal(logits(resolve(SMALL).model), logits(theirs))
        # Without the comparison the changed weights would have been taken.
        hub.faults["model.safetensors"] = "wrong bytes"
        client(hub.endpoint, cache=cache.with_name("other"))
        monkeypatch.setattr(hub_module, "_require_announced", lambda *_: None)
        resolve(SMALL)


def test_a_cached_file_that_was_damaged_is_noticed_and_fetched_again(client, small, logits):
    folder, theirs = small
    with run_hub(Hub({"owner/small": folder})) as hub:
        cache = client(hub.endpoint)
        resolve(SMALL)
        sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        (blob,) = cache.rglob(f"blobs/{sha256}")
        blob.write_bytes(blob.read_bytes()[:-8] + b"\0" * 8)
        with pytest.raises(WeightsError, match="sha256"):
            resolve(SMALL)
        assert_equal(logits(resolve(SMALL).model), logits(theirs))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (("config.json", 404), "no such file in the repository"),
        (("model.safetensors", 404), "no such file in the repository"),
        (("model.safetensors", 401), "no access .*HF_TOKEN"),
        (("model.safetensors", 403), "gated"),
        (("model.safetensors", 500), "500"),
        (None, "no such repository .or a private one"),
    ],
)
def test_answers_that_are_no_file(client, small, impatient, fault, reason):
    hub = Hub({"owner/small": small[0]}, faults=dict([fault]) if fault else {})
    if fault is None:
        hub.repositories = {"owner/other": small[0]}
    with run_hub(hub):
        client(hub.endpoint)
        with pytest.raises(WeightsError, match=reason) as caught:
            resolve(SMALL)
    assert "\n" not in str(caught.value)
    assert "model.safetensors" in str(caught.value)
    assert hub.endpoint in caught.value.remedy


def test_another_network_is_refused_before_its_weights_are_fetched(client, tmp_path):
    timm.models.save_for_hf(timm.create_model("resnet10t", num_classes=5), tmp_path / "net", safe_serialization=True)
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "config.json").write_text('{"architectures": ["ViTForImageClassification"]}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("no JSON")
    names = ("net", "transformers", "broken")
    with run_hub(Hub({f"owner/{name}": tmp_path / name for name in names})) as hub:
        client(hub.endpoint)
        for name, words in zip(names, ("not a CaiT .*'resnet10t'", "not a CaiT .*''", "not valid JSON"), strict=True):
            with pytest.raises(WeightsError, match=words):
                resolve(f"hf-hub:owner/{name}")
        assert not any("safetensors" in line or ".bin" in line for line in hub.requests)


def mounted_read_only(folder: Path, at: Path) -> bool:
    """Bind a folder read-only elsewhere; the root user may write wherever only permissions forbid it."""
    at.mkdir()
    for options in (["--bind", str(folder), str(at)], ["-o", "remount,bind,ro", str(at)]):
        done = subprocess.run(["mount", *options], capture_output=True, check=False)
        if done.returncode:
            subprocess.run(["umount", str(at)], capture_output=True, check=False)
            return False
    return True


@pytest.fixture
def read_only(tmp_path):
    """Return a function that makes a read-only view of a folder."""
    views = []

    def view(folder: Path) -> Path:
        at = tmp_path / "read_only"
        if sys.platform != "linux" or not mounted_read_only(folder, at):
            pytest.skip("this user may not mount a folder read-only")
        views.append(at)
        return at

    yield view
    for at in views:
        subprocess.run(["umount", str(at)], check=True)


def test_a_read_only_cache_is_enough_if_it_holds_the_model_and_else_our_error(client, small, logits, read_only):
    folder, theirs = small
    with run_hub(Hub({"owner/small": folder, "owner/other": folder})) as hub:
        cache = client(hub.endpoint)
        resolve(SMALL)
        client(hub.endpoint, cache=read_only(cache))
        assert_equal(logits(resolve(SMALL).model), logits(theirs))
        with pytest.raises(WeightsError, match=r"into the cache .*[Rr]ead-only") as caught:
            resolve("hf-hub:owner/other")
    assert "HF_HOME" in caught.value.remedy


def test_a_cache_that_is_a_file_is_our_error(client, small, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with run_hub(Hub({"owner/small": small[0]})) as hub:
        client(hub.endpoint, cache=tmp_path / "file" / "cache")
        with pytest.raises(WeightsError):
            resolve(SMALL)


def test_a_local_model_fetches_nothing(client, small, tmp_path, capsys):
    """predict, eval and info of a model on the disk ask no server, even if one is there."""
    theirs = deepcait.create_model("cait_nano_32", num_classes=2, depth=1)
    preprocessing = Preprocessing((32, 32))
    classifier = deepcait.Classifier(theirs, classes=["cat", "dog"], preprocessing=preprocessing)
    model = str(classifier.save(tmp_path / "model"))
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40), name == "cat" and "red" or "blue").save(tmp_path / "photos" / name / "1.png")
    photos = str(tmp_path / "photos")
    with run_hub(Hub({"owner/small": small[0]})) as hub:
        client(hub.endpoint)
        for command in (["predict", model, photos], ["eval", model, "--data", photos], ["info", model]):
            assert main(command) == 0, capsys.readouterr().err
        assert main(["info", SMALL]) == 2
        assert hub.requests == []
        assert main(["predict", SMALL, photos]) == 0  # the list can fill
        assert hub.requests
    capsys.readouterr()


def test_a_password_in_the_endpoint_is_not_shown(client):
    client("http://me:SECRET@127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"http://127\.0\.0\.1:9") as caught:
        hub_module.fetch_repository("owner/name")
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in hub_module.reason_of(ValueError("for url 'http://me:SECRET@h/x?token=SECRET' that"))
