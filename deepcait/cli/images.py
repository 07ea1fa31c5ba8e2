"""Options of every command that reads images: limits, and the range of values above 8 bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepcait.data import ImageOptions


@dataclass(frozen=True, kw_only=True)
class ImageArgs:
    """Limits on images, the same in every command."""

    max_pixels: int | None = None
    """Largest accepted number of pixels of an image (default: 89,478,485)."""
    max_bytes: int | None = None
    """Largest accepted size of a file in bytes (default: 100 MiB)."""
    max_value: int | None = None
    """Pixel value that is white in images with more than 8 bits per channel, such as 4095 (default: the model's, else
    the file's)."""
    accept_truncated: bool = False
    """Accept truncated files whose last row of pixels can still be decoded."""


def image_options(args: ImageArgs, default: ImageOptions | None = None) -> ImageOptions:
    """Return the limits of a command line, over those of a model.

    Raises:
        ConfigError: a limit is not valid.
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
