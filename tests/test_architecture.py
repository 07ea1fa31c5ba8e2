"""The layers of the package as a test: imports, order of files, cycles, sizes, docstrings; each check can fail."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.layers import LAYER, LAZY, ORDER, PASSED_THROUGH

PACKAGE = Path(__file__).parent.parent / "deepcait"

MAX_FUNCTION_LINES = 60  # without its docstring
MAX_FILE_LINES = 400

# -- reading ----------------------------------------------------------------------------------------------------------


def module_name(path: Path, root: Path) -> str:
    """deepcait/model/cait.py is "model.cait", a package's own file "model.__init__", the facade "__init__"."""
    return ".".join(path.relative_to(root).with_suffix("").parts)


def read_package(root: Path) -> dict[str, str]:
    """Every module below root with its source."""
    return {module_name(path, root): path.read_text(encoding="utf-8") for path in sorted(root.rglob("*.py"))}


def named_modules(node: ast.AST, importer: str) -> list[str]:
    """The dotted names that one node of a module imports: import, from-import, import_module("...")."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            folder = ["deepcait", *importer.split(".")][: -node.level]
            base = ".".join([*folder, base] if base else folder)
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if function in ("import_module", "__import__"):
            return [str(node.args[0].value)]
    return []


def without_lazy(importer: str, tree: ast.AST) -> ast.AST:
    """The same tree without the imports that LAZY allows."""
    for function in ast.walk(tree):
        may = LAZY.get((importer, getattr(function, "name", "")))
        if may and isinstance(function, ast.FunctionDef):
            function.body = [
                node
                for node in function.body
                if not all(name.startswith(f"deepcait.{may}.") for name in named_modules(node, importer) or ["no"])
            ]
    return tree


def find_imports(sources: dict[str, str]) -> dict[str, set[str]]:
    """Which modules of the package each module imports, those inside functions and TYPE_CHECKING included."""

    def resolve(name: str) -> str | None:
        parts = name.split(".")
        if parts[0] != "deepcait":
            return None
        # The longest part of the name that is a module; the rest is something inside it.
        for end in range(len(parts), 0, -1):
            for candidate in (".".join(parts[1:end]), ".".join([*parts[1:end], "__init__"])):
                if candidate in sources:
                    return candidate
        return ".".join(parts[1:])

    found = {}
    for importer, source in sources.items():
        tree = without_lazy(importer, ast.parse(source))
        names = [name for node in ast.walk(tree) for name in named_modules(node, importer)]
        found[importer] = {target for target in map(resolve, names) if target is not None} - {importer}
    return found


# -- checking: each function returns the faults it finds, one sentence each -------------------------------------------


def layer_faults(imports: dict[str, set[str]]) -> list[str]:
    """Imports that go up or sideways, and packages without a layer."""
    packages = {name.split(".")[0] for name in imports}
    faults = [f"{package}: has no layer; add it to LAYER in {Path(__file__).name}" for package in packages - set(LAYER)]
    for importer, targets in imports.items():
        here = importer.split(".")[0]
        for target in targets:
            there = target.split(".")[0]
            if here != there and here in LAYER and LAYER.get(there, 99) >= LAYER[here]:
                faults.append(
                    f"{importer} imports {target}: {here} (layer {LAYER[here]}) may import lower layers only, and "
                    f"{there} is layer {LAYER.get(there, chr(63))}"
                )
    return sorted(faults)


def order_faults(imports: dict[str, set[str]], order: dict[str, list[str]]) -> list[str]:
    """Imports inside a package from a file that does not come before, and files that the order does not name."""
    faults = []
    for importer, targets in imports.items():
        here, _, file = importer.partition(".")
        if not file or file == "__init__":
            continue
        files = order.get(here, [])
        if file not in files:
            faults.append(f"{importer}: not in ORDER[{here!r}] of {Path(__file__).name}; add it after what it imports")
            continue
        allowed = {f"{here}.{name}" for name in files[: files.index(file)]}
        faults += [
            f"{importer} imports {target}: it comes later in ORDER[{here!r}], or is the package's __init__"
            for target in targets
            if target.split(".")[0] == here and target not in allowed
        ]
    for package, files in order.items():
        missing = [file for file in files if f"{package}.{file}" not in imports]
        faults += [f"ORDER[{package!r}] names {file}, which is no file" for file in missing]
    return sorted(faults)


def cycle_faults(imports: dict[str, set[str]]) -> list[str]:
    """Modules that reach themselves by following imports."""
    faults = []
    for start in imports:
        reached, waiting = set(), list(imports[start])
        while waiting:
            module = waiting.pop()
            if module not in reached:
                reached.add(module)
                waiting += imports.get(module, ())
        if start in reached:
            faults.append(f"{start}: imports itself by way of {', '.join(sorted(imports[start] & reached))}")
    return sorted(faults)


def function_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its def to its end, without its docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def size_faults(sources: dict[str, str]) -> list[str]:
    """Files and functions that are too long to read at once."""
    faults = []
    for module, source in sources.items():
        num_lines = len(source.splitlines())
        if num_lines > MAX_FILE_LINES:
            faults.append(f"{module}: {num_lines} lines, at most {MAX_FILE_LINES}; two purposes make two files")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and function_lines(node) > MAX_FUNCTION_LINES:
                faults.append(f"{module}.{node.name}: {function_lines(node)} lines, at most {MAX_FUNCTION_LINES}")
    return sorted(faults)


def docstring_faults(sources: dict[str, str]) -> list[str]:
    """Modules whose docstring is missing or does not begin with a sentence in one line."""
    faults = []
    for module, source in sources.items():
        first = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0].strip()
        if not first.endswith((".", "?", "!")) or len(first.split()) < 3:
            faults.append(f"{module}: the docstring's first line is no sentence: {first!r}")
    return sorted(faults)


def parameter_faults(sources: dict[str, str]) -> list[str]:
    """Parameters through which something travels that has a place of its own: evaluation, or the messages."""
    faults = []
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            given = node.args
            for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg):
                if argument is not None and argument.arg in PASSED_THROUGH:
                    where = getattr(node, "name", "lambda")
                    faults.append(f"{module}.{where}: parameter {argument.arg}; {PASSED_THROUGH[argument.arg]}")
    return sorted(faults)


# -- the package ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return read_package(PACKAGE)


@pytest.fixture(scope="module")
def imports(sources) -> dict[str, set[str]]:
    return find_imports(sources)


def assert_none(faults: list[str]) -> None:
    assert not faults, "\n" + "\n".join(faults)


def test_imports_go_down(imports):
    assert_none(layer_faults(imports))


def test_files_of_a_package_import_in_their_order(imports):
    assert_none(order_faults(imports, ORDER))


def test_no_import_cycle(imports):
    assert_none(cycle_faults(imports))


def test_functions_fit_a_screen_and_files_have_one_purpose(sources):
    assert_none(size_faults(sources))


def test_every_module_begins_with_a_sentence(sources):
    assert_none(docstring_faults(sources))


def test_nothing_travels_as_a_parameter_that_can_be_imported(sources):
    assert_none(parameter_faults(sources))


def test_the_model_is_only_mathematics(sources):
    """Tensors in, tensors out: no file, log, registry or process in deepcait/model."""
    plain_python = {"__future__", "collections", "contextlib", "dataclasses", "difflib", "functools", "math", "typing"}
    plain_python |= {"warnings", "threading"}  # who watches the attention is known per thread
    allowed = plain_python | {"deepcait", "torch"}
    used = {
        (module, name.split(".")[0])
        for module, source in sources.items()
        if module.startswith("model.")
        for node in ast.walk(ast.parse(source))
        for name in named_modules(node, module)
    }
    assert_none([f"{module} imports {name}" for module, name in sorted(used) if name not in allowed])


# Renaming is part of writing atomically, which is runtime/files.py; a lock is taken over by renaming it.
MAY_RENAME = {"runtime.files", "runtime.claim"}


def renaming(source: str) -> list[int]:
    """Lines that rename a file: os.replace, os.rename, shutil.move, Path.rename, Path.replace."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            module, name = getattr(node.func.value, "id", ""), node.func.attr
            of_module = (module, name) in {("os", "replace"), ("os", "rename"), ("os", "renames"), ("shutil", "move")}
            # str.replace takes two arguments, dataclasses.replace keywords too, Path.replace one.
            of_path = name == "rename" or (name == "replace" and len(node.args) == 1 and not node.keywords)
            lines += [node.lineno] * (of_module or (of_path and module != "dataclasses"))
    return lines


