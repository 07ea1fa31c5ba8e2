"""Names drawn in images and plots: in a font that has their characters, and short enough to leave room for the rest."""

from __future__ import annotations

import functools
import importlib.util
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import ImageFont

_SIZE = 16  # for the comparison of glyphs only
_ABSENT = "\U0010fffe"  # a character that no font has: its glyph is the one for missing characters
_LONGEST = 32
_ENOUGH_FONTS = 2000


def shorten(name: str, longest: int = _LONGEST) -> str:
    """Return a name with its middle left out if it is longer.

    >>> shorten("house finch, linnet, Carpodacus mexicanus", 21)
    'house finc… mexicanus'
    """
    if len(name) <= longest:
        return name
    tail = (longest - 1) // 2
    return f"{name[: longest - 1 - tail]}…{name[len(name) - tail :]}"


def fit_font(text: str, own: str | None = None) -> tuple[str | None, str]:
    """Return (font file, text) that can be drawn.

    The font is `own` if it has every character, else the first one on this machine that does. If there is none, it
    is `own`, and characters that it lacks are written as \\uXXXX.

    Args:
        text: one line.
        own: file of the preferred font; None is Pillow's.
    """
    lacking = sorted({character for character in text if not _has(own, character)})
    if not lacking:
        return own, text
    for path in _font_files():
        if all(_has(path, character) for character in set(text)):
            return path, text
    written = {ord(one): f"\\u{ord(one):04x}" if ord(one) < 0x10000 else f"\\U{ord(one):08x}" for one in lacking}
    return own, text.translate(written)


def name_ticks(axis: Any, names: Sequence[str], **options: Any) -> None:
    """Name the ticks 0 to N - 1 of an axis of matplotlib by a user's words; long ones are shortened.

    Args:
        axis: `axes.xaxis` or `axes.yaxis`.
        names: one for each tick.
        options: of the texts.
    """
    words = [shorten(name) for name in names]
    axis.set_ticks(range(len(names)), words, **options)
    labels = axis.get_ticklabels()
    for label, word in zip(labels, words, strict=True):
        write_text(label, word)
    axis.set_ticklabels([label.get_text() for label in labels], parse_math=False)  # what the ticks draw


def write_text(text: Any, words: str) -> None:
    """Set a user's text in matplotlib: `$` does not start a formula, and the font has the characters."""
    font_manager = importlib.import_module("matplotlib.font_manager")
    own = font_manager.findfont(text.get_fontproperties())
    path, drawn = fit_font(words, own)
    text.set(text=drawn, parse_math=False)
    if path not in (None, own):
        text.set_fontproperties(font_manager.FontProperties(fname=path, size=text.get_size()))


@functools.lru_cache(maxsize=64)
def pillow_font(path: str | None, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font of Pillow: a file's, or Pillow's own if `path` is None."""
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


@functools.lru_cache(maxsize=100_000)
def _has(path: str | None, character: str) -> bool:
    """Whether a font has a character."""
    if character == " ":
        return True
    # Control characters, and code points that are not characters.
    if unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs"):
        return False
    try:
        font = pillow_font(path, _SIZE)
        return _glyph(font, character) != _glyph(font, _ABSENT)
    except (OSError, ValueError):  # no font that Pillow draws with
        return False


def _glyph(font: Any, character: str) -> tuple[Any, bytes]:
    mask: Any = font.getmask(character)
    return mask.size, bytes(mask)


@functools.cache
def _font_files() -> list[str]:
    """The fonts of this machine: those that come with matplotlib first."""
    if importlib.util.find_spec("matplotlib") is None:
        return []
    font_manager = importlib.import_module("matplotlib.font_manager")
    found = {font.fname for font in font_manager.fontManager.ttflist if "LastResort" not in font.fname}  # boxes
    own = str(Path(importlib.import_module("matplotlib").get_data_path()))
    ordered = sorted(found, key=lambda path: (not path.startswith(own), not path.endswith("DejaVuSans.ttf"), path))
    return ordered[:_ENOUGH_FONTS]
