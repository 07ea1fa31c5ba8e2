"""The parity check can fail: each line below breaks one sentence of the paper in a fresh copy of our source.

A breakage is a replacement in the text of deepcait/model; the copy is run from its text, the real modules stay as
they are. Where a row is no longer found in the source, repair the row.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import types

import pytest
import torch

from deepcait.model import CaiT
from tests.model.reference import cait_logits
from tests.model.wild import relative_error, some_images, timm_twin, tiny_config, wild_model

MODULES = ["attention", "block", "cait"]  # in the order of their imports
CONFIG = tiny_config(depth=3)


def broken_class(monkeypatch, module: str, *replacements: tuple[str, str]) -> type[CaiT]:
    """CaiT out of fresh modules, one of which has some of its text replaced; no replacement: CaiT once more."""
    # Loaded first: below they are looked up while sys.modules holds copies.
    originals = {name: importlib.import_module(f"deepcait.model.{name}") for name in MODULES}
    with monkeypatch.context() as patch:
        for name, original in originals.items():
            source = inspect.getsource(original)
            for old, new in replacements if name == module else ():
                count = source.count(old)
                assert count == 1, f"{old!r} stands {count} times in deepcait/model/{name}.py; repair this row"
                source = source.replace(old, new)
            copy = types.ModuleType(original.__name__)
            patch.setitem(sys.modules, original.__name__, copy)
            exec(compile(source, f"broken {name}.py", "exec"), copy.__dict__)
    return copy.CaiT


def wild_copy(model_class: type[CaiT], config=CONFIG) -> CaiT:
    """The class with the weights that `wild_model` has."""
    model = model_class(config).double().eval()
    # The rows break the equations; test_lean.py breaks the lean backend.
    model.set_backend("reference")
    model.load_state_dict(wild_model(config).state_dict())
    return model


@pytest.fixture(scope="module")
def images():
    return some_images(CONFIG)


@pytest.fixture(scope="module")
def oracles(images):
    """What timm and the slow reference say, both from the wild weights."""
    model = wild_model(CONFIG)
    with torch.no_grad():
        return [timm_twin(model)(images), torch.from_numpy(cait_logits(model.state_dict(), CONFIG, images))]


def agrees(model: CaiT, images, oracle) -> bool:
    """The parity check: logits within 1e-5 of their spread."""
    with torch.no_grad():
        return relative_error(model(images), oracle) < 1e-5


# name: (module, text, text, ...) with the texts in pairs of old and new
BROKEN = {
    "self-attention: scale dropped": ("attention", "(q_BANE * self.scale)", "q_BANE"),
    "self-attention: scale applied twice": ("attention", "(q_BANE * self.scale)", "(q_BANE * self.scale**2)"),
    "class attention: scale dropped": ("attention", "(q_BA1E * self.scale)", "q_BA1E"),
    "class attention: scale applied twice": ("attention", "(q_BA1E * self.scale)", "(q_BA1E * self.scale**2)"),
    "first mixing dropped": ("attention", "mix_heads(self.proj_l, scores_BANN)", "scores_BANN"),
    "first mixing transposed": (
        "attention",
        "mix_heads(self.proj_l, scores_BANN)",
        "torch.einsum('baij,ag->bgij', scores_BANN, self.proj_l.weight) + self.proj_l.bias[:, None, None]",
    ),
    "second mixing dropped": ("attention", "mix_heads(self.proj_w, weights_BANN)", "weights_BANN"),
    "second mixing transposed": (
        "attention",
        "mix_heads(self.proj_w, weights_BANN)",
        "torch.einsum('baij,ag->bgij', weights_BANN, self.proj_w.weight) + self.proj_w.bias[:, None, None]",
    ),
    "mixings exchanged": (
        "attention",
        *("mix_heads(self.proj_l, scores_BANN)", "mix_heads(self.proj_w, scores_BANN)"),
        *("mix_heads(self.proj_w, weights_BANN)", "mix_heads(self.proj_l, weights_BANN)"),
    ),
    "bias of proj_w dropped": (
        "attention",
        "mix_heads(self.proj_w, weights_BANN)",
        "mix_heads(self.proj_w, weights_BANN) - self.proj_w.bias[:, None, None]",
    ),
    "softmax over the queries": ("attention", "scores.softmax(-1,", "scores.softmax(-2,"),
    "query and key exchanged": ("attention", "q_BANE, k_BANE, v_BANE =", "k_BANE, q_BANE, v_BANE ="),
    "class token missing among the keys": (
        "attention",
        *("self.k(tokens_BTD), ", "self.k(tokens_BTD[:, 1:]), "),
        *("self.v(tokens_BTD)", "self.v(tokens_BTD[:, 1:])"),
    ),
    "class-only residual: patches pass through it too": (
        "cait",
        "            cls_B1D = self._run(block, cls_B1D, patches_BND)\n",
        "            cls_B1D = self._run(block, cls_B1D, patches_BND)\n"
        "            patches_BND = patches_BND + block.gamma_1 * block.norm1(patches_BND)\n",
    ),
    "class-only residual: patches pass through the MLP too": (
        "cait",
        "            cls_B1D = self._run(block, cls_B1D, patches_BND)\n",
        "            cls_B1D = self._run(block, cls_B1D, patches_BND)\n"
        "            patches_BND = patches_BND + block.gamma_2 * block.mlp(block.norm2(patches_BND))\n",
    ),
    "class stage: residual of the attention dropped": ("block", "cls_B1D + self.gamma_1 *", "self.gamma_1 *"),
    "class stage: residual of the MLP dropped": ("block", "cls_B1D + self.gamma_2 *", "self.gamma_2 *"),
    "class stage: MLP from the token before the attention": (
        "block",
        "        cls_B1D = cls_B1D + self.gamma_1 * self.attn(u_BTD)\n"
        "        return cls_B1D + self.gamma_2 * self.mlp(self.norm2(cls_B1D))",
        "        branch_B1D = self.gamma_2 * self.mlp(self.norm2(cls_B1D))\n"
        "        return cls_B1D + self.gamma_1 * self.attn(u_BTD) + branch_B1D",
    ),
    "shared norm: patches come as they are": (
        "block",
        "self.norm1(torch.cat((cls_B1D, patches_BND), dim=1))",
        "torch.cat((self.norm1(cls_B1D), patches_BND), dim=1)",
    ),
    "shared norm: class token comes as it is": (
        "block",
        "self.norm1(torch.cat((cls_B1D, patches_BND), dim=1))",
        "torch.cat((cls_B1D, self.norm1(patches_BND)), dim=1)",
    ),
    "patch stage: gamma_1 dropped": (
        "block",
        "self.gamma_1 * self.attn(self.norm1(tokens_BND))",
        "self.attn(self.norm1(tokens_BND))",
    ),
    "patch stage: gamma_2 dropped": (
        "block",
        "self.gamma_2 * self.mlp(self.norm2(tokens_BND))",
        "self.mlp(self.norm2(tokens_BND))",
    ),
    "class stage: gamma_1 dropped": ("block", "self.gamma_1 * self.attn(u_BTD)", "self.attn(u_BTD)"),
    "class stage: gamma_2 dropped": (
        "block",
        "self.gamma_2 * self.mlp(self.norm2(cls_B1D))",
        "self.mlp(self.norm2(cls_B1D))",
    ),
    "norm without its epsilon": ("block", "NORM_EPS = 1e-6", "NORM_EPS = 1e-3"),
    "GELU by tanh": ("block", "nn.GELU()", "nn.GELU(approximate='tanh')"),
    "position added twice": ("cait", "+ self.pos_embed\n", "+ 2 * self.pos_embed\n"),
    "last norm dropped": (
        "cait",
        "needs it.\n        return self.forward_head(self.norm(cls_B1D))",
        "needs it.\n        return self.forward_head(cls_B1D)",
    ),
}


def pairs(texts: tuple[str, ...]) -> list[tuple[str, str]]:
    return list(zip(texts[::2], texts[1::2], strict=True))


@pytest.mark.parametrize("oracle", [0, 1], ids=["timm", "reference"])
def test_the_unbroken_copy_agrees(monkeypatch, images, oracles, oracle):
    assert agrees(wild_model(CONFIG), images, oracles[oracle])
    fresh = broken_class(monkeypatch, "attention")
    assert fresh is not CaiT
    assert agrees(wild_copy(fresh), images, oracles[oracle])


@pytest.mark.parametrize("oracle", [0, 1], ids=["timm", "reference"])
@pytest.mark.parametrize(("module", "texts"), [(m, t) for m, *t in BROKEN.values()], ids=BROKEN)
def test_a_broken_network_does_not_agree(monkeypatch, images, oracles, oracle, module, texts):
    broken = wild_copy(broken_class(monkeypatch, module, *pairs(texts)))
    assert not agrees(broken, images, oracles[oracle])


def test_the_paper_s_initial_values_would_hide_a_breakage(monkeypatch, images):
    """Why the weights are wild: at the initial gamma of a deep network the same check sees nothing."""
    tame = CaiT(CONFIG.replace(layer_scale_init=1e-6)).double().eval()
    broken = broken_class(monkeypatch, *BROKEN["first mixing dropped"][:1], *pairs(BROKEN["first mixing dropped"][1:]))
    twin = broken(tame.config).double().eval()
    twin.load_state_dict(tame.state_dict())
    with torch.no_grad():
        assert agrees(twin, images, tame(images))


# -- what no test can see ----------------------------------------------------------------------------------------------

INVISIBLE = {
    "scale moved behind the first mixing": (
        "attention",
        *("(q_BANE * self.scale)", "q_BANE"),
        *("mix_heads(self.proj_l, scores_BANN)", "mix_heads(self.proj_l, scores_BANN) * self.scale"),
    ),
    "proj_l.bias dropped": (
        "attention",
        "mix_heads(self.proj_l, scores_BANN)",
        "mix_heads(self.proj_l, scores_BANN) - self.proj_l.bias[:, None, None]",
    ),
    "key bias of self-attention dropped": (
        "attention",
        "self._split(self.qkv(tokens_BND))",
        "self._split(self.qkv(tokens_BND) - nn.functional.pad(self.qkv.bias.chunk(3)[1], 2 * tokens_BND.shape[2:]))",
    ),
    "key bias of class attention dropped": (
        "attention",
        "self.k(tokens_BTD), ",
        "self.k(tokens_BTD) - self.k.bias, ",
    ),
    "gamma exchanged with drop-path": (
        "block",
        *("self._drop_path(self.gamma_1 * self.attn(", "self.gamma_1 * self._drop_path(self.attn("),
        *("self._drop_path(self.gamma_2 * self.mlp(", "self.gamma_2 * self._drop_path(self.mlp("),
    ),
}


@pytest.mark.parametrize(("module", "texts"), [(m, t) for m, *t in INVISIBLE.values()], ids=INVISIBLE)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_what_no_test_can_see(monkeypatch, images, module, texts, training):
    """In training under the same random masks: both models draw from the same seed."""
    config = CONFIG.replace(drop_path_rate=0.4)
    models = wild_copy(CaiT, config), wild_copy(broken_class(monkeypatch, module, *pairs(texts)), config)
    many = images.repeat(4, 1, 1, 1)
    logits = []
    for model in models:
        torch.manual_seed(5)
        with torch.no_grad():
            logits.append(model.train(training)(many))
    assert relative_error(logits[1], logits[0]) < 1e-12
    if training:
        torch.manual_seed(6)
        assert relative_error(models[0](many), logits[0]) > 1e-3  # the masks do bite