def test_there_is_one_atomic_writer(sources):
    found = {module for module, source in sources.items() if renaming(source)}
    assert found == MAY_RENAME


def test_renaming_is_found():
    calls = ["os.replace(a, b)", "os.rename(a, b)", "shutil.move(a, b)", "path.rename(b)", "path.replace(b)"]
    others = ["text.replace('a', 'b')", "dataclasses.replace(a, b=1)", "config.replace(depth=1)", "replace(a, b=1)"]
    assert [renaming(call) for call in calls] == [[1]] * len(calls)
    assert [renaming(call) for call in others] == [[]] * len(others)


# -- each check can say no --------------------------------------------------------------------------------------------

SOUND = {
    "__init__": "from deepcait.classifier import load",
    "errors": "",
    "model.__init__": "from deepcait.model.cait import CaiT",
    "model.block": "from deepcait import errors",
    "model.cait": "from deepcait.model.block import Block",
    "weights.spec": "from deepcait.model import CaiT",
    "data.source": "import deepcait.errors",
    "training.trainer": "from deepcait.weights import spec\nfrom ..data.source import Source",
    "classifier": "from deepcait.weights.spec import resolve",
}
SOUND_ORDER = {"model": ["block", "cait"], "weights": ["spec"], "data": ["source"], "training": ["trainer"]}


