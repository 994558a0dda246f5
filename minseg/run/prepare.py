"""# Before the first step: everything is checked, slides are cut, folds are made

What is wrong is said before a minute is spent on it, and before anything is written but synthetic
slides and the tile cache.
"""

import argparse
import csv
import json
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

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

# Options that say where and how fast, not what: a run goes on with others as well.
HOW = ("out", "fold", "device", "resume", "workers", "compile", "checkpoint_activations")


def prepare(args: argparse.Namespace) -> tuple[list[Item], list[int], Tiles, Sequence[int]]:
    """Returns the images, the fold of each, their tiles, and the folds to train. ValueError says
    what is wrong with the options, the data, or what lies in the run's folder."""
    if args.folds is None and args.fold is None:
        args.fold = 0
    folder = args.out / f"fold{args.fold}"
    if args.fold is not None and folder.exists() and not args.resume:
        raise ValueError(f"{folder}: holds a run already: go on with --resume, give another --out, "
                         "or delete it")
    if args.weights:
        load_weights(EfficientNet(args.encoder, num_classes=0), args.weights)
    if args.data is None:
        args.data = draw(args.out.parent / "synthetic-slides")
    items = find_slides(args.data, **of_masks(vars(args)))
    if args.exclude:
        args.exclude = read_ids(args.exclude, items)  # config.json holds them, not the file's name
        items = leave_out(items, args.exclude)
        print(f"{len(args.exclude)} images are left out: {', '.join(args.exclude[:8])}"
              + ", ..." * (len(args.exclude) > 8))
    check_labels(items)
    groups = [item.group for item in items]
    several = len(set(groups))
    if several < 2:
        raise ValueError(f"{args.data}: is all one group: one has to be held out, so add another")
    args.folds = min(5, several) if args.folds is None else args.folds
    if not 2 <= args.folds <= several:
        raise ValueError(f"--folds {args.folds}: with {several} groups it is 2 to {several}")
    if args.fold is not None and not 0 <= args.fold < args.folds:
        raise ValueError(f"--fold {args.fold}: with {args.folds} folds it is 0 to {args.folds - 1}")
    check_settings(args)

    facts, tiles = cut_all(items, args)
    tell(items, facts)
    masks = items[0].mask if items[0].runs is not None else items[0].mask.parent
    if not any(found["positive"] for found in facts):
        raise ValueError(f"{masks}: no mask has a positive pixel: nothing to learn from")
    if not tiles.mask_area.any():
        raise ValueError(f"{masks}: nothing positive is left at --scale {args.scale}: use a "
                         "smaller one")
    folds = group_folds(groups, [found["positive"] for found in facts], args.folds)
    chosen = range(args.folds) if args.fold is None else [args.fold]
    check_folds(args, facts, tiles, folds, chosen)

    print(f"{args.data}: {len(items)} images in {several} groups, {args.folds} folds of "
          + ", ".join(str(folds.count(fold)) for fold in range(args.folds)))
    alone = [item.id for item in items if item.group == item.id]
    if alone and (Path(args.data) / PATIENTS).exists():
        print(f"{PATIENTS} has no patient for {', '.join(alone)}: each of these counts alone")
    elif len(alone) == len(items):
        print("no groups: each image counts alone, and one patient may be on both sides")
    print(f"{len(tiles)} tiles of {args.tile} x {args.tile} pixels, "
          f"{int((tiles.mask_area > 0).sum())} of them with something to find; {tiles.blank} "
          "blank ones are left out of training")
    return items, folds, tiles, chosen


def of_masks(options: dict) -> dict:
    """The options of a run that `find_slides` takes."""
    return {"labels": options.get("label") or (), "ignore": options.get("ignore") or (),
            "white": options.get("white")}


def check_folds(args: argparse.Namespace, facts: Sequence[dict], tiles: Tiles,
                folds: Sequence[int], chosen: Sequence[int]) -> None:
    """ValueError where a fold leaves nothing to learn from, or has nothing to score."""
    for fold in chosen:
        if not tiles.mask_area[outside(tiles, folds, fold)].any():
            raise ValueError(f"{args.data}: outside fold {fold} no mask has a positive pixel: "
                             "add images of other groups that have some")
        if not any(found["void"] < found["height"] * found["width"]
                   for found, other in zip(facts, folds) if other == fold):
            raise ValueError(f"{args.data}: all images of fold {fold} are void: nothing to score: "
                             "leave them out with --exclude")


def check_labels(items: Sequence[Item]) -> None:
    """ValueError where classes are named, and an image has none to choose from."""
    for item in items:
        if item.labels and item.mask.suffix.lower() not in POLYGON_SUFFIXES:
            raise ValueError(f"{item.mask}: --label names classes of polygons, and {item.id} has "
                             "none: add them, or leave it out with --exclude")


def class_name(items: Sequence[Item]) -> str | None:
    """What the network learns to find, by the classes of polygons; None where there are none, or
    where run-length code is used."""
    if any(item.runs is not None for item in items):
        return None
    classes = items[0].labels or sorted(count_classes(items).keys() - set(items[0].ignore))
    return ", ".join(classes) or None


