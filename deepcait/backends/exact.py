"""Check that a part of the model is unmodified, so that a backend may compute it in another way.

Whatever a user attaches to a module (a hook, an adapter, a parametrization, another forward or class) takes effect when
the module is called. Code that reads its weights instead must exclude all of this first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from deepcait.model.attention import ClassAttention, TalkingHeadsAttention
from deepcait.model.block import LayerScaleBlock, Mlp

# A quantized or distributed weight is of another class, which has its own arithmetic.
_PLAIN_TENSORS = (nn.Parameter, Tensor, FakeTensor)


class Changed(Exception):  # noqa: N818 - a result, not an error
    """Raised for a module that does not compute what its class computes from its weights.

    Args: path of the module, empty for the checked root; the change, such as "has hooks". It has no __init__,
    which torch.compile could not trace.
    """

    @property
    def path(self) -> str:
        """The module's path."""
        return self.args[0]

    @property
    def what(self) -> str:
        """What was changed."""
        return self.args[1]

    def __str__(self) -> str:
        return " ".join(self.args).lstrip()


class Part(NamedTuple):
    """The expected form of a module inside another."""

    path: str
    owner: str
    """Path of the part that contains it."""
    name: str
    """Its name in that part."""
    kind: type[nn.Module]
    """Its class; subclasses are not accepted."""
    forward: Callable
    """The class's forward at import time."""
    parameters: tuple[str, ...]
    """Names of its parameters, which must be plain tensors."""


def list_parts(kinds: Mapping[str, tuple[type[nn.Module], str]]) -> tuple[Part, ...]:
    """Return parts from their paths, the root "" first: classes, and names of parameters with blanks between them."""
    parts = []
    for path, (kind, parameters) in kinds.items():
        owner, _, name = path.rpartition(".")
        parts.append(Part(path, owner, name, kind, kind.forward, tuple(parameters.split())))
    return tuple(parts)


def read_parts(root: nn.Module, parts: Iterable[Part], dtype: torch.dtype) -> tuple[dict[str, Any], list[Tensor]]:
    """Return the modules of a tree by their paths, and all their parameters in the order of the parts.

    Runs for every block in every forward pass, so it uses plain loops and dictionaries.

    Args:
        root: the module to which the first part belongs.
        parts: the expected parts; additional modules are ignored.
        dtype: the expected dtype of every parameter.

    Raises:
        Changed: a part is modified.
    """
    modules: dict[str, Any] = {}
    tensors: list[Tensor] = []
    for path, owner, name, kind, forward, parameters in parts:
        module = modules[owner]._modules.get(name) if modules else root
        change = find_change(module, kind, forward)
        if change:
            raise Changed(path, change)
        modules[path] = module
        held = module._parameters
        for parameter in parameters:
            tensor: Any = held.get(parameter)
            if type(tensor) not in _PLAIN_TENSORS:
                what = "no" if tensor is None else f"a {type(tensor).__name__} as its"
                raise Changed(path, f"has {what} {parameter}")
            if tensor.dtype is not dtype:
                raise Changed(path, f"has its {parameter} in {tensor.dtype}, not {dtype}")
            tensors.append(tensor)
    return modules, tensors


# The paper's patch block; apart from LayerScale, the parameters are in the order of the two branches' arguments.
PATCH_BLOCK = list_parts(
    {
        "": (LayerScaleBlock, "gamma_1 gamma_2"),
        "norm1": (nn.LayerNorm, "weight bias"),
        "attn": (TalkingHeadsAttention, ""),
        "attn.qkv": (nn.Linear, "weight bias"),
        "attn.proj_l": (nn.Linear, "weight bias"),
        "attn.proj_w": (nn.Linear, "weight bias"),
        "attn.proj": (nn.Linear, "weight bias"),
        "norm2": (nn.LayerNorm, "weight bias"),
        "mlp": (Mlp, ""),
        "mlp.fc1": (nn.Linear, "weight bias"),
        "mlp.act": (nn.GELU, ""),
        "mlp.fc2": (nn.Linear, "weight bias"),
    }
)


_ATTEND = {kind: kind.attend for kind in (TalkingHeadsAttention, ClassAttention)}


def require_own_attend(attn: Any) -> None:
    """Raise `Changed` if the equations of an attention, which its forward calls, were replaced."""
    if "attend" in attn.__dict__ or type(attn).attend is not _ATTEND[type(attn)]:
        raise Changed("attn", "has another attend")


def require_exact_gelu(act: Any) -> None:
    """Raise `Changed` if the GELU of an MLP is an approximation."""
    if act.approximate != "none":
        raise Changed("mlp.act", f"approximates GELU by {act.approximate}")


def find_change(module: nn.Module | None, kind: type[nn.Module], forward: Callable) -> str:
    """Return why a call of the module differs from its class's forward; empty if it does not."""
    if type(module) is not kind:
        return f"is {_name(type(module), kind)} instead of {_name(kind, type(module))}"
    state: dict[str, Any] = module.__dict__
    if (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
    ):
        return "has hooks"
    if "forward" in state or kind.forward is not forward:
        return "has another forward"
    return "is compiled separately" if "_compiled_call_impl" in state else ""


def _name(kind: type, other: type) -> str:
    """The name of a class; with its module if the other class has the same name."""
    return f"{kind.__module__}.{kind.__name__}" if kind.__name__ == other.__name__ else kind.__name__


def modes_in_the_way(tokens: Tensor) -> str:
    """Return why deepcait's operators can't be used with these tokens now; empty if they can."""
    if type(tokens) not in _PLAIN_TENSORS:  # torch.fx passes a stand-in
        return f"the tokens are a {type(tokens).__name__}"
    if standard_operators_only():
        return "a model is exported or traced, or a transform of torch.func or forward-mode derivative is active"
    return "a hook for all modules is registered" if torch_module._has_any_global_hook() else ""


def standard_operators_only() -> bool:
    """Return whether deepcait's operators must not be used now.

    An exported or traced model should contain operators that every engine has. A forward-mode derivative would silently
    treat deepcait's operators as constants, and `torch.func.vmap` does not support them.
    """
    if torch.compiler.is_exporting():
        return True
    if torch.compiler.is_compiling():  # which can't trace the checks below
        return False
    # PyTorch has no public API for the last two.
    return (
        torch.jit.is_tracing()
        or forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )
