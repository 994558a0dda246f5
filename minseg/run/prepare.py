"""# Before the first step: everything is checked, slides are cut, folds are made

Whatever is wrong is reported before any time is spent on training, and before anything is written
except synthetic slides and the tile cache.
"""

import argparse
import csv
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..crossval import group_folds
from ..data.datasets import (
    GROUPS,
    PATIENTS,
    TABLE_SUFFIXES,
    Item,
    count_classes,
    find_slides,
    unused_files,
)
from ..data.layouts import name_of
from ..data.masks import POLYGON_SUFFIXES, polygons_of
from ..data.polygons import BACKGROUND, MASKS_PAGE
from ..data.synthetic import write_slides
from ..data.tables import clean, open_table
from ..data.tiles import Tiles, cut
from ..sampling import epoch_indices
from .clean import delete_superseded
from .config import (
    Data,
    check_made_from,
    check_settings,
    close_early,
    note_weights,
    settings,
)
from .report import Progress, some
from .step import seeded

TWO_CLASSES = ("{}: objects are {}, but {} in {}: are these two classes? Make what is to be found "
               "1 in all masks, and everything else 0")


def prepare(args: argparse.Namespace) -> Data:
    """Checks the options and the data, cuts the slides and makes the folds. ValueError says what is
    wrong with the options, with the data, or with files that are already in the run's folder."""
    fold = 0 if args.folds is None and args.fold is None else args.fold
    if fold is not None and not args.resume and (args.out / f"fold{fold}").exists():
        raise ValueError(f"{args.out / f'fold{fold}'}: holds a run already: go on with --resume, "
                         "give another --out, or delete it")
    weights = note_weights(args)
    folder = args.data or draw_synthetic_slides(args.out.parent / "synthetic-slides")
    items = find_slides(folder, **mask_options(vars(args)))
    report_unused(folder, unused_files(folder, items))
    excluded = args.exclude
    if args.exclude:
        excluded = read_ids(args.exclude, items)
        items = leave_out(items, excluded)
        print(f"{len(excluded)} images are left out: {some(excluded)}")
    check_labels(items)
    count = len({item.group for item in items})
    if count < 2:
        raise ValueError(f"{folder}: is all one group: one group has to be held out, so add "
                         "images of another")
    number = min(5, count) if args.folds is None else args.folds
    if not 2 <= number <= count:
        raise ValueError(f"--folds {number}: with {count} groups it is 2 to {count}")
    if fold is not None and not 0 <= fold < number:
        raise ValueError(f"--fold {fold}: with {number} folds it is 0 to {number - 1}")
    config = settings(args, data=folder, folds=number, exclude=excluded)
    existing = check_settings(args, config)

    facts, tiles = cut_all(items, args)
    images = {item.id: fact["made_from"] for item, fact in zip(items, facts)}
    check_made_from(args.out, images, weights, existing)
    config["made_from"] = {"images": images, "weights": weights}
    report_data(items, facts)
    folds = make_folds(items, facts, tiles, number, args.scale)
    config["tiles"] = [fact["file"] for fact in facts]  # `minseg.run.clean` keeps them
    config["fold_of"] = {item.id: fold for item, fold in zip(items, folds)}
    if existing.get("fold_of", config["fold_of"]) != config["fold_of"]:
        raise ValueError(f"{args.out}: holds a run whose images were in other folds: groups "
                         "have changed since: give another --out")
    chosen = range(number) if fold is None else [fold]
    config["closed"] = existing.get("closed", {})
    if args.close:
        config["closed"] |= close_early(args, chosen, existing["epochs"])
        config["epochs"] = args.epochs = existing["epochs"]
    check_folds(folder, facts, tiles, folds, chosen, args.scale)
    check_stages(args, tiles, folds, chosen)
    report_folds(folder, items, folds, tiles, args.tile)
    report_objects(items, facts, args.scale, args.tile)
    report_copies(items, facts, folds)
    return Data(items, folds, tiles, chosen, facts, pixel_size(items, facts), config)


def pixel_size(items: Sequence[Item], facts: Sequence[dict]) -> float | None:
    """The median size of a pixel in micrometres, before scaling. None if no image states its own,
    or if they differ by more than a tenth, which one line then says."""
    sizes = sorted((fact["microns"], item.id) for item, fact in zip(items, facts)
                   if fact["microns"])
    if not sizes:
        return None
    alike: list[list[tuple[float, str]]] = []  # those of one magnification
    for size, id in sizes:
        if not alike or size > 1.1 * alike[-1][0][0]:
            alike.append([])
        alike[-1].append((size, id))
    unknown = [item.id for item, fact in zip(items, facts) if not fact["microns"]]
    if unknown:
        print(f"{some(unknown)}: no pixel size in the file, unlike the others: is it the same?")
    if len(alike) == 1:
        return statistics.median(size for size, _ in sizes)
    print("images of different pixel size: " + "; ".join(
        f"{statistics.median(size for size, _ in each):.3g} µm ({some(id for _, id in each)})"
        for each in alike) + ": resample them to one size, or leave some out with --exclude; "
        "model.pt will state no pixel size")
    return None


def report_copies(items: Sequence[Item], facts: Sequence[dict], folds: Sequence[int]) -> None:
    """Prints which images are the same under two names, if one is trained on when the other is
    scored."""
    copies: dict[str, list[int]] = {}
    for i, fact in enumerate(facts):
        copies.setdefault(fact["made_from"]["image"]["sha256"], []).append(i)
    apart = [" = ".join(items[i].id for i in same) for same in copies.values()
             if len({folds[i] for i in same}) > 1]
    if apart:
        print(f"the same image under different names, in different folds: {some(apart)}: it is "
              "trained on and scored: keep one, or give them one group")


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


def make_folds(items: Sequence[Item], facts: Sequence[dict], tiles: Tiles, number: int,
               scale: int) -> list[int]:
    """The fold of each image. ValueError if no mask has a positive pixel, or all have no other."""
    masks = items[0].mask if items[0].runs is not None else items[0].mask.parent
    if not any(fact["positive"] for fact in facts):
        raise ValueError(f"{masks}: no mask has a positive pixel: nothing to learn from")
    if all(fact["positive"] + fact["void"] == fact["height"] * fact["width"] for fact in facts):
        raise ValueError(f"{masks}: every labelled pixel is positive, and there is nothing to tell "
                         "objects from: make the background 0, delete its polygons, or leave "
                         "them out with --label")
    if not tiles.mask_area.any():
        raise ValueError(f"{masks}: nothing positive is left at --scale {scale}: use a smaller one")
    return group_folds([item.group for item in items], [fact["positive"] for fact in facts],
                       number)


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


def mask_options(options: dict) -> dict:
    """Those of a run's options that say how to read masks and slides, as arguments of
    `find_slides`."""
    return {"labels": options.get("label") or (), "ignore": options.get("ignore") or (),
            "white": options.get("white")}


def check_folds(folder: Path, facts: Sequence[dict], tiles: Tiles, folds: Sequence[int],
                chosen: Sequence[int], scale: int) -> None:
    """ValueError if a chosen fold leaves no positive pixel to learn from, or has nothing to
    score."""
    for fold in chosen:
        if not tiles.mask_area[training_tiles(tiles, folds, fold)].any():
            if any(fact["positive"] for fact, other in zip(facts, folds) if other != fold):
                raise ValueError(f"{folder}: outside fold {fold} nothing positive is left at "
                                 f"--scale {scale}: use a smaller one")
            raise ValueError(f"{folder}: outside fold {fold} no mask has a positive pixel: "
                             "add images of other groups that have some")
        if not any(fact["void"] < fact["height"] * fact["width"]
                   for fact, other in zip(facts, folds) if other == fold):
            raise ValueError(f"{folder}: all images of fold {fold} are void: nothing to score: "
                             "leave them out with --exclude")


def check_stages(args: argparse.Namespace, tiles: Tiles, folds: Sequence[int],
                 chosen: Sequence[int]) -> None:
    """ValueError if there is a second stage (--then), but a chosen fold is trained for one step."""
    for fold in chosen if args.then else ():
        steps_of = make_sampler(args, tiles, training_tiles(tiles, folds, fold))
        if round(args.epochs * len(steps_of(0))) < 2:
            raise ValueError(f"--then {args.then}: fold {fold} is trained for one step only, and "
                             "each of the two stages needs one: raise --epochs, or lower --batch "
                             "or --accumulate")


def check_labels(items: Sequence[Item]) -> None:
    """ValueError if --label names classes, but an image has no polygons."""
    for item in items:
        if item.labels and item.mask.suffix.lower() not in POLYGON_SUFFIXES:
            raise ValueError(f"{item.mask}: --label names classes of polygons, and {item.id} has "
                             "none: add them, or leave it out with --exclude")


def class_name(items: Sequence[Item]) -> str | None:
    """The names of the polygon classes that the network learns to find; None if there are no
    polygons, or if run-length code is used instead."""
    if any(item.runs is not None for item in items):
        return None
    classes = items[0].labels or sorted(count_classes(items).keys()
                                        - {*items[0].ignore, BACKGROUND})
    return some(classes) or None


def report_values(items: Sequence[Item], facts: Sequence[dict]) -> None:
    """Prints which value of masks means object, where that is not obvious. ValueError if masks
    contradict each other."""
    kinds = {fact["kind"]: item.mask for item, fact in zip(items, facts) if fact["kind"]}
    colours = {fact["colour"]: item.mask for item, fact in zip(items, facts) if fact["colour"]}
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


def report_data(items: Sequence[Item], facts: Sequence[dict]) -> None:
    """Prints how the files were understood, where that is not obvious. ValueError if masks
    contradict each other."""
    report_values(items, facts)
    first = items[0]
    if classes := count_classes(items):
        def use(name: str) -> str:
            if name in first.ignore:
                return "void"
            if name in first.labels:
                return "to be found"
            if name == BACKGROUND or first.labels or first.runs is not None:
                return "not used"
            return "to be found"

        print("polygons: " + some((f"{count} {name} ({use(name)})"
                                   for name, count in classes.most_common()), 20))
        report_corner(items, facts)
    agreement = {item.id: fact["agreement"] for item, fact in zip(items, facts)
                 if fact["agreement"][1]}
    if agreement:
        shared, total = map(sum, zip(*agreement.values()))
        worst = min(agreement, key=lambda id: agreement[id][0] / agreement[id][1])
        print("run-length code is used; the polygons beside it agree to a Dice of "
              f"{2 * shared / total:.4f}, in {worst} "
              f"{2 * agreement[worst][0] / agreement[worst][1]:.4f}")
    if void := sum(fact["void"] for fact in facts):
        whole = sum(fact["height"] * fact["width"] for fact in facts)
        print(f"{void / whole:.1%} of all pixels are void: neither trained on nor scored")
    notes: dict[str, list[str]] = {}
    for item, fact in zip(items, facts):
        for note in fact["notes"]:
            notes.setdefault(note, []).append(f"{item.image}: {note}")
    for lines in notes.values():  # the first line stands for all that have the same note
        others = f" (and {len(lines) - 1} others like it)" if len(lines) > 1 else ""
        print(f"{lines[0]}{others}")


def report_corner(items: Sequence[Item], facts: Sequence[dict]) -> None:
    """Prints a line if all polygons lie in the upper left quarter of their images, as they do if
    coordinates are per cent, micrometres or pixels of a smaller copy. Three polygons that may lie
    anywhere do so by chance in one data set of 64."""
    shares, count = [], 0  # of its image's size that an image's polygons reach
    for item, fact in zip(items, facts):
        if item.runs is None and item.mask.suffix.lower() in POLYGON_SUFFIXES:
            bounds = [each.bounds for each in polygons_of(item.mask) if each.rings]
            shares += [max(right / fact["width"], bottom / fact["height"])
                       for _, _, right, bottom in bounds]
            count += bool(bounds)
    if count > 1 and len(shares) > 2 and 0 < max(shares) < 0.5:
        print(f"all polygons lie in the upper left corner of their images, within "
              f"{max(shares):.0%} of their size: are the coordinates per cent, micrometres or "
              f"pixels of a smaller copy? Up to {1 / max(shares):.3g} times as large they would "
              f"still fit ({MASKS_PAGE})")


def report_objects(items: Sequence[Item], facts: Sequence[dict], scale: int, tile: int) -> None:
    """Prints what there is to find, and what looks like a mistake in it."""
    pixels = [fact["height"] * fact["width"] for fact in facts]
    labelled = sum(pixels) - sum(fact["void"] for fact in facts)
    positive = sum(fact["positive"] for fact in facts) / max(1, labelled)
    areas = [area for fact in facts for area in fact["objects"]]
    if areas:
        diameter = math.sqrt(4 / math.pi * statistics.median(areas))  # of a disc of that area
        at_scale = f" ({diameter / scale:.0f} at --scale {scale})" if scale > 1 else ""
        print(f"{positive:.1%} of pixels positive, {len(areas)} objects, median diameter "
              f"{diameter:.0f} pixels{at_scale}")
    if scale > 1:
        report_vanished(items, facts, scale)
    if empty := [item.id for item, fact in zip(items, facts) if not fact["positive"]]:
        print(f"no object in: {some(empty)}")
    full = sum(2 * fact["positive"] > size for fact, size in zip(facts, pixels))
    if full > len(facts) / 2:
        print(f"in {full} of {len(facts)} images more than half of the pixels are positive: are "
              "the masks inverted? Objects are 1 or 255, the background is 0")
    small = [item.id for item, fact in zip(items, facts)
             if min(fact["height"], fact["width"]) < tile * scale]
    if small:
        print(f"{len(small)} of {len(items)} images are smaller than a tile of {tile} x {tile} "
              f"pixels{f' at --scale {scale}' if scale > 1 else ''}, and filled up with mirror "
              f"images: {some(small)}")


