"""User-defined parts: a loss, transform, data set, network or tracker, passed in Python or named in a recipe.

A part has a name of one line, which `config.yaml` keeps:

    python:package.module:factory               the module is imported and the factory called
    python:package.module:factory(gamma=2.0)    the same with keyword arguments, written as Python literals
    object:package.module:Class(gamma=2.0)      an object that Python gave; only Python can give it again

A recipe that names a part decides which code runs: the code of recipes from elsewhere is read before it is used.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepcait.errors import ConfigError, DeepcaitError

PYTHON, OBJECT = "python:", "object:"
WEIGHTS = ",weights="
_CALL = re.compile(r"\s*([^()]*?)\s*(?:\((.*)\))?\s*", re.DOTALL)
_MAX_SHOWN = 120  # characters of an attribute
_MAX_LISTED = 64  # items of a container that are looked at
_PLAIN = (str, int, float, bool, type(None), os.PathLike)


class Part(str):
    """The name of a part with the object, or the factory and arguments, passed in Python."""

    given: Any = None
    arguments: Mapping[str, Any] | None = None
    """Of a factory; None where `given` is the part itself."""

    def __deepcopy__(self, memo: dict) -> Part:
        return self

    def __reduce__(self) -> tuple:
        return str, (str(self),)


def is_part(name: str) -> bool:
    """Whether a setting names a user-defined part."""
    return name.startswith((PYTHON, OBJECT))


def split_weights(spec: str) -> tuple[str, str | None]:
    """Split `python:package.module:factory,weights=PATH` into the part and the path; a `Part` has no path.

    >>> split_weights("python:nets:Small,weights=runs/small")
    ('python:nets:Small', 'runs/small')
    """
    name, found, path = ("", "", "") if isinstance(spec, Part) else spec.rpartition(WEIGHTS)
    return (name, path) if found else (spec, None)


def path_of(spec: str) -> Path:
    """Return where the weights of a MODEL are: its own path, or the one in the MODEL of a user-defined network.

    >>> path_of("python:nets:Small,weights=runs/small").as_posix(), path_of("runs/pets").as_posix()
    ('runs/small', 'runs/pets')
    """
    return Path((split_weights(spec)[1] if is_part(spec) else None) or spec).expanduser()


def model_in(folder: str | os.PathLike[str], model: str) -> str:
    """Return the MODEL for the model in a folder, quoted for a shell; for a user-defined network with its factory.

    Args:
        folder: a run or model folder.
        model: what its run started from.

    >>> model_in("runs/pets", "cait_xxs24_224"), model_in("runs/small", "python:nets:Small(width=8)")
    ('runs/pets', "'python:nets:Small(width=8),weights=runs/small'")
    """
    folder = os.fspath(folder)
    return shlex.quote(f"{split_weights(model)[0]}{WEIGHTS}{folder}" if is_part(model) else folder)


def is_plain(value: Any) -> bool:
    """Whether a value is one that YAML has too, and not a part."""
    if isinstance(value, list | tuple):
        return not _is_factory_pair(value) and all(map(is_plain, value))
    return isinstance(value, _PLAIN) or (isinstance(value, Mapping) and all(map(is_plain, value.values())))


def part_of(value: Any, *, factory: bool = False) -> Part:
    """Return a part passed in Python.

    Args:
        value: an object, a class (called without arguments), or (factory, keyword arguments).
        factory: a function is one too; otherwise it is the part itself.

    >>> part_of((dict, {"gamma": 2.0}))
    'python:builtins:dict(gamma=2.0)'
    """
    if isinstance(value, Part):
        return value
    is_factory = isinstance(value, type) or (factory and inspect.isroutine(value))
    given, arguments = value if _is_factory_pair(value) else (value, {} if is_factory else None)
    named = given if hasattr(given, "__qualname__") else type(given)
    shown = arguments if arguments is not None else _attributes(given)
    text = ", ".join(f"{key}={_shown(value)}" for key, value in shown.items())
    kind = OBJECT if arguments is None else PYTHON
    part = Part(f"{kind}{named.__module__}:{named.__qualname__}" + (f"({text})" if text else ""))
    part.given, part.arguments = given, arguments
    return part


def build(name: str, asked: str, *args: Any, **arguments: Any) -> Any:
    """Return the part of this name: the object passed in Python, or the result of its factory.

    Args:
        name: a `Part`, or its text.
        asked: the setting that names it, for messages.
        args, arguments: passed to the factory in addition to the arguments in the name.

    Raises:
        ConfigError: no such factory, or one that fails.
    """
    given = name.given if isinstance(name, Part) else None
    if isinstance(name, Part) and name.arguments is None:
        return given
    _require_factory(name, asked)
    place, named = split_call(name.removeprefix(PYTHON), asked)
    factory = given or _import(place, asked)
    own = name.arguments if isinstance(name, Part) and name.arguments is not None else named
    with blamed(f"{asked}: {PYTHON}{place}"):
        return factory(*args, **{**arguments, **own})


def takes(name: str, asked: str, argument: str) -> bool:
    """Whether the factory of a part has a keyword argument of this name. Raises as `build`."""
    if isinstance(name, Part) and name.arguments is None:
        return False
    given = name.given if isinstance(name, Part) else None
    factory = given or _import(split_call(name.removeprefix(PYTHON), asked)[0], asked)
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # of C
        return False
    return argument in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def split_call(text: str, asked: str) -> tuple[str, dict[str, Any]]:
    """Split `name(key=value)` into the name and its keyword arguments, which are literals.

    >>> split_call("focal(gamma=1.5)", "loss")
    ('focal', {'gamma': 1.5})

    Raises:
        ConfigError: something else between the parentheses.
    """
    match = _CALL.fullmatch(text)
    try:
        assert match is not None
        call = ast.parse(f"f({match[2] or ''})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("an argument without a name")
        return match[1], {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"{asked}: expected NAME or NAME(key=value) with literals as values, got {text!r} ({error}).",
            remedy="For example focal(gamma=1.5); from Python, (factory, arguments) takes any value.",
        ) from error


def is_importable(name: str) -> bool:
    """Whether another program can build the part by its name: false for objects and what a script defines."""
    if not name.startswith(PYTHON):
        return False
    try:
        place, _ = split_call(name.removeprefix(PYTHON), name)
    except ConfigError:  # an argument that is not a literal
        return False
    return not place.startswith("__main__:") and "<locals>" not in place and "<lambda>" not in place


def source_digest(name: str, asked: str) -> str:
    """Return the sha256 of a part's source: its definition and what this uses of the same module.

    That is functions, classes, and constants in capitals. Empty where Python does not know the source, as of classes
    that were typed into a console.

    Raises:
        ConfigError: there is no such part.
    """
    if isinstance(name, Part):
        value = name.given if hasattr(name.given, "__qualname__") else type(name.given)
    else:
        _require_factory(name, asked)
        value = _import(split_call(name.removeprefix(PYTHON), asked)[0], asked)
    source = _source_of(value)
    return hashlib.sha256(source.encode()).hexdigest() if source else ""


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """Context manager: an exception of a user-defined part becomes an error that names it and the line.

    Raises:
        ConfigError: in place of the exception, which is its cause.
    """
    try:
        yield
    except DeepcaitError:
        raise
    except Exception as error:  # user code may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"{what} failed with {type(error).__name__}: {error} ({frame.filename}:{frame.lineno}).",
            remedy="Correct it there; in Python, the exception above has the full traceback.",
        ) from error


def _is_factory_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and callable(value[0]) and isinstance(value[1], Mapping)


def _require_factory(name: str, asked: str) -> None:
    if name.startswith(OBJECT) and not isinstance(name, Part):
        raise ConfigError(
            f"{asked}: {name} was given as an object, which only Python can give again.",
            remedy="Pass it to deepcait.train(..., resume=True), or name a factory: python:package.module:factory.",
        )


def _import(place: str, asked: str) -> Callable[..., Any]:
    module, _, qualname = place.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    script = module == "__main__"
    remedy = "The module must be importable from the current folder or PYTHONPATH."
    if script:
        remedy = "The script or notebook that started it defines it: resume there, by deepcait.train(..., resume=True)."
    try:
        found = importlib.import_module(module)
    except (ImportError, ValueError) as error:
        problem = f"{asked}: expected python:package.module:factory, got '{PYTHON}{place}' ({error})."
        raise ConfigError(problem, remedy=remedy) from error
    except Exception as error:  # a user's module may raise anything
        with blamed(f"{asked}: importing {module}"):
            raise error
    try:
        for name in qualname.split("."):
            found = getattr(found, name)
    except AttributeError as error:
        problem = f"{asked}: expected python:package.module:factory, got '{PYTHON}{place}' ({error})."
        raise ConfigError(problem, remedy=remedy) from error
    if not callable(found):
        problem = f"{asked}: expected a factory, got {type(found).__name__} by the name {PYTHON}{place}."
        raise ConfigError(problem, remedy="Name a class, or a function that returns the part.")
    return found


def _attributes(value: Any) -> dict[str, Any]:
    """The public attributes of an object, and the buffers of a module."""
    facts = getattr(value, "__dict__", {})
    if inspect.isroutine(value):
        return {}
    public = {key: one for key, one in facts.items() if not key.startswith("_") and key != "training"}
    public |= {key: one for key, one in (facts.get("_buffers") or {}).items() if one is not None}
    return public


def _shown(value: Any) -> str:
    """A value on one line; a long one by its digest."""
    if isinstance(value, list | tuple | dict | set) and len(value) > _MAX_LISTED:
        return f"<{len(value)} items>"
    text = " ".join(re.sub(r" at 0x[0-9a-f]+", "", repr(value)).split())
    return text if len(text) <= _MAX_SHOWN else f"<{hashlib.sha256(text.encode()).hexdigest()[:16]}>"


def _source_of(value: Any) -> str:
    try:
        text = inspect.getsource(sys.modules[value.__module__])
    except (OSError, TypeError, KeyError):
        return _source_in_console(value)
    lines, definitions = text.splitlines(), _definitions(ast.parse(text))
    found: dict[str, str] = {}
    wanted = [value.__qualname__.partition(".")[0]]
    while wanted:
        name = wanted.pop()
        if name in found or name not in definitions:
            continue
        node = definitions[name]
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
        found[name] = "\n".join(lines[first - 1 : node.end_lineno])
        wanted += [inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)]
    return "\n".join(found[name] for name in sorted(found))


def _definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """Top-level functions and classes, and constants in capitals, by name."""
    named: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            named[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named |= {one.id: node for one in targets if isinstance(one, ast.Name) and one.id.isupper()}
    return named


def _source_in_console(value: Any) -> str:
    """Of a notebook, which has no file: the source of a function, or of a class's methods."""
    functions = [one for one in vars(value).values() if inspect.isfunction(one)] if inspect.isclass(value) else [value]
    try:
        return "\n".join(inspect.getsource(one) for one in functions)
    except (OSError, TypeError):
        return ""
