"""# Before the first step: everything is checked, slides are cut, folds are made

Whatever is wrong is reported before any time is spent on training, and before anything is written
except synthetic slides and the tile cache.
"""

import argparse
import csv
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..crossval import group_folds
from ..files.datasets import Item, count_classes, find_slides, unused_files
from ..files.layouts import name_of
from ..files.masks import POLYGON_SUFFIXES
from ..files.polygons import is_object
from ..files.tables import clean, open_table
from ..processes import world
from ..sampling import epoch_indices
from ..synthetic import write_slides
from ..training import seeded
from .clean import delete_superseded
from .config import (
    Data,
    check_made_from,
    check_settings,
    close_early,
    note_weights,
    settings,
)
from .describe import (
    pixel_size,
    report_copies,
    report_data,
    report_folds,
    report_objects,
    report_unused,
    resolution,
)
from .report import Progress, some
from .tiles import CutSlide, Tiles, cut


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
    number = number_of_folds(folder, items, args.folds, fold)
    config = settings(args, data=folder, folds=number, exclude=excluded)
    existing = check_settings(args, config)

    slides, tiles = cut_all(items, args)
    images = {item.id: slide.made_from for item, slide in zip(items, slides)}
    check_made_from(args.out, images, weights, existing)
    config["made_from"] = {"images": images, "weights": weights}
    report_data(items, slides)
    folds = make_folds(items, slides, tiles, number, resolution(args))
    config["tiles"] = [slide.file for slide in slides]  # `minseg.run.clean` keeps them
    config["fold_of"] = {item.id: fold for item, fold in zip(items, folds)}
    if existing.get("fold_of", config["fold_of"]) != config["fold_of"]:
        raise ValueError(f"{args.out}: holds a run whose images were in other folds: groups "
                         "have changed since: give another --out")
    chosen = range(number) if fold is None else [fold]
    config["closed"] = existing.get("closed", {})
    if args.close:
        config["closed"] |= close_early(args, chosen, existing["epochs"])
        config["epochs"] = args.epochs = existing["epochs"]
    check_folds(folder, slides, tiles, folds, chosen, resolution(args))
    check_stages(args, tiles, folds, chosen)
    report_folds(folder, items, folds, tiles, args.tile)
    report_objects(items, slides, args)
    report_copies(items, slides, folds)
    microns = args.microns or pixel_size(items, slides)
    return Data(items, folds, tiles, chosen, slides, microns, config)


def number_of_folds(folder: Path, items: Sequence[Item], number: int | None,
                    fold: int | None) -> int:
    """`number`, or by default five, or one for each group if there are fewer. ValueError if there
    are too few groups, or no such `fold`."""
    count = len({item.group for item in items})
    if count < 2:
        raise ValueError(f"{folder}: is all one group: one group has to be held out, so add "
                         "images of another")
    number = min(5, count) if number is None else number
    if not 2 <= number <= count:
        raise ValueError(f"--folds {number}: with {count} groups it is 2 to {count}")
    if fold is not None and not 0 <= fold < number:
        raise ValueError(f"--fold {fold}: with {number} folds it is 0 to {number - 1}")
    return number


def make_folds(items: Sequence[Item], slides: Sequence[CutSlide], tiles: Tiles, number: int,
               at: str) -> list[int]:
    """The fold of each image. `at`: the `resolution`. ValueError if no mask has a positive pixel,
    or all have no other."""
    masks = items[0].mask if items[0].runs is not None else items[0].mask.parent
    if not any(slide.positive for slide in slides):
        raise ValueError(f"{masks}: no mask has a positive pixel: nothing to learn from")
    if all(slide.positive + slide.void == slide.height * slide.width for slide in slides):
        raise ValueError(f"{masks}: every labelled pixel is positive, and there is nothing to tell "
                         "objects from: make the background 0, delete its polygons, or leave "
                         "them out with --label")
    if not tiles.mask_area.any():
        raise ValueError(f"{masks}: nothing positive is left at {at}: use a smaller one")
    return group_folds([item.group for item in items], [slide.positive for slide in slides],
                       number)


def mask_options(options: dict) -> dict:
    """Those of a run's options that say how to read masks and slides, as arguments of
    `find_slides`."""
    return {"labels": options.get("label") or (), "ignore": options.get("ignore") or (),
            "white": options.get("white")}


