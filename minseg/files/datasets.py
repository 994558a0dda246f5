"""# Data sets: images, masks, groups

A folder has one of two layouts:

    DIR/images/ID.{png,jpg,tif,svs,...}   DIR/masks/ID.{png,tif,geojson,json}
    DIR/groups.csv: id,group              optional
    DIR/slides.csv: id,microns            optional: the size of a pixel, see below

    DIR/train/ID.{tiff,...}               as HuBMAP published it
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
| 0 and one other value; black and one colour, as CVAT exports a class | all but black is object |
| 0, 1 and 255 | 255 is void, as in Pascal VOC and Cityscapes |
| 0, 1 and 255 in some masks, 0 and 255 in others | refused, unless `--ignore 255` makes 255 void |
| 0, one other value and 255 | refused, unless `--ignore 255` makes 255 void |
| 0 and 1 in some masks, 0 and 255 in others | objects are 1 in some, 255 in others; with a note |
| other values or colours of objects in some masks than in others | refused |
| 0, 1, 2, 3, ...: they may number objects as well as classes | refused |
| other values, such as JPEG compression leaves; one value or colour without black | refused |
| three equal colour channels | one of them |
| several colours beside black; one channel per class (one-hot) | refused |
| alpha that agrees with the colour, or is constant | ignored |
| alpha that shows a different mask; a fourth channel that is not alpha | refused |
| a palette of colours | its indices are the values |
| palettes that show the objects in one colour in some masks, in another in others | refused |
| a grey palette | its grey levels are the values; if only 0 and 1 occur, its indices |
| a palette that does not show 0 as the background | refused |
| objects marked with the value that GDAL's NODATA tag declares empty | refused, unless it is void |
| grey where 0 is white (MINISWHITE), as tifffile stores arrays of bool | refused |
| an orientation tag | applied, as to the image |
| a size that differs from the image's | refused |

**Polygons and run-length code**

| in the data set | how it is read |
|---|---|
| GeoJSON: FeatureCollection, (list of) features, geometry | Polygons and MultiPolygons with holes |
| a list of polygons, each a list of [x, y], as in HuBMAP 2022 | polygons without a class |
| a polygon, in pixels of the full image | covers the pixels whose centre is inside |
| several classes of polygons | all are objects, or those in `--label`; `--ignore` names void ones |
| `classification` (QuPath), else text in `class`, `label` or `category` | the polygon's class |
| else a number there, or in DN, value, val, raster_val, gridcode or pixel_value | "value 3" |
| 0 or "0" there, as `gdal_polygonize`, rasterio and ArcGIS write it | background |
| the classes "background" and "bg", and QuPath's ending with * | not used without `--label` |
| polygons that fill the whole image, one of them reaching all its sides | refused |
| QuPath's tissue microarray cores, its tiles without a class, its root | not used |
| a class in `--label` or `--ignore` that no polygon has | refused |
| points and lines among the objects | refused |
| map coordinates ("crs"); a polygon of whose bounds less than half lies in the image | refused |
| "crs" of geopandas, CRS84, if any polygon is as large as a pixel | pixels |
| all polygons near the upper left corner in all images | read, with a note |
| ImageJ's .roi and .zip, ASAP's and Aperio's .xml, .ndpa | refused if the image has no other mask |
| run-length code | as in `minseg.files.rle`, with runs in any order |
| a run that leaves the image; runs that overlap, as in COCO's counts | refused |
| nothing, -1, `nan`, `none` or `1 0` as run-length code | an empty mask |
| run-length code of 32,767 characters, where a spreadsheet cuts it | refused |
| both run-length code and polygons | the code is the mask; one line tells how well the two agree |
| both, with `--label` | the polygons are the mask |

**Tables and folders**

| in the folder | how it is read |
|---|---|
| headings of a table | in any case and order, beside others |
| a heading that is missing or repeated | refused, with those that were found |
| columns separated by commas, semicolons or tabs; UTF-8, UTF-16 with its mark | read |
| other encodings; unbalanced quotes | refused |
| names in a table | without quotes, surrounding spaces and invisible characters |
| ID, ID.svs, images/ID.png, C:\\scans\\id.tif, in tables, `--exclude` and as names of masks | ID |
| two images that these rules make one, such as A.png and a.png, a.png and a.tif.png | refused |
| masks/ID_mask.png | as masks/ID.png; both of them are refused |
| masks/ID.geojson beside masks/ID.json, from which it was converted | the .geojson |
| an empty line | skipped |
| a line without an ID, or with more cells than headings | refused |
| two lines for one image, or one for each of its objects | accepted if they agree, else refused |
| groups.csv and HuBMAP's table of patients, in both layouts | groups.csv counts |
| groups.csv that puts a patient of HuBMAP's table into two groups | refused |
| groups.csv without a group for an image | refused |
| HuBMAP's table without a patient for an image | the image is a group of its own |
| groups written in two ways: P1, p-01 and P_1; 1, 01 and 1.0; but not 1-11 and 11-1 | refused |
| slides.csv, in both layouts | sizes of pixels for files that state none, or a wrong one |
| slides.csv without a line or number for an image | what its file states counts |
| Groups.csv, groups.xlsx and the like, without groups.csv | refused, with the remedy |
| images or masks in subfolders | refused, with the remedy |
| images/ and masks/ with a train.csv that has no column encoding | this table is not used |
| both layouts; neither layout; a folder for each image (DSB 2018) | refused, with the remedy |
| other tables; folders with images; files that belong to no image | not used, and named |
| images in other formats (.czi, .mrxs, .dcm, ...) | refused, with an export that works |
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from .layouts import TABLE, files_of, holds, images_of, is_hubmaps, masks_of, name_of, visible
from .masks import POLYGON_SUFFIXES, VOID, Item, classes_of, drawn_instead
from .pixel_size import SIZES, to_number
from .polygons import VALUE
from .slides import IMAGE_SUFFIXES, SIZES_TABLE, sizes_for
from .tables import ONCE, clean, has_column, read_table, refuse_alike

GROUPS = "groups.csv"
PATIENTS = "HuBMAP-20-dataset_information.csv"
OBJECTS = ("join their codes in one line, with a space between, if they are its objects, else "
           "keep only one")
TABLE_SUFFIXES = (".csv", ".tsv", ".xls", ".xlsx", ".ods")


def find_slides(folder: str | Path, *, labels: Sequence[str] = (), ignore: Sequence[str] = (),
                white: int | None = None) -> list[Item]:
    """The images of a data set with their masks and groups, sorted by name. `labels`, `ignore` and
    `white` are those of `Item`. `unused_files` tells what was left aside. ValueError says what is
    missing, contradictory or there twice, and what to do about it."""
    folder = Path(folder)
    items = _find_hubmap(folder) if is_hubmaps(folder) else _find_pairs(folder)
    if labels:  # run-length code has no classes
        items = [drawn_instead(item) if item.polygons else item for item in items]
    labels, ignore = (tuple(map(clean, names)) for names in (labels, ignore))
    _check_classes(folder, items, {*labels, *ignore} - {str(VOID)})
    sizes = stated_sizes([item.image for item in items])
    names = {name_of(item.image.name) for item in items}
    if unknown := sorted(read_sizes(folder / SIZES_TABLE).keys() - names):
        raise ValueError(f"{folder / SIZES_TABLE}: names {unknown[0]}, but there is no such image: "
                         "correct it, or remove the line")
    return [replace(item, labels=labels, ignore=ignore, white=white,
                    pixel_size=sizes.get(item.image)) for item in items]


def read_sizes(table: Path) -> dict[str, str]:
    """The lines of a slides.csv by `name_of` their images; none if it is another table."""
    try:
        used = os.path.lexists(table) and has_column(table, "id") and has_column(table, "microns")
    except ValueError:  # not text: whoever wrote it had something else in mind
        used = False
    return _by_name(table, read_table(table, "id", "microns")) if used else {}


def stated_sizes(images: Iterable[Path]) -> dict[Path, float]:
    """The sizes of pixels, in micrometres, that slides.csv (`id`, `microns`) states for images: the
    table lies in their folder, or in that of their data set. ValueError for a size that no slide
    has."""
    tables: dict[Path, dict[str, str]] = {}
    sizes = {}
    for image in images:
        table = sizes_for(image)
        if table not in tables:
            tables[table] = read_sizes(table)
        if text := tables[table].get(name_of(image.name)):
            sizes[image] = to_number(text.replace(",", "."))
            if not SIZES[0] <= sizes[image] <= SIZES[1]:
                raise ValueError(f"{table}: states {text} for {image.stem}: needs the width of a "
                                 "pixel in micrometres, a number such as 0.25")
    return sizes


def _find_pairs(folder: Path) -> list[Item]:
    """The layout with images/ and masks/."""
    images = images_of(folder / "images")
    masks, groups = masks_of(folder / "masks", images), _groups(folder, images)
    return [Item(image.stem, image, masks[name], groups[name]) for name, image in images.items()]


def _find_hubmap(folder: Path) -> list[Item]:
    """The layout of the competition's own files: run-length code in train.csv, or polygons."""
    train, table = folder / "train", folder / TABLE
    if not train.is_dir():
        raise ValueError(f"{train}: no such folder: put the images of {table} there")
    images, drawn = images_of(train), files_of(train, POLYGON_SUFFIXES)
    groups = _groups(folder, images)
    if not os.path.lexists(table):
        for name, image in images.items():
            if name not in drawn:
                raise ValueError(f"{image}: has no mask: add {image.with_suffix('.json')}, or "
                                 f"{table} for all images")
        return [Item(image.stem, image, drawn[name], groups[name])
                for name, image in images.items()]
    lines = read_table(table, "id", "encoding", OBJECTS)
    for line in lines:
        if name_of(line) not in images:
            raise ValueError(f"{table}: names {line}, but {train} holds no such image: add it, or "
                             "remove the line")
    runs = _by_name(table, lines, OBJECTS)
    for name, image in images.items():
        if name not in runs:
            raise ValueError(f"{image}: has no line in {table}: add one, or remove the image")
    return [Item(image.stem, image, table, groups[name], runs[name], drawn.get(name))
            for name, image in images.items()]


