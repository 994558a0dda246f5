"""# Which files of a folder belong together

`minseg.files.datasets` describes the two layouts that a data set may have. Here they are told
apart, their files are matched by name, and a folder that has neither is refused with the way to
give it one: each of these messages, once it is followed, leads to a data set that is read.

>>> name_of("images/Slide 1.ome.tiff"), name_of(r"C:\\\\scans\\\\slide 1.SVS"), name_of("a.b")
('slide 1', 'slide 1', 'a.b')
"""

import os
import re
from collections.abc import Collection
from pathlib import Path

from .formats import OTHER_SLIDES, conversion, format_of
from .masks import POLYGON_SUFFIXES
from .polygons import MASKS_PAGE
from .slides import IMAGE_SUFFIXES
from .tables import clean, has_column

MASK_SUFFIXES = (".png", ".tif", ".tiff", *POLYGON_SUFFIXES)
TABLE = "train.csv"  # HuBMAP's, with the run-length code
BY_PROGRAMS = {"thumbs.db", "desktop.ini"}  # which Windows leaves in folders, beside hidden files
NEEDED = "--data must contain images/ and masks/, or train/ and train.csv"
SHOWN = f"convert it ({MASKS_PAGE})"
LOSSY = f"JPEG has changed its values: save the original as PNG, or convert it ({MASKS_PAGE})"
ONE_EACH = f"as DSB 2018 has it: collect them in images/ and masks/ ({MASKS_PAGE})"
OTHER_MASKS = {  # what must be saved in another way, and how
    ".roi": f".roi is ImageJ's: {SHOWN}", ".zip": f".zip is ImageJ's: {SHOWN}",
    ".ndpa": f".ndpa is Hamamatsu's: {SHOWN}", ".xml": f".xml is ASAP's or Aperio's: {SHOWN}",
    ".jpg": LOSSY, ".jpeg": LOSSY}
ENDINGS = re.compile(r"(?<=.)(" + "|".join(map(re.escape, {
    ".ome", *IMAGE_SUFFIXES, *OTHER_SLIDES, *MASK_SUFFIXES})) + r")+$")


def name_of(text: str) -> str:
    """What a file, a path or an ID is called: two that are equal here mean the same image. Folders,
    the suffixes of images and masks, capitals and invisible differences do not count."""
    file = clean(re.split(r"[/\\]", text)[-1]).casefold()
    return ENDINGS.sub("", file).strip()


def visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without hidden files."""
    return sorted(path for path in folder.iterdir()
                  if not path.name.startswith(".") and path.name.lower() not in BY_PROGRAMS)


def holds(folder: Path, suffixes: Collection[str]) -> bool:
    """Whether a folder exists and has files with one of the suffixes."""
    return folder.is_dir() and any(path.suffix.lower() in suffixes for path in visible(folder))


def files_of(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """The files with one of the suffixes by `name_of` them, in the order of their IDs. ValueError
    if two have one name, and for images and masks in subfolders."""
    file_of: dict[str, Path] = {}
    for path in sorted(visible(folder), key=lambda path: (path.stem, path.suffix)):
        if path.suffix.lower() in suffixes:
            name = name_of(path.name)
            other = file_of.setdefault(name, path)
            if path.suffix.lower() == ".json" and other.suffix.lower() == ".geojson":
                continue  # what it was converted from
            if path.stem == other.stem and path != other:
                raise ValueError(f"{path}: {other.name} has the same name: keep only one")
            if path != other:
                raise ValueError(f"{path}: {other.name} has nearly the same name: rename one of "
                                 "them, or keep only one")
        elif path.is_dir() and any(each.suffix.lower() in suffixes for each in path.rglob("*")):
            raise ValueError(f"{path}: is a subfolder: move its files into {folder}, each with a "
                             "name of its own")
    return file_of


def images_of(folder: Path) -> dict[str, Path]:
    """The images of a folder, as from `files_of`. ValueError if there is none, and for images in
    formats that cannot be read."""
    for path in visible(folder):
        if path.suffix.lower() in OTHER_SLIDES:
            raise ValueError(f"{path}: {conversion(path, then=', and move it away')}")
    images = files_of(folder, IMAGE_SUFFIXES)
    if not images:
        other = next((path for path in sorted(folder.rglob("*")) if format_of(path)), None)
        if other:
            raise ValueError(f"{folder}: contains no image, only others, such as {other}: "
                             f"{conversion(other, then=f', in {folder}')}")
        raise ValueError(f"{folder}: contains no image ({', '.join(IMAGE_SUFFIXES)}): add one, or "
                         "save what is there as TIFF or PNG")
    return images


def masks_of(folder: Path, images: dict[str, Path]) -> dict[str, Path]:
    """The mask of each image, by the image's name: a file of the same name, or of the same name and
    _mask. ValueError says what to do about an image without one."""
    for path in visible(folder):
        if path.name.casefold() in images and path.is_dir():  # a file for each object
            raise ValueError(f"{path}: is a folder: make one mask of those in it, {path}.png, and "
                             "move the folder away")
    masks = files_of(folder, MASK_SUFFIXES)
    for longer, mask in list(masks.items()):
        name = longer.removesuffix("_mask")
        if longer not in images and name in images and masks.setdefault(name, mask) != mask:
            raise ValueError(f"{mask}: {masks[name].name} is a mask of the same image: keep only "
                             "one")
    for name in images:
        if name not in masks:
            raise ValueError(_no_mask(name, images, folder, masks))
    return {name: masks[name] for name in images}


def _no_mask(name: str, images: dict[str, Path], folder: Path, masks: dict[str, Path]) -> str:
    """What to do about an image without a mask: first about a mask in another format, then about
    masks with other names."""
    for path in visible(folder):
        if name_of(path.stem).removesuffix("_mask") == name and path.is_file():
            remedy = "is not read as a mask: save it as PNG"
            return f"{path}: {OTHER_MASKS.get(path.suffix.lower(), remedy)}"
    if _is_of_one_image(folder.parent):
        return f"{folder.resolve().parent}: is the folder of one image, {ONE_EACH}"
    start, file = f"{images[name]}: has no mask:", folder / f"{images[name].stem}.png"
    word = re.compile(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])")  # in mask_a, a-seg, ...
    used = {masks[each] for each in images if each in masks}
    left = [path for path in masks.values() if path not in used]
    likely = [path for path in left if word.search(name_of(path.name))]
    if len(likely) == 1:
        return f"{start} if {likely[0]} is it, rename it to {file.stem}{likely[0].suffix}"
    if likely:
        return (f"{start} make {file}, of {', '.join(path.name for path in likely[:4])} or the "
                "right one of them")
    if jsons := [path for path in left if path.suffix.lower() == ".json"]:
        return (f"{start} {jsons[0]} has no image: if it holds the objects of all images, as "
                f"COCO's does, {SHOWN}")
    if 0 < len(left) <= sum(each not in masks for each in images):
        return (f"{start} add {file}, or rename the right one of "
                + ", ".join(path.name for path in left[:4]))
    return f"{start} add {file}"


def is_hubmaps(folder: Path) -> bool:
    """Whether a folder has HuBMAP's layout; if not, it has images/ and masks/. ValueError if it has
    both or neither. A train.csv without run-length code is some other table."""
    table, train = folder / TABLE, folder / "train"
    pairs = all((folder / part).is_dir() for part in ("images", "masks"))
    coded = os.path.lexists(table) and has_column(table, "encoding")
    drawn = holds(train, IMAGE_SUFFIXES) and holds(train, POLYGON_SUFFIXES)
    if pairs and (coded or drawn):
        parts = " and ".join(path.name for path in (train, table) if path.exists())
        raise ValueError(f"{folder}: holds two data sets: move {parts} to another folder, or "
                         "images and masks")
    other_table = table.exists() and holds(train, IMAGE_SUFFIXES)  # some heading is wrong
    if not (pairs or coded or drawn or other_table):
        raise ValueError(_neither(folder))
    return not pairs


def _neither(folder: Path) -> str:
    """What to do about a folder that has neither layout."""
    if not folder.is_dir():
        return f"{folder}: " + ("is a file: --data takes the folder that holds images/ and masks/"
                                if folder.exists() else f"no such folder: {NEEDED}")
    around = folder.resolve().parent
    inside = [path for path in visible(folder) if path.is_dir() and _has_layout(path)]
    if folder.resolve().name in ("images", "masks", "train") and _has_layout(around):
        return f"{folder}: is a part of a data set: give --data {around}"
    for path in (folder, *(path for path in visible(folder) if path.is_dir())):
        if any(map(_is_of_one_image, visible(path))):
            return f"{path}: holds a folder for each image, {ONE_EACH}"
    if inside:
        training = [path for path in inside if path.name.lower().startswith("train")]
        return (f"{folder}: holds a data set in a subfolder: give --data "
                f"{(training or inside)[0]}")
    missing = [part for part in ("images", "masks") if not (folder / part).is_dir()]
    others = [path.name for path in visible(folder)
              if path.is_dir() and path.name not in ("images", "masks")]
    start = f"{folder / missing[0]}: no such folder: {NEEDED}"
    if len(others) >= len(missing):
        which = " and ".join({"images": "that of the images to images",
                              "masks": "that of the masks to masks"}[part] for part in missing)
        return f"{start}: rename {which}, or add it (there is {', '.join(others[:8])})"
    if "images" in missing and holds(folder, IMAGE_SUFFIXES):
        return (f"{start}: move the images into {folder / 'images'}, and the masks, with the same "
                f"names, into {folder / 'masks'}")
    each = "it, with" if missing == ["masks"] else "the images, and"
    return f"{start}: add {each} a mask for each image, of the same name"


def _is_of_one_image(folder: Path) -> bool:
    """Whether a folder is that of one image: ID/images/ID.png and ID/masks/, as in DSB 2018."""
    images, name = folder / "images", name_of(folder.resolve().name)
    return (images.is_dir() and (folder / "masks").is_dir()
            and [name_of(path.name) for path in visible(images)] == [name])


def _has_layout(folder: Path) -> bool:
    return (all((folder / part).is_dir() for part in ("images", "masks"))
            or ((folder / "train").is_dir() and (folder / TABLE).exists()))
