"""From the PATH arguments of a command to images: files, folders, patterns, lists, standard input, URLs."""

from __future__ import annotations

import glob
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deepcait.errors import DataError

if TYPE_CHECKING:
    from deepcait.data.inputs import ImageInput

_LIST_SUFFIX = ".txt"


@dataclass(frozen=True)
class Given:
    """One image of the command line.

    Args:
        name: its path or URL; "-" where standard input is the image.
        content: the bytes of standard input.
    """

    name: str
    content: bytes | None = None

    def load(self, max_bytes: int) -> ImageInput:
        """Return an argument of `Classifier.open`. Raises ImageError if a URL can't be fetched."""
        from deepcait.data.fetch import fetch_image, is_url

        if self.content is not None:
            return self.content
        return fetch_image(self.name, max_bytes=max_bytes) if is_url(self.name) else self.name


@dataclass
class Places:
    """What the PATH arguments lead to.

    Args:
        max_bytes: how much of standard input is read.

    Attributes:
        images: in the order of the arguments.
        left_out: for each folder or pattern with files that are not images, how many there are.
        only_files: every image was given by its own path.
    """

    max_bytes: int
    images: list[Given] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    only_files: bool = True

    def add(self, place: str) -> None:
        """Add the images of one argument.

        Raises:
            DataError: nothing is there, or no image.
        """
        from deepcait.data.fetch import is_url

        if place == "-":
            self._add_stdin()
        elif is_url(place):
            self.images.append(Given(place))
        elif os.path.isdir(place):
            self._add_folder(place)
        elif os.path.isfile(place):
            if place.lower().endswith(_LIST_SUFFIX):
                self._add_list(place)
            else:
                self.images.append(Given(place))
        elif glob.has_magic(place):
            self._add_pattern(place)
        else:
            raise DataError(
                f"{place}: no such file or folder, and not a pattern, list or URL.",
                remedy="Check the spelling of the path.",
            )

    def _add_folder(self, folder: str) -> None:
        from deepcait.data.formats import count_suffixes
        from deepcait.data.listing import list_images, walk_files

        self.only_files = False
        self.images += [Given(str(path)) for path in list_images(folder)]
        self._leave_out(folder, count_suffixes(walk_files(Path(folder))[1]))

    def _add_pattern(self, pattern: str) -> None:
        from deepcait.data.formats import count_suffixes
        from deepcait.data.listing import is_image_file, natural_key, walk_files

        self.only_files = False
        before, others = len(self.images), []
        for path in sorted(glob.glob(pattern, recursive=True), key=natural_key):
            if os.path.isdir(path):
                if "**" not in pattern:  # else its files match too
                    inside, rest = walk_files(Path(path))
                    self.images += [Given(os.path.join(path, name)) for name in inside]
                    others += rest
            elif is_image_file(Path(path)):
                self.images.append(Given(path))
            else:
                others.append(path)
        if len(self.images) == before:
            got = f", only {count_suffixes(others)}" if others else ""
            raise DataError(
                f"{pattern}: no image matches this pattern{got}.",
                remedy="Check it: `*` is any part of a name, `**` any number of folders.",
            )
        self._leave_out(pattern, count_suffixes(others))

    def _add_list(self, path: str) -> None:
        with open(path, "rb") as file:
            self._add_lines(file.read(), os.path.dirname(path), path)

    def _add_stdin(self) -> None:
        from deepcait.data.formats import format_of

        content = sys.stdin.buffer.read(self.max_bytes + 1)
        if format_of(content) is not None or b"\0" in content:
            self.images.append(Given("-", content))
        else:
            self._add_lines(content, "", "-")

    def _add_lines(self, content: bytes, folder: str, name: str) -> None:
        """A path or URL per line, relative to `folder`; an image that is missing is reported when its turn comes."""
        from deepcait.data.fetch import is_url

        self.only_files = False
        lines = [os.fsdecode(line.strip()) for line in content.removeprefix(b"\xef\xbb\xbf").splitlines()]
        named = [line if is_url(line) else os.path.join(folder, line) for line in lines if line]
        if not named:
            raise DataError(f"{name}: the list is empty.", remedy="Write one path per line.")
        self.images += [Given(line) for line in named]

    def _leave_out(self, place: str, files: str) -> None:
        if files:
            self.left_out.append(f"{place}: left out {files}, not images")


def find_images(places: tuple[str, ...], max_bytes: int) -> Places:
    """Return the images that arguments lead to.

    Args:
        places: paths of images, of folders, of lists (.txt: a path or URL per line, relative to the list's folder);
            patterns with `*`, `?`, `[...]` and `**`; `-` for standard input, an image or a list; URLs.
        max_bytes: how much of standard input is read.

    Raises:
        DataError: nothing is there, or no image.
    """
    found = Places(max_bytes)
    for place in places:
        found.add(place)
    return found
