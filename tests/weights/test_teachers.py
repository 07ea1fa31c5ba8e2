"""The list of what can teach, and one of it fetched from a hub on 127.0.0.1."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import timm
import torch

from deepcait.cli.main import main
from deepcait.data import Preprocessing
from deepcait.errors import DataError, WeightsError
from deepcait.training.settings import Distillation
from deepcait.training.teacher import load_teacher
from deepcait.weights import teachers as teachers_module
from deepcait.weights.teachers import list_teachers, read_table
from tests.hub_server import Hub, run_hub

HEAD = "model,top1,top1_err,top5,top5_err,param_count,img_size,crop_pct,interpolation\n"
ROWS = (
    "regnety_160.deit_in1k,82.574,17.426,96.0,4.0,83.59,224,0.95,bicubic\n"
    'regnety_1280.swag_ft_in1k,88.230,11.770,98.686,1.314,"1,644.81",384,1.000,bicubic\n'
)


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "results-imagenet.csv"
    path.write_text(HEAD + ROWS)
    return path


def test_every_classifier_of_timm_with_weights_is_listed():
    rows = list_teachers()
    assert len({row["name"] for row in rows}) == len(rows) > 1000
    assert all(row["num_classes"] > 0 and row["spec"] == f"timm:{row['name']}" for row in rows)
    assert set(timm.list_pretrained()) > {row["name"] for row in rows}
    # Whatever has an accuracy comes first; the table in the package has those of most classifiers of ImageNet-1k.
    known = [row["top1"] is not None for row in rows]
    assert known == sorted(known, reverse=True)
    of_imagenet = [row for row in rows if row["num_classes"] == 1000]
    assert sum(row["top1"] is not None for row in of_imagenet) > 0.9 * len(of_imagenet)
    assert sum(row["params"] is not None for row in of_imagenet) > 0.9 * len(of_imagenet)
    (row,) = [row for row in rows if row["name"] == "regnety_160.deit_in1k"]
    assert (row["top1"], row["params"]) == (0.83, 83_590_000)
    ours = {row["name"]: row["top1"] for row in rows if row["name"].startswith("cait_")}
    assert len(ours) == 10
    for name, top1 in ours.items():
        assert abs(top1 - teachers_module._own_top1(name)) < 1e-4  # two tables, one evaluation


def test_parts_of_names_and_patterns(table):
    names = [row["name"] for row in list_teachers(["regnety_160"])]
    assert "regnety_160.deit_in1k" in names
    assert all("regnety_160" in name for name in names)
    both = list_teachers(["regnety_160.deit*", "cait_xxs24_224"])
    assert {row["name"] for row in both} == {"regnety_160.deit_in1k", "cait_xxs24_224.fb_dist_in1k"}


@pytest.mark.parametrize("of", ["file", "folder"])
def test_the_table_s_accuracies_order_the_list(table, of):
    rows = list_teachers(["regnety_1"], table=table if of == "file" else table.parent)
    assert [(row["name"], row["top1"], row["params"]) for row in rows[:2]] == [
        ("regnety_1280.swag_ft_in1k", 0.8823, 1_644_810_000),
        ("regnety_160.deit_in1k", 0.82574, 83_590_000),
    ]
    assert len(rows) > 2
    assert all(row["top1"] is None for row in rows[2:])


def test_an_accuracy_of_another_image_size_is_shown_with_that_size(tmp_path, capsys):
    path = tmp_path / "results-imagenet.csv"
    path.write_text(HEAD + "regnety_160.deit_in1k,83.704,16.296,96.0,4.0,83.59,288,1.0,bicubic\n")
    rows = {row["name"]: row for row in list_teachers(["regnety_1"], table=path)}
    row = rows.pop("regnety_160.deit_in1k")
    assert (row["img_size"], row["top1"], row["top1_img_size"]) == (224, 0.83704, 288)
    assert all(row["top1"] is row["top1_img_size"] is None for row in rows.values())
    assert main(["models", "--teachers", "regnety_160.deit", "--table", str(path)]) == 0
    assert "83.70 % at 288 px" in " ".join(capsys.readouterr().out.split())


def test_a_table_beside_timm_is_found(table, tmp_path, monkeypatch):
    package = tmp_path / "timm"
    package.mkdir()
    (package / "__init__.py").touch()
    (tmp_path / "results").mkdir()
    table.rename(tmp_path / "results" / table.name)
    assert teachers_module.find_table() == teachers_module.PACKAGED_TABLE  # timm's wheel has none
    monkeypatch.setattr(timm, "__file__", str(package / "__init__.py"))
    assert list_teachers(["regnety_160.deit"])[0]["top1"] == 0.82574


@pytest.mark.parametrize(
    "content", [None, "name,accuracy\na,1\n", HEAD + "a,high,,,,1,224,1,x\n", "\0\1", HEAD + "a\n"]
)
def test_another_table_is_our_error(tmp_path, content):
    path = tmp_path / "results-imagenet.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match="model, img_size, top1 and param_count"):
        read_table(path)


def test_the_command(run_main, table):
    code, out, _ = run_main("models", "--teachers", "regnety_160", "--table", str(table))
    assert code == 0
    assert "82.57 %" in out
    assert "--teacher timm:regnety_160.deit_in1k" in out
    assert "83.00 %" in run_main("models", "--teachers", "regnety_160")[1]
    for words in (["--teachers", "nosuch"], ["--table", "x"], ["--teachers", "--table", "missing"]):
        code, _, err = run_main("models", *words)
        assert (code, "remedy: " in err) == (2, True)


@pytest.fixture
def run_main(capsys):
    def call(*argv: str):
        code = main(list(argv))
        return (code, *capsys.readouterr())

    return call


SEEN = Preprocessing((32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
CLASSES = [str(index) for index in range(1000)]
NAME = "resnet10t.c3_in1k"


@pytest.fixture
def client(monkeypatch, tmp_path):
    """Return a function that points the client, in this process, at a hub and an empty cache."""
    from huggingface_hub import constants

    def point(endpoint: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)

    return point


def test_a_timm_teacher_comes_from_the_hub_and_then_from_its_cache(client, random_weights, tmp_path):
    peer = random_weights(timm.create_model(NAME))
    folder = tmp_path / "repository"
    timm.models.save_for_hf(peer, folder, safe_serialization=True)
    images = torch.randn(1, 3, 32, 32)
    hub = Hub({f"timm/{NAME}": folder})
    with run_hub(hub):
        client(hub.endpoint)
        first = load_teacher(Distillation(spec=f"timm:{NAME}"), SEEN, CLASSES)
        assert any("model.safetensors" in line for line in hub.requests)
    again = load_teacher(Distillation(spec=f"timm:{NAME}"), SEEN, CLASSES)  # the server is gone
    assert torch.equal(first(images), again(images))
    assert all(torch.equal(tensor, again.module.state_dict()[key]) for key, tensor in peer.state_dict().items())


def test_a_teacher_out_of_reach_is_one_paragraph_at_once(client, monkeypatch):
    client("http://127.0.0.1:9")
    pauses = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with pytest.raises(WeightsError, match="no connection") as caught:
        load_teacher(Distillation(spec=f"timm:{NAME}"), SEEN, CLASSES)
    assert sum(pauses) < 5  # the client alone would try again and again, for half a minute
    assert f"/timm/{NAME}/resolve/main/model.safetensors" in caught.value.remedy
    assert f"timm:{NAME},weights=PATH" in caught.value.remedy
    assert "\n" not in str(caught.value)
