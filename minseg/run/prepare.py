"""# Before the first step: everything is checked, slides are cut, folds are made

Whatever is wrong is reported before time is spent on training, and before anything is written
except synthetic slides and the tile cache.
"""

import argparse
import csv
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..crossval import group_folds
from ..data.datasets import PATIENTS, Item, count_classes, find_slides
from ..data.files import atomic
from ..data.masks import POLYGON_SUFFIXES
from ..data.synthetic import write_slides
from ..data.tables import clean
from ..data.tiles import Tiles, cut
from ..efficientnet import EfficientNet
from ..pretrained import load_weights
from ..sampling import epoch_indices
from .report import Progress
from .step import seeded

# Options that say where and how fast, but not what: they may differ when a run is resumed.
HOW = ("out", "fold", "device", "resume", "workers", "compile", "checkpoint_activations")


@dataclass(frozen=True)
class Data:
    """Images, the fold of each, their tiles, which folds to train, and what they have in common."""

    items: list[Item]
    folds: list[int]
    tiles: Tiles
    chosen: Sequence[int]
    microns: float | None  # median size of a pixel before scaling, where slides tell
    config: dict  # what config.json holds


def prepare(args: argparse.Namespace) -> Data:
    """Checks the options and the data, cuts the slides and makes the folds. ValueError says what is
    wrong with the options, the data, or what is in the run's folder."""
    fold = 0 if args.folds is None and args.fold is None else args.fold
    if fold is not None and not args.resume and (args.out / f"fold{fold}").exists():
        raise ValueError(f"{args.out / f'fold{fold}'}: holds a run already: go on with --resume, "
                         "give another --out, or delete it")
    if args.weights:
        load_weights(EfficientNet(args.encoder, num_classes=0), args.weights)
    folder = args.data or draw(args.out.parent / "synthetic-slides")
    items = find_slides(folder, **of_masks(vars(args)))
    excluded = args.exclude
    if args.exclude:
        excluded = read_ids(args.exclude, items)
        items = leave_out(items, excluded)
        print(f"{len(excluded)} images are left out: {', '.join(excluded[:8])}"
              + (", ..." if len(excluded) > 8 else ""))
    check_labels(items)
    count = len({item.group for item in items})
    if count < 2:
        raise ValueError(f"{folder}: is all one group: one has to be held out, so add another")
    number = min(5, count) if args.folds is None else args.folds
    if not 2 <= number <= count:
        raise ValueError(f"--folds {number}: with {count} groups it is 2 to {count}")
    if fold is not None and not 0 <= fold < number:
        raise ValueError(f"--fold {fold}: with {number} folds it is 0 to {number - 1}")
    config = settings(args, data=folder, folds=number, exclude=excluded)
    existing = check_settings(args, config)

    facts, tiles = cut_all(items, args)
    tell(items, facts)
    folds = make_folds(items, facts, tiles, number, args.scale)
    config["fold_of"] = {item.id: fold for item, fold in zip(items, folds)}
    if existing.get("fold_of", config["fold_of"]) != config["fold_of"]:
        raise ValueError(f"{args.out}: holds a run whose images were in other folds: groups, "
                         "images or masks have changed since: give another --out")
    chosen = range(number) if fold is None else [fold]
    check_folds(folder, facts, tiles, folds, chosen)
    tell_folds(folder, items, folds, tiles, args.tile)
    sizes = [fact["microns"] for fact in facts if fact["microns"]]
    return Data(items, folds, tiles, chosen, statistics.median(sizes) if sizes else None, config)


def make_folds(items: Sequence[Item], facts: Sequence[dict], tiles: Tiles, number: int,
               scale: int) -> list[int]:
    """The fold of each image. ValueError where there is nothing to learn from."""
    masks = items[0].mask if items[0].runs is not None else items[0].mask.parent
    if not any(fact["positive"] for fact in facts):
        raise ValueError(f"{masks}: no mask has a positive pixel: nothing to learn from")
    if not tiles.mask_area.any():
        raise ValueError(f"{masks}: nothing positive is left at --scale {scale}: use a smaller one")
    return group_folds([item.group for item in items], [fact["positive"] for fact in facts],
                       number)


