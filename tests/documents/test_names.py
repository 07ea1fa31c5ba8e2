"""Code, tests and messages that the pages name are there; the site has every page and every public name."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

import deepcait
from deepcait.cli.help import PAGES as HELP
from deepcait.cli.help import slug, topics

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if page.relative_to(DOCS).parts[0] not in ("results", "api"))
IN_SITE = [page for page in PAGES if page.parent.name != "dev"]
# A link whose words are code: [`name`](path).
_LINK = re.compile(r"\[`([^`]+)`\]\(([^)#]+)\)")


@cache
def defined(path: Path) -> set[str]:
    """The dotted names that a Python file defines: functions, classes, their methods."""
    names: set[str] = set()

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(prefix + child.name)
                walk(child, f"{prefix}{child.name}.")

    walk(ast.parse(path.read_text(encoding="utf-8")), "")
    return names


def wrong_names(text: str, folder: Path) -> list[str]:
    """Links whose words name code or a test that the file behind them does not define."""
    wrong = []
    for name, link in _LINK.findall(text):
        path = (folder / link).resolve()
        if not path.exists():
            wrong.append(f"{name}: no {link}")
        elif path.suffix == ".py" and name.startswith("test_") and not name.endswith(".py"):
            if name not in defined(path):
                wrong.append(f"{name}: not in {link}")
        elif name.startswith("deepcait."):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            inside = name.removeprefix(module).removeprefix(".")
            if not name.startswith(module) or (inside and inside not in defined(path)):
                wrong.append(f"{name}: not in {link}")
        elif name != path.name and not str(path).endswith(name):
            wrong.append(f"{name}: leads to {link}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_names_are_defined_where_the_link_leads(page):
    assert wrong_names(page.read_text(encoding="utf-8"), page.parent) == []


def test_a_wrong_name_is_found():
    text = (
        "[`deepcait.model.block.LayerScaleBlock`](../deepcait/model/block.py)"
        "[`deepcait.model.block.Gone`](../deepcait/model/block.py)"
        "[`deepcait.model.cait.CaiT`](../deepcait/model/block.py)"
        "[`test_gone`](../tests/test_docs.py) [`test_docs.py`](../tests/test_docs.py)"
        "[`gone.py`](../tests/test_docs.py)"
    )
    assert [name.partition(":")[0] for name in wrong_names(text, DOCS)] == [
        "deepcait.model.block.Gone",
        "deepcait.model.cait.CaiT",
        "test_gone",
        "gone.py",
    ]


def test_the_map_leads_from_every_row_to_code_and_test():
    rows = re.findall(
        r"^\| (?!---|of the)(.*?) \| (.*?) \| (.*?) \|$", (DOCS / "concepts" / "paper_map.md").read_text(), re.MULTILINE
    )
    assert len(rows) >= 25
    assert all(_LINK.search(code) and "](../../tests/" in test for _, code, test in rows)
    # One row, or more, for each: seven equations of the paper that build the network, tables, figures.
    text = " ".join(row[0] for row in rows)
    for part in ("Eq. 1", "Eq. 2", "Eq. 4", "Eq. 5", "Eq. 8", "Table 1", "Table 2", "Fig. 1", "Fig. 2", "Fig. 3"):
        assert part in text, part


def test_every_page_is_in_the_site():
    listed = set(re.findall(r"^([\w/]+)$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE))
    missing = {str(page.relative_to(DOCS).with_suffix("")) for page in IN_SITE} - listed - {"index"}
    assert not missing, f"docs/index.md: add to a toctree: {', '.join(sorted(missing))}"


def test_the_reference_has_every_public_name():
    text = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\.\. auto\w+:: (\w+)$", text, re.MULTILINE)
    assert sorted(shown) == sorted(set(deepcait.__all__) - {"__version__"})


def sentences() -> str:
    """Every text of the package, what is filled in replaced by three dots."""
    texts = []
    for path in (ROOT / "deepcait").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_messages_that_name_a_page_or_a_topic_find_it():
    said = sentences()
    for name, anchor in re.findall(r"docs/([\w/]+\.md)(?:#([\w-]+))?", said):
        titles = re.findall(r"^#+ (.+)$", (DOCS / name).read_text(encoding="utf-8"), re.MULTILINE)
        assert not anchor or anchor in map(slug, titles), f"docs/{name}#{anchor}"
    named = set(re.findall(r"`deepcait help ([a-z0-9-]+)`", said))
    assert named <= topics().keys()


def test_every_section_of_the_error_page_is_named_by_a_message():
    sections = topics().keys() - {path.stem for path in HELP.glob("*.md")}
    named = set(re.findall(r"`deepcait help ([\w-]+)`", sentences()))
    # The remedy of a missing package is the command that installs it.
    assert sections - named == {"missing-package"}


def test_every_dotted_name_in_code_is_importable():
    """`deepcait.data.order.Order.slots` in a page, whether it is a link or not."""
    for page in PAGES:
        for name in set(re.findall(r"`(deepcait(?:\.\w+)+)(?:\(.*?\))?`", page.read_text(encoding="utf-8"))):
            parts, found = name.split("."), deepcait
            for end, part in enumerate(parts[1:], 2):
                if not hasattr(found, part):
                    importlib.import_module(".".join(parts[:end]))
                found = getattr(found, part)
