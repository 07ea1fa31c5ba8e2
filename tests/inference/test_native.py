"""The patch stage as machine code: the same function, whatever the batch, the threads and the machine it is for."""

from __future__ import annotations

import copy
import ctypes
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch

from deepcait.inference import native
from deepcait.inference.fold import FoldedCaiT, fold
from deepcait.runtime import compiler
from deepcait.runtime.environment import processor_flags
from tests.inference.tiny import scrambled, spread_of_difference

SMALL = {"embed_dim": 96, "depth": 2, "num_heads": 6, "img_size": (40, 56), "patch_size": 8}
needs_compiler = pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")


@pytest.fixture
def restored_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def packed(model) -> FoldedCaiT:
    folded = fold(model)
    assert folded.pack()
    return folded


def tokens(folded: FoldedCaiT, batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, folded.config.num_patches, folded.config.embed_dim, generator=generator)


@needs_compiler
@pytest.mark.parametrize(
    ("heads", "head_width", "img_size", "mlp_ratio"),
    [(1, 32, 8, 4.0), (3, 16, (24, 72), 2.0), (4, 48, 112, 4.0), (6, 48, 56, 4.0), (8, 32, 40, 3.5), (16, 48, 32, 1.0)],
)
def test_the_same_function_of_the_images(heads, head_width, img_size, mlp_ratio):
    sizes = {"embed_dim": heads * head_width, "depth": 2, "num_heads": heads, "img_size": img_size, "patch_size": 8}
    model = scrambled(**sizes, mlp_ratio=mlp_ratio)
    folded = packed(model)
    images_BCHW = torch.randn(3, 3, *folded.config.img_size)
    with torch.no_grad():
        assert spread_of_difference(folded(images_BCHW), model(images_BCHW)) < 1e-5


@needs_compiler
@pytest.mark.usefixtures("restored_threads")
def test_neither_batch_nor_threads_change_a_bit():
    folded = packed(scrambled(**SMALL))
    all_BND = tokens(folded, 5)
    torch.set_num_threads(1)
    expected = torch.cat([folded.run_blocks(one_1ND) for one_1ND in all_BND.split(1)])
    for threads in (1, 2, 3, 40):
        torch.set_num_threads(threads)
        for batch in (1, 2, 3, 5):
            found = folded.run_blocks(all_BND[:batch])
            assert torch.equal(found, expected[:batch]), (threads, batch)


@needs_compiler
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_image_spoils_itself_only(bad):
    folded = packed(scrambled(**SMALL))
    images_BCHW = torch.randn(3, 3, *SMALL["img_size"])
    with torch.no_grad():
        expected = folded(images_BCHW)
        images_BCHW[1, 2, 30, 11] = bad
        found = folded(images_BCHW)
    assert found[1].isnan().all()
    assert torch.equal(found[::2], expected[::2])


@needs_compiler
def test_tokens_stay_as_they_are():
    folded = packed(scrambled(**SMALL))
    mine_BND = tokens(folded, 2)
    kept_BND = mine_BND.clone()
    turned_BND = mine_BND.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(folded.run_blocks(mine_BND), folded.run_blocks(turned_BND))
    assert torch.equal(mine_BND, kept_BND)


@needs_compiler
def test_what_was_packed_follows_the_model():
    one, other = (fold(scrambled(**SMALL)) for _ in range(2))
    with torch.no_grad():
        other.blocks[0].mix_l.mul_(-1)
    mine_BND = tokens(one, 1)
    before = one.run_blocks(mine_BND)
    one.load_state_dict(other.state_dict())
    assert torch.equal(one.run_blocks(mine_BND), other.run_blocks(mine_BND))
    assert not torch.equal(one.run_blocks(mine_BND), before)
    double = copy.deepcopy(one).double()
    assert not double.pack()
    assert (double.run_blocks(mine_BND.double()) - one.run_blocks(mine_BND)).abs().max() < 1e-3
    assert torch.equal(double.float().run_blocks(mine_BND), one.run_blocks(mine_BND))


@needs_compiler
def test_what_was_packed_follows_a_part_and_does_not_travel():
    """The order of packed weights is that of one machine's vectors; a copy packs its own."""
    one, other = (packed(scrambled(**SMALL)) for _ in range(2))
    with torch.no_grad():
        other.blocks[0].mix_l.mul_(-1)
    torch.nn.Sequential(one).load_state_dict(torch.nn.Sequential(other).state_dict())
    again = pickle.loads(pickle.dumps(one))
    assert again._packed is None
    mine_BND = tokens(one, 1)
    expected = copy.deepcopy(other).run_blocks(mine_BND)
    assert torch.equal(one.run_blocks(mine_BND), expected)
    assert torch.equal(again.run_blocks(mine_BND), expected)