def report_vanished(items: Sequence[Item], facts: Sequence[dict], scale: int) -> None:
    """Prints how many objects are too small for the scale: those that fill less than half of a
    block are background there, unless they share it with others."""
    areas = [area for fact in facts for area in fact["objects"]]
    small = sum(2 * area < scale**2 for area in areas)
    gone = [item.id for item, fact in zip(items, facts)
            if fact["positive"] and not any(fact["area"])]
    if small or gone:
        print(f"{small} of {len(areas)} objects are smaller than half a pixel at --scale {scale}, "
              "too small to be seen there" + (f"; nothing is left in {len(gone)} images with "
              f"objects: {some(gone)}" if gone else "") + ": use a smaller --scale")


def read_ids(path: Path, items: Sequence[Item]) -> list[str]:
    """The IDs that a file names, sorted: one ID, file name or path per line, or the first column of
    a table, with or without the heading `id`. ValueError for an ID that no image has, and if no
    image is left."""
    try:
        with open_table(path) as file:
            named = {clean(row[0]) for row in csv.reader(file) if row} - {""}
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"{path}: no such file: --exclude takes a list of IDs")
    except (ValueError, csv.Error):
        raise ValueError(f"{path}: is not a text file: --exclude takes a list of IDs, one per line")
    known = {name_of(item.id): item.id for item in items}
    found = {known[name_of(name)] for name in named if name_of(name) in known}
    if unknown := sorted(name for name in named
                         if name_of(name) not in known and name.lower() != "id"):
        raise ValueError(f"{path}: names {', '.join(unknown[:3])}: no image has that ID: "
                         "correct it, or take it out")
    if len(found) == len(items):
        raise ValueError(f"{path}: leaves no image: keep only the IDs that are to be left out")
    return sorted(found)


def leave_out(items: Sequence[Item], ids: Iterable[str] | None) -> list[Item]:
    """The images whose ID is not among `ids`."""
    left_out = set(ids or ())
    return [item for item in items if item.id not in left_out]


def draw_synthetic_slides(folder: Path, count: int = 20, **options) -> Path:
    """Draws synthetic slides with `write_slides`, unless the folder exists already."""
    if not folder.exists():
        print(f"drawing {count} synthetic slides in {folder}", flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_slides(folder, count, **options)
        except (OSError, ValueError):
            if not folder.exists():  # otherwise another process has drawn them meanwhile
                raise
    return folder


def cut_all(items: Sequence[Item], args: argparse.Namespace) -> tuple[list[dict], Tiles]:
    """The facts about each image (`minseg.data.tiles.cut`), and the tiles of all images. Slides are
    cut once, for all folds and for all runs in the same parent folder. ValueError if the tiles do
    not fit in memory."""
    cache, margin = args.out.parent / "tiles", args.tile // 8
    cache.mkdir(parents=True, exist_ok=True)
    progress = Progress(len(items), "cutting slides")
    try:
        facts = [cut(item, cache, scale=args.scale, tile=args.tile, stride=args.stride,
                     margin=margin, progress=progress.step) for item in items]
        delete_superseded(cache, facts)
        return facts, Tiles(cache, facts, args.tile, margin)
    except MemoryError as error:
        raise ValueError(f"{error}: use a smaller --tile or a larger --scale")


def training_tiles(tiles: Tiles, folds: Sequence[int], fold: int) -> Tensor:
    """The tiles to train on when `fold` is held out: int64 tile numbers (N,)."""
    return torch.tensor([folds[slide] != fold for slide, _, _ in tiles.places]).nonzero()[:, 0]


def make_sampler(args: argparse.Namespace, tiles: Tiles,
                 train_on: Tensor) -> Callable[[int], list[list[list[int]]]]:
    """A function of the epoch that returns its steps: each a list of `--accumulate` micro-batches,
    each a list of `--batch` tile numbers. All epochs have the same number of steps. Tiles that do
    not fill a whole step are dropped; another epoch may draw them."""
    negatives = {"all": math.inf, "balanced": 1.0}.get(args.negatives, args.negatives)
    bins = 4 if args.negatives == "balanced" else None

    def draw_tiles(epoch: int) -> Tensor:
        return train_on[epoch_indices(tiles.mask_area[train_on], negatives=negatives, bins=bins,
                                      generator=seeded(args.seed, "epoch", epoch))]

    count = len(draw_tiles(0))
    batch = min(args.batch, count)
    micro_batches = min(args.accumulate, count // batch)  # in a step
    steps = count // (batch * micro_batches)

    def steps_of(epoch: int) -> list[list[list[int]]]:
        tile_numbers = draw_tiles(epoch)[: steps * micro_batches * batch]
        return tile_numbers.view(steps, micro_batches, batch).tolist()

    return steps_of
