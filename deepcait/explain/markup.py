"""HTML that can't be broken by what it shows: every text is escaped, every page is one file without requests."""

from __future__ import annotations

import base64
import html
from contextlib import suppress
from functools import cache
from pathlib import Path

from PIL import Image, features

from deepcait.explain.colours import css_gradient
from deepcait.explain.picture import to_bytes

_VOID = ("img", "meta", "br", "link")
# Nothing is fetched, run or sent, whatever text of the data might have slipped in.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


class Markup(str):
    """Text that is HTML already; any other string is escaped where it is put in."""


def element(name: str, /, *children: str | None, **attributes: str | int | float | bool | None) -> Markup:
    """Return one element; strings among the children are escaped, None is nothing.

    Args:
        name: of the tag.
        attributes: `class_` is class, `aria_label` is aria-label; None and False leave one out, True is one without
            a value.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{html.escape(str(value))}"')
    opening = f"<{' '.join(words)}>"
    return Markup(opening) if name in _VOID else Markup(f"{opening}{join(*children)}</{name}>")


def join(*children: str | None) -> Markup:
    """Return HTML pieces and escaped texts one after another."""
    parts = (child if isinstance(child, Markup) else html.escape(child) for child in children if child is not None)
    return Markup("".join(parts))


def picture_element(image: Image.Image, alt: str, **attributes: str | int | None) -> Markup:
    """Return an image that lies inside the page."""
    kind = "WEBP" if features.check("webp") else "PNG"
    data = base64.b64encode(to_bytes(image, kind)).decode("ascii")
    source = f"data:image/{kind.lower()};base64,{data}"
    return element("img", src=source, alt=alt, width=image.width, height=image.height, **attributes)


def figure(image: Markup, caption: Markup | str, **attributes: str | None) -> Markup:
    """Return a picture with its caption."""
    return element("figure", image, element("figcaption", caption), **attributes)


def scroll(name: str, body: Markup) -> Markup:
    """Return what may be wider than a phone: it scrolls by itself, by the keyboard too.

    Args:
        name: what it is, for those who hear the page.
    """
    return element("div", body, class_="scroll", tabindex="0", role="region", aria_label=name)


def table(
    name: str, columns: list[str], rows: list[list[str]], *, caption: str | None = None, first_is_head: bool = True
) -> Markup:
    """Return a table that scrolls where it is wide; cells that begin with a digit or sign stand to the right.

    Args:
        name: what it is, for those who hear the page.
    """
    right = [bool(rows) and all(_is_number(row[index]) for row in rows) for index in range(len(columns))]
    right[0] = right[0] and not first_is_head
    kind = ["num" if numeric else None for numeric in right]
    head = [element("th", name, scope="col", class_=kind[index]) for index, name in enumerate(columns)]
    body = []
    for row in rows:
        cells = [
            element("th", cell, scope="row") if first_is_head and not index else element("td", cell, class_=kind[index])
            for index, cell in enumerate(row)
        ]
        body.append(element("tr", *cells))
    made = element(
        "table",
        element("caption", caption) if caption else None,
        element("thead", element("tr", *head)),
        element("tbody", *body),
    )
    return scroll(name, made)


def bars(rows: list[tuple[int, str, float]], *, target: int | None = None, truth: int | None = None) -> Markup:
    """Return probabilities as bars; the target is bold, the true label is marked.

    Args:
        rows: (class index, name, probability).
        target, truth: class indices; ImageNet has two classes called crane.
    """
    items = []
    for index, label, probability in rows:
        names = " ".join(name for name, yes in (("target", index == target), ("truth", index == truth)) if yes)
        items.append(
            element(
                "li",
                element("span", label),
                element("span", f"{probability:.1%}"),
                class_=names or None,
                style=f"--part: {100 * probability:.1f}%",
            )
        )
    return element("ul", *items, class_="bars")


def colour_legend() -> Markup:
    """Return the key of the colours of every map."""
    return element("p", "0", element("i"), "largest value of a panel", class_="legend", aria_hidden="true")


def page(title: str, header: Markup, main: Markup, footer: Markup | str = "") -> str:
    """Return a whole document: style inside, no script, and a policy that lets nothing be fetched."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="generator", content="deepcait"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("style", Markup(_style())),
    )
    body = element("body", element("header", header), element("main", main), element("footer", footer))
    whole = f"<!doctype html>\n{element('html', head, body, lang='en')}\n"
    # Names of files may hold bytes that are no UTF-8: a page can't, so each is shown as "?".
    return whole.encode("utf-8", "replace").decode("utf-8")


def is_page(path: Path) -> bool:
    """Whether a file is a page that `page` made."""
    with suppress(OSError), path.open("rb") as file:
        return b'<meta name="generator" content="deepcait">' in file.read(500)
    return False


@cache
def _style() -> str:
    sheet = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    return f":root {{ --scale: {css_gradient()}; }}\n{sheet}"


def _is_number(text: str) -> bool:
    plain = html.unescape(text) if isinstance(text, Markup) else text
    return not plain or plain[0].isdigit() or (plain[0] in "+-−<" and len(plain) > 1)
