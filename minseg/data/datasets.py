"""# Data sets: images, masks, groups

A folder has one of two layouts:

    DIR/images/ID.{png,jpg,tif,svs,...}   DIR/masks/ID.{png,tif,geojson}
    DIR/groups.csv: id,group              optional

    DIR/train/ID.tiff                     as HuBMAP published it
    DIR/train.csv: id,encoding            run-length code; optional if each image has polygons
    DIR/train/ID.json                     polygons; optional
    DIR/HuBMAP-20-dataset_information.csv: image_file, patient_number, ...     optional

In **masks**, 1 is object, 0 is background, and 255 is "void": pixels that nobody labelled. They are
neither trained on nor scored. **Groups** say which images belong together, for example because
they come from the same patient; without a table of groups, each image is a group of its own.
Whatever could mean two things is refused, with a message of one line that says how to make it
clear.

**Masks stored as images**

| in the file | how it is read |
|---|---|
| 0 and 1; 0 and white (255, or with more bits 4095, 65535, ...) | all but 0 is object |
| 0, 1 and 255 | 255 is void, as in Pascal VOC and Cityscapes |
| 0, 1 and 255 in some masks, 0 and 255 in others | refused, unless `--ignore 255` makes 255 void |
| 0 and 1 in some masks, 0 and 255 in others | objects are 1 in some, 255 in others; with a note |
| other values, such as JPEG compression leaves | refused |
| three equal colour channels | one of them |
| different colours; one channel per class (one-hot) | refused |
| alpha that agrees with the colour, or is constant | ignored |
| alpha that shows a different mask; a fourth channel that is not alpha | refused |
| a palette of colours | its indices are the values |
| a grey palette | its grey levels are the values; if only 0 and 1 occur, its indices |
| a palette that does not show 0 as the background | refused |
| objects marked with the value that GDAL's NODATA tag declares empty | refused, unless it is void |
| an orientation tag | applied, as to the image |
| a size that differs from the image's | refused |

**Polygons and run-length code**

| in the data set | how it is read |
|---|---|
| GeoJSON: FeatureCollection, list of features, feature | Polygons and MultiPolygons with holes |
| a polygon, in pixels of the full image | covers the pixels whose centre is inside |
| several classes of polygons | all are objects, or those in `--label`; `--ignore` names void ones |
| a class in `--label` or `--ignore` that no polygon has | refused |
| points and lines among the objects | refused |
| map coordinates; a polygon outside the image | refused |
| ImageJ's .roi and .zip, ASAP's and Aperio's .xml, .ndpa | refused if the image has no other mask |
| run-length code | as in `minseg.data.rle`; refused if a run leaves the image |
| both run-length code and polygons | the code is the mask; one line tells how well the two agree |
| both, with `--label` | the polygons are the mask |

**Tables and folders**

| in the folder | how it is read |
|---|---|
| headings of a table | in any case and order, beside others |
| a heading that is missing or repeated | refused |
| names in a table | without quotes, surrounding spaces and invisible characters |
| an empty line | skipped |
| a line without an ID, or with more cells than headings | refused |
| two lines for one ID | accepted if they agree, else refused |
| groups.csv without a group for an image | refused |
| HuBMAP's table without a patient for an image | the image is a group of its own |
| groups that differ only by case, spaces, dashes or as 1 and 1.0 do | refused |
| unbalanced quotes; encodings other than UTF-8 | refused |
| Groups.csv, groups.xlsx and the like; images in subfolders | refused, with the remedy |
| images in other formats (.czi, .mrxs, .dcm, ...) | refused, with an export that works |
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .masks import POLYGON_SUFFIXES, VOID, classes_of, drawn_instead
from .slides import EXPORT, IMAGE_SUFFIXES, OTHER_SLIDES
from .tables import clean, read_table, refuse_alike

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".geojson")
PATIENTS = "HuBMAP-20-dataset_information.csv"
QUPATH = "open it in QuPath and use File > Export objects as GeoJSON"
OTHER_ANNOTATIONS = {  # annotations that have to be exported again, and what they are
    ".roi": "ImageJ's format", ".zip": "ImageJ's format", ".ndpa": "Hamamatsu's format",
    ".xml": "the format of ASAP or Aperio", ".json": "JSON that is not named .geojson"}


@dataclass(frozen=True)
class Item:
    """One image of a data set, the file with its mask, and its group, which must never be split
    between folds. `runs` is the mask's run-length code if that file is a table; `polygons` is then
    the file of polygons beside it, if there is one. `labels` and `ignore` are the classes of
    polygons that are objects and void; "255" in `ignore` makes this value void in masks. `white` is
    passed on to `open_slide`."""

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
    `white` are those of `Item`. Masks without an image are not used (`masks_without_image`).
    ValueError says what is missing, contradictory or there twice, and what to do about it."""
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
            raise ValueError(f"{needed}: no such folder: --data must contain images/ and masks/, "
                             "or train/ and train.csv")
    images = _by_name(folder / "images", IMAGE_SUFFIXES)
    masks = _by_name(folder / "masks", MASK_SUFFIXES)
    for id, image in images.items():
        if id not in masks:
            for suffix, what in OTHER_ANNOTATIONS.items():
                if (other := folder / "masks" / f"{id}{suffix}").exists():
                    raise ValueError(f"{other}: {what} is not supported: {QUPATH}")
            raise ValueError(f"{image}: has no mask: add {folder / 'masks' / id}.png")
    table = folder / "groups.csv"
    groups = {id: id for id in images}
    for path in folder.iterdir():
        if path != table and re.fullmatch(r"groups?\.(csv|tsv|txt|xlsx?)", path.name.lower()):
            raise ValueError(f"{path}: has the wrong name or format: save it as {table.name}")
    if os.path.lexists(table):  # a broken link must not pass for a missing table
        group_of = read_table(table, "id", "group")
        groups = {id: group_of.get(clean(id)) or group_of.get(clean(image.name), "")
                  for id, image in images.items()}
        for id, group in groups.items():
            if not group:
                raise ValueError(f"{table}: has no group for {id}: add a line")
        refuse_alike(table, "groups", groups.values())
    return [Item(id, images[id], masks[id], groups[id]) for id in images]


