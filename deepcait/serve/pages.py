"""What the page is made of: a fixed list of files, read once; a request's path is only ever looked up in it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_PAGE = Path(__file__).parent / "page"
_DEMO = Path(__file__).parent.parent / "assets" / "demo" / "test"
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


def read_assets() -> dict[str, Asset]:
    """Return every file that the service gives away, by the path it is asked for with."""
    files = {path: (_PAGE / name, media_type) for path, (name, media_type) in _FILES.items()}
    files |= {f"/{path}": (file, "image/png") for path, (_, file) in _samples().items()}
    assets = {}
    for path, (file, media_type) in files.items():
        content = file.read_bytes()
        assets[path] = Asset(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
    return assets


def sample_names() -> list[dict[str, str]]:
    """Return path and class name of the bundled images: the first of each class, nothing chosen by content."""
    return [{"path": path, "label": label} for path, (label, _) in _samples().items()]


def _samples() -> dict[str, tuple[str, Path]]:
    folders = sorted(path for path in _DEMO.iterdir() if path.is_dir())
    return {f"static/samples/{folder.name}.png": (folder.name, min(folder.glob("*.png"))) for folder in folders}
