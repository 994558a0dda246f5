"""# What a data set holds, in a few lines

`train.py` prints these before it trains: how files were understood where that is not obvious, what
there is to find, and what looks like a mistake. Masks that contradict each other are refused.
"""

import argparse
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..files.datasets import GROUPS, PATIENTS, TABLE_SUFFIXES, Item, count_classes
from ..files.masks import POLYGON_SUFFIXES, polygons_of
from ..files.polygons import MASKS_PAGE, is_object
from .report import some
from .tiles import CutSlide, Tiles

TWO_CLASSES = ("{}: objects are {}, but {} in {}: are these two classes? Make what is to be found "
               "1 in all masks, and everything else 0")


def report_unused(folder: Path, unused: Sequence[Path]) -> None:
    """Prints which files of a data set have no effect: one line for each folder."""
    names: dict[Path, list[str]] = {}
    for path in unused:
        names.setdefault(path.parent, []).append(path.name)
    for parent, files in names.items():
        grouped = any((folder / name).exists() for name in (GROUPS, PATIENTS)) or not any(
            name.lower().endswith(TABLE_SUFFIXES) for name in files if parent == folder)
        hint = "" if grouped else f"; {GROUPS} (id,group) would keep images of one patient together"
        print(f"{parent}: not used ({len(files)}): {some(files)}{hint}")


def report_data(items: Sequence[Item], slides: Sequence[CutSlide]) -> None:
    """Prints how the files were understood, where that is not obvious. ValueError if masks
    contradict each other."""
    report_values(items, slides)
    first = items[0]
    if classes := count_classes(items):
        def use(name: str) -> str:
            if name in first.ignore:
                return "void"
            if name in first.labels:
                return "to be found"
            if not is_object(name) or first.labels or first.runs is not None:
                return "not used"
            return "to be found"

        print("polygons: " + some((f"{count} {name} ({use(name)})"
                                   for name, count in classes.most_common()), 20))
        report_corner(items, slides)
    agreement = {item.id: slide.agreement for item, slide in zip(items, slides)
                 if slide.agreement[1]}
    if agreement:
        shared, total = map(sum, zip(*agreement.values()))
        worst = min(agreement, key=lambda id: agreement[id][0] / agreement[id][1])
        print("run-length code is used; the polygons beside it agree to a Dice of "
              f"{2 * shared / total:.4f}, in {worst} "
              f"{2 * agreement[worst][0] / agreement[worst][1]:.4f}")
    if void := sum(slide.void for slide in slides):
        whole = sum(slide.height * slide.width for slide in slides)
        print(f"{void / whole:.1%} of all pixels are void: neither trained on nor scored")
    notes: dict[str, list[str]] = {}
    for item, slide in zip(items, slides):
        for note in slide.notes:
            notes.setdefault(note, []).append(f"{item.image}: {note}")
    for lines in notes.values():  # the first line stands for all that have the same note
        others = f" (and {len(lines) - 1} others like it)" if len(lines) > 1 else ""
        print(f"{lines[0]}{others}")


def report_values(items: Sequence[Item], slides: Sequence[CutSlide]) -> None:
    """Prints which value of masks means object, where that is not obvious. ValueError if masks
    contradict each other."""
    kinds = {slide.kind: item.mask for item, slide in zip(items, slides) if slide.kind}
    colours = {slide.colour: item.mask for item, slide in zip(items, slides) if slide.colour}
    if len(colours) > 1:
        (other, its_path), (colour, path) = [*colours.items()][:2]
        raise ValueError(TWO_CLASSES.format(path, colour, other, its_path))
    for kind, path in kinds.items():
        if len(kinds) > 1 and kind not in ("1", "255", "void"):
            other, its_path = next(each for each in kinds.items() if each[0] != kind)
            raise ValueError(TWO_CLASSES.format(path, kind, "1" if other == "void" else other,
                                                its_path))
    if kinds.keys() >= {"255", "void"}:
        raise ValueError(f"{kinds['255']}: holds 0 and 255, {kinds['void']} also 1: is 255 void in "
                         "both? Then say --ignore 255, else write objects as 1")
    if kinds.keys() >= {"255", "1"}:
        print(f"{kinds['1']} holds 0 and 1, {kinds['255']} 0 and 255: both are taken for objects; "
              "if 255 is void, say --ignore 255")
    for kind in kinds.keys() - {"1", "255", "void"}:
        beside = "0 and 255" if "255" in items[0].ignore else "0"
        print(f"objects are {kind} in the masks, the only value beside {beside}")


def report_corner(items: Sequence[Item], slides: Sequence[CutSlide]) -> None:
    """Prints a line if all polygons lie in the upper left quarter of their images, as they do if
    coordinates are per cent, micrometres or pixels of a smaller copy. Three polygons that may lie
    anywhere do so by chance in one data set of 64."""
    shares, count = [], 0  # of its image's size that an image's polygons reach
    for item, slide in zip(items, slides):
        if item.runs is None and item.mask.suffix.lower() in POLYGON_SUFFIXES:
            bounds = [each.bounds for each in polygons_of(item.mask) if each.rings]
            shares += [max(right / slide.width, bottom / slide.height)
                       for _, _, right, bottom in bounds]
            count += bool(bounds)
    if count > 1 and len(shares) > 2 and 0 < max(shares) < 0.5:
        print(f"all polygons lie in the upper left corner of their images, within "
              f"{max(shares):.0%} of their size: are the coordinates per cent, micrometres or "
              f"pixels of a smaller copy? Up to {1 / max(shares):.3g} times as large they would "
              f"still fit ({MASKS_PAGE})")


def report_folds(folder: Path, items: Sequence[Item], folds: Sequence[int], tiles: Tiles,
               tile: int) -> None:
    """Prints how the images were divided, and how many tiles there are."""
    groups, number = {item.group for item in items}, max(folds) + 1
    print(f"{folder}: {len(items)} images in {len(groups)} groups, {number} folds of "
          + ", ".join(str(folds.count(fold)) for fold in range(number)))
    alone = [item.id for item in items if item.group == item.id]
    if alone and (folder / PATIENTS).exists() and not (folder / GROUPS).exists():
        print(f"{PATIENTS} has no patient for {some(alone)}: each of these images is a group of "
              "its own")
    elif len(alone) == len(items):
        print("no groups: each image is a group of its own, so images of one patient may be both "
              "trained on and scored")
    print(f"{len(tiles)} tiles of {tile} x {tile} pixels, "
          f"{int((tiles.mask_area > 0).sum())} of them with something to find; {tiles.blank} "
          "blank tiles are left out of training")


def resolution(args: argparse.Namespace) -> str:
    """What size of pixels the network sees, as it was asked for: "--scale 4", "--microns 0.5"."""
    return f"--microns {args.microns:g}" if args.microns else f"--scale {args.scale}"


def report_objects(items: Sequence[Item], slides: Sequence[CutSlide],
                   args: argparse.Namespace) -> None:
    """Prints what there is to find, and what looks like a mistake in it."""
    # How many of a slide's own pixels the side of a scaled one measures.
    factors = [args.microns / slide.microns if args.microns else args.scale for slide in slides]
    scaled, tile = any(factor != 1 for factor in factors), args.tile
    pixels = [slide.height * slide.width for slide in slides]
    labelled = sum(pixels) - sum(slide.void for slide in slides)
    positive = sum(slide.positive for slide in slides) / max(1, labelled)
    areas = [area for slide in slides for area in slide.objects]
    if areas:
        inside = diameter(area / factor**2 for slide, factor in zip(slides, factors)
                          for area in slide.objects)  # in scaled pixels
        size = f"{diameter(areas):.0f} pixels" + (
            f" ({inside:.0f} at {resolution(args)})" if scaled else "")
        if args.microns:  # pixels of different slides cannot be compared
            size = f"{inside * args.microns:.3g} µm ({inside:.0f} pixels at {resolution(args)})"
        print(f"{positive:.1%} of pixels positive, {len(areas)} objects, median diameter {size}")
    if scaled:
        report_vanished(items, slides, factors, resolution(args))
    if empty := [item.id for item, slide in zip(items, slides) if not slide.positive]:
        print(f"no object in: {some(empty)}")
    full = sum(2 * slide.positive > size for slide, size in zip(slides, pixels))
    if full > len(slides) / 2:
        print(f"in {full} of {len(slides)} images more than half of the pixels are positive: are "
              "the masks inverted? Objects are 1 or 255, the background is 0 (of polygons: the "
              "value 0, or none)")
    small = [item.id for item, slide, factor in zip(items, slides, factors)
             if min(slide.height, slide.width) < tile * factor]
    if small:
        print(f"{len(small)} of {len(items)} images are smaller than a tile of {tile} x {tile} "
              f"pixels{f' at {resolution(args)}' if scaled else ''}, and filled up with mirror "
              f"images: {some(small)}")


def diameter(areas: Iterable[float]) -> float:
    """That of a disc of the median area."""
    return math.sqrt(4 / math.pi * statistics.median(areas))


def report_vanished(items: Sequence[Item], slides: Sequence[CutSlide], factors: Sequence[float],
                    at: str) -> None:
    """Prints how many objects are too small to be seen `at` the resolution: those that fill less
    than half of a scaled pixel are background there, unless they share it with others."""
    small = [2 * area < factor**2 for slide, factor in zip(slides, factors)
             for area in slide.objects]
    gone = [item.id for item, slide in zip(items, slides)
            if slide.positive and not any(slide.area)]
    if any(small) or gone:
        print(f"{sum(small)} of {len(small)} objects are smaller than half a pixel at {at}, "
              "too small to be seen there" + (f"; nothing is left in {len(gone)} images with "
              f"objects: {some(gone)}" if gone else "") + f": use a smaller {at.split()[0]}")


def report_copies(items: Sequence[Item], slides: Sequence[CutSlide], folds: Sequence[int]) -> None:
    """Prints which images are the same under two names, if one is trained on when the other is
    scored."""
    copies: dict[str, list[int]] = {}
    for i, slide in enumerate(slides):
        copies.setdefault(slide.made_from["image"]["sha256"], []).append(i)
    apart = [" = ".join(items[i].id for i in same) for same in copies.values()
             if len({folds[i] for i in same}) > 1]
    if apart:
        print(f"the same image under different names, in different folds: {some(apart)}: it is "
              "trained on and scored: keep one, or give them one group")


def pixel_size(items: Sequence[Item], slides: Sequence[CutSlide]) -> float | None:
    """The median size of a pixel in micrometres, before scaling. None if no image states its own,
    or if they differ by more than a tenth, which one line then says."""
    sizes = sorted((slide.microns, item.id) for item, slide in zip(items, slides)
                   if slide.microns)
    if not sizes:
        return None
    alike: list[list[tuple[float, str]]] = []  # those of one magnification
    for size, id in sizes:
        if not alike or size > 1.1 * alike[-1][0][0]:
            alike.append([])
        alike[-1].append((size, id))
    unknown = [item.id for item, slide in zip(items, slides) if not slide.microns]
    if unknown:
        print(f"{some(unknown)}: no pixel size in the file, unlike the others: is it the same?")
    if len(alike) == 1:
        return statistics.median(size for size, _ in sizes)
    print("images of different pixel size: " + "; ".join(
        f"{statistics.median(size for size, _ in each):.3g} µm ({some(id for _, id in each)})"
        for each in alike) + ": --microns brings them to one size, --exclude leaves some out; "
        "model.pt will state no pixel size")
    return None