def masks_without_image(items: Sequence[Item]) -> list[Path]:
    """The files in the masks/ of a data set that belong to none of its images."""
    folders = {item.mask.parent for item in items if item.mask.parent != item.image.parent
               and item.runs is None}
    used = {item.id for item in items}
    return [path for folder in folders for id, path in _by_name(folder, MASK_SUFFIXES).items()
            if id not in used]


def _find_hubmap(folder: Path) -> list[Item]:
    """The layout of the competition's own files, with run-length code in train.csv."""
    table = folder / "train.csv"
    runs = read_table(table, "id", "encoding")
    if not (folder / "train").is_dir():
        raise ValueError(f"{folder / 'train'}: no such folder: put the images of {table} there, as "
                         "ID.tiff")
    images = _by_name(folder / "train", (".tif", ".tiff"))
    for id in runs:
        if id not in map(clean, images):
            raise ValueError(f"{table}: names {id}, but there is no {folder / 'train' / id}.tiff: "
                             "add it, or remove the line")
    for id, image in images.items():
        if clean(id) not in runs:
            raise ValueError(f"{image}: has no line in {table}: add one, or remove the image")
    patients, items = _patients(folder), []
    for id, image in images.items():
        polygons = image.with_suffix(".json")
        items.append(Item(id, image, table, patients.get(clean(id), id), runs[clean(id)],
                          polygons if polygons.exists() else None))
    return items


def _find_polygons(folder: Path) -> list[Item]:
    """The competition's layout without train.csv: the polygons are the masks."""
    images, patients = _by_name(folder / "train", (".tif", ".tiff")), _patients(folder)
    for image in images.values():
        if not image.with_suffix(".json").exists():
            raise ValueError(f"{image}: has no mask: add {image.with_suffix('.json')}, or "
                             f"{folder / 'train.csv'} for all images")
    return [Item(id, image, image.with_suffix(".json"), patients.get(clean(id), id))
            for id, image in images.items()]


def _patients(folder: Path) -> dict[str, str]:
    """The patient of each of the competition's slides, as far as its table says."""
    table = folder / PATIENTS
    if not os.path.lexists(table):
        return {}
    patients: dict[str, str] = {}
    for name, patient in read_table(table, "image_file", "patient_number").items():
        id = re.sub(r"\.tiff?$", "", name, flags=re.I)
        if patient and patients.setdefault(id, patient) != patient:
            raise ValueError(f"{table}: has two lines for {id}: keep only one")
    refuse_alike(table, "patients", patients.values())
    return patients


def _by_name(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The files with one of the suffixes, by their names without it, in order of these names."""
    path_of: dict[str, Path] = {}
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        suffix = path.suffix.lower()
        if suffix in OTHER_SLIDES and suffixes == IMAGE_SUFFIXES:
            raise ValueError(f"{path}: {suffix} is not supported: {EXPORT}, or remove it")
        if path.is_dir() and any(each.suffix.lower() in suffixes for each in path.iterdir()):
            raise ValueError(f"{path}: is a subfolder: move its files into {folder}")
        if suffix in suffixes:
            if path.stem in path_of:
                raise ValueError(f"{path}: {path_of[path.stem].name} has the same name: keep only "
                                 "one")
            path_of[path.stem] = path
    if not path_of and suffixes == MASK_SUFFIXES and any(folder.glob("*.jp*g")):
        raise ValueError(f"{folder}: contains JPEG masks, whose values JPEG has changed: save the "
                         "originals as PNG")
    if not path_of:
        raise ValueError(f"{folder}: contains no image ({', '.join(suffixes)}): add one")
    return {id: path_of[id] for id in sorted(path_of)}


def count_classes(items: Iterable[Item]) -> Counter:
    """How many polygons of each class the annotations of the images contain."""
    count: Counter = Counter()
    for item in items:
        for path in filter(None, (item.mask, item.polygons)):
            if path.suffix.lower() in POLYGON_SUFFIXES:
                try:
                    count.update(classes_of(path))
                except ValueError:
                    if path == item.mask or item.ignore:  # else they only serve a comparison
                        raise
    return count


def _check_classes(folder: Path, items: Sequence[Item], named: set[str]) -> None:
    """ValueError if a name on the command line is not a class, or could mean two classes."""
    if not named:
        return
    classes = count_classes(items)
    if not classes:
        raise ValueError(f"{folder}: contains no polygons: --label and --ignore can only name "
                         "classes of polygons")
    if unknown := sorted(named - classes.keys()):
        raise ValueError(f"{folder}: no polygon has the class {', '.join(unknown)}: there are "
                         + ", ".join(sorted(classes)))
    refuse_alike(folder, "classes", classes)
