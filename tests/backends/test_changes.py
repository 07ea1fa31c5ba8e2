"""No change to a module is without effect: what a user does to a part of a block, the lean backend computes too.

Every kind of change is made to every kind of module, in the same way in two equal networks. With the lean backend and
with the reference they must agree, in training and in evaluation, and differ from the network without the change.
"""

from __future__ import annotations

import copy
import functools
import logging

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils._python_dispatch import TorchDispatchMode

from deepcait.backends import branches, lean
from deepcait.runtime import messages
from tests.model.wild import ablated, relative_error, some_images, tiny_config, wild_model

CONFIG = tiny_config(depth=2, drop_path_rate=0.3)
LINEARS = ["attn.qkv", "attn.proj_l", "attn.proj_w", "attn.proj", "mlp.fc1", "mlp.fc2"]
WITH_WEIGHTS = ["norm1", "norm2", *LINEARS]
PARTS = [*WITH_WEIGHTS, "attn", "mlp", "mlp.act", ""]
REPLACEABLE = ["norm1", "norm2", "attn", "mlp", "mlp.act", ""]  # what returns the shape that it is given
BLOCK = "blocks.0"


class Scaled(nn.Module):
    """A user's module in place of another."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, *inputs):
        return 1.5 * self.base(*inputs)


class Adapter(nn.Module):
    """As PEFT puts it in place of a linear layer, whose weight and bias can still be read."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        generator = torch.Generator().manual_seed(3)
        self.down = nn.Parameter(torch.randn(2, base.in_features, generator=generator, dtype=torch.float64))
        self.up = nn.Parameter(torch.randn(base.out_features, 2, generator=generator, dtype=torch.float64))

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


class Half(nn.Module):
    """A parametrization."""

    def forward(self, weight):
        return 0.5 * weight


