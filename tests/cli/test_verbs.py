"""The verbs: what they print, with and without --json."""

from __future__ import annotations

import csv
import errno
import importlib
import json
import re
from unittest.mock import Mock

import pytest
import torch

from deepcait.cli import eval as eval_verb
from deepcait.cli.exits import Refused
from deepcait.cli.main import COMMANDS
from deepcait.errors import LostProcessError, RunError, Stopped
from deepcait.weights import list_models

MODEL_KEYS = {"name", "params", "gmacs", "img_size", "released", "top1", "real", "v2"}


def test_models_lists_every_variant(run, run_json):
    models = run_json("models")
    assert [model["name"] for model in models] == list_models()
    assert all(set(model) >= MODEL_KEYS for model in models)
    assert sum(model["released"] for model in models) == 10
    (m48,) = [model for model in models if model["name"] == "cait_m48_448"]
    assert m48["params"] == 356_460_520
    assert m48["top1"] == 0.8648
    code, out, err = run("models")
    assert (code, err) == (0, "")
    assert all(name in out for name in list_models())


def test_models_takes_a_filter(run, run_json):
    assert [model["name"] for model in run_json("models", "m48")] == list_models("m48") != []
    assert list_models("cait_n*") == ["cait_nano_32"]
    assert list_models("x*24_384") == []
    code, out, err = run("models", "nothing")
    assert (code, out) == (2, "")
    assert "no model matches 'nothing'" in err


def test_info(run, run_json, model_folder):
    facts = run_json("info", "cait_s24_224")
    assert set(facts) >= MODEL_KEYS | {"preprocessing", "classes"}
    assert run_json("info", model_folder)["classes"] == ["cat", "dog", "owl"]
    code, out, _ = run("info", model_folder)
    assert code == 0
    assert "cat, dog, owl" in out
    assert "32 x 32 px" in out
    assert "1,000: tench, goldfish, " in run("info", "cait_s24_224")[1]
    measured = run_json("info", "builtin:nano")["metrics"]
    shown = f"split test, num images 10,000, correct1 {measured['correct1']:,}, correct5 {measured['correct5']:,}, "
    assert f"{shown}top1 {100 * measured['top1']:.2f} %, " in run("info", "builtin:nano")[1]
    (row,) = run_json("info", model_folder, "--batch", "3")["activations"]
    assert (row["img_size"], row["batch"]) == ([32, 32], 3)
    assert f"{row['training_bytes'] / 2**20:.1f}" in run("info", model_folder, "--batch", "3")[1]
    sizes = [
        row["img_size"] for row in run_json("info", model_folder, "--img-size", "32,64", "--batch", "1")["activations"]
    ]
    assert sizes == [[32, 32], [64, 64]]
    assert run("info", model_folder, "--img-size", "33")[0] == 2


def test_eval(run, run_json, model_folder, photos):
    result = run_json("eval", model_folder, "--data", photos)
    assert result["num_images"] == 12
    assert result["top1"] == result["correct1"] / 12
    assert (result["correct5"], result["top5"]) == (12, 1.0)
    assert result["loss"] > 0
    code, out, _ = run("eval", model_folder, "--data", photos, "--batch-size", 5)
    assert code == 0
    for part in ("folder, split all: 12 images", "by name", "crop ratio 1", f"({result['correct1']} of 12)"):
        assert part in out


def test_eval_of_two_models_is_a_list(run_json, model_folder, photos):
    first, second = run_json("eval", model_folder, model_folder, "--data", photos)
    assert first == second


def test_eval_names_the_split(run_json, model_folder, photos):
    (photos / "val").mkdir()
    for name in ("cat", "dog", "owl"):
        (photos / name).rename(photos / "val" / name)
    assert run_json("eval", model_folder, "--data", photos, "--split", "val")["split"] == "val"


