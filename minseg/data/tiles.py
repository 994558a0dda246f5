"""# Cutting slides into training tiles

Tiles overlap (`stride` < `tile`), so that whatever one tile cuts in two lies whole in another. Each
comes with a `margin` of surroundings on every side, out of which augmentation rotates and shifts
it; where the slide ends, it is mirrored.

    |<- margin ->|<----- tile ----->|<- margin ->|

**The cache.** A slide is cut once, from top to bottom, into a file of tiles at the training scale:

    ID-KEY.tiles    uint8 (tiles, size, size, 4), size = tile + 2 margin: red, green, blue, mask;
                    the mask is 1 to be found, 0 not, 255 void (nobody looked)
    ID-KEY.json     where each tile lies and how much of it is positive; written last

KEY is a hash of all that the tiles depend on: the files (place, size, time of change), classes,
white, scale, tile, stride, margin. So folds and runs share them, and whatever is cut anew gets
another name. A batch is read from the files as it is needed; the operating system keeps in memory
what fits.

Blank glass teaches nothing after the first few tiles: those without a positive pixel and without
contrast are not kept, nor are those where all is void. Scoring never comes here, it reads the
slides.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..tiling import read_strips, tile_starts
from .datasets import Item
from .files import atomic, identity
from .masks import VOID, Mask, drawn_instead
from .slides import Slide, open_slide, read_blocks

BLANK_CONTRAST = 5.0  # standard deviation of the brightness, of 255, below which nothing is there


def cut(item: Item, folder: Path, *, scale: int, tile: int, stride: int, margin: int,
        progress: Callable[[float], None] = lambda share: None) -> dict:
    """Cuts one slide into the cache, unless it is there; `progress` is told each share of the work
    that is done. Returns what the .json holds: file, height, width (of the image), microns, notes
    (of the image's file), kind (of the mask's, see `Mask`), positive and void (pixels), agreement
    (with polygons, where run-length code is used beside them: shared pixels and those of both),
    blank (tiles left out), places (y, x of the others, in scaled pixels) and area (their share of
    positive pixels, without margin). ValueError names a file that is wrong."""
    mask = [item.id, item.runs] if item.runs is not None else identity(item.mask)
    key = json.dumps([2, identity(item.image), mask, item.polygons and identity(item.polygons),
                      item.labels, item.ignore, item.white, scale, tile, stride, margin])
    key = hashlib.sha256(key.encode()).hexdigest()[:16]
    path = folder / f"{item.id}-{key}.tiles"
    facts = path.with_suffix(".json")
    if facts.exists() and path.exists():
        progress(1.0)
        return json.loads(facts.read_text())
    slide = open_slide(item.image, scale, item.white)
    found = {"file": path.name, "height": slide.full_height, "width": slide.full_width,
             "microns": slide.microns, "notes": slide.notes, "kind": "", "positive": 0, "void": 0,
             "agreement": [0, 0], "blank": 0, "places": [], "area": []}
    tops = tile_starts(slide.height, tile, stride)
    lefts = tile_starts(slide.width, tile, stride)
    edges = [(margin, margin + max(0, tile - n)) for n in (slide.height, slide.width)]
    spans = [(max(0, y - margin), min(y + tile + margin, slide.height)) for y in tops]
    strips = read_strips(_labelled(slide, item, found), slide.width, spans)
    done = 0
    with closing(strips), atomic(path) as temporary, open(temporary, "wb") as file:
        for y, (top, bottom), strip in zip(tops, spans, strips):
            above, below = margin - (y - top), y + tile + margin - bottom
            strip = np.pad(strip, [(above, below), edges[1], (0, 0)], mode="symmetric")
            for x in lefts:
                kept = strip[:, x : x + tile + 2 * margin]
                inner = kept[margin : margin + tile, margin : margin + tile]
                inner = inner[: slide.height - y, : slide.width - x]  # without what is mirrored
                area = (inner[..., 3] == 1).mean()
                contrast = inner[::4, ::4, :3].mean(2).std()
                if not area and (contrast < BLANK_CONTRAST or (inner[..., 3] == VOID).all()):
                    found["blank"] += 1
                    continue
                file.write(kept.tobytes())
                found["places"].append([y, x])
                found["area"].append(float(area))
            progress((bottom - done) / slide.height)
            done = bottom
    with atomic(facts) as temporary:  # last: it says that the tiles are complete
        temporary.write_text(json.dumps(found))
    return found


def _labelled(slide: Slide, item: Item, found: dict) -> Callable[[int, int, int, int], np.ndarray]:
    """A reader of windows (h, w, 4), image and mask, at the slide's scale. It adds up in `found`
    what passes."""
    size = slide.full_height, slide.full_width
    mask = Mask(item, *size)
    found["kind"] = mask.kind
    other = None
    if item.runs is not None and item.polygons:
        try:
            other = Mask(drawn_instead(item), *size)
        except ValueError as error:  # nothing depends on them
            found["notes"].append(f"its run-length code is not compared with polygons: {error}")

    def positive_and_void(y, x, h, w):  # (h, w, 2), 0 or 255; without void (h, w, 1)
        whole = mask.read(y, x, h, w)
        positive, void = whole == 1, whole == VOID
        found["positive"] += int(np.count_nonzero(positive))
        found["void"] += int(np.count_nonzero(void))
        if other is not None:
            drawn = other.read(y, x, h, w) == 1
            found["agreement"][0] += int(np.count_nonzero(drawn & positive))
            found["agreement"][1] += int(np.count_nonzero(drawn) + np.count_nonzero(positive))
        if not mask.has_void:
            return positive[..., None] * np.uint8(255)
        return np.stack([positive, void], 2) * np.uint8(255)

    def read(y, x, h, w):
        blocks = read_blocks(positive_and_void, *size, slide.scale, y, x, h, w).astype(np.int16)
        positive, void = blocks[..., 0], blocks[..., -1] if mask.has_void else np.int16(0)
        # A block is void where half of it or more is, else positive where half of the rest is (up
        # to rounding, where some of it is void).
        label = np.where(void >= 128, VOID, 2 * positive + void >= 255)
        return np.dstack([slide.read(y, x, h, w), label.astype(np.uint8)])

    return read


class Tiles:
    """The tiles of some slides, out of the cache in `folder`, with their margin. `facts` are what
    `cut` returned for each."""

    def __init__(self, folder: Path, facts: Sequence[dict], tile: int, margin: int):
        self.size = tile + 2 * margin
        self.places = [(index, *place) for index, found in enumerate(facts)
                       for place in found["places"]]  # (slide, y, x) of each tile
        self.mask_area = torch.tensor([area for found in facts for area in found["area"]])
        self.blank = sum(found["blank"] for found in facts)  # tiles that are not here
        self._where = [(folder / found["file"], k) for found in facts
                       for k in range(len(found["places"]))]
        for found in facts:
            path, wanted = folder / found["file"], len(found["places"]) * self.size**2 * 4
            if not path.exists() or path.stat().st_size != wanted:
                raise ValueError(f"{path}: is damaged: delete it, and it is cut anew")

    def __len__(self) -> int:
        return len(self.places)

    def describe(self, indices: Sequence[int]) -> str:
        """Which tiles these are: ID (y, x), in scaled pixels."""
        return ", ".join("{} ({}, {})".format(self._where[i][0].stem.rpartition("-")[0],
                                              *self.places[i][1:]) for i in indices)

    def read(self, indices: Sequence[int], pin: bool = False) -> Tensor:
        """Tiles as they lie in the cache, uint8 (N, size, size, 4): red, green, blue, mask. `pin`:
        in page-locked memory. ValueError where a file has become shorter."""
        tiles = torch.empty(len(indices), self.size, self.size, 4, dtype=torch.uint8,
                            pin_memory=pin)
        for tile, (path, k) in zip(tiles.numpy(), (self._where[i] for i in indices)):
            with open(path, "rb", buffering=0) as file:
                file.seek(k * tile.nbytes)
                if file.readinto(tile) != tile.nbytes:
                    raise ValueError(f"{path}: is damaged: delete it, and it is cut anew")
        return tiles

    def batches(self, batches: Sequence[Sequence[int]], device: str = "cpu",
                workers: int = 2) -> Iterator[tuple[Tensor, Tensor]]:
        """For each of `batches`, lists of N indices: uint8 images (N, 3, size, size) and masks
        (N, 1, size, size) on `device`, size = tile + 2 margin. `workers` threads read ahead, and
        nobody waits for the copies."""
        cuda, rest, jobs = torch.device(device).type == "cuda", iter(batches), deque()
        with ThreadPoolExecutor(workers) as pool:
            try:
                while True:
                    for indices in islice(rest, 2 * workers + 1 - len(jobs)):
                        jobs.append(pool.submit(self.read, indices, cuda))
                    if not jobs:
                        return
                    tiles = jobs.popleft().result().to(device, non_blocking=True)
                    tiles = tiles.permute(0, 3, 1, 2)  # (N, 4, size, size)
                    yield tiles[:, :3], tiles[:, 3:]
            finally:
                for job in jobs:
                    job.cancel()
