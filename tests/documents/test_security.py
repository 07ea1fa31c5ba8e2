"""The page on security: every property has a test, and the package has none of the calls that could break one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "dev" / "security.md").read_text(encoding="utf-8")
_FORBIDDEN = {
    *("eval", "exec", "compile", "os.system", "os.popen", "pickle.load", "pickle.loads", "pickle.Unpickler"),
    *(
        "marshal.loads",
        "yaml.load",
        "yaml.unsafe_load",
        "yaml.full_load",
        "tarfile.extractall",
        "shutil.unpack_archive",
    ),
}


def dangerous_calls(source: str) -> list[str]:
    """Calls that could run what a file or a request says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in _FORBIDDEN or name.endswith((".extractall", ".extract")):
            found.append(f"line {node.lineno}: {name}")
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append(f"line {node.lineno}: torch.load without weights_only")
        if options.get("shell") == "True" or options.get("allow_pickle") == "True":
            found.append(f"line {node.lineno}: {name} with shell or allow_pickle")
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "deepcait").rglob("*.py")), ids=lambda path: path.stem)
def test_nothing_is_evaluated_unpickled_or_given_to_a_shell(path):
    assert dangerous_calls(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "pickle.loads(data)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "subprocess.run(text, shell=True)",
        "np.load(path, allow_pickle=True)",
        "archive.extractall(folder)",
        "yaml.load(text, Loader=yaml.Loader)",
    ],
)
def test_each_of_them_would_be_found(source):
    assert len(dangerous_calls(source)) == 1
    assert dangerous_calls("torch.load(path, weights_only=True)\nyaml.compose(text)\nmodel.eval()") == []


def test_every_property_has_a_test():
    rows = re.findall(r"^\| (?!---|property)(.+?) \| (.*) \|$", PAGE, re.MULTILINE)
    assert len(rows) >= 25
    for row, tests in rows:
        assert re.search(r"\[`test_\w+`\]\(\.\./\.\./tests/", tests), row