def test_predict(run, run_json, model_folder, photos):
    results = run_json("predict", model_folder, photos / "cat", photos / "dog" / "0.png", "--topk", 2)
    assert [result["file"].rpartition("/")[2] for result in results] == ["0.png", "1.png", "2.png", "3.png", "0.png"]
    for result in results:
        assert len(result["predictions"]) == 2
        assert all(set(answer) == {"index", "label", "probability"} for answer in result["predictions"])
    code, out, _ = run("predict", model_folder, photos / "cat" / "0.png")
    assert code == 0
    assert "owl" in out


def test_predict_writes_files(run, model_folder, photos, tmp_path):
    assert run("predict", model_folder, photos, "--out", tmp_path / "a.csv", "--batch-size", 5)[0] == 0
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert len(rows) == 12 * 3
    assert list(rows[0]) == ["file", "rank", "index", "label", "probability", "error"]
    assert run("predict", model_folder, photos, "--out", tmp_path / "a.jsonl", "--topk", 1)[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert {len(line["predictions"]) for line in lines} == {1}


def test_a_failed_predict_leaves_the_old_file(run, model_folder, photos, tmp_path):
    out = tmp_path / "a.csv"
    out.write_text("old")
    (photos / "owl" / "3.png").write_bytes(b"broken")
    assert run("predict", model_folder, photos, "--out", out, "--batch-size", 2, "--on-error", "stop")[0] == 2
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "photos"]


def test_only_rank_0_prints(run, monkeypatch):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("TORCHELASTIC_RUN_ID", "none")):
        monkeypatch.setenv(name, value)
    assert run("models") == (0, "", "")
    assert run("models", "--json") == (0, "", "")
    assert run("info", "nothing", "--json") == (2, "", "")


def test_outside_torchrun_no_rank_hides_an_error(run, monkeypatch):
    """RANK may be left over in a shell, and then no process 0 tells anything."""
    monkeypatch.setenv("RANK", "3")
    assert "cait_s24_224" in run("models")[1]
    code, _, err = run("train", "--data", "builtin:demo", "--out", "x")
    assert code == 2
    assert "unset RANK" in err
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert run("models") == (0, "", "")
    code, out, err = run("info", "nothing", "--json")
    assert (code, out) == (2, "")
    assert "error: " in err


def test_torchrun_shows_the_error_that_came_first(run, monkeypatch, tmp_path):
    """It takes the earliest whole second, and of equal ones rank 0, which has often only lost the other."""
    monkeypatch.setattr("deepcait.cli.console.time.time", lambda: 1000.9)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    dated = {}
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    for error in (RunError("no such folder", remedy="x"), LostProcessError("one was lost", remedy="x")):
        monkeypatch.setattr("deepcait.cli.main._run", Mock(side_effect=error))
        assert run("models")[0] == 2
        message = json.loads((tmp_path / "error.json").read_text())["message"]
        dated[message["message"].split("\n")[0]] = int(message["extraInfo"]["timestamp"])
    assert dated == {"error: no such folder": 1000, "error: one was lost": 1001}


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_has_examples_and_no_default_that_is_none(run, verb):
    code, out, err = run(verb, "--help")
    assert (code, err) == (0, "")
    assert out.index(f"Examples:\n    deepcait {verb}") < out.index("\noptions:\n")
    assert "None" not in out
    assert not re.search(r"\(default: (False|''|)\)", out)


def test_help_shows_what_is_required_and_each_default(run):
    said = " ".join(run("eval", "--help")[1].split())
    assert "MODEL ..." in said
    assert "(required)" in said
    assert "--workers INT" in said
    assert "(default: 0)" in said
    push = run("push", "--help")[1]
    assert "  --license TEXT\n" in push
    assert "--licence" not in push
    assert "--picture" not in push


def test_options_have_aliases(run):
    """--licence and --picture of 0.1."""
    for option in ("--license", "--licence", "--picture", "--image"):
        assert run("push", "x", "owner/x", option)[2].startswith(f"error: {option}: expected a value after it")


