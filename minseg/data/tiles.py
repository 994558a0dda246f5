"""# Cutting slides into training tiles

Tiles overlap (`stride` < `tile`), so that whatever one tile cuts in two lies whole in another. Each
comes with a `margin` of surroundings on every side, out of which augmentation rotates and shifts
it; where the slide ends, it is mirrored.

    |<- margin ->|<----- tile ----->|<- margin ->|

Blank glass teaches nothing after the first few tiles: those without a positive pixel and without
contrast are marked, and training leaves them out. Scoring never does.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..tiling import tile_starts
from .slides import Item, Slide, read_image, read_mask, shrink

BLANK_CONTRAST = 5.0  # standard deviation of the brightness, of 255, below which nothing is there


class LabelledSlide:
    """A slide in memory: `image` and `mask` in the file's own size, `slide` at the scale asked."""

    def __init__(self, item: Item, scale: int = 1):
        """Reads both files. ValueError names the one that is wrong."""
        self.image, self.mask = read_image(item.image), read_mask(item.mask)
        self.item, self.slide = item, Slide(self.image, scale)
        if self.mask.shape != self.image.shape[:2]:
            mask, image = (f"{h} x {w}" for h, w in (self.mask.shape, self.image.shape[:2]))
            raise ValueError(f"{item.mask}: is {mask} pixels, its image {image}: make them equal")


class Tiles:
    """Overlapping tiles of some slides, with their margin. `mask_area` is each tile's share of
    positive pixels (without margin), `blank` tells glass."""

    def __init__(self, slides: Sequence[LabelledSlide], tile: int, stride: int, margin: int):
        self.size = tile + 2 * margin
        self._images, self._masks, places, area, blank = [], [], [], [], []
        for index, labelled in enumerate(slides):
            slide = labelled.slide
            image = slide.read(0, 0, slide.height, slide.width)
            mask = shrink(labelled.mask * 255, slide.scale) >= 128  # half a block or more
            edges = [(margin, margin + max(0, tile - n)) for n in mask.shape]
            self._images.append(np.pad(image, [*edges, (0, 0)], mode="symmetric"))
            self._masks.append(np.pad(mask, edges, mode="symmetric"))
            for y in tile_starts(slide.height, tile, stride):
                for x in tile_starts(slide.width, tile, stride):
                    places.append((index, y, x))
                    area.append(mask[y : y + tile, x : x + tile].mean())
                    contrast = image[y : y + tile : 4, x : x + tile : 4].mean(2).std()
                    blank.append(not area[-1] and contrast < BLANK_CONTRAST)
        self.places = places  # (slide, y, x) of each tile
        self.mask_area = torch.tensor(np.array(area), dtype=torch.float32)
        self.blank = torch.tensor(np.array(blank))

    def __len__(self) -> int:
        return len(self.places)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """uint8 images (N, 3, size, size) and masks (N, 1, size, size), size = tile + 2 margin."""
        images, masks = [], []
        for index, y, x in (self.places[i] for i in indices):
            window = np.s_[y : y + self.size, x : x + self.size]
            images.append(self._images[index][window])
            masks.append(self._masks[index][window])
        images = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return images, torch.from_numpy(np.stack(masks).view(np.uint8))[:, None]
