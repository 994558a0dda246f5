"""# Data sets: images, masks, groups

Layouts of a folder:

    DIR/images/ID.{png,jpg,tif,svs,...}  DIR/masks/ID.{png,tif,geojson}  [DIR/groups.csv: id,group]

    DIR/train/ID.tiff  DIR/train.csv: id,encoding      HuBMAP's own; polygons in DIR/train/ID.json
                       [DIR/HuBMAP-20-dataset_information.csv: image_file, patient_number, ...]

**Masks** hold 1 for objects, 0 for background and 255 for pixels that nobody labelled ("void"),
which are neither trained on nor scored. **Groups** say which images belong together (a patient); an
image without one stands alone. What could mean two things is refused in one line.

| in the data | what is made of it |
|---|---|
| a mask of 0 and 1, or of 0 and white (255; by its bits 65535, 4095 ...) | not 0: an object |
| a mask of 0, 1 and 255 | 255 is void, as in Pascal VOC and Cityscapes |
| this beside masks of 0 and 255 | refused, unless `--ignore 255` declares 255 void in all |
| masks of 0 and 1 beside masks of 0 and 255 | objects are 1, or 255, with a note |
| other values in a mask, as JPEG leaves them | refused |
| a mask in three equal colours | one of them |
| other colours; classes in channels side by side (one-hot) | refused |
| a mask whose alpha says the same as its colour, or nothing | its colour |
| a mask whose alpha shows another mask; a fourth channel that is not alpha | refused |
| a mask with a palette of colours; of grey | its indices; the grey |
| a grey palette that shows 0 as white, or more than 0 as black | refused |
| orientation | applied, to image and mask alike |
| a mask of another size than its image | refused |
| GeoJSON: FeatureCollection, list of features, feature | Polygons and MultiPolygons with holes |
| a polygon, in pixels of the full image | the pixels whose centre is inside |
| several classes of polygons | all; those that `--label` names; void: those of `--ignore` |
| a class named there that no polygon has | refused |
| points and lines of a class that is wanted | refused |
| map coordinates; polygons outside the image | refused |
| ImageJ's .roi and .zip, ASAP's and Aperio's .xml, .ndpa | refused where there is no other mask |
| run-length code | as in `minseg.data.rle`; refused where it leaves the image |
| both run-length code and polygons | the code is used; a line gives their Dice |
| the same with `--label` | the polygons |
| headings of a table | in any case and order, among others |
| a heading that is missing, or there twice | refused |
| names in a table | without quotes, surrounding spaces and invisible characters |
| empty lines | skipped |
| a line with more cells than headings, or without ID | refused |
| Groups.csv, groups.xlsx and the like; folders in folders | refused, with the right name |
| quotes that do not match; other encodings than UTF-8 | refused |
| two lines for one ID | one where they say the same, else refused |
| groups that differ only by case, spaces, dashes or as 1 and 1.0 do | refused |
| images of other programs (.czi, .mrxs, .dcm ...) | refused, with the export that works |
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .masks import POLYGON_SUFFIXES, VOID, drawn_instead, polygons_of
from .slides import IMAGE_SUFFIXES
from .tables import clean, read_table, refuse_alike

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".geojson")
PATIENTS = "HuBMAP-20-dataset_information.csv"
QUPATH = "open it in QuPath and use File > Export objects as GeoJSON"
FOREIGN = {".roi": "ImageJ's format", ".zip": "ImageJ's format", ".ndpa": "Hamamatsu's format",
           ".xml": "the format of ASAP or Aperio", ".json": "JSON not named .geojson"}
OTHER_SLIDES = (".mrxs", ".czi", ".vsi", ".dcm", ".lif", ".nd2", ".isyntax", ".svslide", ".zarr",
                ".jp2", ".j2k", ".jfif", ".heic", ".avif", ".bmp", ".gif", ".webp")


@dataclass(frozen=True)
class Item:
    """One image of a data set, the file that holds its mask, and the group that it must not be
    parted from. `runs` is the mask's run-length code where that file is a table, `polygons` a file
    that holds some beside it. `labels` and `ignore` are classes of polygons, to be found and void;
    "255" among the latter: so is that value in a mask. `white` is for `open_slide`."""

    id: str
    image: Path
    mask: Path
    group: str
    runs: str | None = field(default=None, repr=False)
    polygons: Path | None = None
    labels: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    white: int | None = None


def find_slides(folder: str | Path, *, labels: Sequence[str] = (), ignore: Sequence[str] = (),
                white: int | None = None) -> list[Item]:
    """The images of a data set with their masks and groups, sorted by name. `labels`, `ignore` and
    `white` are what `Item` holds. ValueError names what is missing or there twice, and what to do.
    Masks without an image are not used."""
    folder = Path(folder)
    if (folder / "train.csv").exists():
        items = _find_hubmap(folder)
    elif (folder / "train").is_dir() and not (folder / "images").is_dir():
        items = _find_polygons(folder)
    else:
        items = _find_pairs(folder)
    if labels:  # run-length code has no classes
        items = [drawn_instead(item) if item.polygons else item for item in items]
    labels, ignore = (tuple(map(clean, names)) for names in (labels, ignore))
    _check_classes(folder, items, {*labels, *ignore} - {str(VOID)})
    return [replace(item, labels=labels, ignore=ignore, white=white) for item in items]


def _find_pairs(folder: Path) -> list[Item]:
    """The layout with images/ and masks/."""
    for needed in (folder, folder / "images", folder / "masks"):
        if not needed.is_dir():
            raise ValueError(f"{needed}: no such folder: --data needs images/ and masks/ in it, or "
                             "train/ and train.csv")
    images = _by_name(folder / "images", IMAGE_SUFFIXES)
    masks = _by_name(folder / "masks", MASK_SUFFIXES)
    for id, image in images.items():
        if id not in masks:
            for suffix, what in FOREIGN.items():
                if (other := folder / "masks" / f"{id}{suffix}").exists():
                    raise ValueError(f"{other}: {what} is not read: {QUPATH}")
            raise ValueError(f"{image}: has no mask: add {folder / 'masks' / id}.png")
    groups, table = {id: id for id in images}, folder / "groups.csv"
    for path in folder.iterdir():
        if path != table and re.fullmatch(r"groups?\.(csv|tsv|txt|xlsx?)", path.name.lower()):
            raise ValueError(f"{path}: is not read: save it as {table.name}")
    if os.path.lexists(table):  # a broken link is an error, not an absence
        groups = read_table(table, "id", "group")
        groups = {id: groups.get(clean(id)) or groups.get(clean(image.name))
                  for id, image in images.items()}
        for id in images:
            if not groups[id]:
                raise ValueError(f"{table}: has no group for {id}: add a line")
        refuse_alike(table, "groups", groups.values())
    return [Item(id, images[id], masks[id], groups[id]) for id in images]


def _find_hubmap(folder: Path) -> list[Item]:
    """The layout of the competition's own files."""
    table = folder / "train.csv"
    runs = read_table(table, "id", "encoding")
    if not (folder / "train").is_dir():
        raise ValueError(f"{folder / 'train'}: no such folder: {table} needs train/ID.tiff there")
    images = _by_name(folder / "train", (".tif", ".tiff"))
    for id in runs:
        if id not in map(clean, images):
            raise ValueError(f"{table}: names {id}, but there is no {folder / 'train' / id}.tiff: "
                             "add it, or take out the line")
    for id, image in images.items():
        if clean(id) not in runs:
            raise ValueError(f"{image}: has no line in {table}: add one, or take it out")
    patients, items = _patients(folder), []
    for id, image in images.items():
        polygons = image.with_suffix(".json")
        items.append(Item(id, image, table, patients.get(clean(id), id), runs[clean(id)],
                          polygons if polygons.exists() else None))
    return items