def _by_name(table: Path, lines: dict[str, str], twice: str = ONCE) -> dict[str, str]:
    """The lines of a table by `name_of` what they name. ValueError if two contradict each other;
    `twice` says what to do then."""
    content_of: dict[str, str] = {}
    for line, content in lines.items():
        if content_of.setdefault(name_of(line), content) != content:
            raise ValueError(f"{table}: has two lines for {line}: {twice}")
    return content_of


def _groups(folder: Path, images: dict[str, Path]) -> dict[str, str]:
    """The group of each image: that of groups.csv, else its patient, else the image alone.
    ValueError if groups.csv lacks an image, or divides the images of a patient."""
    table, patients = folder / GROUPS, _patients(folder)
    if not os.path.lexists(table):  # a broken link must not pass for a missing table
        for path in visible(folder):
            if re.fullmatch(r"groups?\.(csv|tsv|txt|xlsx?|ods)", path.name.lower()):
                raise ValueError(f"{path}: has the wrong name or format: save it as {GROUPS}")
        return {name: patients.get(name) or image.stem for name, image in images.items()}
    groups = _by_name(table, read_table(table, "id", "group"))
    first: dict[str, str] = {}  # image of each patient
    for name, image in images.items():
        if not groups.get(name):
            raise ValueError(f"{table}: has no group for {image.stem}: add a line")
        other = first.setdefault(patients[name], name) if name in patients else name
        if groups[other] != groups[name]:
            raise ValueError(f"{table}: {images[other].stem} and {image.stem} are in two groups, "
                             f"but of one patient in {folder / PATIENTS}: correct one of the "
                             "tables, or move it away")
    refuse_alike(table, "groups", [groups[name] for name in images])
    return groups