def tell(items: Sequence[Item], facts: Sequence[dict]) -> None:
    """Prints how files were understood where that is not obvious, a line for each kind. ValueError
    where masks contradict each other."""
    kinds = {found["kind"]: item.mask for item, found in zip(items, facts)}
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
    agreement = {item.id: found["agreement"] for item, found in zip(items, facts)
                 if found["agreement"][1]}
    if agreement:
        shared, total = map(sum, zip(*agreement.values()))
        worst = min(agreement, key=lambda id: agreement[id][0] / agreement[id][1])
        print("run-length code is used; the polygons beside it agree to a Dice of "
              f"{2 * shared / total:.4f}, in {worst} "
              f"{2 * agreement[worst][0] / agreement[worst][1]:.4f}")
    if void := sum(found["void"] for found in facts):
        whole = sum(found["height"] * found["width"] for found in facts)
        print(f"{void / whole:.1%} of all pixels are void: neither trained on nor scored")
    notes: dict[str, list[str]] = {}
    for item, found in zip(items, facts):
        for note in found["notes"]:
            notes.setdefault(note, []).append(f"{item.image}: {note}")
    for same in notes.values():
        others = f" (and {len(same) - 1} others like it)" if len(same) > 1 else ""
        print(f"{same[0]}{others}")


def read_ids(path: Path, items: Sequence[Item]) -> list[str]:
    """The IDs that a file names, sorted: one a line, or a table's first column, with or without
    `id` above it. ValueError for one that no image has, and where no image would be left."""
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
    """The images without those that have one of `ids`."""
    return [item for item in items if item.id not in set(ids or ())]


def draw(folder: Path, count: int = 20, **options) -> Path:
    """Synthetic slides, as `write_slides` draws them, unless they are there."""
    if not folder.exists():
        print(f"drawing {count} synthetic slides in {folder}", flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_slides(folder, count, **options)
        except (OSError, ValueError):
            if not folder.exists():  # else another process was faster
                raise
    return folder


def cut_all(items: Sequence[Item], args: argparse.Namespace) -> tuple[list[dict], Tiles]:
    """The tiles of all images, cut once for all folds and all runs beside this one."""
    cache, margin = args.out.parent / "tiles", args.tile // 8
    cache.mkdir(parents=True, exist_ok=True)
    progress = Progress(len(items), "cutting slides")
    facts = [cut(item, cache, scale=args.scale, tile=args.tile, stride=args.stride, margin=margin,
                 progress=progress.step) for item in items]
    known = [found["microns"] for found in facts if found["microns"]]
    args.microns = statistics.median(known) if known else None
    return facts, Tiles(cache, facts, args.tile, margin)


def outside(tiles: Tiles, folds: Sequence[int], fold: int) -> Tensor:
    """The tiles to train on when `fold` is held out: indices."""
    return torch.tensor([folds[slide] != fold for slide, _, _ in tiles.places]).nonzero()[:, 0]


def make_sampler(args: argparse.Namespace, tiles: Tiles,
                 train_on: Tensor) -> Callable[[int], list[list[list[int]]]]:
    """`sample(epoch)` gives the epoch's steps: a list of batches each, lists of tiles. There are as
    many in each epoch; what is too few for a step is left for another one."""

    def drawn_in(epoch: int) -> Tensor:
        ratio = {"all": math.inf, "balanced": 1.0}.get(args.negatives, args.negatives)
        bins = 4 if args.negatives == "balanced" else None
        return train_on[epoch_indices(tiles.mask_area[train_on], negatives=ratio, bins=bins,
                                      generator=seeded(args.seed, "epoch", epoch))]

    drawn = len(drawn_in(0))
    batch = min(args.batch, drawn)
    parts = min(args.accumulate, drawn // batch)  # batches a step
    steps = drawn // (batch * parts)
    return lambda epoch: drawn_in(epoch)[: steps * parts * batch].view(steps, parts, batch).tolist()


def settings(args: argparse.Namespace) -> dict:
    """What all folds of a run share, as config.json holds it."""
    apart = (*HOW, "losses", "microns")
    return {name: str(value.resolve()) if isinstance(value, Path) else value
            for name, value in vars(args).items() if name not in apart}


def check_settings(args: argparse.Namespace) -> None:
    """ValueError where the run's folder holds folds that were trained otherwise; going on, the
    learning rate and the precision may be others."""
    written = args.out / "config.json"
    if not any(args.out.glob("fold*")) or not written.exists():
        return
    try:
        there = json.loads(written.read_text())
    except ValueError:
        there = {}
    here = json.loads(json.dumps(settings(args)))
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)
             and not (args.resume and name in ("lr", "encoder_lr", "amp"))]
    if names:
        raise ValueError(f"{args.out}: holds a run with other settings (--"
                         + ", --".join(name.replace("_", "-") for name in sorted(names))
                         + "): give another --out")


def save_settings(args: argparse.Namespace) -> None:
    """Writes config.json."""
    args.out.mkdir(parents=True, exist_ok=True)
    with atomic(args.out / "config.json") as temporary:
        temporary.write_text(json.dumps(settings(args), indent=2) + "\n")
