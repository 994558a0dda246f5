"""# Data sets: images, masks, groups

Layouts of a folder:

    DIR/images/ID.{png,jpg,tif,svs,...}  DIR/masks/ID.{png,tif,geojson}  [DIR/groups.csv: id,group]

    DIR/train/ID.tiff  DIR/train.csv: id,encoding      HuBMAP's own; polygons in DIR/train/ID.json
                       [DIR/HuBMAP-20-dataset_information.csv: image_file, patient_number, ...]

**Masks** say of each pixel 1 (to be found), 0 (not) or 255 (void: nobody looked; neither trained on
nor scored). **Groups** say which images belong together (a patient); an image without one stands
alone. What is read has one clear meaning; the rest is refused in one line.

| in the data | read as | refused |
|---|---|---|
| a mask of 0 and 1, of 0 and 255 (or of what is white: 65535, 4095, 15) | objects are 1, or white | any other values; JPEG, which blurs them |
| a mask of 0, 1 and 255 | 255 is void, as in Pascal VOC and Cityscapes | in one data set with masks of 0 and 255, unless `--ignore 255` says that it is void there, too |
| equal red, green and blue | one value | a mask in colour; one-hot channels |
| alpha that says what the colour says, or nothing | the colour | alpha that shows another mask; a fourth channel that is not alpha |
| a palette of colours; of grey | its indices; the grey | a grey palette that shows 0 and only 0 other than black |
| orientation | applied, to image and mask alike | a mask of another size than its image |
| GeoJSON: a FeatureCollection, a list of features, a feature; Polygon, MultiPolygon, holes | pixels whose centre is inside, in pixels of the full image | points and lines of a chosen class; map coordinates; polygons outside the image |
| classes of polygons | all; those that `--label` names; those that `--ignore` names are void | a name that no polygon has, or two that differ by case only |
| ImageJ's .roi and .zip, ASAP's and Aperio's .xml, .ndpa, where there is no other mask | | with the export that works |
| run-length code and polygons | run-lengths, and how far the two agree; with `--label`, the polygons | |
| run-length code | as `minseg.data.rle` | what leaves the image; two lines for an image |
| headings of a table | any case, any order, among others, spaces around | a heading that is missing or there twice |
| cells of a table | spaces around (of any kind) taken off; quotes undone; empty lines skipped | a line with more cells than headings, or without ID; open quotes; other encodings than UTF-8 |
| two lines for one ID | one, if they say the same | if not |
| names of groups and of classes | as they are | two that differ only by case, spaces, or kinds of dashes |
| images in other formats (.czi, .mrxs, .dcm ...) | | with the export that works |
"""

import csv
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from .masks import POLYGON_SUFFIXES, VOID, polygons_of
from .slides import IMAGE_SUFFIXES

MASK_SUFFIXES = (".png", ".tif", ".tiff", *POLYGON_SUFFIXES)
PATIENTS = "HuBMAP-20-dataset_information.csv"
QUPATH = "open it in QuPath and use File > Export objects as GeoJSON"
FOREIGN = {".roi": "ImageJ's", ".zip": "ImageJ's", ".xml": "ASAP's or Aperio's", ".ndpa": "Hamamatsu's"}
OTHER_SLIDES = (".mrxs", ".czi", ".vsi", ".dcm", ".lif", ".nd2", ".jp2", ".bmp", ".gif", ".webp")


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
        items = [replace(item, runs=None, mask=item.polygons, polygons=None) if item.polygons
                 else item for item in items]
    items = [replace(item, labels=tuple(labels), ignore=tuple(ignore), white=white)
             for item in items]
    _check_classes(folder, items, {*labels, *ignore} - {str(VOID)})
    return items


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
            for suffix, whose in FOREIGN.items():
                if (other := folder / "masks" / f"{id}{suffix}").exists():
                    raise ValueError(f"{other}: {whose} format is not read: {QUPATH}")
            raise ValueError(f"{image}: has no mask: add {folder / 'masks' / id}.png")
    groups, table = {id: id for id in images}, folder / "groups.csv"
    if os.path.lexists(table):  # a broken link is an error, not an absence
        groups = read_table(table, "id", "group")
        groups = {id: groups.get(clean(id)) for id in images}
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
    patients = {name.removesuffix(".tiff").removesuffix(".tif"): patient for name, patient
                in read_table(table, "image_file", "patient_number").items() if patient}
    refuse_alike(table, "patients", patients.values())
    return patients


def _by_name(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        if suffix in OTHER_SLIDES and suffixes == IMAGE_SUFFIXES:
            raise ValueError(f"{path}: {suffix} is not read: save it as TIFF or PNG (QuPath: File > "
                             "Export images > OME TIFF), or take it out")
        if suffix in suffixes and not path.name.startswith("."):
            if path.stem in found:
                raise ValueError(f"{path}: {found[path.stem].name} has the same name: keep one")
            found[path.stem] = path
    if not found:
        raise ValueError(f"{folder}: holds no image ({', '.join(suffixes)})")
    return {id: found[id] for id in sorted(found)}


def count_classes(items: Iterable[Item]) -> Counter:
    """How many polygons of each class the annotations of images hold."""
    files = [path for item in items for path in (item.mask, item.polygons)
             if path and path.suffix.lower() in POLYGON_SUFFIXES]
    return Counter(polygon.name for path in files for polygon in polygons_of(path))


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


def clean(text: str) -> str:
    """A name as people mean it: without spaces around it, of any kind or width, and in one of
    Unicode's two spellings of accents."""
    text = re.sub("[\u200b-\u200f\u2060\ufeff]", "", unicodedata.normalize("NFC", text))
    return " ".join(text.split())


def refuse_alike(path: Path, what: str, names: Iterable[str]) -> None:
    """ValueError where two names differ only by what people do not see or mean."""
    seen: dict[str, str] = {}
    for name in sorted(set(names)):
        key = unicodedata.normalize("NFKC", name).casefold()
        key = "".join("-" if unicodedata.category(c) == "Pd" else c for c in key if not c.isspace())
        if seen.setdefault(key, name) != name:
            raise ValueError(f"{path}: has the {what} {seen[key]!r} and {name!r}: write them alike "
                             "if they are one, else give one another name")


def read_table(path: Path, key: str, value: str) -> dict[str, str]:
    """Two columns of a CSV file as a dictionary, `clean`. ValueError where they are missing, for a
    key with two values, and for lines that do not fit the headings."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a slide's run-length code is one field
    table: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, skipinitialspace=True, strict=True)
            first = next((row for row in rows if any(map(clean, row))), [])
            heads = [clean(head).casefold() for head in first]
            if heads.count(key) != 1 or heads.count(value) != 1:
                raise ValueError(f"{path}: the first line must have the columns {key},{value}")
            for row in rows:
                cells = dict(enumerate(map(clean, row)))
                if not any(cells.values()):
                    continue
                if any(cells[i] for i in range(len(heads), len(row))):
                    raise ValueError(f"{path}: line {rows.line_num} has more cells than there are "
                                     "headings: put quotes around what holds a comma")
                name, content = (cells.get(heads.index(each), "") for each in (key, value))
                if not name:
                    raise ValueError(f"{path}: line {rows.line_num} has no {key}: add it, or take "
                                     "out the line")
                if table.setdefault(name, content) != content:
                    raise ValueError(f"{path}: has two lines for {name}: keep one")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no UTF-8 text: save it as CSV UTF-8")
    except csv.Error as error:
        raise ValueError(f"{path}: line {rows.line_num}: {error}: mend its quotes")
    return table
