"""Docstrings of what others use: what it returns, what it raises, shapes where there are tensors."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from deepcait import errors

PACKAGE = Path(__file__).parent.parent.parent / "deepcait"
# All but the command, whose functions are told apart by their verbs, and described by --help.
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "cli")
OURS = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
_SHAPE = re.compile(
    r"\([A-Z0-9][^()]*\)|_[BCHWPNTDAEKMLQJ0-9]+\b|\bscalar\b|\bshape\b|\bmean\b|\bsum\b|logits|[Tt]ensor"
)


def public_functions(tree: ast.Module) -> list[tuple[str, ast.FunctionDef, str]]:
    """Functions of a module and methods of its classes that have no underscore in front; with the class's docstring."""
    found = [("", node, "") for node in tree.body if isinstance(node, ast.FunctionDef)]
    for owner in tree.body:
        if isinstance(owner, ast.ClassDef) and not owner.name.startswith("_"):
            said = ast.get_docstring(owner) or ""
            found += [(f"{owner.name}.", node, said) for node in owner.body if isinstance(node, ast.FunctionDef)]
    public = [(prefix, node, said) for prefix, node, said in found if not node.name.startswith("_")]
    return [(prefix + node.name, node, said) for prefix, node, said in public if not is_overload(node)]


def is_overload(function: ast.FunctionDef) -> bool:
    """Whether this is a signature for type checkers; the function itself has the docstring."""
    return any(isinstance(one, ast.Name) and one.id == "overload" for one in function.decorator_list)


def raised(function: ast.FunctionDef) -> set[str]:
    """Errors of ours that the function itself raises by name."""
    return {
        node.exc.func.id
        for node in ast.walk(function)
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
        and node.exc.func.id in OURS
    }


def says(text: str, error: str) -> bool:
    """Whether a docstring speaks of an error, or of what it is one of."""
    return any(kind.__name__ in text for kind in vars(errors)[error].__mro__[:-3])


def faults(source: str) -> list[str]:
    """What the docstrings of a module's public functions leave out."""
    found = []
    for name, function, of_class in public_functions(ast.parse(source)):
        text = ast.get_docstring(function) or ""
        if not text:
            found.append(f"{name}: no docstring")
            continue
        found += [
            f"{name}: raises {error}, its docstring does not say so"
            for error in raised(function)
            if not says(text + of_class, error)
        ]
        returns = ast.unparse(function.returns) if function.returns else ""
        if re.match(r"(tuple\[)?Tensor\b", returns) and not _SHAPE.search(
            " ".join([text, name, ast.unparse(function.args)])
        ):
            found.append(f"{name}: returns a tensor, its docstring gives no shape")
    return found


@pytest.mark.parametrize("room", sorted({path.parent for path in FILES}), ids=lambda room: room.name)
def test_docstrings_say_errors_and_shapes(room):
    found = [
        f"{room.name}/{path.name}: {fault}"
        for path in FILES
        if path.parent == room
        for fault in faults(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_what_is_left_out_is_found():
    source = (
        'def f(x: int) -> Tensor:\n    """Return it."""\n    raise ConfigError("a", remedy="b")\n'
        "class C:\n    def g(self) -> int:\n        return 1\n"
        'def h() -> Tensor:\n    """Return it, (B, K).\n\n    Raises:\n        DataError: no.\n    """\n'
        '    raise DataError("")\n'
        "def _private():\n    pass\n"
    )
    assert len(faults(source)) == 3
