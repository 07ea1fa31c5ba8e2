"""The folder of a page: check it, name its files, and remove those of an earlier page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from deepcait.errors import ConfigError
from deepcait.explain.explanation import METHODS
from deepcait.explain.markup import is_page
from deepcait.runtime.files import require_folder

PAGE_FILE, FIGURES_FOLDER, FIGURES_FILE = "index.html", "figures", "figures.json"
_IMAGE_FILES = {"heads.png", "maps.npz", *(f"{method.replace('-', '_')}.png" for method in METHODS)}


def image_folder(number: int, path: Path) -> str:
    """Return the name of an image's folder. Numbered, since images of two folders may have equal names."""
    return f"{number:03d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', path.stem)[:80]}"


def figure_file(title: str) -> str:
    """Return the file name of a figure of the model."""
    return f"{title.lower().replace(' ', '_')}.png"


def require_place(out: Path) -> None:
    """Raise unless a page may be written here; inside a data set it would look like another class.

    Raises:
        ConfigError: it is a file, or a folder with other content than an earlier page.
    """
    require_folder(out, "--out")
    others = [path.name for path in sorted(out.iterdir()) if not _is_ours(path)] if out.is_dir() else []
    if others and not is_page(out / PAGE_FILE):
        raise ConfigError(
            f"--out: the folder {out} holds other files, such as {others[0]}.",
            remedy="Choose a new or empty folder, or that of an earlier `deepcait explain`, which is replaced.",
        )


def remove_earlier(out: Path, kept: Iterable[Path], *, figures: bool) -> None:
    """Remove files of an earlier call from `out` that the page does not show any more.

    Only files with the names used here, and folders that become empty; other files are kept.

    Args:
        out: folder of the page.
        kept: files of the images on the page.
        figures: whether the page shows plots of the model.
    """
    kept = set(kept)
    for folder in out.iterdir():
        if re.match(r"\d{3,}_", folder.name) and not folder.is_symlink() and (folder / "maps.npz").is_file():
            _remove(folder, {folder / name for name in _IMAGE_FILES} - kept)
    numbers = out / FIGURES_FOLDER / FIGURES_FILE
    if not figures and numbers.is_file():
        with suppress(OSError, ValueError, KeyError, TypeError):  # not written by deepcait
            titles = json.loads(numbers.read_text(encoding="utf-8"))["captions"]
            drawn = {numbers.parent / Path(figure_file(title)).name for title in titles}
            _remove(numbers.parent, drawn | {numbers})


def _is_ours(folder: Path) -> bool:
    """Whether it may come from an interrupted call, before the page was written."""
    if not folder.is_dir() or not re.match(rf"\d{{3,}}_|{FIGURES_FOLDER}$", folder.name):
        return False
    return all(path.name in _IMAGE_FILES or folder.name == FIGURES_FOLDER for path in folder.iterdir())


def _remove(folder: Path, files: set[Path]) -> None:
    with suppress(OSError):  # not empty, or not writable
        for path in files:
            path.unlink(missing_ok=True)
        folder.rmdir()
