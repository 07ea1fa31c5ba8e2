"""How values show themselves in a notebook: small pieces of HTML with their style inside, every text escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

# Colours of text and lines come from the notebook, so that both light and dark ones are readable.
_CELL = "padding:2px 10px;border-bottom:1px solid #8884;text-align:"
_BAR = "display:inline-block;height:0.8em;background:#3b78c4"
_SHOWN = 20  # rows or images
_MIN_WIDTH_PX = 224


def block(title: str, *parts: str) -> str:
    """Return a piece with a title; the parts are HTML already."""
    return f"<div><b>{html.escape(title)}</b>{''.join(parts)}</div>"


def text(words: str) -> str:
    """Return a line of text."""
    return f'<div style="margin:2px 0">{html.escape(words)}</div>'


def facts(rows: Sequence[tuple[str, object]]) -> str:
    """Return a table of names and values."""
    return _table("".join(f"<tr>{_cell('th', name, 'left')}{_cell('td', value, 'left')}</tr>" for name, value in rows))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table; of many rows the last."""
    head = "<tr>" + "".join(_cell("th", name, "right") for name in columns) + "</tr>"
    body = "".join("<tr>" + "".join(_cell("td", one, "right") for one in row) + "</tr>" for row in rows[-_SHOWN:])
    more = text(f"the last {_SHOWN} of {len(rows):,} rows") if len(rows) > _SHOWN else ""
    return _table(head + body) + more


def bars(rows: Sequence[tuple[str, float]]) -> str:
    """Return names with fractions in [0, 1], drawn as bars."""
    lines = []
    for name, value in rows:
        bar = f'<span style="{_BAR};width:{120 * min(max(value, 0.0), 1.0):.0f}px"></span>'
        cells = _cell("td", name, "left") + _cell("td", f"{100 * value:.1f} %", "right")
        lines.append(f'<tr>{cells}<td style="{_CELL}left">{bar}</td></tr>')
    return _table("".join(lines))


def several(parts: Sequence[str], what: str) -> str:
    """Return parts below each other; of many the first, and how many more there are."""
    more = text(f"and {len(parts) - _SHOWN:,} more {what}") if len(parts) > _SHOWN else ""
    return f"<div>{''.join(parts[:_SHOWN])}{more}</div>"


def figure(png: bytes, size: tuple[int, int], title: str, caption: str = "") -> str:
    """Return an image of (width, height) pixels with its title and caption; a small one is shown larger."""
    url = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    shown = max(size[0], _MIN_WIDTH_PX) if size[0] < _MIN_WIDTH_PX else size[0]
    style = f"width:{shown}px;max-width:100%;image-rendering:{'pixelated' if shown > size[0] else 'auto'}"
    words = f"<b>{html.escape(title)}</b> {html.escape(caption)}"
    return (
        '<figure style="display:inline-block;vertical-align:top;margin:4px 8px 4px 0;max-width:min(100%,480px)">'
        f'<img src="{url}" alt="{html.escape(title)}" width="{size[0]}" height="{size[1]}" style="{style};height:auto">'
        f'<figcaption style="font-size:smaller">{words}</figcaption></figure>'
    )


def progress(done: int, total: int | None, words: str, left: str) -> str:
    """Return a progress bar with words behind it."""
    value = f'max="{total}" value="{done}"' if total else ""
    numbers = f"{done:,} of {total:,}" if total else f"{done:,}"
    return f"<div><progress {value}></progress> {html.escape(f'{numbers} {left} {words}')}</div>"


def _table(rows: str) -> str:
    return f'<table style="border-collapse:collapse">{rows}</table>'


def _cell(tag: str, value: object, align: str) -> str:
    return f'<{tag} style="{_CELL}{align}">{html.escape(str(value))}</{tag}>'
