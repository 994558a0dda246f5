"""# Scores: the log, the score of each fold, and the score of all folds

The probabilities of held-out slides stay on disk. So separate processes can train the folds, and
anyone can score the predictions again. score.json and summary.json hold what
`crossval.cross_validate` returns. score.json scores one fold at the threshold 0.5. Once every fold
is complete, summary.json scores each fold at the threshold that is best for the other folds.
Besides Dice, both count objects: found, missed, and false positives (`minseg.files.objects`). Void
pixels, which nobody labelled, are left out everywhere.
"""

import argparse
import csv
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..crossval import cross_validate, threshold_of
from ..files.atomic import atomic, identity
from ..files.kept import once
from ..files.masks import VOID, Item, Mask
from ..files.objects import count_objects, object_f1
from ..files.slides import Slide, open_slide
from ..predictor import predictor
from ..processes import by_first, divide
from .bands import predict_slide, write_tiff
from .errors import Unfinished
from .report import LEGEND, contact_sheet, draw_curves, draw_outlines
from .tiles import files_of

PREVIEW = 840  # pixels: the longer side of a held-out image in preview.png
KEPT = 2**30  # bytes of the scratch file up to which decoded rows of held-out slides are kept


@by_first
def save_log(folder: Path, rows: Sequence[dict], title: str, losses: str = "") -> None:
    """Writes log.csv and draws curves.png. `rows`: one per epoch, with loss, held_out_dice and
    stage. `losses`: those of the stages, in words."""
    with atomic(folder / "log.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    if not math.isnan(rows[-1]["held_out_dice"]):  # there are held-out images
        draw_curves(folder / "curves.png", rows, title, losses)


def score(counts: Sequence[Tensor], items: Sequence[Item],
          folds: Sequence[int] | None = None) -> dict:
    """The result of `cross_validate` for `counts` (from `count_levels`, one per image), with the
    images' IDs, and with `best_threshold`, the threshold with the highest Dice over all images
    together. `folds`: the fold of each image (default: all in one). The Dice of an image that is
    entirely void is None, and that of no images is not a number. ValueError if all images of a fold
    are void.

    The best threshold of a fold's held-out images goes into model.pt for `infer.py`. It is tuned on
    these images, so a score of the same images at this threshold would be too high. No score uses
    it: score.json uses 0.5, and `summarize` chooses the threshold of a fold from the other folds.
    The new slides that `infer.py` segments had no part in choosing it."""
    if not items:
        return {"pooled_dice": math.nan}
    folds = folds or [0] * len(counts)
    scored = [i for i, count in enumerate(counts) if count.any()]
    if missing := sorted(set(folds) - {folds[i] for i in scored}):
        raise ValueError(f"no held-out image of fold {', '.join(map(str, missing))} has a labelled "
                         "pixel: nothing to score")
    result = cross_validate([counts[i] for i in scored], [folds[i] for i in scored],
                            [items[i].group for i in scored])
    dice = dict(zip(scored, result["images"]))
    result["images"] = {item.id: dice.get(i) for i, item in enumerate(items)}
    total = torch.stack(list(counts)).sum(0)
    # Without any positive pixel the best threshold would be one at which nothing is ever positive.
    return {**result, "best_threshold": threshold_of(total)[0] if total[1].any() else 0.5}


def predict(net: nn.Module, items: Sequence[Item], args: argparse.Namespace, *,
            overlap: float = 0.5, window: str = "linear", tta: bool = False,
            turn: bool = True, folder: Path | None = None) -> list[Tensor]:
    """Predicts images, and returns `count_levels` of each image's probabilities, at the size of the
    image's file. With `folder`, it also writes the probabilities there, as uint8 in steps of
    1/255. Without it, as after each epoch, slides are decoded once as far as `KEPT` allows."""
    probabilities = predictor([net], device=args.device, amp=args.amp, tta=tta)
    microns = getattr(args, "microns", None)  # where `args` are not of train.py

    def count(item: Item) -> Tensor:
        slide, total = item.open(args.scale, microns), torch.zeros(2, 256).long()
        mask = Mask(item, slide.full_height, slide.full_width)
        made_by = identity(item.image), slide.__reduce__()[1]

        def read(*window: int) -> np.ndarray:
            return once(("rows", made_by, window), lambda: slide.read(*window), KEPT)

        bands = predict_slide(probabilities, slide, tile=args.tile, overlap=overlap, amp=args.amp,
                              window=window, batch=args.batch, device=args.device, turn=turn,
                              read=slide.read if folder else read)
        with ExitStack() as files:
            write = None
            if folder is not None:
                write = files.enter_context(write_tiff(
                    folder / f"{item.id}.tiff", slide.full_height, slide.full_width,
                    pixel_size=slide.pixel_size))
            for y, band in bands:
                levels = band[0].mul_(255).round_().byte().numpy()  # (rows, width)
                total += count_known(levels, mask.read(y, 0, *levels.shape))
                if write:
                    write(levels)
        return total

    return divide(items, count)  # among the processes of torchrun


def count_known(levels: np.ndarray, label: np.ndarray) -> Tensor:
    """`count_levels` of the pixels that are not void. `levels` (probabilities times 255)
    and `label` are uint8 (H, W)."""
    known = label != VOID
    counted = levels if known.all() else levels[known], levels[label == 1]
    return torch.stack([torch.bincount(torch.from_numpy(each).flatten(), minlength=256)
                        for each in counted])


def save_score(path: Path, result: dict, objects: dict[str, dict]) -> None:
    """Writes the result of `score`, and the counts of `objects` in each image, as JSON. Prints a
    summary of both."""
    pooled = {name: sum(counts[name] for counts in objects.values())
              for name in ("found", "missed", "invented", "split")}
    result = {**result, "objects": {**pooled, "f1": object_f1(pooled), "images": objects}}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nDice of each group, the worst first (its images: {path}):")
    groups = sorted(result["groups"].items(), key=lambda pair: pair[1])
    for group, dice in groups[:10]:
        print(f"  {dice:.4f}  {group}")
    if len(groups) > 10:
        print(f"  ... and {len(groups) - 10} more")
    spread = (f"mean of {len(groups)} groups {result['mean_dice']:.4f}, standard deviation "
              f"{result['sd_dice']:.4f}; " if len(groups) > 1 else "")
    thresholds = dict.fromkeys(f"{threshold:.3g}" for threshold in result["thresholds"])
    print(f"pooled Dice {result['pooled_dice']:.4f}; {spread}threshold {', '.join(thresholds)}")
    if void := [id for id, dice in result["images"].items() if dice is None]:
        print(f"not scored, since they are entirely void: {', '.join(void)}")
    print(f"objects: {pooled['found']} found, {pooled['missed']} missed, false positives: "
          f"{pooled['invented']}; split in two or more: {pooled['split']}; F1 "
          f"{result['objects']['f1']:.4f}")


@by_first
def finish_fold(folder: Path, items: Sequence[Item]) -> None:
    """Scores and draws the held-out images of a fold whose network is saved, unless that is done
    already."""
    if (folder / "model.pt").exists() and not (folder / "score.json").exists():
        save_fold(folder, items, [count_saved(folder, item) for item in items])
        print(f"look at {folder / 'preview.png'}")


def save_fold(folder: Path, items: Sequence[Item], counts: Sequence[Tensor]) -> None:
    """Writes preview.png and score.json of the held-out images, whose probabilities are in
    `folder`/probabilities. `counts`: what `predict` returned for them."""
    result = score(counts, items)
    threshold, dice = result["thresholds"][0], result["images"]
    shown = sorted((item for item in items if dice[item.id] is not None),
                   key=lambda item: dice[item.id])  # worst first
    shown = shown if len(shown) <= 8 else shown[:4] + shown[-4:]
    pictures, legend = [], LEGEND
    for item in shown:
        slide = open_slide(item.image, white=item.white)
        step = max(1, -(-max(slide.height, slide.width) // PREVIEW))
        image = open_slide(item.image, step, item.white).read_all()
        probability = open_slide(folder / "probabilities" / f"{item.id}.tiff", step)
        level = probability.read_grey(0, 0, probability.height, probability.width)
        mask, rows = Mask(item, slide.height, slide.width), -(-256 // step) * step
        label = np.concatenate([
            mask.read(y, 0, min(rows, slide.height - y), slide.width)[::step, ::step]
            for y in range(0, slide.height, rows)])
        if (label == VOID).any():
            legend = f"{LEGEND}    hatched: not labelled"
        width = max(1, round(max(image.shape) / 170))  # on the sheet, 2.5 pixels
        pictures.append((draw_outlines(image, level >= threshold * 255, label, width),
                         f"{item.id}: Dice {dice[item.id]:.3f}"))
    contact_sheet(folder / "preview.png", pictures, legend=legend)
    save_score(folder / "score.json", result, {
        item.id: count_saved_objects(folder, item, threshold) for item in items})


@by_first
def summarize(out: Path, items: Sequence[Item], folds: Sequence[int],
              chosen: Sequence[int] = ()) -> None:
    """Writes a run's summary.json if every fold has its model.pt; else prints which ones are
    missing. `folds`: the fold of each image; `chosen`: the folds that were to be trained.
    `Unfinished` if one of these is missing. ValueError names a prediction that is missing or does
    not fit its mask."""
    numbers = sorted(set(folds))
    missing = [fold for fold in numbers if not (out / f"fold{fold}" / "model.pt").exists()]
    if unfinished := [f"fold{fold}" for fold in missing if fold in chosen]:
        raise Unfinished(f"{out}: not complete: {', '.join(unfinished)}")
    if missing:
        print(f"{', '.join(f'fold{fold}' for fold in missing)} still to come (--folds "
              f"{len(numbers)} trains the folds that are missing), then {out / 'summary.json'}")
        return
    counts = [count_saved(out / f"fold{fold}", item) for item, fold in zip(items, folds)]
    result = score(counts, items, folds)
    with suppress(FileNotFoundError):
        result["closed"] = json.loads((out / "config.json").read_text()).get("closed", {})
        for fold, epochs in result["closed"].items():
            print(f"{fold} was ended early, after {epochs:g} epochs")
    save_score(out / "summary.json", result, {
        item.id: count_saved_objects(out / f"fold{fold}", item, result["thresholds"][fold])
        for item, fold in zip(items, folds)})


def open_saved(folder: Path, item: Item) -> tuple[Slide, Mask]:
    """An image's probabilities, as `predict` wrote them into a fold's folder, and its mask.
    ValueError if they are missing or do not fit the mask."""
    path = folder / "probabilities" / f"{item.id}.tiff"
    remedy = "were the data changed? Give another --out"
    if not path.exists():
        raise ValueError(f"{path}: is missing: {remedy}")
    probabilities = open_slide(path)
    try:
        return probabilities, Mask(item, probabilities.height, probabilities.width)
    except ValueError as error:
        raise ValueError(f"{path}: does not fit its mask ({error}): {remedy}")


def read_saved(folder: Path, item: Item) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """An image's probabilities in a fold's folder, and its mask, in bands of rows from top to
    bottom. Both are uint8 (rows, width)."""
    probabilities, mask = open_saved(folder, item)
    for y in range(0, probabilities.height, 256):
        area = y, 0, min(256, probabilities.height - y), probabilities.width
        yield probabilities.read_grey(*area), mask.read(*area)


def count_saved(folder: Path, item: Item) -> Tensor:
    """What `predict` returned for an image, computed from its probabilities in a fold's folder."""
    return _count_saved(folder, item, 0.5)[0]


def count_saved_objects(folder: Path, item: Item, threshold: float) -> dict[str, int]:
    """How many of an image's objects were found, missed and split at a threshold, and how many
    false positives ("invented") there were."""
    return _count_saved(folder, item, threshold)[1]


def _count_saved(folder: Path, item: Item, threshold: float) -> tuple[Tensor, dict[str, int]]:
    """Both counts, in one pass over the files, which is made once until they change."""
    probabilities, _ = open_saved(folder, item)  # which says what is wrong with them
    files = {**files_of(item), "image": probabilities.path}
    total = torch.zeros(2, 256).long()

    def bands() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for levels, label in read_saved(folder, item):
            total.add_(count_known(levels, label))
            yield (levels >= threshold * 255) & (label != VOID), label == 1

    return once(("counted", item, threshold, *map(identity, files.values())),
                lambda: (count_objects(bands()), total)[::-1])
