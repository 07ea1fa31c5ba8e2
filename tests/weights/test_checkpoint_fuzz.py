"""Damaged checkpoints of every kind through their readers: our error, or other numbers; in bounded time and memory."""

from __future__ import annotations

import json
import random
import shutil
import struct
import time
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deepcait.errors import DeepcaitError, WeightsError
from deepcait.weights.keras import read_saved_model
from deepcait.weights.layouts import read_checkpoint

KERAS = Path(__file__).parent / "keras" / "classifier"
MAX_SECONDS = 10.0  # of the processor: a loop without an end, not a slow machine
MAX_MEMORY_BYTES = 64 * 2**20
_SPECIAL = [b"\xff" * 8, bytes(8), b"\x7f\xff\xff\xff\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b'"', b"{", b"c", b"."]
# Opcodes of pickles that build and call: STACK_GLOBAL, REDUCE, BUILD, NEWOBJ, INST, GLOBAL, BINPERSID.
_OPCODES = [b"\x93", b"R", b"b", b"\x81", b"i", b"cos\nsystem\n", b"Q"]


def mutate(data: bytes, draw: random.Random) -> bytes:
    """A file with 1 to 8 changes, those of its beginning and end, where headers are, as often as all others."""
    mutated = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 3, 8])):
        size = len(mutated)
        if not size:
            break
        position = draw.choice(
            [draw.randrange(size), draw.randrange(min(size, 512)), -draw.randrange(1, min(size, 1500) + 1)]
        )
        match draw.randrange(6):
            case 0:
                mutated[position] = draw.randrange(256)
            case 1:
                mutated[position] ^= 1 << draw.randrange(8)
            case 2:
                special = draw.choice(_SPECIAL + _OPCODES)
                mutated[position : position + len(special) or None] = special
            case 3:
                del mutated[position : position + draw.randrange(1, 40) or None]
            case 4:
                mutated[position:position] = mutated[: draw.randrange(60)]
            case _:
                del mutated[draw.randrange(size) :]
    return bytes(mutated)


def assert_bounded(read, *arguments) -> str:
    """Read something damaged; "read" or "refused". Any other exception, and more time or memory, is a failure."""
    began = time.process_time()
    try:
        state_dict = read(*arguments)
        tensors = state_dict if isinstance(state_dict, dict) else {}
        assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
        outcome = "read"
    except DeepcaitError:
        outcome = "refused"
    assert time.process_time() - began < MAX_SECONDS
    return outcome


@pytest.fixture
def corpus(tiny, tmp_path) -> dict[str, bytes]:
    """Sound files that the mutations start from, small, so that headers are a large part of them."""
    state_dict = tiny(embed_dim=8, num_heads=2, depth=1, cls_depth=1).state_dict()
    save_file(state_dict, tmp_path / "a.safetensors")
    torch.save({"model": state_dict, "epoch": 3}, tmp_path / "a.pth")
    torch.save({"model": state_dict}, tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    return {name: (tmp_path / name).read_bytes() for name in ("a.safetensors", "a.pth", "b.pth")}


@pytest.mark.parametrize("number", [40, pytest.param(5000, marks=pytest.mark.soak)])
@pytest.mark.filterwarnings("ignore")
def test_damaged_checkpoints_are_our_error_or_other_numbers(corpus, tmp_path, number, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw, outcomes = random.Random(0), Counter()
    for name, data in corpus.items():
        path = tmp_path / f"damaged{Path(name).suffix}"
        for _ in range(number):
            path.write_bytes(mutate(data, draw))
            outcomes[name, assert_bounded(read_checkpoint, path)] += 1
        path.unlink()
    assert {key[1] for key in outcomes} == {"read", "refused"}
    assert {path.name for path in tmp_path.iterdir()} == set(corpus)  # nothing ran that left a trace


@pytest.mark.parametrize("number", [24, pytest.param(2000, marks=pytest.mark.soak)])
def test_damaged_keras_bundles_are_our_error_or_other_numbers(tmp_path, number):
    folder = shutil.copytree(KERAS, tmp_path / "saved")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".npz"]
    draw, outcomes = random.Random(0), Counter()
    for index in range(number):
        path = files[index % len(files)]
        sound = path.read_bytes()
        path.write_bytes(mutate(sound, draw))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes[assert_bounded(read_saved_model, folder)] += 1
        path.write_bytes(sound)
    assert outcomes["refused"] > number // 4


def test_a_pickle_that_promises_more_than_the_file_holds(tmp_path):
    path = tmp_path / "w.pth"
    # PROTO 2, then BINUNICODE of almost 2 GB, of which five letters are there.
    path.write_bytes(b"\x80\x02X" + struct.pack("<I", 2**31 - 1) + b"model")
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError):
            read_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < MAX_MEMORY_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [2**63 - 1, 2**40, 100 * 2**20])
def test_a_header_that_promises_more_than_the_file_holds(tmp_path, length):
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(WeightsError):
        read_checkpoint(path)


def test_a_header_whose_tensors_are_larger_than_the_file(tmp_path):
    header = {"pos_embed": {"dtype": "F32", "shape": [1, 2**30, 2**20], "data_offsets": [0, 2**52]}}
    text = json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(WeightsError):
        read_checkpoint(tmp_path / "w.safetensors")
