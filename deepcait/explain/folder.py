"""The folder of a page: where one may be written, and what of an earlier page is removed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from deepcait.errors import ConfigError
from deepcait.explain.explanation import METHODS
from deepcait.explain.markup import is_page

PAGE_FILE, FIGURES_FOLDER, FIGURES_FILE = "index.html", "figures", "figures.json"
_IMAGE_FILES = {"heads.png", "maps.npz", *(f"{method.replace('-', '_')}.png" for method in METHODS)}


def image_folder(number: int, path: Path) -> str:
    """Return the name of an image's folder. Numbered: two folders may hold images of one name."""
    return f"{number:03d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', path.stem)[:80]}"


def figure_file(title: str) -> str:
    """Return the file name of a figure of the model."""
    return f"{title.lower().replace(' ', '_')}.png"


def require_place(out: Path) -> None:
    """Raise unless a page may be written here: in a data set its images would be taken for one class more.

    Raises:
        ConfigError: a file, or a folder with other contents than an earlier page.
    """
    if out.is_file():
        raise ConfigError(f"--out: expected a folder, got the file {out}.", remedy="Give another folder.")
    others = [path.name for path in sorted(out.iterdir()) if not _is_ours(path)] if out.is_dir() else []
    if others and not is_page(out / PAGE_FILE):
        raise ConfigError(
            f"--out: expected a new or empty folder or that of an earlier page, got {out}, which holds {others[0]}.",
            remedy="Give another folder.",
        )


def remove_earlier(out: Path, kept: Iterable[Path], *, figures: bool) -> None:
    """Remove what an earlier call wrote into `out` and the page does not show any more.

    Only files by our names, and folders that are empty then: everything else stays.

    Args:
        out: folder of the page.
        kept: files of the images on the page.
        figures: the page shows figures of the model.
    """
    kept = set(kept)
    for folder in out.iterdir():
        if re.match(r"\d{3,}_", folder.name) and not folder.is_symlink() and (folder / "maps.npz").is_file():
            _remove(folder, {folder / name for name in _IMAGE_FILES} - kept)
    numbers = out / FIGURES_FOLDER / FIGURES_FILE
    if not figures and numbers.is_file():
        with suppress(OSError, ValueError, KeyError, TypeError):  # not written by us
            titles = json.loads(numbers.read_text(encoding="utf-8"))["captions"]
            drawn = {numbers.parent / Path(figure_file(title)).name for title in titles}
            _remove(numbers.parent, drawn | {numbers})


def _is_ours(folder: Path) -> bool:
    """Whether it may come from a call that was interrupted before there was a page."""
    if not folder.is_dir() or not re.match(rf"\d{{3,}}_|{FIGURES_FOLDER}$", folder.name):
        return False
    return all(path.name in _IMAGE_FILES or folder.name == FIGURES_FOLDER for path in folder.iterdir())


def _remove(folder: Path, files: set[Path]) -> None:
    with suppress(OSError):  # not empty, or not writable
        for path in files:
            path.unlink(missing_ok=True)
        folder.rmdir()
