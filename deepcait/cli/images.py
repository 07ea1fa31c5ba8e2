"""Options of every command that reads images: what is accepted, and the range of deep values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepcait.data import ImageOptions


@dataclass(frozen=True, kw_only=True)
class ImageArgs:
    """Limits on images, the same in every command."""

    max_pixels: int | None = None
    """An image of more pixels is refused, by its header (default: 89,478,485)."""
    max_bytes: int | None = None
    """A larger file is refused before it is read (default: 100 MiB)."""
    max_value: int | None = None
    """The value that is white in images deeper than 8 bits, e.g. 4095 (default: the model's; what the file says)."""
    accept_truncated: bool = False
    """Take images whose end is missing where their last row was decoded."""


def image_options(args: ImageArgs, default: ImageOptions | None = None) -> ImageOptions:
    """Return the limits of a command line, over those of a model.

    Raises:
        ConfigError: a limit that can't be.
    """
    from deepcait.data import ImageOptions

    options = default or ImageOptions()
    return replace(
        options,
        max_pixels=options.max_pixels if args.max_pixels is None else args.max_pixels,
        max_bytes=options.max_bytes if args.max_bytes is None else args.max_bytes,
        max_value=options.max_value if args.max_value is None else args.max_value,
        accept_truncated=args.accept_truncated or options.accept_truncated,
    )
