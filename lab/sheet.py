"""A sheet of paper for the figures, and colours for numbers.

Drawn with Pillow for a width of 800 pixels, twice as large. Colour maps run from dark blue over
grey to yellow, which the colour-blind can tell apart, and which stay in order in print.
"""

import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from minseg.data.files import atomic
from minseg.run.report import INK, PAPER, font

MAP = np.array([(0, 34, 78), (47, 67, 110), (87, 93, 109), (124, 123, 120), (164, 154, 115),
                (208, 187, 94), (254, 232, 56)], float)  # dark blue, grey, yellow


def heat(values: Tensor | np.ndarray, low: float = 0.0, high: float = 1.0) -> Image.Image:
    """Numbers (H, W) as colours, dark for `low`, bright for `high`."""
    at = np.clip((np.asarray(values, float) - low) / (high - low), 0, 1) * (len(MAP) - 1)
    left = np.minimum(at.astype(int), len(MAP) - 2)
    share = (at - left)[..., None]
    return Image.fromarray(np.uint8((1 - share) * MAP[left] + share * MAP[left + 1] + 0.5))


def plain(words: str) -> str:
    """The words in the letters that Pillow's own font has.

    >>> plain("Lovász, tile × 2")
    'Lovasz, tile x 2'
    """
    words = unicodedata.normalize("NFKD", words.replace("×", "x"))
    return words.encode("ascii", "ignore").decode()


class Sheet:
    """Paper 1600 wide, with a title, for pictures and words."""

    def __init__(self, height: int, title: str = ""):
        self.image = Image.new("RGB", (1600, height), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.text(30, 40, title, size=36)

    def text(self, x: float, y: float, words: str, colour=INK, size: int = 28,
             anchor: str = "lm") -> None:
        """Words at a pixel."""
        self.draw.text((x, y), plain(words), colour, font(size), anchor=anchor)

    def paste(self, picture: Image.Image, x: int, y: int, width: int, caption: str = "",
              smooth: bool = False) -> int:
        """A picture, `width` wide, with words above it. Returns its height."""
        height = round(width * picture.height / picture.width)
        kind = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
        self.image.paste(picture.convert("RGB").resize((width, height), kind), (x, y))
        self.text(x, y - 24, caption)
        return height

    def line(self, points: Sequence, colour, width: int = 5) -> None:
        """A line through pixels."""
        self.draw.line(list(points), colour, width, "curve")

    def arrow(self, start: tuple[float, float], end: tuple[float, float], colour) -> None:
        """A line with a head at its end."""
        (x0, y0), (x1, y1) = start, end
        length = math.hypot(x1 - x0, y1 - y0)
        u, v = (x1 - x0) / length, (y1 - y0) / length
        self.draw.line([start, (x1 - 12 * u, y1 - 12 * v)], colour, 5)
        self.draw.polygon([end, (x1 - 22 * u - 12 * v, y1 - 22 * v + 12 * u),
                           (x1 - 22 * u + 12 * v, y1 - 22 * v - 12 * u)], colour)

    def save(self, path: Path) -> None:
        """Writes the PNG."""
        with atomic(path) as temporary:
            self.image.save(temporary, optimize=True)
