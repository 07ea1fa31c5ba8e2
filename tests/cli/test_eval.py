"""`eval` and `predict`: what they write, compare and refuse."""

from __future__ import annotations

import builtins
import csv
import importlib
import json
import shutil

import numpy as np
import pytest
import torch

import deepcait
import deepcait.data
from deepcait.evaluation import mcnemar
from deepcait.model.block import ClassAttentionBlock
from tests.cli.conftest import CLASSES
from tests.evaluation.tiny_imagenet import PLAIN, WNIDS, build_v2, build_val, write_real


@pytest.fixture(scope="session")
def other_folder(tmp_path_factory):
    torch.manual_seed(9)
    model = deepcait.create_model("cait_nano_32", num_classes=3, depth=1, layer_scale_init=1.0)
    classifier = deepcait.Classifier(model, classes=CLASSES, preprocessing=deepcait.data.Preprocessing((32, 32)))
    return classifier.save(tmp_path_factory.mktemp("model") / "other")


def test_every_figure_is_there(run_json, model_folder, photos):
    row = run_json("eval", model_folder, "--data", photos)
    assert set(row) >= {"num_images", "correct1", "correct5", "top1", "top5", "loss", "num_skipped", "protocol"}
    assert set(row) >= {"balanced_accuracy", "macro_precision", "macro_recall", "macro_f1", "ece", "warnings"}
    low, high = row["intervals"]["top1"]
    assert low < row["top1"] < high
    assert row["expected"] is None
    assert row["num_possible"] == 3
    # As many images of each class: the mean over classes is the accuracy.
    assert row["balanced_accuracy"] == pytest.approx(row["top1"])


def test_a_run_without_a_record_is_warned_of(run, run_json, model_folder, photos, tmp_path):
    shutil.copytree(model_folder, tmp_path / "run" / "best")
    told = [
        " ".join(run_json("eval", *argv, "--data", photos)["warnings"])
        for argv in ([tmp_path / "run"], [tmp_path / "run", "--split", "val"], [model_folder])
    ]
    assert ["no split.json" in text for text in told] == [True, False, False]
    assert "top-5" not in run("eval", model_folder, "--data", photos)[1]  # of three classes


def test_split_val_of_a_run_is_what_its_training_held_out(run, model_folder, photos, tmp_path):
    settings = (
        "epochs=1",
        "seed=3",
        "data.val_fraction=0.5",
        "data.num_workers=0",
        "global_batch_size=2",
        "replicas=1",
    )
    argv = ("train", "--data", photos, "--out", tmp_path / "run", "--model", "builtin:nano", "--set", *settings)
    assert run(*argv)[0] == 0
    kept = json.loads((tmp_path / "run" / "split.json").read_text())
    assert (len(kept["train"]), len(kept["val"]), kept["seed"], kept["fraction"]) == (6, 6, 3, 0.5)
    for spec in ("run", "run/last"):
        table = tmp_path / "images.csv"
        assert run("eval", tmp_path / spec, "--data", photos, "--split", "val", "--per-image", table)[0] == 0
        assert sorted(row["path"] for row in csv.DictReader(table.open())) == sorted(kept["val"])
    (tmp_path / "other" / "best").mkdir(parents=True)
    for file in (*(tmp_path / "run" / "best").glob("*.*"), tmp_path / "run" / "config.yaml"):
        shutil.copy(file, tmp_path / "other" / file.relative_to(tmp_path / "run"))
    facts = {"format": "deepcait-split-1", "train": kept["val"], "val": kept["train"]}
    (tmp_path / "other" / "split.json").write_text(json.dumps(facts))
    both = ("eval", tmp_path / "run", tmp_path / "other", "--data", photos)
    for split in ([], ["--split", "val"]):
        code, shown, told = run(*both, *split)
        assert (code, shown) == (2, "")
        assert "held out different images" in " ".join(told.split())
    assert run(*both, "--split", "all")[0] == 0
    # A model that is of no run takes the images of the run beside it.
    shown = run("eval", tmp_path / "run", model_folder, "--data", photos)[1]
    assert [line for line in shown.splitlines() if line.startswith("data ")] == [
        "data           folder, validation part of the run: 6 images, 3 classes; these images chose the best epoch, so "
        "the accuracy is optimistic",
        "data           folder, split val: 6 images, 3 classes",
    ]
    (photos / "cat" / "9.png").write_bytes((photos / "cat" / "0.png").read_bytes())
    assert " of 6)" in run("eval", tmp_path / "run", "--data", photos, "--split", "val")[1]
    (tmp_path / "run" / "split.json").write_text("{}")
    code, _, told = run("eval", tmp_path / "run", "--data", photos)
    assert code == 2
    assert "not a readable record of a split" in " ".join(told.split())