def _patients(folder: Path) -> dict[str, str]:
    """The patient of each of the competition's slides, as far as its table says."""
    table = folder / PATIENTS
    if not os.path.lexists(table):
        return {}
    lines = read_table(table, "image_file", "patient_number")
    refuse_alike(table, "patients", filter(None, lines.values()))
    return _by_name(table, {line: patient for line, patient in lines.items() if patient})


def unused_files(folder: str | Path, items: Sequence[Item]) -> list[Path]:
    """What lies in a data set's folders without being used: beside its images and masks, and among
    its tables and other folders of images."""
    folder = Path(folder)
    used = {folder / GROUPS, folder / PATIENTS}
    if any(item.pixel_size for item in items):
        used.add(folder / SIZES_TABLE)
    for item in items:
        used.update(filter(None, (item.image, item.mask, item.polygons)))
    parts = {path.parent for path in used} - {folder}
    tables = [path for path in visible(folder) if path.suffix.lower() in TABLE_SUFFIXES
              or (path not in parts and (path.name in ("images", "masks", "train")
                                         or holds(path, IMAGE_SUFFIXES)))]
    return [path for path in [*tables, *(path for part in sorted(parts) for path in visible(part))]
            if path not in used]


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
    refuse_alike(folder, "classes", (name for name in classes if not name.startswith(VALUE)))
