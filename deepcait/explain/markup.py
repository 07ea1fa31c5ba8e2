"""HTML pages from Jinja2 templates: every text is escaped, and a page is one self-contained file."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, features

from deepcait.explain.colours import css_gradient
from deepcait.explain.drawing import to_bytes

_TEMPLATES = Path(__file__).parent / "templates"
# Nothing is loaded, run or sent, even if text from the data were not escaped.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Table:
    """A table of strings; the first column has the row headers.

    name: description for screen readers.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str | None = None

    @property
    def numeric(self) -> list[bool]:
        """Whether all cells of a column begin with a digit or sign; such columns are right-aligned."""
        columns = range(1, len(self.columns))
        return [False, *(bool(self.rows) and all(_is_number(row[index]) for row in self.rows) for index in columns)]


@dataclass(frozen=True)
class Bars:
    """Probabilities as bars; the target is bold, the true label is marked.

    rows: (class index, name, probability).
    target, truth: class indices, since ImageNet has two classes named crane.
    """

    rows: Sequence[tuple[int, str, float]]
    target: int | None = None
    truth: int | None = None


def render(template: str, folder: Path = _TEMPLATES, **values: Any) -> Markup:
    """Fill a template with values; texts are escaped, Markup is not.

    Args:
        template: name of a file in `folder`; it may extend or import those of this package.
        folder: of the template.
    """
    # Without the template's final newline, since the result may become part of a line.
    return Markup(_environment(folder).get_template(template).render(values).rstrip("\n"))


def render_page(template: str, folder: Path = _TEMPLATES, **values: Any) -> str:
    """Return a whole document: a template that extends `page.html`, with the style inside and no script."""
    whole = render(template, folder, style=Markup(_style()), policy=_POLICY, **values) + "\n"
    # File names may contain bytes that are not UTF-8: each is shown as "?".
    return whole.encode("utf-8", "replace").decode("utf-8")


def is_page(path: Path) -> bool:
    """Whether a file was written by `render_page`."""
    with suppress(OSError), path.open("rb") as file:
        return b'<meta name="generator" content="deepcait">' in file.read(500)
    return False


@cache
def _environment(folder: Path) -> Environment:
    environment = Environment(
        loader=FileSystemLoader([folder, _TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_url"] = _data_url
    return environment


def _data_url(image: Image.Image) -> str:
    kind = "WEBP" if features.check("webp") else "PNG"
    return f"data:image/{kind.lower()};base64,{base64.b64encode(to_bytes(image, kind)).decode('ascii')}"


@cache
def _style() -> str:
    sheet = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    return f":root {{ --scale: {css_gradient()}; }}\n{sheet}"


def _is_number(text: str) -> bool:
    return not text or re.match(r"\d|[+\-−<].", text) is not None