@pytest.mark.filterwarnings("default::deepcait.errors.DeepcaitWarning")
@pytest.mark.parametrize(("old", "new"), [("--licence", "--license"), ("--picture", "--image")])
def test_old_options_work_with_one_line_of_warning(run, old, new):
    from deepcait.cli import push

    for option, lines in ((old, [f"note: {old} is called {new} now; the old name still works."]), (new, [])):
        with pytest.MonkeyPatch.context() as patch:
            given = []
            patch.setattr(push, "run", given.append)
            code, out, err = run("push", "x", "owner/x", f"{option}=mit")
            assert (code, out, err.splitlines()) == (0, "", lines)
            assert "mit" in (given[0].license, str(given[0].image))


def test_want_of_memory_is_reported_as_such(run, monkeypatch):
    """As PyTorch raises it for the machine's memory; one error of its own it has for accelerators alone."""
    monkeypatch.setattr(eval_verb, "run", lambda args: torch.empty(2**60))
    code, _, err = run("eval", "x", "--data", "y")
    said = " ".join(err.split())
    assert code == 2
    assert "error: out of memory: " in said
    assert "deepcait help out-of-memory" in said


def test_help_prints_topics(run):
    code, out, _ = run("help")
    assert code == 0
    assert all(name in out for name in ("data", "model", "errors", "out-of-memory"))
    assert run("help", "out-of-memory")[1].startswith("# Out of memory\n")
    assert "class folders" in run("help", "data")[1]
    assert "usage: deepcait models" in run("help", "models")[1]
    code, _, err = run("help", "out-of-memry")
    assert code == 2
    assert "deepcait help out-of-memory" in err


def test_the_list_of_verbs(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(f"  {verb} " in out for verb in COMMANDS)
    assert run()[1] == out
    assert run("--version")[1].startswith("deepcait ")


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (Stopped("stopped"), 75),
        (Refused("no"), 3),
        (KeyboardInterrupt(), 130),
        (FileNotFoundError(errno.ENOENT, "no", "a"), 2),
        (PermissionError(errno.EACCES, "no", "a"), 2),
        (IsADirectoryError(errno.EISDIR, "no", "a"), 2),
        (OSError(errno.ENOSPC, "full"), 2),
        (ModuleNotFoundError("no", name="pyarrow"), 2),
        (ModuleNotFoundError("no", name="deepcait.gone"), 1),
        (MemoryError(), 2),
        (torch.OutOfMemoryError("out of memory. Tried to allocate 2.00 GiB"), 2),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), 2),
        (OSError(errno.EIO, "broken"), 1),
        (RuntimeError("ours"), 1),
    ],
)
def test_what_happened_becomes_an_exit_code(run, monkeypatch, raised, code):
    def fail(args):
        raise raised

    monkeypatch.setattr(eval_verb, "run", fail)
    got, out, err = run("eval", "x", "--data", "y")
    assert (got, out) == (code, "")
    assert ("Traceback" in err) == ("a bug in deepcait" in err) == (code == 1)


def test_every_verb_can_be_called():
    for verb in COMMANDS:
        module = importlib.import_module(f"deepcait.cli.{verb}")
        assert callable(module.run)
        assert "Examples:" in module.__doc__


def test_peers_count_the_baselines_the_same_way():
    from deepcait.bench.peers import BASELINES, build_baseline, count_macs
    from deepcait.weights.create import create_model

    nfnet = build_baseline(BASELINES[0])
    assert round(sum(p.numel() for p in nfnet.parameters()) / 1e6, 1) == 438.4
    assert round(count_macs(nfnet, 576) / 1e9, 1) == 377.3
    small = create_model("cait_nano_32")
    assert count_macs(small.to("meta"), 32) == small.config.macs()


def test_attention_of_baselines_is_counted():
    from deepcait.bench.peers import BASELINES, build_baseline, count_macs

    (deit,) = [baseline for baseline in BASELINES if baseline.name.startswith("deit_base_patch16_384")]
    # timm publishes 55.5 G; without attention it would be 49.4 G.
    assert round(count_macs(build_baseline(deit), 384) / 1e9, 1) == 55.5