def test_one_row_an_image(run, run_json, model_folder, photos, tmp_path):
    code, _, _ = run("eval", model_folder, "--data", photos, "--per-image", tmp_path / "images.csv")
    assert code == 0
    rows = list(csv.DictReader((tmp_path / "images.csv").open()))
    assert [row["path"] for row in rows] == [f"{name}/{i}.png" for name in CLASSES for i in range(4)]
    answers = run_json("predict", model_folder, photos, "--topk", 3)
    for row, answer in zip(rows, answers, strict=True):
        assert answer["file"].endswith(row["path"])
        label = row["path"].split("/")[0]
        assert (row["label"], row["label_name"]) == (str(CLASSES.index(label)), label)
        assert list(map(int, row["predictions"].split())) == [one["index"] for one in answer["predictions"]]
        probabilities = [one["probability"] for one in answer["predictions"]]
        assert list(map(float, row["probabilities"].split())) == pytest.approx(probabilities, abs=1e-5)
        assert row["correct"] == str(int(answer["predictions"][0]["label"] == label))


def test_several_models_are_compared_in_pairs(run, run_json, model_folder, other_folder, photos, tmp_path):
    first, second = run_json(
        "eval", model_folder, other_folder, "--data", photos, "--per-image", tmp_path / "images.csv"
    )
    rows = list(csv.DictReader((tmp_path / "images.csv").open()))
    right = {str(folder): [row["correct"] == "1" for row in rows if row["model"] == str(folder)]
             for folder in (model_folder, other_folder)}  # fmt: skip
    pairs = list(zip(*right.values(), strict=True))
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    assert only_first + only_second > 0
    (against,) = second["paired"]
    assert (against["only_this"], against["only_other"]) == (only_second, only_first)
    assert against["p_value"] == first["paired"][0]["p_value"] == mcnemar(only_first, only_second)
    _, out, _ = run("eval", model_folder, other_folder, "--data", photos)
    assert "p (McNemar)" in out


def test_several_sizes(run_json, run, model_folder, photos):
    rows = run_json("eval", model_folder, "--data", photos, "--img-size", "32,48,32x48")
    assert [row["img_size"] for row in rows] == [32, 48, [32, 48]]
    assert [row["preprocessing"]["input_size"] for row in rows] == [[3, 32, 32], [3, 48, 48], [3, 32, 48]]
    assert len({row["loss"] for row in rows}) == 3
    assert rows[0]["loss"] == run_json("eval", model_folder, "--data", photos)["loss"]
    assert not any("preprocessing" in text for row in rows for text in row["warnings"])


def test_tables_of_several_show_top_5_where_it_says_something(run, model_folder, imagenet_model, photos, tmp_path):
    """Of five classes or fewer the right one is always among five answers."""
    root, out = build_val(tmp_path / "imagenet"), tmp_path / "table.md"
    for model, data, shown in ((model_folder, photos, False), (imagenet_model, root / "val", True)):
        code, printed, err = run("eval", model, "--data", data, "--img-size", "32,32x48", "--out", out)
        assert code == 0, err
        (head,) = [line for line in printed.splitlines() if "p (McNemar)" in line]
        assert ("top-5" in head, "| top-5 |" in out.read_text().splitlines()[0]) == (shown, shown)
        lines = printed[printed.index(head) :].splitlines()[2:4]
        assert "  32 x 48  " in lines[1]
        assert "| 32 x 48 |" in out.read_text()
        assert len({len(line.split("|")) for line in out.read_text().splitlines()[:4]}) == 1