def _find_polygons(folder: Path) -> list[Item]:
    """The competition's layout without its table: polygons are the masks."""
    images, patients = _by_name(folder / "train", (".tif", ".tiff")), _patients(folder)
    for image in images.values():
        if not image.with_suffix(".json").exists():
            raise ValueError(f"{image}: has no mask: add {image.with_suffix('.json')}, or "
                             f"{folder / 'train.csv'}")
    return [Item(id, image, image.with_suffix(".json"), patients.get(clean(id), id))
            for id, image in images.items()]


def _patients(folder: Path) -> dict[str, str]:
    """The patient of each of the competition's slides, as far as a table tells."""
    table = folder / PATIENTS
    if not os.path.lexists(table):
        return {}
    patients: dict[str, str] = {}
    for name, patient in read_table(table, "image_file", "patient_number").items():
        id = re.sub(r"\.tiff?$", "", name, flags=re.I)
        if patient and patients.setdefault(id, patient) != patient:
            raise ValueError(f"{table}: has two lines for {id}: keep one")
    refuse_alike(table, "patients", patients.values())
    return patients


def _by_name(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        suffix = path.suffix.lower()
        if suffix in OTHER_SLIDES and suffixes == IMAGE_SUFFIXES:
            raise ValueError(f"{path}: {suffix} is not read: save it as TIFF or PNG (QuPath: File "
                             "> Export images > OME TIFF), or take it out")
        if path.is_dir() and any(each.suffix.lower() in suffixes for each in path.iterdir()):
            raise ValueError(f"{path}: is a folder: put its files into {folder}")
        if suffix in suffixes:
            if path.stem in found:
                raise ValueError(f"{path}: {found[path.stem].name} has the same name: keep one")
            found[path.stem] = path
    if not found:
        raise ValueError(f"{folder}: holds no image ({', '.join(suffixes)})")
    return {id: found[id] for id in sorted(found)}


def count_classes(items: Iterable[Item]) -> Counter:
    """How many polygons of each class the annotations of images hold."""
    count: Counter = Counter()
    for item in items:
        for path in filter(None, (item.mask, item.polygons)):
            if path.suffix.lower() in POLYGON_SUFFIXES:
                try:
                    count.update(polygon.name for polygon in polygons_of(path))
                except ValueError:
                    if path == item.mask or item.ignore:  # else they are only compared with
                        raise
    return count


def _check_classes(folder: Path, items: Sequence[Item], named: set[str]) -> None:
    """ValueError where a name on the command line is no class, or might be two."""
    if not named:
        return
    classes = count_classes(items)
    if not classes:
        raise ValueError(f"{folder}: holds no polygons: --label and --ignore name their classes")
    if unknown := sorted(named - classes.keys()):
        raise ValueError(f"{folder}: no polygon has the class {', '.join(unknown)}: there are "
                         + ", ".join(sorted(classes)))
    refuse_alike(folder, "classes", classes)
