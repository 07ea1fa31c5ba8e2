"""SavedModels that the real TensorFlow wrote (recipe: make_keras_fixture.py) load without it, with its logits."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import deepcait
from deepcait.errors import WeightsError
from deepcait.weights import crc32c as crc_module
from deepcait.weights import tensor_bundle
from deepcait.weights.crc32c import crc32c, masked_crc32c
from deepcait.weights.keras import read_saved_model
from deepcait.weights.spec import describe, resolve
from deepcait.weights.tensor_bundle import TensorBundle

FIXTURES = Path(__file__).parent / "keras"
RECIPE = Path(__file__).parent / "make_keras_fixture.py"
INDEX, DATA = "variables/variables.index", "variables/variables.data-00000-of-00001"
# Python of an environment with tensorflow-cpu==2.21.0 and tf_keras; see the recipe.
TENSORFLOW = os.environ.get("DEEPCAIT_TENSORFLOW_PYTHON", "")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the classifier, to be damaged."""
    return shutil.copytree(FIXTURES / "classifier", tmp_path / "saved")


def distance(folder: Path, model: torch.nn.Module) -> float:
    """How far our output is from TensorFlow's for the same images, the largest of all."""
    expected = np.load(folder / "expected.npz")
    images_BCHW = torch.from_numpy(expected["images"]).permute(0, 3, 1, 2)
    with torch.inference_mode():
        output = model.eval()(images_BCHW).numpy()
    assert output.shape == expected["output"].shape
    assert expected["output"].std() > 0.1
    return float(np.abs(output - expected["output"]).max())


def test_a_saved_model_gives_tensorflow_s_logits():
    found = resolve(FIXTURES / "classifier")
    assert distance(FIXTURES / "classifier", found.model) < 1e-5  # asked for is 1e-4
    assert found.kind == "keras"
    assert (found.model.config.depth, found.model.config.num_heads, found.model.num_classes) == (2, 4, 5)
    assert found.pretrained_cfg["input_size"] == (3, 16, 16)
    assert "tensorflow" not in sys.modules


def test_it_is_a_model_like_any_other(tmp_path):
    classifier = deepcait.load(FIXTURES / "classifier")
    saved = classifier.save(tmp_path / "ours")
    assert distance(FIXTURES / "classifier", deepcait.load(saved).model) < 1e-5
    facts = describe(FIXTURES / "classifier")
    assert (facts["kind"], facts["params"]) == ("keras", sum(p.numel() for p in classifier.model.parameters()))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("blocks.0.gamma_1", "blocks.0.gamma_2"),
        ("blocks.0.attn.proj_l.weight", "blocks.0.attn.proj_w.weight"),
        ("blocks_token_only.0.attn.k.weight", "blocks_token_only.0.attn.q.weight"),
        ("blocks_token_only.1.norm1.bias", "blocks_token_only.1.norm2.bias"),
        ("blocks.0.norm1.weight", "blocks.1.norm1.weight"),
    ],
)
def test_the_comparison_sees_any_two_tensors_exchanged(one, other):
    model = resolve(FIXTURES / "classifier").model
    state_dict = model.state_dict()
    model.load_state_dict(state_dict | {one: state_dict[other].clone(), other: state_dict[one].clone()})
    assert distance(FIXTURES / "classifier", model) > 1e-3


def test_features_without_their_final_norm_are_reported():
    with pytest.warns(UserWarning, match=r"features: the final norm .* never loaded"):
        found = resolve(FIXTURES / "features")
    assert distance(FIXTURES / "features", found.model) < 1e-5
    assert found.model.num_classes == 0
    assert "_fe" in found.provenance["notes"]


def test_a_final_norm_that_was_loaded_is_no_news(recwarn):
    assert "notes" not in resolve(FIXTURES / "classifier").provenance
    assert not recwarn


