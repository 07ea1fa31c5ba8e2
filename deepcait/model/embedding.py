"""Patch embedding, and interpolation of position embeddings to another grid of patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcait.errors import ShapeError


class PatchEmbed(nn.Module):
    """Cut an image into squares and project each to one token.

    A convolution whose stride is its kernel; patches come in row-major order. No norm follows it.

    Args:
        patch_size: P, side of a patch in pixels.
        in_chans: C, image channels.
        embed_dim: D, width of a token.
    """

    def __init__(self, patch_size: int, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return tokens_BND, N = (H / P) * (W / P)."""
        return self.proj(images_BCHW).flatten(2).transpose(1, 2)


def require_images(images_BCHW: Tensor, in_chans: int, img_size: tuple[int, int]) -> None:
    """Raise unless images have the network's size, (B, C, H, W); B may be 0.

    Raises:
        ShapeError: the channels, height, width or the number of dimensions differ.
    """
    expected = (in_chans, *img_size)
    if images_BCHW.ndim != 4 or tuple(images_BCHW.shape[1:]) != expected:
        raise ShapeError(
            f"images: expected (B, {', '.join(map(str, expected))}), got {tuple(images_BCHW.shape)}.",
            remedy="Resize the images, or build the model with their img_size and in_chans.",
        )


def resize_pos_embed(pos_embed: Tensor, old_grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Interpolate a position embedding to another grid of patches (bicubic).

    CaiT's positions belong to patches only: there is no row for the class token. The same grid returns the embedding
    unchanged.

    Args:
        pos_embed: (1, N, D) with N = old rows * old columns.
        old_grid: its rows and columns.
        new_grid: the new rows and columns.

    Returns:
        (1, new rows * new columns, D), in the input's dtype.
    """
    if old_grid == new_grid:
        return pos_embed
    embed_dim = pos_embed.shape[-1]
    maps = pos_embed.reshape(1, *old_grid, embed_dim).permute(0, 3, 1, 2)
    # Interpolation in half precision would round twice; float64 stays as it is.
    wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
    resized = F.interpolate(wide, size=new_grid, mode="bicubic", align_corners=False).to(maps.dtype)
    return resized.permute(0, 2, 3, 1).reshape(1, new_grid[0] * new_grid[1], embed_dim)