@needs_compiler
def test_a_graph_holds_the_stage_as_one_operator():
    folded = packed(scrambled(**SMALL))
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    run = torch.compile(folded, dynamic=True, fullgraph=True, backend=backend)
    images_BCHW = torch.randn(4, 3, *SMALL["img_size"])
    with torch.inference_mode():
        assert torch.equal(run(images_BCHW), folded(images_BCHW))
        assert torch.equal(run(images_BCHW[:2]), folded(images_BCHW[:2]))
    (graph,) = graphs
    assert [str(node.target) for node in graph.graph.nodes].count("deepcait.patch_stage.default") == 1
    program = torch.export.export(folded, (images_BCHW,))
    assert not [node for node in program.graph.nodes if "deepcait" in str(node.target)]


def test_sizes_that_the_code_is_not_for():
    for sizes in ({"embed_dim": 36, "num_heads": 3}, {"embed_dim": 34 * 16, "num_heads": 34}, {"mlp_ratio": 1.1}):
        model = scrambled(**SMALL | {"depth": 1} | sizes)
        folded = fold(model)
        assert not folded.pack()
        images_BCHW = torch.randn(2, 3, *SMALL["img_size"])
        with torch.no_grad():
            assert spread_of_difference(folded(images_BCHW), model(images_BCHW)) < 1e-5


def test_pytorch_does_it_where_the_code_is_not_wanted():
    """In a process of its own: this one has loaded the code already."""
    code = (
        "import torch\n"
        "from deepcait.inference.fold import fold\n"
        "from tests.inference.test_native import SMALL, scrambled, spread_of_difference\n"
        "model = scrambled(**SMALL)\n"
        "folded, images_BCHW = fold(model), torch.randn(3, 3, *SMALL['img_size'])\n"
        "assert not folded.pack()\n"
        "with torch.no_grad():\n"
        "    assert spread_of_difference(folded(images_BCHW), model(images_BCHW)) < 1e-5\n"
        "print('done')\n"
    )
    environment = os.environ | {"DEEPCAIT_NATIVE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "done", done.stderr


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_a_missing_or_broken_compiler_is_no_error(tmp_path, monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.library.__wrapped__() is None


def test_a_user_without_a_home_is_no_error(monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(native.Path, "home", homeless)
    assert native.library.__wrapped__() is None


def test_it_is_compiled_once_and_again_for_another_processor_compiler_source_or_flag(tmp_path, monkeypatch):
    """Code for another processor would end the process."""
    fake = tmp_path / "fake++"
    fake.write_text(f'#!/bin/sh\necho called >> {tmp_path}/calls\nfor last; do :; done\necho code > "$last"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = native.compiled()
    assert first.read_text() == "code\n"
    assert native.compiled() == first
    found = {first}
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "processor", lambda: "another")
        found.add(native.compiled())
    with monkeypatch.context() as patch:
        patch.setattr(native, "FLAGS", (*native.FLAGS, "-DX"))
        found.add(native.compiled())
    with monkeypatch.context() as patch:
        patch.setenv("CXX", f"{fake} -DX")
        found.add(native.compiled())
    with monkeypatch.context() as patch:
        (tmp_path / "source.cpp").write_text("other")
        patch.setattr(native, "SOURCES", (tmp_path / "source.cpp", *native.SOURCES[1:]))
        found.add(native.compiled())
    assert len(found) == len((tmp_path / "calls").read_text().splitlines()) == 5
    assert sorted(first.parent.iterdir()) == sorted(found)


@needs_compiler
def test_a_compiler_with_words_behind_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", f"{os.environ.get('CXX', 'g++')} -DNOBODY_READS_THIS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "FLAGS", ("-O1", *native.FLAGS[1:]))
    assert native.compiled().is_file()


@needs_compiler
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("vectors.h", "1.60960333262415e-02f", "1.62e-02f"),
        ("mixing.h", "mixing.bias[b]", "mixing.bias[0]"),
        ("products.h", "begin(p.bias ?", "begin(p.bias && at.row == 0 ?"),
        ("patch_stage.cpp", "room.read + m * units", "room.read"),
    ],
)
def test_code_that_computes_something_else_is_not_trusted(tmp_path, monkeypatch, file, old, new):
    for source in native.SOURCES:
        text = source.read_text(encoding="utf-8")
        if source.name == file:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / source.name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(native, "SOURCES", tuple(tmp_path / source.name for source in native.SOURCES))
    monkeypatch.setattr(native, "FLAGS", ("-O1", *native.FLAGS[1:]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not native._agrees(native._declared(ctypes.CDLL(str(native.compiled()))))


@needs_compiler
@pytest.mark.skipif("avx2" not in processor_flags(), reason="no AVX2")
def test_processors_without_avx512_get_code_too(tmp_path, monkeypatch):
    flags = tuple("-march=x86-64-v3" if flag == "-march=native" else flag for flag in native.FLAGS)
    monkeypatch.setattr(native, "FLAGS", flags)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = native._declared(ctypes.CDLL(str(native.compiled())))
    assert native._agrees(code)
    assert code.patch_stage_block(1, 4, 8, 32) > 0
    assert code.patch_stage_block(2, 4, 8, 32) == 0
