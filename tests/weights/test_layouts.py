"""Every layout a CaiT was ever saved in gives the same state dict; anything else gives one clear error."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from deepcait.errors import DeepcaitWarning, WeightsError
from deepcait.model import CaiT, CaiTConfig, variant_config
from deepcait.model.variants import variant_names
from deepcait.weights.layouts import (
    canonical_keys,
    infer_config,
    official_layout,
    read_checkpoint,
    read_weights,
    variant_name,
)
from deepcait.weights.spec import resolve


def wrapped(state_dict: dict, *prefixes: str) -> dict:
    return {"".join(prefixes) + key: value for key, value in state_dict.items()}


def inner_compiled(state_dict: dict) -> dict:
    """Keys as torch.compile on single blocks leaves them."""
    return {key.replace("blocks.1.", "blocks.1._orig_mod."): value for key, value in state_dict.items()}


LAYOUTS = {
    "plain": lambda sd: sd,
    "official": lambda sd: official_layout(sd) | {"args": argparse.Namespace(lr=1e-3, model="cait"), "epoch": 3},
    "nested": lambda sd: {"state_dict": sd, "arch": "cait", "metric": 0.5},
    "ddp of compiled": lambda sd: {"model": wrapped(sd, "module.", "_orig_mod.")},
    "compiled of ddp": lambda sd: {"model": wrapped(sd, "_orig_mod.", "module.")},
    "compiled blocks": inner_compiled,
    "only averaged": lambda sd: {"model_ema": sd, "optimizer": {"state": {}, "param_groups": []}},
    "nest in nest": lambda sd: {"state_dict": {"model": wrapped(sd, "module.")}},
    "companions": lambda sd: sd | {"epoch": 3, "args": argparse.Namespace()},
    "numbers as tensors": lambda sd: {
        "epoch": 5,
        "state_dict": wrapped(sd, "module."),
        "best_acc1": torch.tensor([7.0]),
    },
    "a loss beside": lambda sd: {"model": sd, "loss": torch.tensor(0.3)},
    "numpy's numbers": lambda sd: {"model": sd, "acc": np.float64(0.5), "best": np.float32(1), "step": np.int64(3)},
    "a path": lambda sd: {"model": sd, "out": Path("runs/a")},
    "Lightning": lambda sd: {
        "state_dict": wrapped(sd, "model.") | {"criterion.weight": torch.ones(4), "train_acc.total": torch.tensor(3)},
        "pytorch-lightning_version": "2.5.0",
        "loops": {"fit_loop": {"state_dict": {}}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}],
    },
    "timm in transformers": lambda sd: wrapped(sd, "timm_model."),
    "AveragedModel": lambda sd: wrapped(sd, "module.") | {"n_averaged": torch.tensor(9)},
    "FSDP": lambda sd: wrapped(sd, "_fsdp_wrapped_module."),
    "checkpointed blocks": lambda sd: {key.replace(".0.", ".0._checkpoint_wrapped_module.", 1): sd[key] for key in sd},
    "Fabric": lambda sd: {"model": wrapped(sd, "_forward_module.", "module.")},
    "DeepSpeed": lambda sd: {"module": sd, "buffer_names": [], "optimizer": None, "ds_version": "0.17"},
    "any key": lambda sd: {"acc": 91.2, "weights": {"net": sd}},
    "a list of models": lambda sd: {"models": [{"fc.weight": torch.ones(2, 2)}, sd]},
    "Sequential": lambda sd: {"0.mean": torch.ones(3)} | wrapped(sd, "1."),
    "student and teacher": lambda sd: {
        "teacher": wrapped({key: value + 1 for key, value in sd.items()}, "module.", "backbone."),
        "student": wrapped(sd, "module.", "backbone.") | {"module.head.mlp.0.weight": torch.ones(2, 2)},
    },
    "two in one mapping": lambda sd: wrapped({key: value + 1 for key, value in sd.items()}, "ema.model.") | sd,
    "eight deep": lambda sd: {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": sd}}}}}}}},
}


def assert_same(got: dict, expected: dict) -> None:
    assert list(got) == list(expected)
    for key, tensor in expected.items():
        assert torch.equal(got[key], tensor), key
        assert got[key].dtype == tensor.dtype, key


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ending", [".pth", ".bin", ".pth.tar"])
def test_every_pickled_layout_gives_the_same_tensors(tiny, tmp_path, layout, ending):
    state_dict = tiny().state_dict()
    path = tmp_path / f"weights{ending}"
    torch.save(LAYOUTS[layout](state_dict), path)
    assert_same(read_checkpoint(path), state_dict)


def test_the_old_pickle_format_is_read(tiny, tmp_path):
    state_dict = tiny().state_dict()
    torch.save({"model": state_dict}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(read_checkpoint(tmp_path / "old.pth"), state_dict)


def test_safetensors_are_read(tiny, tmp_path):
    state_dict = tiny().state_dict()
    save_file(wrapped(state_dict, "module."), tmp_path / "w.safetensors")
    got = read_checkpoint(tmp_path / "w.safetensors")
    assert_same({key: got[key] for key in state_dict}, state_dict)


def test_averaged_weights_are_not_chosen_where_raw_ones_are(tiny, tmp_path):
    raw, averaged = tiny(0).state_dict(), tiny(1).state_dict()
    torch.save({"model_ema": averaged, "model": raw}, tmp_path / "w.pth")
    assert_same(read_checkpoint(tmp_path / "w.pth"), raw)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_tensors_outlive_their_file(tiny, tmp_path, ending):
    state_dict = tiny().state_dict()
    path = tmp_path / f"w{ending}"
    save_file(state_dict, path) if ending == ".safetensors" else torch.save(state_dict, path)
    got = read_checkpoint(path)
    # Overwritten in place: a tensor that only maps the file would follow.
    with open(path, "r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert_same({key: got[key] for key in state_dict}, state_dict)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_shapes_only_reads_no_tensor(tiny, tmp_path, ending):
    state_dict = tiny().state_dict()
    path = tmp_path / f"w{ending}"
    save_file(state_dict, path) if ending == ".safetensors" else torch.save(state_dict, path)
    got = read_checkpoint(path, shapes_only=True)
    assert all(tensor.is_meta for tensor in got.values())
    assert {key: tensor.shape for key, tensor in got.items()} == {key: t.shape for key, t in state_dict.items()}


class Evil:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, sentinel: str) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("hidden", [True, False])
def test_a_malicious_pickle_is_refused_and_nothing_of_it_runs(tiny, tmp_path, zipped, hidden):
    sentinel, path = tmp_path / "ran", tmp_path / "evil.pth"
    content = {"model": tiny().state_dict(), "args": Evil(str(sentinel))} if hidden else Evil(str(sentinel))
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"evil\.pth: .*needs (posix|nt)\.system.*Nothing of it was executed"):
        read_checkpoint(path)
    assert not sentinel.exists()
    # The sentinel can tell: the unsafe reader does run it.
    torch.load(path, weights_only=False)
    assert sentinel.exists()


def test_a_bare_malicious_pickle_is_refused(tmp_path):
    sentinel, path = tmp_path / "ran", tmp_path / "evil.bin"
    path.write_bytes(pickle.dumps({"model": Evil(str(sentinel))}))
    with pytest.raises(WeightsError, match=r"evil\.bin"):
        read_checkpoint(path)
    assert not sentinel.exists()


def test_a_whole_pickled_model_is_refused_with_the_remedy(tiny, tmp_path):
    torch.save({"model": tiny()}, tmp_path / "model.pth")
    with pytest.raises(WeightsError, match=r"deepcait\.model\.cait\.CaiT.*state_dict"):
        read_checkpoint(tmp_path / "model.pth")


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.99])
def test_a_cut_file_names_its_path(tiny, tmp_path, ending, part):
    path = tmp_path / f"cut{ending}"
    state_dict = tiny().state_dict()
    save_file(state_dict, path) if ending == ".safetensors" else torch.save(state_dict, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(WeightsError, match=rf"cut\{ending}: ") as caught:
        read_checkpoint(path)
    if ending == ".pth" and part:
        assert "its index is missing" in caught.value.problem


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize("content", [b"<html>404</html>", b"\x89PNG\r\n\x1a\n" + b"\0" * 100, b"PK\x03\x04rest"])
def test_not_a_checkpoint_names_its_path(tmp_path, ending, content):
    path = tmp_path / f"other{ending}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"other\{ending}: "):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [[1, 2], {"model": {"lr": 1}}, {"epoch": 1}, torch.ones(2)])
def test_a_checkpoint_without_state_dict_is_an_error(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no tensors of a state dict"):
        read_checkpoint(tmp_path / "w.pth")


def test_a_folder_a_missing_file_and_a_strange_ending_are_errors(tmp_path):
    (tmp_path / "dir.pth").mkdir()
    (tmp_path / "w.txt").write_text("x")
    for name, got in (("dir.pth", "a folder"), ("no.pth", "no such file"), ("w.txt", "'.txt'")):
        with pytest.raises(WeightsError, match=rf"{name}: .*{got}"):
            read_checkpoint(tmp_path / name)


def test_two_keys_that_become_one_are_an_error():
    one = torch.ones(1)
    with pytest.raises(WeightsError, match="two"):
        canonical_keys({"norm.bias": one, "module.norm.bias": one})


@pytest.mark.parametrize("name", variant_names())
def test_every_variant_is_recognised_by_its_tensors(name):
    with torch.device("meta"):
        state_dict = CaiT(variant_config(name)).state_dict()
    config = infer_config(state_dict)
    assert config == variant_config(name)
    assert variant_name(config) == name


@pytest.mark.parametrize(
    "changes",
    [
        {"mlp_ratio": 3.3, "embed_dim": 36},
        {"mlp_ratio": 2.0},
        {"num_classes": 0},
        {"in_chans": 1},
        {"cls_depth": 3, "depth": 4},
        {"patch_size": 4},
        {"num_heads": 8},
    ],
)
def test_odd_sizes_are_inferred(tiny, changes):
    expected = tiny(**changes).config
    config = infer_config(tiny(**changes).state_dict())
    assert config.hidden_dim == expected.hidden_dim
    assert config.replace(mlp_ratio=expected.mlp_ratio) == expected
    assert variant_name(config) is None


def test_a_grid_that_is_no_square_needs_its_size(tiny):
    state_dict = tiny(img_size=(32, 48)).state_dict()
    with pytest.raises(WeightsError, match="24.*img_size"):
        infer_config(state_dict)
    with pytest.raises(WeightsError, match="24 patches"):
        infer_config(state_dict, img_size=32)
    assert infer_config(state_dict, img_size=(32, 48)).grid == (4, 6)


def test_another_network_is_no_cait():
    linear = torch.nn.Linear(2, 2).state_dict()
    with pytest.raises(WeightsError, match="weights of a CaiT.*cls_token"):
        infer_config(linear)


def test_infer_config_keeps_the_xxs36_exception():
    with torch.device("meta"):
        config = infer_config(CaiT(CaiTConfig(embed_dim=192, depth=36, num_heads=4)).state_dict())
    assert config.layer_scale_init == 1e-5


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("shape", [(1, 4 * 10**8, 1), (10**7, 10**7, 1)])
def test_four_bytes_that_pretend_to_be_a_terabyte_are_refused(tiny, tmp_path, zipped, shape):
    state_dict = tiny().state_dict() | {"pos_embed": torch.zeros(1).expand(shape)}
    torch.save(state_dict, tmp_path / "bomb.pth", _use_new_zipfile_serialization=zipped)
    assert (tmp_path / "bomb.pth").stat().st_size < 500_000
    for shapes_only in (False, True):
        with pytest.raises(WeightsError, match="pos_embed must be a dense tensor"):
            read_checkpoint(tmp_path / "bomb.pth", shapes_only=shapes_only)


@pytest.mark.parametrize("change", [lambda tensor: tensor.to_sparse(), lambda tensor: tensor.to("meta")])
def test_tensors_of_another_kind_are_refused(tiny, tmp_path, change):
    state_dict = tiny().state_dict()
    state_dict["norm.weight"] = change(state_dict["norm.weight"])
    torch.save(state_dict, tmp_path / "w.pth")
    with pytest.raises(WeightsError):
        read_checkpoint(tmp_path / "w.pth")


def test_views_and_shared_tensors_are_read(tiny, tmp_path):
    state_dict = tiny().state_dict()
    whole = torch.stack((state_dict["norm.weight"], state_dict["norm.bias"]))
    state_dict |= {"norm.weight": whole[0], "norm.bias": whole[1], "cls_token": state_dict["cls_token"].mT.mT}
    torch.save(state_dict, tmp_path / "w.pth")
    assert torch.equal(read_checkpoint(tmp_path / "w.pth")["norm.bias"], tiny().norm.bias)


def test_a_far_block_builds_nothing(tiny, tmp_path):
    far = {"blocks.30000000.norm1.weight": torch.ones(1)}
    save_file(tiny().state_dict() | far, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="blocks must be numbered from 0 to 2.*'30000000'"):
        resolve(tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="blocks_token_only must be numbered"):
        infer_config(tiny().state_dict() | {f"blocks_token_only.{'9' * 5000}.x": torch.ones(1)})


def test_sizes_that_the_weights_do_not_have(tiny):
    state_dict = tiny().state_dict()
    with pytest.raises(WeightsError, match="their shapes describe"):
        infer_config(state_dict | {"pos_embed": torch.zeros(1, 16, 100_000)})
    with pytest.raises(WeightsError, match="pos_embed: the tensor is empty"):
        infer_config(state_dict | {"pos_embed": torch.zeros(1, 16, 0)})


@pytest.mark.timeout(60)
def test_dictionaries_within_themselves_and_shared_nests(tmp_path):
    itself: dict = {}
    itself["model"] = itself
    shared: dict = {}
    for _ in range(40):
        shared = dict.fromkeys(("model", "state_dict", "model_state_dict", "model_ema", "state_dict_ema"), shared)
    for name, content in {"itself": itself, "shared": shared}.items():
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(WeightsError, match="no tensors of a state dict"):
            read_checkpoint(tmp_path / f"{name}.pth")


def test_a_state_dict_deeper_than_eight_keys_is_not_looked_for(tiny, tmp_path):
    content = tiny().state_dict()
    for _ in range(9):
        content = {"model": content}
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no tensors of a state dict"):
        read_checkpoint(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        (lambda sd: {"model": wrapped(sd, "module.")}, []),
        (lambda sd: {"state_dict": wrapped(sd, "net.")}, ["removed the prefix 'net.' from the names of tensors"]),
        (
            lambda sd: wrapped(sd, "backbone.") | {"fc.weight": torch.ones(2, 2)},
            [
                "removed the prefix 'backbone.' from the names of tensors",
                "left out fc.weight, which are not part of the model",
            ],
        ),
        (
            lambda sd: {"ema": dict(sd), "model": sd},
            ["used the weights under model, not those under ema"],
        ),
        (
            lambda sd: wrapped(sd, "student.") | wrapped(sd, "teacher."),
            [
                "removed the prefix 'student.' from the names of tensors",
                "used the weights under student, not those under teacher",
            ],
        ),
    ],
)
def test_what_was_taken_off_and_left_out_is_said(tiny, tmp_path, content, notes):
    torch.save(content(tiny().state_dict()), tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth")[1] == notes
    if notes:
        with pytest.warns(DeepcaitWarning, match=re.escape("; ".join(notes))):
            resolve(tmp_path / "w.pth")


def test_adapters_are_not_taken_for_a_prefix(tiny, tmp_path):
    """Without its low-rank part a layer is another: no silent loss."""
    adapted = {key.replace("attn.qkv.", "attn.qkv.base_layer."): value for key, value in tiny().state_dict().items()}
    adapted["blocks.0.attn.qkv.lora_A.default.weight"] = torch.ones(2, 32)
    torch.save(wrapped(adapted, "base_model.model."), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="base_layer"):
        resolve(tmp_path / "w.pth")


def test_views_of_one_tensor_are_not_copied_by_the_thousand(tiny, tmp_path):
    shared = torch.zeros(50_000)
    torch.save({f"k{number}": shared[:] for number in range(100)}, tmp_path / "views.pth")
    with pytest.raises(WeightsError, match="views of the same memory"):
        read_checkpoint(tmp_path / "views.pth")
    tied = torch.ones(50_000)
    torch.save({"a": tied, "b": tied}, tmp_path / "tied.pth")
    assert_same(read_checkpoint(tmp_path / "tied.pth"), {"a": tied, "b": tied})