@pytest.mark.parametrize("suffix", ["md", "csv", "json"])
def test_a_table(run, run_json, model_folder, other_folder, photos, tmp_path, suffix):
    out = tmp_path / f"table.{suffix}"
    rows = run_json("eval", model_folder, other_folder, "--data", photos, "--out", out)
    if suffix == "csv":
        for row, written in zip(rows, csv.DictReader(out.open()), strict=True):
            assert (written["model"], int(written["correct1"])) == (row["model"], row["correct1"])
            assert float(written["top1_low"]) == row["intervals"]["top1"][0]
    elif suffix == "json":
        content = json.loads(out.read_text())
        assert content["command"].startswith("deepcait ")
        assert content["versions"]["torch"]
        for row, written in zip(rows, content["results"], strict=True):
            assert {key: written[key] for key in row} == row
            assert sum(cell["num_images"] for cell in written["confusion"]) == 12
            assert [one["class"] for one in written["per_class"]] == CLASSES
    else:
        lines = out.read_text().splitlines()
        assert lines[0].startswith("| model | params (M) | GMACs | px | top-1 |")
        assert f"| {100 * rows[0]['top1']:.2f} |" in lines[2]
        assert f"({rows[1]['paired'][0]['p_value']:.2g})" in lines[3]


def test_plots(run, model_folder, photos, tmp_path):
    pytest.importorskip("matplotlib")
    assert run("eval", model_folder, "--data", photos, "--plots", tmp_path / "plots")[0] == 0
    for name in ("reliability", "per_class", "confusion"):
        assert (tmp_path / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / "plots" / f"{name}.svg").read_text()
        assert sum(one["num_images"] for one in json.loads((tmp_path / "plots" / f"{name}.json").read_text())) == 12
    assert "dog" in (tmp_path / "plots" / "confusion.json").with_name("per_class.json").read_text()


def test_plots_without_matplotlib_are_one_helpful_line(run, model_folder, photos, tmp_path, monkeypatch):
    real_import = importlib.import_module

    def refuse(name, *args):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real_import(name, *args)

    monkeypatch.setattr(importlib, "import_module", refuse)
    code, _, err = run("eval", model_folder, "--data", photos, "--plots", tmp_path / "plots")
    assert code == 2
    assert 'pip install "deepcait[explain]"' in err
    assert builtins.__import__ is not refuse


# -- the protocols, through the command -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def imagenet_model(tmp_path_factory):
    """A model of ten of ImageNet's classes, with random weights."""
    torch.manual_seed(0)
    model = deepcait.create_model("cait_nano_32", num_classes=10, depth=1)
    return deepcait.Classifier(model, classes=WNIDS, preprocessing=PLAIN.__class__((32, 32))).save(
        tmp_path_factory.mktemp("imagenet") / "model"
    )


def test_protocols(run, run_json, imagenet_model, tmp_path):
    root, real = build_val(tmp_path / "imagenet"), write_real(tmp_path / "real.json")
    row = run_json("eval", imagenet_model, "--data", root, "--protocol", "imagenet")
    assert (row["protocol"], row["num_images"], row["split"]) == ("imagenet", 12, "val")
    row = run_json("eval", imagenet_model, "--data", root, "--protocol", "real", "--real-labels", real)
    assert (row["num_images"], row["num_skipped"]) == (10, 2)
    row = run_json("eval", imagenet_model, "--data", build_v2(tmp_path / "v2", 10), "--protocol", "v2")
    assert row["num_images"] == 100
    code, out, err = run("eval", imagenet_model, "--data", root, "--protocol", "real", "--real-labels", real)
    assert code == 0
    assert "skipped        2 images without a label" in out
    assert "warning: real: expected the 50,000 validation images, got 12" in err


