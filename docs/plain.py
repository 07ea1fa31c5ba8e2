"""Our docstrings are plain text with indented formulas; Sphinx reads reStructuredText: from one to the other."""

from __future__ import annotations

import re
from collections.abc import Iterator

# A heading of napoleon is alone on its line; what is indented below it is its list.
_SECTION = re.compile(r"(Args|Returns|Yields|Raises|Attributes):$")
_ENTRY = re.compile(r"[a-z]\w*(, [a-z]\w*)*: \S")


def as_rst(lines: list[str]) -> list[str]:
    """Return a docstring's lines for Sphinx: formulas and tables stay unchanged, lists of names become lists."""
    out: list[str] = []
    section = ""
    for paragraph in _paragraphs(lines):
        heading = _SECTION.match(paragraph[0])
        section = heading[1] if heading else section if paragraph[0].startswith(" ") else ""
        if section in ("Returns", "Yields"):
            out += _returned(paragraph)
        elif section:
            out += map(_marked, paragraph)
        elif paragraph[0].startswith((" ", "|")):
            out += ["::", "", *(f"    {line}" for line in paragraph)]
        elif all(line.startswith(" ") or _ENTRY.match(line) for line in paragraph):
            out += [_entry(line) for line in paragraph]
        else:
            out += _prose(paragraph)
        out.append("")
    return out


def _paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines without an empty one."""
    run: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            run.append(line)
        elif run:
            yield run
            run = []


def _entry(line: str) -> str:
    """`name: meaning` as an item of a list; a continuation line is moved below it."""
    if line.startswith(" "):
        return f"  {_marked(line.strip())}"
    name, _, meaning = line.partition(":")
    return f"* ``{name}``:{_marked(meaning)}"


def _returned(paragraph: list[str]) -> list[str]:
    """Things returned: napoleon would take a name for a type, so named ones become items of a list."""
    out, in_list = [], False
    for line in paragraph:
        text = line.strip()
        is_entry = line.startswith("    ") and line[4:5] != " " and bool(_ENTRY.match(text))
        in_list = in_list or is_entry
        if is_entry:
            out.append(f"    {_entry(text)}")
        else:
            out.append(f"      {_marked(text)}" if in_list else _marked(line))
    return out


def _prose(paragraph: list[str]) -> list[str]:
    """Text, up to a line that is indented or begins a table; from there unchanged."""
    for index, line in enumerate(paragraph):
        if line.startswith((" ", "|")):
            return [*map(_marked, paragraph[:index]), "", "::", "", *(f"    {rest}" for rest in paragraph[index:])]
    return list(map(_marked, paragraph))


def _marked(line: str) -> str:
    """One line: `code` doubled, signs that mean something to reStructuredText taken literally."""
    parts = re.split(r"(`[^`]+`)", line)
    return "".join(f"`{part}`" if part.startswith("`") else re.sub(r"([*|`]|_\b)", r"\\\1", part) for part in parts)
