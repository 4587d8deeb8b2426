"""Parts of pictures: which part, how it is turned, and how its colours are changed, all drawn from one generator."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance

__all__ = ["Window", "as_picture", "centre", "extrapolate", "pixels", "random_patch", "random_window"]

LARGEST_TURN = 30.0
JITTER = 0.4
HUE = 0.1
"""Degrees, the factors' distance from 1, and shares of the colour circle, at most."""


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle in shares of a picture's width and height, then mirrored, then turned by quarters.

    The same window cuts the same part from pictures of different sizes.
    """

    left: float
    top: float
    width: float
    height: float
    mirror: bool = False
    quarters: int = 0

    def cut(
        self,
        picture: Image.Image,
        size: tuple[int, int],
        resample: Image.Resampling = Image.Resampling.BILINEAR,
    ) -> Image.Image:
        """The part, resized to (height, width) = size, which is what comes out."""
        height, width = size if self.quarters % 2 == 0 else size[::-1]
        # Rounded, since a whole pixel that is 1e-12 off would be blended with its neighbour.
        left, right = (round(x * picture.width, 6) for x in (self.left, self.left + self.width))
        top, bottom = (round(y * picture.height, 6) for y in (self.top, self.top + self.height))
        part = picture.resize((width, height), resample, (left, top, right, bottom))
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirror else part
        turns = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
        turn = turns[self.quarters % 4]
        return part if turn is None else part.transpose(turn)


def random_window(generator: torch.Generator, least: float = 0.35, *, mirror: bool = True) -> Window:
    """A window of `least`…1 of the area, of the picture's shape, mirrored every other time."""
    share, left, top, flip = torch.rand(4, generator=generator).tolist()
    side = (least + (1 - least) * share) ** 0.5
    return Window((1 - side) * left, (1 - side) * top, side, side, mirror and flip < 0.5)


def random_patch(generator: torch.Generator, picture: Image.Image, size: tuple[int, int], unit: int = 1) -> Window:
    """A window of exactly (height, width) = size pixels at a multiple of `unit`, in any of the eight orientations.

    Only four of them where height and width differ. The picture is at least that large.
    """
    places = [(extent - wanted) // unit + 1 for extent, wanted in zip(picture.size, size[::-1], strict=True)]
    flip, *draws = torch.rand(4, generator=generator).tolist()
    left, top = (min(int(draw * count), count - 1) * unit for draw, count in zip(draws, places, strict=False))
    quarters = int(draws[2] * 4) if size[0] == size[1] else 2 * int(draws[2] * 2)
    width, height = size[1] / picture.width, size[0] / picture.height
    return Window(left / picture.width, top / picture.height, width, height, flip < 0.5, quarters)


def extrapolate(
    picture: Image.Image, size: tuple[int, int], generator: torch.Generator, *, strong: bool = True
) -> Image.Image:
    """A crop of 30…100 % of the largest part of that shape, mirrored every other time; (height, width) = size.

    With `strong`, half of them are turned by up to LARGEST_TURN degrees, four of five have brightness, contrast,
    saturation and hue changed. Nothing outside the picture is ever seen.
    """
    share, left, top, flip, turned, angle, jittered = torch.rand(7, generator=generator).tolist()
    degrees = (2 * angle - 1) * LARGEST_TURN if strong and turned < 0.5 else 0.0
    part = _turned(picture, size, (0.3 + 0.7 * share) ** 0.5, (left, top), degrees)
    part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip < 0.5 else part
    return _jittered(part, generator) if strong and jittered < 0.8 else part


def _turned(
    picture: Image.Image, size: tuple[int, int], side: float, place: tuple[float, float], degrees: float
) -> Image.Image:
    """A rectangle of this `side` of the largest upright one, turned, as far as the picture holds it then."""
    height, width = size
    sine, cosine = abs(math.sin(math.radians(degrees))), abs(math.cos(math.radians(degrees)))
    outer = width * cosine + height * sine, width * sine + height * cosine
    largest = min(picture.width / width, picture.height / height)
    scale = min(side * largest, picture.width / outer[0], picture.height / outer[1])
    spans = scale * outer[0], scale * outer[1]
    x, y = (share * max(0.0, whole - span) for share, whole, span in zip(place, picture.size, spans, strict=True))
    around = math.ceil(outer[0]), math.ceil(outer[1])
    box = (x, y, min(x + spans[0], picture.width), min(y + spans[1], picture.height))
    part = picture.resize(around, Image.Resampling.BICUBIC, box)
    part = part.rotate(degrees, Image.Resampling.BICUBIC) if degrees else part
    return _middle(part, height, width)


def _jittered(picture: Image.Image, generator: torch.Generator) -> Image.Image:
    *draws, hue = (2 * torch.rand(4, generator=generator) - 1).tolist()
    changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for change, draw in zip(changes, draws, strict=True):
        picture = change(picture).enhance(1 + JITTER * draw)
    if picture.mode != "RGB":
        return picture
    bands = list(picture.convert("HSV").split())
    bands[0] = bands[0].point(lambda value: (value + round(255 * HUE * hue)) % 256)
    return Image.merge("HSV", bands).convert("RGB")


def centre(
    picture: Image.Image, height: int, width: int, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """The short side resized to fit, then the middle."""
    scale = max(height / picture.height, width / picture.width)
    fitted = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    return _middle(picture if fitted == picture.size else picture.resize(fitted, resample), height, width)


def _middle(picture: Image.Image, height: int, width: int) -> Image.Image:
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def pixels(picture: Image.Image) -> np.ndarray:
    """(H, W, C) uint8."""
    return np.array(picture, dtype=np.uint8).reshape(picture.height, picture.width, -1)


def as_picture(values: np.ndarray) -> Image.Image:
    """(H, W, C) uint8, C of 1, 3 or 4, as a picture."""
    return Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else values)