def test_only_the_classes_of_the_data_may_be_answered(run_json, imagenet_model, tmp_path):
    root = build_val(tmp_path / "imagenet")
    for name in WNIDS[2:]:
        for path in (root / "val" / name).glob("*"):
            path.unlink()
        (root / "val" / name).rmdir()
    images = tmp_path / "images.csv"
    command = ["eval", imagenet_model, "--data", root / "val", "--per-image", images]
    whole = run_json(*command)
    masked = run_json(*command, "--class-mask", "data")
    assert (whole["num_possible"], masked["num_possible"]) == (10, 2)
    assert masked["loss"] < whole["loss"]
    for row in csv.DictReader(images.open()):
        assert {"0", "1"} == set(row["predictions"].split())
        assert sum(map(float, row["probabilities"].split())) == pytest.approx(1)
    names = tmp_path / "names.txt"
    names.write_text(f"{WNIDS[0]}\n1\n{WNIDS[5]}\n")
    assert run_json(*command, "--class-mask", names)["num_possible"] == 3


def test_the_expected_accuracy_stands_beside_the_measured(run, imagenet_model, tmp_path, monkeypatch):
    import deepcait.weights

    root, resolve = build_val(tmp_path / "imagenet"), deepcait.weights.resolve

    def released(spec, **options):
        found = resolve(imagenet_model, **options)
        return found.__class__(**{**vars(found), "kind": "name", "name": "cait_xxs24_224"})

    monkeypatch.setattr(deepcait.weights, "resolve", released)
    command = ("eval", "cait_xxs24_224", "--data", root, "--protocol", "imagenet")
    _, out, _ = run(*command)
    assert "expected 78.40 %" in out
    assert "expected 94.33 %" in out
    assert json.loads(run(*command, "--json")[1])["expected"] == {"top1": 0.784, "top5": 0.94326}
    assert "expected 78.40" not in run(*command, "--img-size", "48")[1]


# -- predict ----------------------------------------------------------------------------------------------------------


def test_embeddings_and_predictions_take_one_pass(run_json, model_folder, photos, tmp_path, monkeypatch):
    """One batch of 12 images: each block of the class stage runs once, and --json has the predictions."""
    passes, run_block = [], ClassAttentionBlock.forward
    monkeypatch.setattr(ClassAttentionBlock, "forward", lambda *args: (passes.append(args[0]), run_block(*args))[1])
    answers = run_json("predict", model_folder, photos, "--embeddings", tmp_path / "features.npz")
    assert [len(answer["predictions"]) > 0 for answer in answers] == [True] * 12
    assert len(passes) == len(set(map(id, passes))) == 2


def test_embeddings(run, run_json, model_folder, photos, tmp_path):
    out = tmp_path / "features.npz"
    code, text, _ = run("predict", model_folder, photos, "--embeddings", out, "--batch-size", 5)
    assert code == 0
    assert "12 images embedded" in text
    with np.load(out, allow_pickle=False) as content:
        files, embeddings = content["files"].tolist(), torch.from_numpy(content["embeddings"])
    classifier = deepcait.load(model_folder)
    assert embeddings.shape == (12, classifier.model.num_features)
    # The head of the features is the classifier.
    logits = classifier.model.head(embeddings)
    for answer, name, row in zip(run_json("predict", model_folder, photos), files, logits, strict=True):
        assert answer["file"] == name
        assert answer["predictions"][0]["probability"] == pytest.approx(row.softmax(0).max().item(), abs=1e-5)
    assert run("predict", model_folder, photos, "--embeddings", out, "--out", tmp_path / "answers.csv")[0] == 0
    assert (tmp_path / "answers.csv").exists()
