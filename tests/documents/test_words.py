"""Words that the documents and public names do not use, because the field has plainer ones: CONTRIBUTING.md, Words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import deepcait

ROOT = Path(__file__).parent.parent.parent
BANNED = (
    *(r"pictures?", r"storeys?", r"mend(?:s|ed|ing)?", r"anew", r"by lot", r"in silence", r"surest", r"rivals?"),
    *(r"nobody", r"for want of", r"verbs?", r"(?-i:SPECs?)", r"goes on to", r"none seen"),
)
_BANNED = re.compile(rf"\b(?:{'|'.join(BANNED)})\b", re.IGNORECASE)
# Files in which a banned word is the right one.
ALLOWED: dict[str, set[str]] = {}
# Not checked yet: docstrings, messages and `--help`, and what the package writes into the results and the table of
# recipe keys. A later change removes this exception.
NOT_CHECKED_YET = ("docs/results", "docs/dev", "docs/api")


def documents() -> list[Path]:
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deepcait" / "assets" / "help").glob("*.md")]
    return sorted(path for path in found if not str(path.relative_to(ROOT)).startswith(NOT_CHECKED_YET))


def prose(text: str) -> str:
    """A document without code, targets of links, and the table of recipe keys, which the package writes."""
    text = re.sub(r"^\| key \| default \| meaning \|\n(?:\|.*\n)+", "", text, flags=re.MULTILINE)
    text = re.sub(r"^```.*?^```$|`[^`\n]+`", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"\]\([^)]*\)", "]", text)


def banned(text: str) -> list[str]:
    return [match[0] for match in _BANNED.finditer(text)]


@pytest.mark.parametrize("path", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_use_the_words_of_the_field(path):
    found = {word.lower() for word in banned(prose(path.read_text(encoding="utf-8")))}
    assert found <= ALLOWED.get(str(path.relative_to(ROOT)), set())


def test_public_names_do_too():
    names = [*deepcait.__all__, *(name for name in dir(deepcait.CaiT) if not name.startswith("_"))]
    assert [name for name in names if banned(name.replace("_", " "))] == []


def test_each_word_would_be_found():
    text = (
        "Pictures of a storey, mended anew by lot, in silence: the surest rivals. "
        "Nobody, for want of a verb or a SPEC, goes on to none seen."
    )
    assert len(banned(text)) == len(BANNED)
    assert banned("A specification, recommended and amended; verbose; `spec`.") == []
    assert banned(prose("`picture.jpg` [a](pictures/x.png)\n\n```\npicture\n```\n")) == []
