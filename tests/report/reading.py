"""A page read as a person would: its sections, their text, their tables."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

# What a report shows, in this order.
SECTIONS = ["curves", "metrics", "confusion", "mistakes", "data", "recipe", "environment", "repeat"]
VOID = ("meta", "img", "br", "link", "input")


@dataclass
class Node:
    """One element with its children; texts are strings among them."""

    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list[Node | str] = field(default_factory=list)

    def find(self, tag: str | None = None, **wanted: str) -> list[Node]:
        """Every element below of this tag and with these attributes, in order."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                fits = all(child.attributes.get(name.rstrip("_")) == value for name, value in wanted.items())
                found += [child] if fits and tag in (None, child.tag) else []
                found += child.find(tag, **wanted)
        return found

    @property
    def text(self) -> str:
        parts = (child if isinstance(child, str) else child.text for child in self.children)
        return " ".join(" ".join(parts).split())

    def rows(self) -> list[list[str]]:
        """The cells of a table as text."""
        return [[cell.text for cell in row.children if isinstance(cell, Node)] for row in self.find("tr")]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.stack = [Node("document")]

    def handle_starttag(self, tag, attrs):
        node = Node(tag, dict(attrs))
        self.stack[-1].children.append(node)
        if tag not in VOID:
            self.stack.append(node)

    def handle_endtag(self, tag):
        assert self.stack.pop().tag == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.stack[-1].children.append(data)


def read_page(path: Path) -> Node:
    """The page; every element must be closed."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert [node.tag for node in reader.stack] == ["document"]
    return reader.stack[0]


def section(page: Node, anchor: str) -> Node:
    """A section by its id."""
    (found,) = page.find("section", id=anchor)
    return found


def addresses(page: Node) -> list[str]:
    """Everything that a browser might fetch or lead to."""
    names = ("src", "href", "srcset", "poster", "data", "action", "formaction", "background", "xlink:href")
    return [node.attributes[name] or "" for node in page.find() for name in names if name in node.attributes]