class Louder(torch.Tensor):
    """A weight with arithmetic of its own: whatever is computed with it is twice as large."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs)
        products = (nn.functional.linear, nn.functional.layer_norm, torch.layer_norm)
        return 2 * out.as_subclass(torch.Tensor) if func in products else out


def replace(model, path, make):
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, make(model.get_submodule(path)))


def subclass(model, path):
    module = model.get_submodule(path)
    base = type(module)
    module.__class__ = type(f"My{base.__name__}", (base,), {"forward": lambda self, x: 1.5 * base.forward(self, x)})


def other_forward(model, path):
    module = model.get_submodule(path)
    module.forward = functools.partial(lambda forward, x: 1.5 * forward(x), module.forward)


def other_attend(model, path):
    module = model.get_submodule(path)
    module.attend = functools.partial(lambda attend, x: (1.5 * attend(x)[0], None, None), module.attend)


def tensor_subclass(model, path):
    module = model.get_submodule(path)
    module.weight = nn.Parameter(module.weight.detach().as_subclass(Louder))


def pruned(model, path):
    module = model.get_submodule(path)
    mask = torch.ones_like(module.weight)
    mask.flatten()[::2] = 0
    prune.custom_from_mask(module, "weight", mask)


def parametrized(model, path):
    parametrize.register_parametrization(model.get_submodule(path), "weight", Half())


def weight_norm(model, path):
    parametrizations.weight_norm(model.get_submodule(path))
    model.get_submodule(path).parametrizations.weight.original0.data.mul_(2)


def old_weight_norm(model, path):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model.get_submodule(path))
    model.get_submodule(path).weight_g.data.mul_(2)


def hook(register):
    return lambda model, path: getattr(model.get_submodule(path), register[0])(register[1])


# name: (what is done, to which parts)
CHANGES = {
    "forward hook": (hook(("register_forward_hook", lambda m, i, out: 1.5 * out)), PARTS),
    "forward pre-hook": (hook(("register_forward_pre_hook", lambda m, i: (1.5 * i[0] + 0.1,))), PARTS),
    "backward hook": (hook(("register_full_backward_hook", lambda m, i, out: (1.5 * i[0],))), PARTS),
    "backward pre-hook": (hook(("register_full_backward_pre_hook", lambda m, out: (1.5 * out[0],))), PARTS),
    "forward replaced": (other_forward, PARTS),
    "subclass": (subclass, PARTS),
    "own module": (functools.partial(replace, make=Scaled), PARTS),
    "identity": (functools.partial(replace, make=lambda _: nn.Identity()), REPLACEABLE),
    "adapter": (functools.partial(replace, make=Adapter), LINEARS),
    "parametrization": (parametrized, WITH_WEIGHTS),
    "pruning": (pruned, WITH_WEIGHTS),
    "weight norm": (weight_norm, LINEARS),
    "weight norm of old": (old_weight_norm, LINEARS),
    "tensor subclass": (tensor_subclass, WITH_WEIGHTS),
    "another activation": (functools.partial(replace, make=lambda _: nn.GELU(approximate="tanh")), ["mlp.act"]),
    "another epsilon": (functools.partial(replace, make=lambda norm: _with_eps(norm)), ["norm1", "norm2"]),
    "another scale": (lambda m, p: setattr(m.get_submodule(p), "scale", 0.9), ["attn"]),
    "attend replaced": (other_attend, ["attn"]),
    "a rate of its own": (lambda m, p: setattr(m.get_submodule(p), "drop_path_rate", 0.8), [""]),
    "its own mode": (lambda m, p: setattr(m.get_submodule(p), "training", not m.training), [""]),
}  # fmt: skip


def _with_eps(norm):
    other = nn.LayerNorm(norm.normalized_shape, eps=0.5, dtype=norm.weight.dtype)
    other.load_state_dict(norm.state_dict())
    return other


def outcome(backend: str, training: bool, change=lambda model: None):
    """Logits, and the gradient of every parameter by name, of the network after a change."""
    model = wild_model(CONFIG).train(training)
    model.set_backend(backend)
    change(model)
    images = some_images(CONFIG, 8).requires_grad_()
    torch.manual_seed(5)  # of stochastic depth
    logits = model(images)
    logits.square().sum().backward()
    grads = {name: p.grad.as_subclass(torch.Tensor) for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), grads | {"images": images.grad}


def assert_same(got, expected):
    (logits, grads), (wanted, wanted_grads) = got, expected
    assert relative_error(logits, wanted) < 1e-9
    assert grads.keys() == wanted_grads.keys()
    for name, grad in wanted_grads.items():
        assert (grads[name] - grad).norm() <= 1e-8 * max(grad.norm(), 1.0), name


@functools.cache
def unchanged(training: bool):
    return outcome("reference", training)


CASES = [(name, part) for name, (_, parts) in CHANGES.items() for part in parts]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize(("name", "part"), CASES, ids=[f"{name}: {part or 'block'}" for name, part in CASES])
def test_a_change_has_its_effect(name, part, caplog):
    act, path = CHANGES[name][0], f"{BLOCK}.{part}".rstrip(".")
    found = []
    for training in (True, False):
        expected = outcome("reference", training, lambda model: act(model, path))
        caplog.clear()
        messages._LOGGED.clear()
        assert_same(outcome("lean", training, lambda model: act(model, path)), expected)
        wanted, wanted_grads = unchanged(training)
        same = torch.equal(expected[0], wanted) and torch.equal(expected[1]["images"], wanted_grads["images"])
        found.append(not same)
        if CHANGES[name][0] not in TAKEN:
            (record,) = caplog.records  # one line: this block alone, and why
            assert (record.name, record.levelno) == ("deepcait.backends", logging.WARNING)
            assert record.getMessage().startswith(
                f"computed layer by layer (backend reference, same results): block 0: {part}"
            )
    # Where a module's bias or norm makes it invisible (queries and keys after the softmax), its gradient shows it.
    assert any(found), "the change itself did nothing: nothing was tested"


# What the backend computes itself.
TAKEN = {CHANGES[name][0] for name in ("another epsilon", "a rate of its own", "its own mode")}


def test_a_hook_for_all_modules():
    fired = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, i, out: fired.append(type(module).__name__))
    try:
        outcome("lean", training=False)
    finally:
        handle.remove()
    assert fired.count("TalkingHeadsAttention") == fired.count("LayerScaleBlock") == CONFIG.depth
    outcome("lean", training=False)
    assert fired.count("LayerScaleBlock") == CONFIG.depth  # lean again


def test_a_forward_replaced_in_the_class(monkeypatch):
    forward = nn.GELU.forward
    monkeypatch.setattr(nn.GELU, "forward", lambda self, x: 1.5 * forward(self, x))
    assert_same(outcome("lean", training=False), outcome("reference", training=False))


def test_weights_of_another_type_are_left_to_the_reference(caplog):
    model = wild_model(CONFIG, dtype=torch.float32)
    model.blocks[1].mlp.half()
    with pytest.raises(RuntimeError):
        model(some_images(CONFIG, dtype=torch.float32))
    assert "block 1: mlp.fc1 has its weight in torch.float16, not torch.float32" in caplog.text


@torch.no_grad()
def test_dynamic_quantization():
    torch.ao.quantization.quantize_dynamic  # noqa: B018 - this test is for as long as PyTorch has it
    model = wild_model(CONFIG, dtype=torch.float32)
    images = some_images(CONFIG, dtype=torch.float32)
    exact = model(images)
    model = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    lean = model(images)
    model.set_backend("reference")
    assert torch.equal(model(images), lean)
    assert 1e-3 < relative_error(lean, exact) < 0.5


@pytest.mark.parametrize("backend", ["lean", "reference"])
def test_hooks_of_every_module_run_once(backend):
    """Forward and backward, those of the class blocks' attention too; lists of modules are not called."""
    model = wild_model(CONFIG).train()
    model.set_backend(backend)
    expected = [name for name, module in model.named_modules() if not isinstance(module, nn.ModuleList)]
    forward, backward = [], []
    for name in expected:
        module = model.get_submodule(name)
        module.register_forward_hook(lambda *_, name=name: forward.append(name))
        module.register_full_backward_hook(lambda *_, name=name: backward.append(name))
    images = some_images(CONFIG).requires_grad_()
    model(images).sum().backward()
    assert sorted(forward) == sorted(backward) == sorted(expected)
    assert "blocks_token_only.0.attn" in forward


