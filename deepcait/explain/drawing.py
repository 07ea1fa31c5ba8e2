"""Draw maps as images: overlays, panels next to the image, and a grid of heads; Pillow only."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deepcait.explain.colours import colourise
from deepcait.runtime.lettering import fit_font, pillow_font

MIN_SIDE_PX = 224  # small images are enlarged by integer factors
MAX_SIDE_PX = 4096  # but a narrow strip not beyond this
_GAP_PX = 8
_PAPER, _INK, _FAINT = (255, 255, 255), (28, 30, 34), (90, 94, 102)


def enlarge(frame: Image.Image, min_side_px: int = MIN_SIDE_PX) -> Image.Image:
    """Return the image as RGB, its pixels repeated until the shorter side is large enough.

    The longer side is not enlarged beyond MAX_SIDE_PX.
    """
    factor = max(1, min(-(-min_side_px // min(frame.size)), MAX_SIDE_PX // max(frame.size)))
    return frame.convert("RGB").resize((frame.width * factor, frame.height * factor), Image.Resampling.NEAREST)


def fit(frame: Image.Image, longest_px: int) -> Image.Image:
    """Return the image with its longer side at `longest_px`, for panels and thumbnails."""
    factor = longest_px / max(frame.size)
    size = (max(1, round(frame.width * factor)), max(1, round(frame.height * factor)))
    # Enlarged pixels stay squares; reduced images are averaged.
    return frame.convert("RGB").resize(size, Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BICUBIC)


def stretch(values: np.ndarray, size: tuple[int, int], *, lowest: float = 0.0) -> np.ndarray:
    """Return a map (rows, columns) as (height, width) in [0, 1]: bicubic, `lowest` becomes 0, the largest value 1.

    Smaller values are shown as 0. A map without a larger value is 0 everywhere.

    Args:
        size: (width, height) in pixels.
    """
    span = float(values.max()) - lowest
    scaled = ((values - lowest).clip(min=0) / span if span > 0 else np.zeros_like(values)).astype(np.float32)
    return np.asarray(Image.fromarray(scaled, mode="F").resize(size, Image.Resampling.BICUBIC)).clip(0, 1)


def heat(values: np.ndarray, size: tuple[int, int], *, lowest: float = 0.0) -> Image.Image:
    """Return the map in colours."""
    return Image.fromarray(colourise(stretch(values, size, lowest=lowest)))


def overlay(frame: Image.Image, values: np.ndarray, *, opacity: float = 0.65, lowest: float = 0.0) -> Image.Image:
    """Return the coloured map on top of the greyscale image.

    Args:
        frame: the model's input.
        values: (rows, columns) of the map.
        opacity: of the map, from 0 to 1.
        lowest: the value shown as 0.
    """
    return Image.blend(frame.convert("L").convert("RGB"), heat(values, frame.size, lowest=lowest), opacity)


def overlay_original(
    image: Image.Image, box: tuple[float, float, float, float], values: np.ndarray, *, opacity: float, lowest: float
) -> Image.Image:
    """Return the coloured map on top of the greyscale image at its own resolution; a small image is enlarged first.

    Args:
        image: the whole image.
        box: the part that the map covers, (left, top, right, bottom) in its pixels; the rest stays grey.
        values, opacity, lowest: as in `overlay`.
    """
    shown = enlarge(image)
    factor = shown.width / image.width
    left, top, right, bottom = (round(side * factor) for side in box)
    below = shown.convert("L").convert("RGB")
    colours = below.copy()
    colours.paste(heat(values, (max(1, right - left), max(1, bottom - top)), lowest=lowest), (left, top))
    return Image.blend(below, colours, opacity)


def side_by_side(frame: Image.Image, values: np.ndarray, caption: str, *, lowest: float = 0.0) -> Image.Image:
    """Return the image, the overlay, and the map side by side, with the caption below."""
    shown = enlarge(frame)
    panels = [shown, overlay(shown, values, lowest=lowest), heat(values, shown.size, lowest=lowest)]
    return _sheet([panels], caption)


def head_grid(frame: Image.Image, heads_LAyx: np.ndarray, caption: str, *, panel_px: int = 144) -> Image.Image:
    """Return one row per class block: the mean of its heads, then every head, each with its maximum.

    Args:
        frame: the model's input.
        heads_LAyx: (class blocks, heads, rows, columns).
        caption: below the grid.
        panel_px: longer side of a panel.
    """
    shown = fit(frame, panel_px)
    rows, titles = [], []
    for number, heads_Ayx in enumerate(heads_LAyx):
        maps = [heads_Ayx.mean(0), *heads_Ayx]
        names = ["mean", *(f"head {head + 1}" for head in range(len(heads_Ayx)))]
        rows.append([shown, *(overlay(shown, values) for values in maps)])
        largest = [f"{name}, max {values.max():.3f}" for name, values in zip(names, maps, strict=True)]
        titles.append([f"class block {number + 1}", *largest])
    return _sheet(rows, caption, titles)


def to_bytes(image: Image.Image, kind: str = "PNG") -> bytes:
    """Return the image as the bytes of a file; the same image gives the same bytes."""
    buffer = io.BytesIO()
    # Pillow's `optimize` takes seven times as long for a PNG that is 5 % smaller.
    options = {"quality": 88, "method": 4} if kind == "WEBP" else {}
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _sheet(
    rows: Sequence[Sequence[Image.Image]], caption: str, titles: Sequence[Sequence[str]] | None = None
) -> Image.Image:
    """Panels on white, with optional titles above and the caption below."""
    panel_width, panel_height = rows[0][0].size
    face, caption = fit_font(" ".join(caption.split()))
    small, text = pillow_font(None, 12), pillow_font(face, 13)
    title_height = 18 if titles else 0
    # A title may be wider than a narrow panel: panels are then spaced so that titles do not overlap.
    longest_px = max((small.getlength(title) for line in titles or () for title in line), default=0)
    step = max(panel_width, math.ceil(longest_px)) + _GAP_PX
    width = max(_GAP_PX + step * len(rows[0]), 360)
    lines = _wrapped(caption, text, width - 2 * _GAP_PX)
    body_height = _GAP_PX + (panel_height + title_height + _GAP_PX) * len(rows)
    sheet = Image.new("RGB", (width, body_height + 18 * len(lines) + _GAP_PX), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for y, panels in enumerate(rows):
        top = _GAP_PX + y * (panel_height + title_height + _GAP_PX)
        for x, panel in enumerate(panels):
            left = _GAP_PX + x * step
            if titles:
                draw.text((left, top), titles[y][x], fill=_FAINT, font=small)
            sheet.paste(panel, (left, top + title_height))
    for number, line in enumerate(lines):
        draw.text((_GAP_PX, body_height + 18 * number), line, fill=_INK, font=text)
    return sheet


def _wrapped(caption: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> list[str]:
    """The caption in lines; a word wider than a line (such as a class name) continues on the next."""
    lines, line, line_px = [], "", 0.0
    space_px = font.getlength(" ")
    for word in caption.split():
        # Word by word: measuring whole lines took longer than the network.
        word_px = font.getlength(word)
        if line and line_px + space_px + word_px <= width_px:
            line, line_px = f"{line} {word}", line_px + space_px + word_px
            continue
        lines += [line] if line else []
        line, line_px = word, word_px
        while line_px > width_px:
            fits = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or font.getlength(line[:n]) <= width_px)
            lines.append(line[:fits])
            line = line[fits:]
            line_px = font.getlength(line)
    return [*lines, line] if line else lines