def test_shapes_only_reads_no_tensor(folder):
    data = bytearray((folder / DATA).read_bytes())
    shapes, _ = read_saved_model(folder, shapes_only=True)
    whole, _ = read_saved_model(folder)
    assert {key: tensor.shape for key, tensor in shapes.items()} == {key: t.shape for key, t in whole.items()}
    assert all(tensor.is_meta for tensor in shapes.values())
    entry = TensorBundle(folder / "variables" / "variables").entries["pos_embed/.ATTRIBUTES/VARIABLE_VALUE"]
    data[entry.offset] ^= 1
    (folder / DATA).write_bytes(data)
    read_saved_model(folder, shapes_only=True)
    with pytest.raises(WeightsError, match="pos_embed"):
        read_saved_model(folder)


@pytest.mark.parametrize("name", [INDEX, DATA])
@pytest.mark.parametrize("part", [0, 0.1, 0.5, 0.999])
def test_a_cut_file_is_our_error(folder, name, part):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(WeightsError, match="variables"):
        resolve(folder)


@pytest.mark.parametrize("name", [INDEX, DATA])
def test_a_missing_file_is_our_error(folder, name):
    (folder / name).unlink()
    with pytest.raises(WeightsError, match="No such file"):
        resolve(folder)


def flipped(path: Path, offset: int) -> bytes:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    return bytes(data)


def changes_in(path: Path, count: int) -> list[int]:
    size = path.stat().st_size
    return [int(size * (number + 0.5) / count) for number in range(count)]


def is_noticed(folder: Path) -> bool:
    """Whether loading ends in our error; any other exception is a failure of the test."""
    try:
        resolve(folder)
    except WeightsError:
        return True
    return False


@pytest.mark.parametrize("name", [INDEX, DATA])
def test_a_changed_bit_anywhere_is_our_error(folder, name):
    path = folder / name
    whole = path.read_bytes()
    unnoticed = []
    for offset in changes_in(path, 30):
        path.write_bytes(flipped(path, offset))
        if not is_noticed(folder):
            unnoticed.append(offset)
        path.write_bytes(whole)
    # The footer of an index has no checksum and holds padding; nothing else may pass.
    assert all(name == INDEX and offset >= len(whole) - 48 for offset in unnoticed)


def test_a_tensor_that_promises_more_than_the_file_holds(folder):
    """Nothing is set aside for it before the file's size is known."""
    bundle = TensorBundle(folder / "variables" / "variables")
    key = "pos_embed/.ATTRIBUTES/VARIABLE_VALUE"
    bundle.entries[key] = dataclasses.replace(bundle.entries[key], shape=(2**50,), num_bytes=2**52)
    with pytest.raises(WeightsError, match="pos_embed.* up to byte"):
        bundle.read(key)
    bundle.entries[key] = dataclasses.replace(bundle.entries[key], shape=(3,), num_bytes=16)
    with pytest.raises(WeightsError, match="expected pos_embed.*, got 16 bytes"):
        bundle.read(key)


@pytest.mark.parametrize("message", [b"\x0a\x05four", b"\x0d\1\2\3", b"\x08\x80", b"\x08" + b"\x80" * 11 + b"\0"])
def test_a_field_that_ends_too_early_or_never(message):
    with pytest.raises((ValueError, IndexError)):
        tensor_bundle._fields(message)


def test_a_tensor_in_slices_and_an_object_that_is_not_there():
    with pytest.raises(ValueError, match="in slices"):
        tensor_bundle._read_entry(b"\x08\1\x3a\0")
    # One object whose child `a` is the object of this number.
    first, second = (b"\x0a\x07\x0a\x05\x08" + bytes([number]) + b"\x12\1a" for number in (0, 1))
    assert tensor_bundle._read_nodes(first)[0].children == {"a": 0}
    with pytest.raises(ValueError, match="not there"):
        tensor_bundle._read_nodes(second)


def test_without_checksums_changed_weights_would_pass(folder, monkeypatch):
    path = folder / DATA
    entry = TensorBundle(folder / "variables" / "variables").entries["pos_embed/.ATTRIBUTES/VARIABLE_VALUE"]
    path.write_bytes(flipped(path, entry.offset))
    assert is_noticed(folder)
    monkeypatch.setattr(TensorBundle, "read", _read_unchecked)
    assert not is_noticed(folder)


def _read_unchecked(bundle: TensorBundle, key: str) -> np.ndarray:
    entry = bundle.entries[key]
    return np.frombuffer(bundle._bytes(key, entry), dtype="<f4").reshape(entry.shape)