def test_a_sound_package_has_no_fault():
    imports = find_imports(SOUND)
    assert imports["model.block"] == {"errors"}
    assert imports["training.trainer"] == {"weights.spec", "data.source"}
    assert imports["weights.spec"] == {"model.__init__"}
    assert layer_faults(imports) == order_faults(imports, SOUND_ORDER) == cycle_faults(imports) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model.block", "from deepcait.training.trainer import fit"),
        ("model.block", "from ..training import trainer"),
        ("model.block", "import deepcait.training.trainer as trainer"),
        ("model.block", "def later():\n    from deepcait.training.trainer import fit"),
        ("model.block", "import importlib\nimportlib.import_module('deepcait.training.trainer')"),
        ("model.block", "from deepcait.training.not_yet_written import fit"),
        ("weights.spec", "from deepcait.data import source"),
        ("data.source", "from deepcait import load"),
        ("data.source", "import deepcait"),
        ("attic.box", ""),
    ],
)
def test_a_wrong_layer_is_found(module, source):
    (fault,) = layer_faults(find_imports(SOUND | {module: source}))
    assert fault.startswith(module.split(".")[0])


def test_only_set_backend_imports_backends():
    backends = {"backends.__init__": "from deepcait.model import CaiT"}
    lazy = "def set_backend():\n    from deepcait.backends import build"
    assert cycle_faults(find_imports(SOUND | backends | {"model.cait": lazy})) == []
    for source in ("from deepcait.backends import build", lazy.replace("set_backend", "forward")):
        found = find_imports(SOUND | backends | {"model.cait": source})
        assert len(layer_faults(found)) == 1
        assert cycle_faults(found)
    assert layer_faults(find_imports(SOUND | {"model.cait": lazy.replace("backends", "weights")}))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model.block", "from deepcait.model.cait import CaiT"),
        ("model.block", "from .cait import CaiT"),
        ("model.block", "from deepcait.model import CaiT"),
        ("model.unlisted", ""),
    ],
)
def test_a_wrong_order_is_found(module, source):
    (fault,) = order_faults(find_imports(SOUND | {module: source}), SOUND_ORDER)
    assert fault.startswith(module)


def test_a_listed_file_that_is_gone_is_found():
    (fault,) = order_faults(find_imports(SOUND), SOUND_ORDER | {"data": ["gone", "source"]})
    assert "gone" in fault


@pytest.mark.parametrize("source", ["from deepcait.model import CaiT", "def later():\n    from . import cait"])
def test_a_cycle_is_found(source):
    faults = cycle_faults(find_imports(SOUND | {"model.block": source}))
    assert any(fault.startswith("model.block") for fault in faults)


def test_a_long_function_and_a_long_file_are_found():
    body = "    x = 1\n" * (MAX_FUNCTION_LINES - 1)
    docstring = '    """A sentence.\n\n    More.\n    """\n'
    assert size_faults({"m": f"def f():\n{docstring}{body}"}) == []
    assert len(size_faults({"m": f"def f():\n{docstring}{body}    x = 1\n"})) == 1
    inner = "        x = 1\n" * MAX_FUNCTION_LINES
    assert len(size_faults({"m": f"class C:\n    async def f():\n{inner}"})) == 1
    assert size_faults({"m": "x = 1\n" * MAX_FILE_LINES}) == []
    assert len(size_faults({"m": "x = 1\n" * (MAX_FILE_LINES + 1)})) == 1


@pytest.mark.parametrize(
    "source",
    [
        "def train(recipe, evaluate): ...",
        "def train(recipe, *, say=print): ...",
        "class Watch:\n    async def __init__(self, tell, /): ...",
        "run = lambda warn: warn",
        "def f(**evaluate): ...",
    ],
)
def test_a_parameter_that_is_passed_through_is_found(source):
    assert parameter_faults({"m": "def train(recipe, resume): evaluate(recipe)"}) == []
    assert len(parameter_faults({"m": source})) == 1


@pytest.mark.parametrize("source", ["", "x = 1", '"""Utilities."""', '"""A heading without its end\n\nText."""'])
def test_a_poor_docstring_is_found(source):
    assert len(docstring_faults({"m": source})) == 1
    assert docstring_faults({"m": '"""From bytes to batches."""'}) == []
