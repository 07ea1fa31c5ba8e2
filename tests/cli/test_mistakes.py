"""The commonest mistakes: one paragraph, exit code 2, no traceback; with --json one object."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
import tyro
from PIL import Image


class Malicious:
    """Runs a command when it is unpickled carelessly."""

    def __reduce__(self):
        return os.system, ("touch was_run",)


@pytest.fixture
def places(tmp_path, model_folder, photos, monkeypatch):
    """What the mistakes are made with; the current folder is its own."""
    monkeypatch.chdir(tmp_path)
    whole = (photos / "cat" / "0.png").read_bytes()
    files = {
        "truncated.png": whole[: len(whole) // 2],
        "text.png": b"this is no picture",
        "empty.png": b"",
        "broken.safetensors": b"no weights at all",
        "malicious.pth": pickle.dumps({"model": Malicious()}),
        "notes.txt": b"notes",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in ("empty", "flat", "strange/purple", "model_like"):
        (tmp_path / name).mkdir(parents=True)
    for place in ("flat/1.png", "strange/purple/1.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / place)
    bad = tmp_path / "bad_in_folder" / "cat"
    bad.mkdir(parents=True)
    (bad / "1.png").write_bytes(whole[:100])
    torch.save({"head.weight": torch.zeros(3, 3)}, tmp_path / "other_model.pth")
    (tmp_path / "no_config").mkdir()
    (tmp_path / "no_config" / "model.safetensors").write_bytes(b"")
    return tmp_path


MODEL, PHOTOS = "<model>", "<photos>"
# name -> command, and a word that the paragraph must hold
MISTAKES = {
    "unknown verb": (["evaluate"], "deepcait eval"),
    "unknown flag": (["eval", MODEL, "--dataa", PHOTOS], "Did you mean --data?"),
    "no --data": (["eval", MODEL], "--data"),
    "no model": (["eval", "--data", PHOTOS], "model"),
    "flag without value": (["eval", MODEL, "--data"], "--data"),
    "word for a number": (["eval", MODEL, "--data", PHOTOS, "--batch-size", "many"], "--batch-size"),
    "batch size 0": (["eval", MODEL, "--data", PHOTOS, "--batch-size", "0"], "--batch-size"),
    "workers below 0": (["eval", MODEL, "--data", PHOTOS, "--workers", "-1"], "--workers"),
    "service on a device that is not here": (["serve", MODEL, "--device", "bogus"], "device"),
    "service without a bound": (["serve", MODEL, "--max-megapixels", "inf"], "--max-megapixels"),
    "service that waits less than nothing": (["serve", MODEL, "--max-wait-ms", "-1"], "--max-wait-ms"),
    "unknown split": (["eval", MODEL, "--data", PHOTOS, "--split", "dev"], "dev"),
    "absent split": (["eval", MODEL, "--data", PHOTOS, "--split", "test"], "test"),
    "real without val": (["eval", MODEL, "--data", PHOTOS, "--protocol", "real"], "folders train and val are missing"),
    "real labels without real": (["eval", MODEL, "--data", PHOTOS, "--real-labels", "notes.txt"], "--protocol real"),
    "v2 of other folders": (["eval", MODEL, "--data", PHOTOS, "--protocol", "v2"], "folders 0 to 999"),
    "no class mask": (["eval", MODEL, "--data", PHOTOS, "--class-mask", "gone.txt"], "one class per line"),
    "size in words": (["eval", MODEL, "--data", PHOTOS, "--img-size", "224,large"], "224x320"),
    "table of unknown form": (["eval", MODEL, "--data", PHOTOS, "--out", "table.xls"], "table.xls"),
    "images of unknown form": (["eval", MODEL, "--data", PHOTOS, "--per-image", "images.json"], "images.json"),
    "features of unknown form": (["predict", MODEL, PHOTOS, "--embeddings", "features.npy"], "features.npy"),
    "unknown device": (["eval", MODEL, "--data", PHOTOS, "--device", "gpu"], "gpu"),
    "no such data": (["eval", MODEL, "--data", "phottos"], "phottos"),
    "data of unknown kind": (["eval", MODEL, "--data", "notes.txt"], "notes.txt"),
    "data of an empty variable": (["doctor", "--data", ""], "the path is empty"),
    "data of an unknown user": (["doctor", "--data", "~nobody-of-that-name/photos"], "no such path"),
    "data of a name too long": (["doctor", "--data", "x" * 300], "too long"),
    "fix list in a missing folder": (["doctor", "--data", PHOTOS, "--fix-list", "missing/list.txt"], "--fix-list"),
    "kind of data misspelt": (["eval", MODEL, "--data", "foldr:photos"], "folder"),
    "empty data": (["eval", MODEL, "--data", "empty"], "empty"),
    "pictures without class folders": (["eval", MODEL, "--data", "flat"], "class"),
    "another class": (["eval", MODEL, "--data", "strange"], "purple"),
    "damaged picture in data": (["eval", MODEL, "--data", "bad_in_folder"], "1.png"),
    "model name with a slip": (["predict", "cait_xss24_224", "x.png"], "x.png"),
    "slip, asked for info": (["info", "cait_xss24_224"], "cait_xs24_224"),
    "no such model path": (["info", "runs/pets"], "runs/pets"),
    "model of an unknown user": (["info", "~nobody-of-that-name/pets"], "no such file or folder"),
    "model of a name too long": (["info", "x" * 300], "too long"),
    "name that the hub forbids": (["info", "hf-hub:owner/a--b"], "not a valid repository name"),
    "folder without a model": (["info", "model_like"], "model folder"),
    "half a model folder": (["info", "no_config"], "config.json"),
    "corrupt weights": (["info", "broken.safetensors"], "broken.safetensors"),
    "malicious pickle": (["info", "malicious.pth"], "malicious.pth"),
    "weights of another model": (["info", "other_model.pth"], "weights of a CaiT"),
    "no weights file": (["info", "notes.txt"], "notes.txt"),
    "hub model that is not cached": (["info", "hf-hub:owner/name"], "cache"),
    "no image given": (["predict", MODEL], "no image"),
    "no such picture": (["predict", MODEL, "cta.png"], "cta.png"),
    "truncated picture": (["predict", MODEL, "truncated.png"], "truncated.png"),
    "not a picture": (["predict", MODEL, "text.png"], "text.png"),
    "empty file": (["predict", MODEL, "empty.png"], "empty.png"),
    "folder without pictures": (["predict", MODEL, "empty"], "empty"),
    "topk 0": (["predict", MODEL, PHOTOS, "--topk", "0"], "--topk"),
    "topk of a word": (["predict", MODEL, PHOTOS, "--topk", "all"], "--topk"),
    "out in a missing folder": (["predict", MODEL, PHOTOS, "--out", "missing/a.csv"], "missing"),
    "out with another ending": (["predict", MODEL, PHOTOS, "--out", "a.xlsx"], ".csv"),
    "out is a folder": (["predict", MODEL, PHOTOS, "--out", "flat"], "--out"),
}


def fill_in(command, model_folder, photos):
    return [{MODEL: model_folder, PHOTOS: photos}.get(word, word) for word in command]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_paragraph(run, places, model_folder, photos, mistake):
    command, word = MISTAKES[mistake]
    code, out, err = run(*fill_in(command, model_folder, photos))
    assert code == 2, err
    paragraph = " ".join(err[err.index("error: ") :].split())
    assert "Traceback" not in out + err
    assert paragraph.startswith("error: ")
    assert paragraph.count("remedy: ") == 1
    assert "\n\n" not in err
    assert max(map(len, err.splitlines())) <= 200
    assert word in paragraph
    assert not (places / "was_run").exists()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_object_with_json(run, places, model_folder, photos, mistake):
    command, word = MISTAKES[mistake]
    code, out, err = run(*fill_in(command, model_folder, photos), "--json")
    assert code == 2
    answer = json.loads(out)
    assert set(answer) == {"error", "remedy"}
    assert word in " ".join(answer.values())
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("eval x --data y --split foo", "--split: expected train, val, test or all, got 'foo'. remedy: `deepcait eval"),
        ("eval x --data y --split=tset", "got 'tset'. remedy: Did you mean test?"),
        ("train --out x --engine foo", "--engine: expected eager or compile, got 'foo'."),
        ("export x --out y --to foo", "--to: expected onnx, openvino, pt2, timm or official, got 'foo'."),
        ("bench x --against foo", "--against: expected timm, got 'foo'."),
        ("predict x y --topk zwei", "--topk: expected an integer, got 'zwei'."),
        ("predict x y --topk 1.5", "--topk: expected an integer, got '1.5'."),
        ("predict x y --topk 3 --topk=zwei", "--topk: expected an integer, got 'zwei'."),
        ("bench x --threads zwei", "--threads: expected an integer, got 'zwei'."),
        ("study heads --data x --out y --budget viel", "--budget: expected a number, got 'viel'."),
        ("eval x --data y --batch_size", "--batch-size: expected an integer, got nothing."),
        ("eval x --data y --batch-size --workers 1", "--batch-size: expected an integer, got nothing."),
        ("explain x y --out z --class", "--class: expected a value after it, got nothing."),
        ("eval x", "deepcait eval: --data is missing. remedy: `deepcait eval --help`"),
        ("push x", "deepcait push: OWNER/NAME is missing."),
        ("eval x --data", "--data: expected a value after it, got nothing."),
        ("eval x --data y --workers 1 2", "unexpected argument '2'."),
        ("train --out x --set", "--set needs key=value after it."),
        ("train --data x --out y --set epochs=1 --set --dry-run", "--set needs key=value after it."),
        (
            "train --out x --batch-size 3",
            "unknown option '--batch-size'. remedy: Did you mean --set global_batch_size=3?",
        ),
        ("train --out x --epochs=7", "unknown option '--epochs=7'. remedy: Did you mean --set epochs=7?"),
        ("train --out x --weight-decay --dry-run", "Did you mean --set optimizer.weight_decay=VALUE?"),
        ("train --out x --optimizer.lr 1e-4", "Did you mean --set optimizer.lr=1e-4?"),
        ("train --out x --workers 4", "Did you mean --set data.num_workers=4?"),
        ("train --out x --img-size 64", "Did you mean --set img_size=64 or --set teacher.img_size=64?"),
        ("train --out x --teachr y", "unknown option '--teachr'. remedy: Did you mean --teacher?"),
        ("study heads --data x --out y --set", "--set needs key=value after it."),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_value_that_does_not_fit_is_reported_in_our_words(run, monkeypatch, command, printed, encoding):
    monkeypatch.setattr(
        tyro._fmtlib, "_FORCE_UTF8_BOXES", encoding == "utf-8", raising=False
    )  # in frames of either kind
    code, out, err = run(*command.split())
    assert (code, out) == (2, "")
    assert printed in " ".join(err.split())
    assert "None" not in err


@pytest.mark.parametrize("command", ["train --out x --optimizer sgd", "train --out x --summary a", "eval x --seed 3"])
def test_sections_and_verbs_without_a_recipe_are_led_to_no_setting(run, command):
    code, _, err = run(*command.split())
    assert code == 2
    assert "--set" not in err