def tell_folds(folder: Path, items: Sequence[Item], folds: Sequence[int], tiles: Tiles,
               tile: int) -> None:
    """Prints how the images were divided, and how many tiles there are."""
    groups, number = {item.group for item in items}, max(folds) + 1
    print(f"{folder}: {len(items)} images in {len(groups)} groups, {number} folds of "
          + ", ".join(str(folds.count(fold)) for fold in range(number)))
    alone = [item.id for item in items if item.group == item.id]
    if alone and (folder / PATIENTS).exists():
        print(f"{PATIENTS} has no patient for {', '.join(alone)}: each of these counts alone")
    elif len(alone) == len(items):
        print("no groups: each image counts alone, and one patient may be on both sides")
    print(f"{len(tiles)} tiles of {tile} x {tile} pixels, "
          f"{int((tiles.mask_area > 0).sum())} of them with something to find; {tiles.blank} "
          "blank ones are left out of training")


def of_masks(options: dict) -> dict:
    """The arguments of `find_slides` among a run's options."""
    return {"labels": options.get("label") or (), "ignore": options.get("ignore") or (),
            "white": options.get("white")}


def check_folds(folder: Path, facts: Sequence[dict], tiles: Tiles, folds: Sequence[int],
                chosen: Sequence[int]) -> None:
    """ValueError where a fold leaves nothing to learn from, or has nothing to score."""
    for fold in chosen:
        if not tiles.mask_area[outside(tiles, folds, fold)].any():
            raise ValueError(f"{folder}: outside fold {fold} no mask has a positive pixel: "
                             "add images of other groups that have some")
        if not any(fact["void"] < fact["height"] * fact["width"]
                   for fact, other in zip(facts, folds) if other == fold):
            raise ValueError(f"{folder}: all images of fold {fold} are void: nothing to score: "
                             "leave them out with --exclude")


def check_labels(items: Sequence[Item]) -> None:
    """ValueError where classes are named, and an image has none to choose from."""
    for item in items:
        if item.labels and item.mask.suffix.lower() not in POLYGON_SUFFIXES:
            raise ValueError(f"{item.mask}: --label names classes of polygons, and {item.id} has "
                             "none: add them, or leave it out with --exclude")


def class_name(items: Sequence[Item]) -> str | None:
    """The class that the network learns to find, by the names of polygon classes; None where there
    are none, or where run-length code is used."""
    if any(item.runs is not None for item in items):
        return None
    classes = items[0].labels or sorted(count_classes(items).keys() - set(items[0].ignore))
    return ", ".join(classes) or None


def tell(items: Sequence[Item], facts: Sequence[dict]) -> None:
    """Prints how files were understood where that is not obvious, one line for each kind.
    ValueError where masks contradict each other."""
    kinds = {fact["kind"]: item.mask for item, fact in zip(items, facts)}
    if kinds.keys() >= {"255", "void"}:
        raise ValueError(f"{kinds['255']}: holds 0 and 255, {kinds['void']} also 1: is 255 void in "
                         "both? Then say --ignore 255, else write objects as 1")
    if kinds.keys() >= {"255", "1"}:
        print(f"{kinds['1']} holds 0 and 1, {kinds['255']} 0 and 255: both are taken for objects; "
              "if 255 is void, say --ignore 255")
    first = items[0]
    if classes := count_classes(items):
        def use(name: str) -> str:
            return ("void" if name in first.ignore else
                    "to be found" if name in first.labels else
                    "not used" if first.labels or first.runs is not None else "to be found")
        print("polygons: " + ", ".join(f"{count} {name} ({use(name)})"
                                       for name, count in classes.most_common()))
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
    for same in notes.values():
        others = f" (and {len(same) - 1} others like it)" if len(same) > 1 else ""
        print(f"{same[0]}{others}")


