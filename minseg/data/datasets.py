"""# Data sets: images, masks, groups

Two layouts of a folder:

    DIR/images/ID.{png,jpg,jpeg,tif,tiff}  DIR/masks/ID.{png,tif,tiff}  [DIR/groups.csv: id,group]

    DIR/train/ID.tiff  DIR/train.csv: id,encoding      HuBMAP's own
                       [DIR/HuBMAP-20-dataset_information.csv: image_file, patient_number, ...]

**Masks** hold {0, 1} or {0, 255}, one value a pixel, in the size of their image, or are run-length
code in the column `encoding`. **Groups** say which images belong together (a patient); an image
without one stands alone.
"""

import csv
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .rle import Runs
from .slides import IMAGE_SUFFIXES, naming, open_source

MASK_SUFFIXES = (".png", ".tif", ".tiff")
PATIENTS = "HuBMAP-20-dataset_information.csv"


@dataclass(frozen=True)
class Item:
    """One image of a data set, the file that holds its mask, and the group that it must not be
    parted from. `runs` is the mask's run-length code where that file is a table."""

    id: str
    image: Path
    mask: Path
    group: str
    runs: str | None = field(default=None, repr=False)


def find_slides(folder: str | Path) -> list[Item]:
    """The images of a data set with their masks and groups, sorted by name. ValueError names what
    is missing or there twice, and what to do. Masks without an image are not used."""
    folder = Path(folder)
    if (folder / "train.csv").exists():
        return _find_hubmap(folder)
    for needed in (folder, folder / "images", folder / "masks"):
        if not needed.is_dir():
            raise ValueError(f"{needed}: no such folder: --data needs images/ and masks/ in it, or "
                             "train/ and train.csv")
    images = _by_name(folder / "images", IMAGE_SUFFIXES)
    masks = _by_name(folder / "masks", MASK_SUFFIXES)
    for id, image in images.items():
        if id not in masks:
            raise ValueError(f"{image}: has no mask: add {folder / 'masks' / id}.png")
    groups, table = {id: id for id in images}, folder / "groups.csv"
    if os.path.lexists(table):  # a broken link is an error, not an absence
        groups = read_table(table, "id", "group")
        for id in images:
            if not groups.get(id):
                raise ValueError(f"{table}: has no group for {id}: add a line")
    return [Item(id, images[id], masks[id], groups[id]) for id in images]


def _find_hubmap(folder: Path) -> list[Item]:
    """The layout of the competition's own files."""
    table = folder / "train.csv"
    runs = read_table(table, "id", "encoding")
    if not (folder / "train").is_dir():
        raise ValueError(f"{folder / 'train'}: no such folder: {table} needs train/ID.tiff there")
    images = _by_name(folder / "train", (".tif", ".tiff"))
    for id in runs:
        if id not in images:
            raise ValueError(f"{table}: names {id}, but there is no {folder / 'train' / id}.tiff: "
                             "add it, or take out the line")
    for id, image in images.items():
        if id not in runs:
            raise ValueError(f"{image}: has no line in {table}: add one, or take it out")
    patients = {}
    if os.path.lexists(folder / PATIENTS):
        patients = read_table(folder / PATIENTS, "image_file", "patient_number")
        patients = {name.removesuffix(".tiff").removesuffix(".tif"): patient
                    for name, patient in patients.items() if name and patient}
    return [Item(id, images[id], table, patients.get(id, id), runs[id]) for id in images]


def _by_name(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            if path.stem in found:
                raise ValueError(f"{path}: {found[path.stem].name} has the same name: keep one")
            found[path.stem] = path
    if not found:
        raise ValueError(f"{folder}: holds no image ({', '.join(suffixes)})")
    return {id: found[id] for id in sorted(found)}


def read_table(path: Path, key: str, value: str) -> dict[str, str]:
    """Two columns of a CSV file as a dictionary. ValueError where they are missing, and for a key
    with two values."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a slide's run-length code is one field
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if not {key, value} <= set(rows.fieldnames or ()):
                raise ValueError(f"{path}: the first line must have the columns {key},{value}")
            table: dict[str, str] = {}
            for row in rows:
                if table.setdefault(row[key], row[value] or "") != (row[value] or ""):
                    raise ValueError(f"{path}: has two lines for {row[key]}: keep one")
            return table
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no UTF-8 text: save it as CSV UTF-8")


class Mask:
    """A mask of which windows are read, at the size of its image, `height` x `width`. ValueError
    where it has another, and where it holds something else than a mask does."""

    def __init__(self, item: Item, height: int, width: int):
        self.item = item
        if item.runs is not None:
            try:
                self._window = Runs(item.runs, height, width).window
            except ValueError as error:
                raise ValueError(f"{item.mask}: {item.id}: {error}")
            return
        self._window = self._from_file
        self._source, self._highest = open_source(item.mask), set()
        if (self._source.height, self._source.width) != (height, width):
            raise ValueError(f"{item.mask}: is {self._source.height} x {self._source.width} "
                             f"pixels, its image {height} x {width}: make them equal")

    def read(self, y: int, x: int, h: int, w: int) -> np.ndarray:
        """The window with its upper left corner at (y, x): uint8 (h, w) in {0, 1}."""
        return self._window(y, x, h, w)

    def _from_file(self, y, x, h, w):
        with naming(self.item.mask):
            array = self._source.pixels.window(y, x, h, w)
        array = array[:, :, : array.shape[2] - (array.shape[2] in (2, 4))]  # without alpha
        if array.shape[2] > 1 and (array != array[:, :, :1]).any():
            raise ValueError(f"{self.item.mask}: is a mask in colour: expected one value a pixel")
        array = array[:, :, 0]
        highest = array.max(initial=0)
        self._highest.update(value for value in (1, 255) if value == highest)
        if highest not in (0, 1, 255) or len(self._highest) > 1 or (
                (array != 0) & (array != highest)).any():
            values = sorted({*np.unique(array).tolist(), *self._highest})
            shown = ", ".join(map(str, values[:6])) + (", ..." if len(values) > 6 else "")
            raise ValueError(f"{self.item.mask}: holds the values {shown}: a mask holds 0 and 1, "
                             "or 0 and 255")
        return (array > 0).astype(np.uint8)