def test_grad_cam_at_the_last_norm():
    """As pytorch-grad-cam does it: a hook keeps activations, and a hook on their tensor keeps the gradient."""
    found = {}
    for backend in ("lean", "reference"):
        model = wild_model(CONFIG)
        model.set_backend(backend)
        kept = []

        def keep(module, inputs, output, kept=kept):
            kept.append(output.detach())
            output.register_hook(kept.append)

        model.blocks[-1].norm1.register_forward_hook(keep)
        model(some_images(CONFIG))[:, 3].sum().backward()
        found[backend] = kept
    for got, wanted in zip(*found.values(), strict=True):
        assert wanted.abs().max() > 0
        assert relative_error(got, wanted) < 1e-9


@pytest.mark.parametrize("part", ["", "norm1", "attn", *LINEARS, "mlp", "mlp.act", "norm2"])
@pytest.mark.parametrize("backend", ["lean", "reference"])
def test_a_hook_in_a_block_with_another_residual_rule(part, backend):
    """There lean computes only what is between the linear layers of the attention; the rest is called anyway."""
    model = ablated(residual="rezero", config=CONFIG)
    model.set_backend(backend)
    images, fired = some_images(CONFIG), []
    model.get_submodule(f"{BLOCK}.{part}".rstrip(".")).register_forward_hook(lambda *_: fired.append(1))
    model(images)
    assert fired == [1]


def test_lean_is_the_reference_with_another_residual_rule():
    model, images = ablated(residual="rezero", config=CONFIG), some_images(CONFIG)
    assert model.describe_backend() == "lean (auto)"
    lean = model(images)
    model.set_backend("reference")
    assert relative_error(lean, model(images)) < 1e-12