def rewrite_first_block(path: Path, change) -> None:
    """Change the index's first block and mend its checksum, as whoever wrote it so would have."""
    data = bytearray(path.read_bytes())
    with_trailer = tensor_bundle._handle(data[-48:], tensor_bundle._handle(data[-48:], 0)[1])[0]
    (_, value), *_ = tensor_bundle._read_block(path, bytes(data), *with_trailer)
    (offset, size), _ = tensor_bundle._handle(value, 0)
    block = data[offset : offset + size + 1]
    change(block)
    data[offset : offset + size + 1] = block
    data[offset + size + 1 : offset + size + 5] = masked_crc32c(bytes(block)).to_bytes(4, "little")
    path.write_bytes(data)


def test_a_compressed_index_is_refused_and_said_so(folder):
    def compress(block):
        block[-1] = 1

    rewrite_first_block(folder / INDEX, compress)
    with pytest.raises(WeightsError, match="Snappy"):
        resolve(folder)


def test_a_big_endian_checkpoint_is_refused(folder):
    def turn(block):
        # The header is the first entry: three lengths, no key, then the fields shards, byte order (absent: little).
        assert bytes(block[:3]) == bytes((0, 0, 6))
        block[3:9] = bytes((0x08, 1, 0x10, 1, 0x10, 1))

    rewrite_first_block(folder / INDEX, turn)
    with pytest.raises(WeightsError, match="big-endian"):
        resolve(folder)


@pytest.mark.parametrize("seed", range(3))
def test_an_index_of_nonsense_with_sound_checksums_is_our_error(folder, seed):
    generator = np.random.default_rng(seed)
    whole = (folder / INDEX).read_bytes()

    def scramble(block):
        for position in generator.integers(0, len(block) - 1, 8):
            block[position] = generator.integers(0, 256)

    noticed = 0
    for _ in range(20):
        rewrite_first_block(folder / INDEX, scramble)
        noticed += is_noticed(folder)
        (folder / INDEX).write_bytes(whole)
    assert noticed >= 15  # a change in a field that nobody reads is none


def test_another_keras_model_is_named(folder, monkeypatch):
    nodes = TensorBundle(folder / "variables" / "variables").read_objects()
    for missing in ("blocks", "norm", "cls_token"):
        kept = [tensor_bundle.Node(children=dict(n.children), checkpoint_key=n.checkpoint_key) for n in nodes]
        del kept[0].children[missing]
        monkeypatch.setattr(TensorBundle, "read_objects", lambda _, kept=kept: kept)
        with pytest.raises(WeightsError, match=f"not a CaiT as saved by cait-tf: it has no {missing}"):
            resolve(folder)


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 511, 512, 513, 5000, 100_001])
def test_the_checksum_is_that_of_the_definition(length):
    data = np.random.default_rng(length).bytes(length)
    assert crc32c(data) == crc_module._crc32c_plain(data)
    if length:
        assert crc32c(data) != crc32c(data[:-1] + bytes((data[-1] ^ 1,)))
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, the check value of CRC-32C


@pytest.mark.soak
@pytest.mark.skipif(not TENSORFLOW, reason="DEEPCAIT_TENSORFLOW_PYTHON names no Python with TensorFlow")
@pytest.mark.parametrize(
    "options",
    [
        ("--dim=192", "--depth=24", "--heads=4", "--patch=16", "--img-size=224", "--classes=1000"),
        ("--dim=192", "--depth=24", "--heads=4", "--patch=16", "--img-size=224", "--features"),
        ("--untraced",),
        ("--again",),
    ],
    ids=["xxs24", "xxs24 features", "untraced", "saved again"],
)
def test_what_tensorflow_saves_now_loads(tmp_path, options):
    subprocess.run([TENSORFLOW, RECIPE, tmp_path / "saved", *options], check=True, capture_output=True)
    if "--features" in options:
        with pytest.warns(UserWarning, match="final norm"):
            found = resolve(tmp_path / "saved")
    else:
        found = resolve(tmp_path / "saved")
    assert distance(tmp_path / "saved", found.model) < 1e-4
    assert found.name == ("cait_xxs24_224" if "--dim=192" in options else None)
