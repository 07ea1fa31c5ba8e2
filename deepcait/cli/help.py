"""Explain an error, or what DATA and MODEL are.

Examples:
    deepcait help                    the topics
    deepcait help out-of-memory      a section of the error pages
    deepcait help data               what --data takes
    deepcait help train              the same as `deepcait train --help`
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from deepcait.cli.console import Console
from deepcait.errors import ConfigError

PAGES = Path(__file__).parent.parent / "assets" / "help"


@dataclass(frozen=True)
class Args:
    """Options of `deepcait help`."""

    topic: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[TOPIC]")] = None
    """Name of a topic or of a command; without it, the topics are listed."""


def run(args: Args) -> int | None:
    """Print a topic, or the list of them."""
    console, found = Console(), topics()
    if args.topic is None:
        titles = [text.partition("\n")[0].lstrip("# ") for text in found.values()]
        console.table(("topic", "title"), list(zip(found, titles, strict=True)))
        console.say("\n`deepcait help TOPIC` prints one; `deepcait --help` lists the commands.")
        return
    topic = args.topic.lower()
    if topic not in found:
        near = difflib.get_close_matches(topic, found, n=1, cutoff=0.4)
        raise ConfigError(
            f"There is no help topic {args.topic!r}.",
            remedy=f"Did you mean `deepcait help {near[0]}`?" if near else "`deepcait help` lists the topics.",
        )
    console.say(found[topic].strip())


def topics() -> dict[str, str]:
    """Return every topic with its text, Markdown: the pages, and each section of the page of errors."""
    found = {path.stem: path.read_text(encoding="utf-8") for path in sorted(PAGES.glob("*.md"))}
    for section in found["errors"].split("\n## ")[1:]:
        found[slug(section.partition("\n")[0])] = f"# {section}"
    return found


def slug(title: str) -> str:
    """Return the name of a section: lower case, words joined by hyphens."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