class Waits(TorchDispatchMode):
    """Finds operators that wait for a device: those that read a value or copy to another device, ours looked into."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        ours = (branches.attention_branch, branches.mlp_branch)
        ours += (branches.attention_branch_backward, branches.mlp_branch_backward)
        self._inside = {operator: operator.__wrapped__ for operator in ours}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in self._inside:
            with self:
                return self._inside[func](*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        if name in ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "allclose", "unique2"):
            self.found.append(name)
        if name == "_to_copy" and (kwargs or {}).get("device") is not None:
            self.found.append("copy to another device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", ["lean", "reference"])
def test_a_step_of_the_model_waits_for_nothing(backend):
    """Forward and backward, with stochastic depth: no value is read, so a GPU's queue never runs dry."""
    model, images = wild_model(CONFIG).train(), some_images(CONFIG)
    model.set_backend(backend)
    with Waits() as waits:
        model(images).square().sum().backward()
        assert waits.found == []
        model.head.bias.sum().item()
    assert waits.found == ["_local_scalar_dense"]  # the test can fail


# -- what is lean, and what is said ------------------------------------------------------------------------------------


def test_an_unchanged_model_is_lean_and_silent(caplog):
    model = wild_model(CONFIG)
    model(some_images(CONFIG))
    assert (model.backend, model.describe_backend()) == ("auto", "lean (auto)")
    assert model.describe_backend("cuda") == "reference (auto)"
    assert not caplog.records


def test_all_blocks_are_checked_for_the_line_once_and_not_in_every_pass(monkeypatch):
    calls, changes = [], lean.Lean._changes
    monkeypatch.setattr(lean.Lean, "_changes", lambda self, *args: calls.append(1) or changes(self, *args))
    model, images = wild_model(CONFIG), some_images(CONFIG)
    for block in model.blocks:
        block.mlp.act = nn.ReLU()
    for _ in range(3):
        model(images)
    assert len(calls) == 1


def test_one_line_says_which_blocks_and_why_until_something_else_changes(caplog):
    model, images = wild_model(CONFIG), some_images(CONFIG)
    handle = model.blocks[0].attn.qkv.register_forward_hook(lambda *_: None)
    model.blocks[1].mlp.act = nn.ReLU()
    for _ in range(3):
        model(images)
    copy.deepcopy(model)(images)  # as a training makes copies, for averages and for saving
    text = "block 0: attn.qkv has hooks; block 1: mlp.act is ReLU instead of GELU"
    assert [record.getMessage() for record in caplog.records] == [
        f"computed layer by layer (backend reference, same results): {text}"
    ]
    assert model.describe_backend() == f"lean (auto); the reference for {text}"
    handle.remove()
    model.blocks[1].mlp.act = nn.GELU()
    model(images)
    assert len(caplog.records) == 1
    assert model.describe_backend() == "lean (auto)"


def lean_operators(model, images) -> int:
    """How many operators of ours a program made by torch.compile holds."""
    found = []

    def count(graph, inputs):
        found.extend(node for node in graph.graph.nodes if "deepcait" in str(node.target))
        return graph.forward

    torch.compiler.reset()
    torch.compile(model, backend=count, fullgraph=True)(images)
    return len(found)


def test_compiled_programs_hold_the_backend_that_was_chosen():
    images = some_images(CONFIG)
    model = wild_model(CONFIG)
    assert lean_operators(model, images) == 2 * CONFIG.depth
    model.blocks[0].norm2.register_forward_hook(lambda m, i, out: 1.5 * out)
    assert lean_operators(model, images) == 2 * (CONFIG.depth - 1)
    model.set_backend("reference")
    assert lean_operators(model, images) == 0


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_exported_and_traced_programs_hold_the_reference(caplog):
    model, images = wild_model(CONFIG), some_images(CONFIG)
    exported = torch.export.export(model, (images,)).graph
    with pytest.warns(FutureWarning, match="jit.trace"):
        traced = torch.jit.trace(model, images).inlined_graph
    assert "deepcait::" not in str(traced)
    assert "deepcait." not in str(exported)


def test_the_old_name_of_set_backend():
    model = wild_model(CONFIG)
    for enable, name in ((False, "reference"), (True, "lean")):
        with pytest.warns(FutureWarning, match="set_backend"):
            model.set_lean_attention(enable)
        assert model.backend == name


def test_an_unknown_backend_is_refused():
    from deepcait.errors import ConfigError

    with pytest.raises(ConfigError, match="auto, reference, lean, got 'fast'"):
        wild_model(CONFIG).set_backend("fast")
