"""What a page shows: its blocks of code, and the commands in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# Pages whose commands a reader types. docs/results/ and docs/dev/ record how values were measured.
# Three pages have a test of their own: weights.md needs a hub to fetch from (tests/weights/test_page.py), explain.md
# a run (tests/explain/test_document.py), own_parts.md its files (tests/training/test_own_parts.py).
PAGES = [
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if not {"results", "dev", "api"} & set(path.relative_to(ROOT).parts)
    and path.name not in ("weights.md", "explain.md", "own_parts.md")
]
# A section with this sentence shows what can't be tried on one machine.
NOT_RUN = "Not run here"
_PROGRAM = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:(?:\.venv|env)/bin/)?(deepcait|torchrun|make|pip|python3?|curl|pytest)(?: |$)"
)


@dataclass(frozen=True)
class Block:
    """A block of code: its language ("" for none), its text, and the section that it stands in."""

    language: str
    text: str
    section: str

    @property
    def commands(self) -> list[str]:
        """The lines that call a program, what is explained beside them left out; those that go on, in one."""
        if self.language not in ("", "sh", "bash"):
            return []
        lines = re.sub(r" *\\\n\s*", " ", self.text).split("\n")
        return [re.split(r"\s{2,}| #", line)[0] for line in lines if _PROGRAM.match(line)]


def blocks(text: str) -> list[Block]:
    """Every block of a page: between fences, or indented by four spaces."""
    found, section, fence, indented, lines = [], "", None, False, []
    for line in [*text.splitlines(), ""]:
        opening = re.match(r"^```(\S*)", line)
        if fence is not None and opening:
            found.append((fence, lines, section))
            fence, lines = None, []
        elif fence is not None:
            lines.append(line)
        elif opening:
            fence, lines = opening[1], []
        elif line.startswith("    "):
            indented = True
            lines.append(line[4:])
        elif indented and line:
            found.append(("", lines, section))
            indented, lines = False, []
        if fence is None and re.match(r"^#+ ", line):
            section = line.lstrip("# ")
    if indented:
        found.append(("", lines, section))
    return [Block(language, "\n".join(body).rstrip(), section) for language, body, section in found]


def section_text(text: str, title: str) -> str:
    """The words of the section with this title, up to the next one."""
    match = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    return match[1] if match else ""


def words(command: str) -> list[str]:
    """A command as a shell splits it, without variables in front and where its output goes."""
    found = shlex.split(command.partition(" > ")[0])
    return [word for index, word in enumerate(found) if index or not re.match(r"^[A-Z_]+=", word)]
