"""The files of the page: a fixed list, read once; a request's path is only looked up in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deepcait.data.samples import sample_images

_PAGE = Path(__file__).parent / "page"
# Path of the request -> file of the package and its type.
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/static/page.css": ("page.css", "text/css; charset=utf-8"),
    "/static/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/static/overlay.js": ("overlay.js", "text/javascript; charset=utf-8"),
    "/static/icon.svg": ("icon.svg", "image/svg+xml"),
}


@dataclass(frozen=True)
class Asset:
    """One file of the page.

    Args:
        content: its bytes.
        media_type: its type.
        etag: changes with the content.
    """

    content: bytes
    media_type: str
    etag: str


def read_assets(classes: Sequence[str] | None) -> dict[str, Asset]:
    """Return every file that the service sends, by its path; sample images only for a model of their classes."""
    files = {path: (_PAGE / name, media_type) for path, (name, media_type) in _FILES.items()}
    files |= {f"/{_sample_path(label)}": (file, "image/png") for label, file in sample_images(classes).items()}
    assets = {}
    for path, (file, media_type) in files.items():
        content = file.read_bytes()
        assets[path] = Asset(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return assets


def sample_names(classes: Sequence[str] | None) -> list[dict[str, str]]:
    """Return path and class name of the sample images."""
    return [{"path": _sample_path(label), "label": label} for label in sample_images(classes)]


def _sample_path(label: str) -> str:
    return f"static/samples/{label}.png"