def read_ids(path: Path, items: Sequence[Item]) -> list[str]:
    """The IDs that a file names, sorted: one ID per line, or the first column of a table, with or
    without the heading `id`. ValueError for an ID that no image has, and where no image is left."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            named = {clean(row[0]) for row in csv.reader(file) if row} - {""}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file: --exclude takes a list of IDs")
    except (UnicodeDecodeError, csv.Error):
        raise ValueError(f"{path}: is no text: --exclude takes a list of IDs, one a line")
    known = {clean(item.id): item.id for item in items}
    if unknown := sorted(name for name in named - known.keys() if name.lower() != "id"):
        raise ValueError(f"{path}: names {', '.join(unknown[:3])}: no image has that ID: mend it, "
                         "or take it out")
    if known.keys() <= named:
        raise ValueError(f"{path}: leaves no image: keep only the IDs that are to be left out")
    return sorted(known[name] for name in named & known.keys())


def leave_out(items: Sequence[Item], ids: Sequence[str] | None) -> list[Item]:
    """The images whose ID is not among `ids`."""
    return [item for item in items if item.id not in set(ids or ())]


def draw(folder: Path, count: int = 20, **options) -> Path:
    """Draws synthetic slides with `write_slides`, unless the folder exists already."""
    if not folder.exists():
        print(f"drawing {count} synthetic slides in {folder}", flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_slides(folder, count, **options)
        except (OSError, ValueError):
            if not folder.exists():  # otherwise another process was faster
                raise
    return folder


def cut_all(items: Sequence[Item], args: argparse.Namespace) -> tuple[list[dict], Tiles]:
    """What is known of each image, and its tiles: cut once, for all folds and all runs beside this
    one. ValueError where they do not fit in memory."""
    cache, margin = args.out.parent / "tiles", args.tile // 8
    cache.mkdir(parents=True, exist_ok=True)
    progress = Progress(len(items), "cutting slides")
    try:
        facts = [cut(item, cache, scale=args.scale, tile=args.tile, stride=args.stride,
                     margin=margin, progress=progress.step) for item in items]
        return facts, Tiles(cache, facts, args.tile, margin)
    except MemoryError as error:
        raise ValueError(f"{error}: use a smaller --tile or a larger --scale")


def outside(tiles: Tiles, folds: Sequence[int], fold: int) -> Tensor:
    """The tiles to train on when `fold` is held out: int64 tile numbers (N,)."""
    return torch.tensor([folds[slide] != fold for slide, _, _ in tiles.places]).nonzero()[:, 0]


def make_sampler(args: argparse.Namespace, tiles: Tiles,
                 train_on: Tensor) -> Callable[[int], list[list[list[int]]]]:
    """A function of the epoch that returns its steps: each a list of `--accumulate` micro-batches,
    each a list of `--batch` tile numbers. All epochs have the same number of steps. Tiles that are
    too few to fill the last step are left for another epoch."""
    negatives = {"all": math.inf, "balanced": 1.0}.get(args.negatives, args.negatives)
    bins = 4 if args.negatives == "balanced" else None

    def draw_tiles(epoch: int) -> Tensor:
        return train_on[epoch_indices(tiles.mask_area[train_on], negatives=negatives, bins=bins,
                                      generator=seeded(args.seed, "epoch", epoch))]

    count = len(draw_tiles(0))
    batch = min(args.batch, count)
    micro_batches = min(args.accumulate, count // batch)  # of a step
    steps = count // (batch * micro_batches)

    def steps_of(epoch: int) -> list[list[list[int]]]:
        tile_numbers = draw_tiles(epoch)[: steps * micro_batches * batch]
        return tile_numbers.view(steps, micro_batches, batch).tolist()

    return steps_of


def settings(args: argparse.Namespace, **settled: Any) -> dict:
    """What all folds of a run share, as config.json holds it. `settled`: what took the place of
    options that were not given, or that named a file."""
    return {name: str(value.resolve()) if isinstance(value, Path) else value
            for name, value in {**vars(args), **settled}.items() if name not in (*HOW, "losses")}


def check_settings(args: argparse.Namespace, config: dict) -> dict:
    """Returns what the config.json of existing folds holds. ValueError where they were trained with
    other settings. A run that is resumed may change its learning rate and precision."""
    path = args.out / "config.json"
    if not any(args.out.glob("fold*")) or not path.exists():
        return {}
    try:
        existing = json.loads(path.read_text())
    except ValueError:
        existing = {}
    config = json.loads(json.dumps(config))  # as it will read when it comes back from the file
    free = {"fold_of", *(("lr", "encoder_lr", "amp") if args.resume else ())}
    names = [name for name in {**existing, **config}
             if existing.get(name) != config.get(name) and name not in free]
    if names:
        raise ValueError(f"{args.out}: holds a run with other settings (--"
                         + ", --".join(name.replace("_", "-") for name in sorted(names))
                         + "): give another --out")
    return existing


def save_config(folder: Path, config: dict) -> None:
    """Writes config.json into a run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")
