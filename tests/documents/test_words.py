"""Words that documents, messages, help, docstrings and public names do not use, because the field has plainer ones."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGE = ROOT / "deepcait"
BANNED = (
    *(r"pictures?", r"storeys?", r"mend(?:s|ed|ing)?", r"anew", r"by lot", r"in silence", r"surest", r"rivals?"),
    *(r"nobody", r"for want of", r"verbs?", r"(?-i:SPECs?)", r"goes on to", r"none seen"),
)
_BANNED = re.compile(rf"\b(?:{'|'.join(BANNED)})\b", re.IGNORECASE)
# Files in which a banned word is the right one.
ALLOWED: dict[str, set[str]] = {
    "deepcait/cli/demo.py": {"pictures"},  # a key of its JSON
    "deepcait/cli/push.py": {"picture"},  # the name of --image in 0.1
    "deepcait/data/image_table.py": {"picture"},  # a name of users' columns
}


def documents() -> list[Path]:
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *PACKAGE.rglob("*.md")]
    return sorted(path for path in found if not str(path.relative_to(ROOT)).startswith("docs/api"))


def other_texts() -> list[Path]:
    return sorted(path for suffix in ("html", "js", "j2", "yaml") for path in PACKAGE.rglob(f"*.{suffix}"))


def prose(text: str) -> str:
    """A document without code and targets of links."""
    text = re.sub(r"^```.*?^```$|`[^`\n]+`", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"\]\([^)]*\)", "]", text)


def banned(text: str) -> set[str]:
    return {match[0].lower() for match in _BANNED.finditer(text)}


def texts_of(source: str) -> str:
    """Docstrings, messages, help and other texts of a module, and its public names."""
    tree = ast.parse(source)
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    defined = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    names = [node.name for node in defined if not node.name.startswith("_")]
    names += [arg.arg for node in defined if isinstance(node, ast.FunctionDef) for arg in node.args.kwonlyargs]
    return "\n".join([*texts, *(name.replace("_", " ") for name in names)])


@pytest.mark.parametrize("path", documents() + other_texts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_use_the_words_of_the_field(path):
    assert banned(prose(path.read_text(encoding="utf-8"))) == set()


@pytest.mark.parametrize("folder", sorted({path.parent for path in PACKAGE.rglob("*.py")}), ids=lambda path: path.name)
def test_the_package_does_too(folder):
    files = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    found = {name: banned(texts_of(text)) - ALLOWED.get(name, set()) for name, text in files.items()}
    assert {name: words for name, words in found.items() if words} == {}
    assert {name for name in files if banned(Path(name).stem.replace("_", " "))} == set()


def test_each_word_would_be_found():
    text = (
        "Pictures of a storey, mended anew by lot, in silence: the surest rivals. "
        "Nobody, for want of a verb or a SPEC, goes on to none seen."
    )
    assert len(banned(text)) == len(BANNED)
    assert banned("A specification, recommended and amended; verbose; `spec`.") == set()
    assert banned(prose("`picture.jpg` [a](pictures/x.png)\n\n```\npicture\n```\n")) == set()
    assert banned(texts_of('def open_picture():\n    """Mend it."""\n    raise E(f"nobody {x}")\n')) == {
        *("picture", "mend", "nobody"),
    }
