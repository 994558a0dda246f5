"""# Cutting slides into training tiles

Tiles overlap (`stride` < `tile`), so that an object that one tile cuts in two is whole in another.
Each tile has a `margin` of surroundings on every side, so that augmentation can rotate and shift it
and still find real pixels. Beyond the border of the slide, the margin is a mirror image.

    |<- margin ->|<----- tile ----->|<- margin ->|

**The cache.** Each slide is cut once, from top to bottom, into a file of tiles at the training
scale:

    ID-KEY.tiles    uint8 (tiles, size, size, 4), size = tile + 2 margin: red, green, blue, mask;
                    the mask is 1 for object, 0 for background, 255 for void (not labelled)
    ID-KEY.json     where each tile lies and how much of it is positive; written last

KEY is a hash of everything that the tiles depend on: the files (place, size, times of modification
and of change), classes, white, scale, microns, the size that slides.csv states, tile, stride and
margin. So all folds and runs with the same settings share the tiles, and tiles cut with other
settings get another name. Batches are read from the files when they are needed; the operating
system caches as much of them as fits in memory.

Blank glass teaches nothing after the first few tiles. Tiles without a positive pixel and without
contrast are therefore left out, and so are tiles that are entirely void. Scoring does not use these
tiles: it reads the slides.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files.atomic import atomic, content, identity
from ..files.masks import VOID, Item, Mask, drawn_instead
from ..files.objects import Areas
from ..files.slides import Slide, read_blocks
from ..tiling import read_strips, tile_starts
from .memory import trim_memory

BLANK_CONTRAST = 5.0  # below this standard deviation of the brightness (0 to 255), it is glass
DAMAGED = "{}: is damaged: delete it, and it will be cut again"


@dataclass
class CutSlide:
    """What `cut` notes of a slide. It is stored as ID-KEY.json."""

    file: str  # the name of the .tiles
    source: list  # the places of its files, and the settings
    made_from: dict[str, dict]  # what `made_from` notes of its files
    height: int  # of the image, in its own pixels
    width: int
    microns: float | None
    notes: list[str]  # on the image's file
    kind: str  # of the mask, see `Mask`
    colour: str
    positive: int  # pixels of the mask
    void: int
    objects: list[int]  # the pixels of each object
    agreement: list[int]  # of run-length code with polygons beside it: see `CountingReader`
    blank: int  # the number of tiles left out
    places: list[list[int]]  # y and x of each tile, in scaled pixels
    area: list[float]  # the share of positive pixels of each tile, without its margin


def cut(item: Item, folder: Path, *, scale: int = 1, microns: float | None = None, tile: int,
        stride: int, margin: int,
        progress: Callable[[float], None] = lambda share: None) -> CutSlide:
    """Cuts one slide into the cache, unless it is there already. Tiles are of scaled pixels: see
    `open_slide`. `progress` is called with each share of the work. ValueError names a file that is
    wrong."""
    source = _source(item, scale, tile, stride, margin, microns)
    path = folder / f"{item.id}-{_key(item, source)}.tiles"
    noted_path = path.with_suffix(".json")
    if noted_path.exists() and path.exists():
        progress(1.0)
        return CutSlide(**json.loads(noted_path.read_text()))
    slide, before = item.open(scale, microns), made_from(item)
    reader = CountingReader(slide, item)
    places, areas, blank, rows_done = [], [], 0, 0
    tops = tile_starts(slide.height, tile, stride)
    spans = [(max(0, y - margin), min(y + tile + margin, slide.height)) for y in tops]
    strips = read_strips(reader.read, slide.width, spans)
    with closing(strips), atomic(path) as temporary, open(temporary, "wb") as file:
        for y, (top, bottom), strip in zip(tops, spans, strips):
            trim_memory(seconds=2)
            above, below = margin - (y - top), y + tile + margin - bottom
            right = margin + max(0, tile - slide.width)
            strip = np.pad(strip, [(above, below), (margin, right), (0, 0)], mode="symmetric")
            for x in tile_starts(slide.width, tile, stride):
                with_margin = strip[:, x : x + tile + 2 * margin]
                inner = with_margin[margin : margin + tile, margin : margin + tile]
                inner = inner[: slide.height - y, : slide.width - x]  # without mirrored pixels
                if teaches_nothing(inner):
                    blank += 1
                    continue
                places.append([y, x])
                areas.append(float((inner[..., 3] == 1).mean()))
                file.write(with_margin.tobytes())
            progress((bottom - rows_done) / slide.height)
            rows_done = bottom
    if path.name != f"{item.id}-{_key(item, source)}.tiles":
        path.unlink()
        raise ValueError(f"{item.image}: it or its mask has changed while it was cut: start again")
    noted = CutSlide(path.name, source, before, slide.full_height, slide.full_width, slide.microns,
                     slide.notes, reader.mask.kind, reader.mask.colour, reader.positive,
                     reader.void, reader.objects(), reader.agreement, blank, places, areas)
    with atomic(noted_path) as temporary:  # last, because it says that the tiles are complete
        temporary.write_text(json.dumps(asdict(noted)))
    return noted


def teaches_nothing(inner: np.ndarray) -> bool:
    """Whether a tile, (h, w, 4) without its margin, has nothing positive and is blank or entirely
    void."""
    mask = inner[..., 3]
    if (mask == 1).any():
        return False
    red, green, blue = (inner[::4, ::4, k].astype(np.uint16) for k in range(3))
    return bool(((red + green + blue) / 3).std() < BLANK_CONTRAST or (mask == VOID).all())


def files_of(item: Item) -> dict[str, Path]:
    """The files of an image: the image itself, its mask unless that is run-length code, and, if
    there are any, the polygons beside this code."""
    files = {"image": item.image, "mask": None if item.runs is not None else item.mask,
             "polygons": item.polygons}
    return {name: path for name, path in files.items() if path}


def made_from(item: Item) -> dict[str, dict]:
    """What is in the files of an image, and what tables say of it: its run-length code, and the
    size of its pixels."""
    noted = {name: content(path) for name, path in files_of(item).items()}
    for name, text in (("mask", item.runs), ("slides.csv", item.pixel_size)):
        if text is not None:
            code = str(text).encode()
            noted[name] = {"bytes": len(code), "sha256": hashlib.sha256(code).hexdigest()[:32]}
    return noted


def made_from_now(item: Item, noted: CutSlide) -> dict[str, dict]:
    """`made_from` of an image, from what `cut` returned if its files have not changed since."""
    unchanged = noted.file == f"{item.id}-{_key(item, noted.source)}.tiles"
    return noted.made_from if unchanged else made_from(item)


def differences(now: dict[str, dict], before: dict[str, dict]) -> list[str]:
    """The files that differ between two results of `made_from`, each for several IDs: "ID (mask)",
    ... Their places and times do not count."""
    found = []
    for id in sorted({*now, *before}):
        new, old = now.get(id), before.get(id)
        if new is None or old is None:
            found.append(f"{id} ({'is not there any more' if new is None else 'is new'})")
            continue
        found += [f"{id} ({name})" for name in sorted({*new, *old})
                  if new.get(name, {}).get("sha256") != old.get(name, {}).get("sha256")]
    return found


def _source(item: Item, scale: int, tile: int, stride: int, margin: int,
            microns: float | None) -> list:
    """The places of an image's files, and the settings: all that the tiles depend on besides what
    is in the files."""
    places = {name: str(path.resolve()) for name, path in files_of(item).items()}
    sizes = [microns, item.pixel_size] if microns or item.pixel_size else []
    return [item.id, places, list(item.labels), list(item.ignore), item.white, scale, tile, stride,
            margin, *sizes]


def _key(item: Item, source: list) -> str:
    """A hash of everything that the tiles depend on."""
    text = json.dumps([5, source, item.runs, *map(identity, files_of(item).values())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class CountingReader:
    """Reads windows (h, w, 4), image and mask, at the slide's scale, from top to bottom and in full
    width. Meanwhile it counts the pixels of the mask as it is in its file: `positive`, `void`, and
    `agreement` of run-length code with polygons beside it, [shared, those of both added]."""

    def __init__(self, slide: Slide, item: Item):
        self.slide = slide
        self.mask = Mask(item, slide.full_height, slide.full_width)
        self.positive, self.void, self.agreement = 0, 0, [0, 0]
        self._rows = 0  # of the mask, that are counted already
        self._areas = Areas(slide.full_width)
        self._polygons: Mask | None = None
        if item.runs is not None and item.polygons:
            try:
                self._polygons = Mask(drawn_instead(item), slide.full_height, slide.full_width)
            except ValueError as error:  # they only serve a comparison
                slide.notes.append(f"its run-length code is not compared with polygons: {error}")

    def read(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """The next rows."""
        slide = self.slide
        blocks = slide.scaling.read(partial(read_blocks, self._positive_and_void, slide.full_height,
                                            slide.full_width, slide.scaling.block), y, x, h, w)
        # A block is void if at least half of it is. Otherwise it is positive if at least half of
        # the rest is (up to rounding, if some of it is void).
        label = blocks[..., 0] >= 128
        if self.mask.has_void:
            positive, void = np.moveaxis(blocks.astype(np.int16), 2, 0)
            label = np.where(void >= 128, VOID, 2 * positive + void >= 255)
        return np.dstack([slide.read(y, x, h, w), label.astype(np.uint8)])

    def objects(self) -> list[int]:
        """The pixels of each object that has been read."""
        return [int(area) for area in self._areas.finish()[1] if area]

    def _positive_and_void(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """Positive and, if there may be any, void pixels: (h, w, 2) or (h, w, 1) of 0 or 255."""
        full = self.mask.read(y, x, h, w)
        positive = full == 1
        known = self._rows - y  # resampled rows may share rows of the mask: each is counted once
        if known < h:
            self._rows, new = y + h, positive[known:]
            self._areas.add(new)
            self.positive += int(np.count_nonzero(new))
            if self._polygons is not None:
                drawn = self._polygons.read(y + known, x, h - known, w) == 1
                self.agreement[0] += int(np.count_nonzero(drawn & new))
                self.agreement[1] += int(np.count_nonzero(drawn) + np.count_nonzero(new))
        if not self.mask.has_void:
            return positive[..., None] * np.uint8(255)
        void = full == VOID
        self.void += int(np.count_nonzero(void[max(0, known) :]))
        return np.stack([positive, void], 2) * np.uint8(255)


class Tiles:
    """The tiles of some slides, with their margins, from the cache in `folder`. ValueError names a
    file of tiles that is damaged."""

    def __init__(self, folder: Path, slides: Sequence[CutSlide], tile: int, margin: int):
        self.size = tile + 2 * margin
        self.places = [(index, y, x) for index, slide in enumerate(slides)
                       for y, x in slide.places]  # (slide, y, x) of each tile
        self.mask_area = torch.tensor([area for slide in slides for area in slide.area])
        self.blank = sum(slide.blank for slide in slides)  # tiles that were left out
        self._where = [(folder / slide.file, k) for slide in slides
                       for k in range(len(slide.places))]  # file, and number within it
        for slide in slides:
            path, size = folder / slide.file, len(slide.places) * self.size**2 * 4
            if not path.exists() or path.stat().st_size != size:
                raise ValueError(DAMAGED.format(path))

    def __len__(self) -> int:
        return len(self.places)

    def describe(self, indices: Sequence[int]) -> str:
        """Says which tiles these are: ID (y, x), in scaled pixels."""
        return ", ".join("{} ({}, {})".format(self._where[i][0].stem.rpartition("-")[0],
                                              *self.places[i][1:]) for i in indices)

    def read(self, indices: Sequence[int], pin: bool = False) -> Tensor:
        """Tiles as they are in the cache, uint8 (N, size, size, 4): red, green, blue, mask. With
        `pin`, in page-locked memory. ValueError if a file has become shorter."""
        tiles = torch.empty(len(indices), self.size, self.size, 4, dtype=torch.uint8,
                            pin_memory=pin)
        for tile, (path, k) in zip(tiles.numpy(), (self._where[i] for i in indices)):
            with open(path, "rb", buffering=0) as file:
                file.seek(k * tile.nbytes)
                if file.readinto(tile) != tile.nbytes:
                    raise ValueError(DAMAGED.format(path))
        return tiles

    def batches(self, numbers: Tensor, device: str = "cpu",
                workers: int = 2) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields uint8 images (N, 3, size, size) and masks (N, 1, size, size) on `device` for each
        row of `numbers`, (batches, N) tile numbers; size = tile + 2 margin. `workers` threads read
        ahead, and copies to the device run in the background."""
        pin = torch.device(device).type == "cuda"
        remaining = iter(numbers.tolist())
        jobs: deque[Future[Tensor]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            try:
                while True:
                    for indices in islice(remaining, 2 * workers + 1 - len(jobs)):
                        jobs.append(pool.submit(self.read, indices, pin))
                    if not jobs:
                        return
                    tiles = jobs.popleft().result().to(device, non_blocking=True)
                    tiles = tiles.permute(0, 3, 1, 2)  # (N, 4, size, size)
                    yield tiles[:, :3], tiles[:, 3:]
            finally:
                for job in jobs:
                    job.cancel()