def check_folds(folder: Path, slides: Sequence[CutSlide], tiles: Tiles, folds: Sequence[int],
                chosen: Sequence[int], at: str) -> None:
    """ValueError if a chosen fold leaves no positive pixel to learn from, or has nothing to
    score."""
    for fold in chosen:
        if not tiles.mask_area[training_tiles(tiles, folds, fold)].any():
            if any(slide.positive for slide, other in zip(slides, folds) if other != fold):
                raise ValueError(f"{folder}: outside fold {fold} nothing positive is left at "
                                 f"{at}: use a smaller one")
            raise ValueError(f"{folder}: outside fold {fold} no mask has a positive pixel: "
                             "add images of other groups that have some")
        if not any(slide.void < slide.height * slide.width
                   for slide, other in zip(slides, folds) if other == fold):
            raise ValueError(f"{folder}: all images of fold {fold} are void: nothing to score: "
                             "leave them out with --exclude")


def check_stages(args: argparse.Namespace, tiles: Tiles, folds: Sequence[int],
                 chosen: Sequence[int]) -> None:
    """ValueError if there is a second stage (--then), but a chosen fold is trained for one step,
    and if the processes of torchrun cannot divide a step."""
    for fold in chosen if args.then or world() > 1 else ():
        steps, micro_batches, _ = make_sampler(
            args, tiles, training_tiles(tiles, folds, fold))(0).shape
        if micro_batches % world():
            raise ValueError(f"--accumulate {args.accumulate}: {world()} processes cannot divide "
                             f"the {micro_batches} micro-batches of a step in fold {fold}: give a "
                             f"multiple of {world()}, and a smaller --batch if there are few tiles")
        if args.then and round(args.epochs * steps) < 2:
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
    classes = items[0].labels or sorted(filter(is_object, count_classes(items).keys()
                                               - {*items[0].ignore}))
    return some(classes) or None


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


def cut_all(items: Sequence[Item], args: argparse.Namespace) -> tuple[list[CutSlide], Tiles]:
    """What `cut` notes of each slide, and the tiles of all. Slides are cut once, for all folds and
    for all runs in the same parent folder. ValueError if the tiles do not fit in memory."""
    # `augment` shifts each tile by up to its margin: with the usual stride, half a tile, it can be
    # anywhere then.
    cache, margin = args.out.parent / "tiles", args.tile // 4
    cache.mkdir(parents=True, exist_ok=True)
    progress = Progress(len(items), "cutting slides")
    try:
        slides = [cut(item, cache, scale=args.scale, microns=args.microns, tile=args.tile,
                      stride=args.stride, margin=margin, progress=progress.step)
                  for item in items]
        delete_superseded(cache, slides)
        return slides, Tiles(cache, slides, args.tile, margin)
    except MemoryError as error:
        raise ValueError(f"{error}: use a smaller --tile or a larger {resolution(args).split()[0]}")


def training_tiles(tiles: Tiles, folds: Sequence[int], fold: int) -> Tensor:
    """The tiles to train on when `fold` is held out: int64 tile numbers (N,)."""
    return torch.tensor([folds[slide] != fold for slide, _, _ in tiles.places]).nonzero()[:, 0]


def make_sampler(args: argparse.Namespace, tiles: Tiles,
                 train_on: Tensor) -> Callable[[int], Tensor]:
    """A function of the epoch that returns its tile numbers: int64 (steps, accumulate, batch). All
    epochs have the same number of steps. Tiles that do not fill a whole step are dropped; another
    epoch may draw them."""
    negatives = {"all": math.inf, "balanced": 1.0}.get(args.negatives, args.negatives)
    bins = 4 if args.negatives == "balanced" else None

    def draw_tiles(epoch: int) -> Tensor:
        return train_on[epoch_indices(tiles.mask_area[train_on], negatives=negatives, bins=bins,
                                      generator=seeded(args.seed, "epoch", epoch))]

    count = len(draw_tiles(0))
    batch = min(args.batch, count)
    micro_batches = min(args.accumulate, count // batch)  # in a step
    steps = count // (batch * micro_batches)

    def numbers_of(epoch: int) -> Tensor:
        return draw_tiles(epoch)[: steps * micro_batches * batch].view(steps, micro_batches, batch)

    return numbers_of
