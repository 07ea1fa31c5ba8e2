"""The private names of PyTorch that the package uses: each is listed here, and present in the installed version."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
import torch

PACKAGE = Path(__file__).parent.parent / "deepcait"

# Private: a part of the name begins with an underscore. PyTorch may change these without notice in any release.
PRIVATE = {
    "torch._C._functorch.peek_interpreter_stack": "whether torch.func transforms are active; no public equivalent",
    "torch._dynamo.exc.TorchDynamoException": "the base class of what torch.compile raises",
    "torch._functorch.config.activation_memory_budget": "what the compiler may save of the activations",
    "torch._foreach_lerp_": "averages all weights in one call",
    "torch._inductor.cpp_builder.get_cpp_compiler": "finds the C++ compiler that torch.compile uses",
    "torch._inductor.exc.InvalidCxxCompiler": "raised if there is none",
    "torch._int_mm": "a matrix product in int8: the limit that int8 is compared with",
    "torch._softmax_backward_data": "the backward pass of softmax from its output",
    "torch._subclasses.fake_tensor.FakeTensor": "a tensor that counts memory without computing, which lean takes",
    "torch._subclasses.fake_tensor.FakeTensorMode": "counts memory without computing",
    "torch.autograd.forward_ad._current_level": "whether forward-mode AD is active; no public equivalent",
    "torch.nn.modules.module._has_any_global_hook": "whether hooks for all modules exist; no public equivalent",
    "torch.ops.mkldnn._linear_pointwise": "a linear layer fused with GELU or an addition",
    "torch.ops.mkldnn._reorder_linear_weight": "packs a weight for it",
    "torch.utils._python_dispatch.TorchDispatchMode": "sees every operator; documented as an extension point",
    "torch.utils._pytree.tree_leaves": "tensors in nested containers",
}


def torch_names(source: str) -> set[str]:
    """Full dotted names that a module takes from torch, as far as its text shows them."""
    tree = ast.parse(source)
    aliases = {"torch": "torch"}
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                names.add(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "torch":
                    names.add(alias.name)
                    if alias.asname:
                        aliases[alias.asname] = alias.name
    for node in ast.walk(tree):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if parts and isinstance(node, ast.Name) and node.id in aliases:
            names.add(".".join([aliases[node.id], *reversed(parts)]))
    return names


def private(names: set[str]) -> set[str]:
    """Those with a private part, cut after the longest listed name; dunder names are public."""
    found = {name for name in names if any(p.startswith("_") and not p.startswith("__") for p in name.split("."))}
    # `torch._C` on the way to `torch._C._functorch.peek_interpreter_stack` is no use of its own.
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


@pytest.fixture(scope="module")
def used() -> dict[str, list[str]]:
    """Private names, each with the files that use it."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in private(torch_names(path.read_text(encoding="utf-8"))):
            found.setdefault(name, []).append(str(path.relative_to(PACKAGE.parent)))
    return found


def test_every_private_name_in_use_is_listed(used):
    unlisted = {name: files for name, files in used.items() if name not in PRIVATE}
    assert not unlisted, f"use a public name of PyTorch, or list it in PRIVATE with the reason: {unlisted}"
    unused = sorted(set(PRIVATE) - set(used))
    assert not unused, f"no longer used: remove it from PRIVATE: {unused}"


def resolve(name: str) -> object:
    """The object behind a dotted name; modules on the way are imported. Raises AttributeError."""
    found: object = torch
    path = "torch"
    for part in name.split(".")[1:]:
        path = f"{path}.{part}"
        if not hasattr(found, part):
            try:
                importlib.import_module(path)
            except ImportError as error:
                raise AttributeError(path) from error
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", PRIVATE)
def test_the_installed_version_has_it(used, name):
    if ".mkldnn." in name and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch was built without oneDNN")
    try:
        resolve(name)
    except AttributeError:
        pytest.fail(
            f"PyTorch {torch.__version__} has no {name} ({PRIVATE[name]}), used in {', '.join(used.get(name, []))}: "
            "find its replacement before this version is supported."
        )


def test_private_names_are_found():
    source = """
import torch
import torch._dynamo as dynamo
from torch import nn
from torch.autograd import forward_ad as ad
from torch.utils._pytree import tree_map
torch._C._x(torch.ops.a._b, torch.__version__, nn.Linear)
ad._level, dynamo.reset()
"""
    assert private(torch_names(source)) == {
        "torch._C._x",
        "torch.ops.a._b",
        "torch.autograd.forward_ad._level",
        "torch.utils._pytree.tree_map",
        "torch._dynamo.reset",
    }


def test_a_name_that_is_gone_is_noticed():
    with pytest.raises(AttributeError):
        resolve("torch._C._functorch.no_such_name")
    with pytest.raises(AttributeError):
        resolve("torch.utils._no_such_module.name")
