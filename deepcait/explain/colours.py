"""The colour scale of maps: dark blue, grey, light yellow; perceptually uniform, safe for colour blindness.

A straight line in OKLab, a perceptually uniform colour space (Ottosson 2020): lightness increases monotonically, so the
order is kept in greyscale; hue changes along the blue-yellow axis, which people with red-green blindness can see.
"""

from __future__ import annotations

import functools

import numpy as np

# (L, a, b) of both ends; the whole line is inside the sRGB gamut (tested).
_DARK, _LIGHT = (0.24, -0.01, -0.105), (0.93, -0.03, 0.15)
_NUM = 256
# OKLab to the cone responses' cube roots, and these to linear sRGB: Bjorn Ottosson, "A perceptual color space", 2020.
_LAB_TO_CONES = (
    (1.0, 0.3963377774, 0.2158037573),
    (1.0, -0.1055613458, -0.0638541728),
    (1.0, -0.0894841775, -1.2914855480),
)
_CONES_TO_RGB = (
    (4.0767416621, -3.3077115913, 0.2309699292),
    (-1.2684380046, 2.6097574011, -0.3413193965),
    (-0.0041960863, -0.7034186147, 1.7076147010),
)


@functools.cache
def scale() -> np.ndarray:
    """Return the scale, (256, 3) uint8 sRGB, from the lowest value to the highest."""
    linear = linear_rgb(np.linspace(_DARK, _LIGHT, _NUM))
    return np.round(255 * _gamma(linear.clip(0, 1))).astype(np.uint8)


def linear_rgb(lab: np.ndarray) -> np.ndarray:
    """Return linear sRGB for OKLab colours, both (..., 3); outside [0, 1] if sRGB can't represent the colour."""
    cones = (lab @ np.array(_LAB_TO_CONES).T) ** 3
    return cones @ np.array(_CONES_TO_RGB).T


def colourise(values: np.ndarray) -> np.ndarray:
    """Return colours, (..., 3) uint8, for values in [0, 1]; values outside are clipped."""
    return scale()[np.round(values.clip(0, 1) * (_NUM - 1)).astype(np.intp)]


def css_gradient() -> str:
    """Return the scale as the stops of a CSS gradient, for legends."""
    return ", ".join("#{:02x}{:02x}{:02x}".format(*scale()[index]) for index in range(0, _NUM, 51))


def _gamma(linear: np.ndarray) -> np.ndarray:
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
