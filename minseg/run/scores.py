"""# What a run leaves: the log, the score of each fold, and that of all

Probabilities of held-out slides stay on disk: so folds can run as processes apart, and anyone can
score them again. score.json and summary.json hold what `crossval.cross_validate` returns: a fold
alone is cut at 0.5, and when every fold is there, each at the threshold that suits the others best.
Beside Dice, they count objects (`minseg.data.objects`). Void pixels, which nobody labelled, count
nowhere: what was predicted there is taken away first.
"""

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..crossval import count_levels, cross_validate, threshold_of
from ..data.datasets import Item
from ..data.files import atomic
from ..data.masks import VOID, Mask
from ..data.objects import count_objects, object_f1
from ..data.slides import Slide, open_slide
from ..tiling import predict_bands
from .bands import write_tiff
from .predictor import predictor
from .report import LEGEND, contact_sheet, draw_curves, draw_outlines

PREVIEW = 840  # pixels: the longer side of a held-out image in preview.png


def save_log(folder: Path, rows: Sequence[dict], title: str) -> None:
    """Writes log.csv and draws curves.png anew: one row an epoch, with loss and held_out_dice."""
    with atomic(folder / "log.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    curves = {"loss": "loss", "held-out Dice": "held_out_dice"}
    draw_curves(folder / "curves.png",
                {name: [row[key] for row in rows] for name, key in curves.items()}, title)


def score(counts: Sequence[Tensor], items: Sequence[Item],
          folds: Sequence[int] | None = None) -> dict:
    """`cross_validate` of what `count_levels` counted in each image, with the images' names; also
    best_threshold, which suits all of them best. `folds`: of each image (default: one fold). An
    image that is all void has no Dice: None. ValueError where none has one."""
    folds = folds or [0] * len(counts)
    scored = [i for i, count in enumerate(counts) if count.any()]
    if missing := sorted(set(folds) - {folds[i] for i in scored}):
        raise ValueError(f"no held-out image of fold {', '.join(map(str, missing))} has a labelled "
                         "pixel: nothing to score")
    found = cross_validate([counts[i] for i in scored], [folds[i] for i in scored],
                           [items[i].group for i in scored])
    dice = dict(zip(scored, found["images"]))
    found["images"] = {item.id: dice.get(i) for i, item in enumerate(items)}
    total = sum(counts)  # where nothing is positive, the best would be never to find anything
    return {**found, "best_threshold": threshold_of(total)[0] if total[1].any() else 0.5}


def predict(net: nn.Module, items: Sequence[Item], args: argparse.Namespace, *,
            overlap: float = 0.5, window: str = "linear", tta: bool = False,
            folder: Path | None = None) -> list[Tensor]:
    """What `count_levels` counts of each image's probabilities at its file's own size; `folder`
    gets those, too, uint8 in steps of 1/255."""
    probabilities = predictor([net], device=args.device, amp=args.amp, tta=tta)
    stride, counts = max(1, round(args.tile * (1 - overlap))), []
    for item in items:
        slide, total = open_slide(item.image, args.scale, item.white), 0
        mask = Mask(item, slide.full_height, slide.full_width)
        bands = predict_bands(probabilities, slide.read, slide.height, slide.width, tile=args.tile,
                              stride=stride, window=window, batch=args.batch, device=args.device)
        with nullcontext(lambda band: None) if folder is None else write_tiff(
                folder / f"{item.id}.tiff", slide.full_height, slide.full_width) as write:
            for y, band in slide.enlarge(bands):
                band = (band[0] * 255).round().byte().numpy()  # (rows, width)
                total += count_known(band, mask.read(y, 0, *band.shape))
                write(band)
        counts.append(total)
    return counts


def count_known(levels: np.ndarray, label: np.ndarray) -> Tensor:
    """`count_levels` of the pixels that are not void: uint8 probabilities and labels (H, W)."""
    known = label != VOID
    if not known.all():
        levels, label = levels[known], label[known]
    return count_levels(torch.from_numpy(levels), torch.from_numpy(label))


def save_score(path: Path, found: dict, objects: dict[str, dict]) -> None:
    """Writes what `score` found, with the `objects` counted in each image, as JSON, and prints
    it."""
    pooled = {name: sum(counts[name] for counts in objects.values())
              for name in ("found", "missed", "invented")}
    found = {**found, "objects": {**pooled, "f1": object_f1(pooled), "images": objects}}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n")
    print(f"\nDice of each group, the worst first (its images: {path}):")
    for group in sorted(found["groups"], key=found["groups"].get)[:10]:
        print(f"  {found['groups'][group]:.4f}  {group}")
    print(f"pooled Dice {found['pooled_dice']:.4f}; mean of {len(found['groups'])} groups "
          f"{found['mean_dice']:.4f}, standard deviation {found['sd_dice']:.4f}, worst "
          f"{found['worst_group']}; threshold "
          + ", ".join(f"{threshold:.2f}" for threshold in found["thresholds"]))
    if void := [id for id, dice in found["images"].items() if dice is None]:
        print(f"not scored, since all is void: {', '.join(void)}")
    print("objects: {found} found, {missed} missed, {invented} invented; F1 {f1:.4f}".format(
        **found["objects"]))


def save_fold(folder: Path, items: Sequence[Item], counts: Sequence[Tensor]) -> float:
    """Writes score.json and preview.png of held-out images, whose probabilities/ lie in `folder`.
    Returns the threshold that suits these images best, for slides to come."""
    found = score(counts, items)
    cut, dice = found["thresholds"][0] * 255, found["images"]
    shown = sorted((item for item in items if dice[item.id] is not None),
                   key=lambda item: dice[item.id])  # the worst first
    shown = shown if len(shown) <= 8 else shown[:4] + shown[-4:]
    pictures, legend = [], LEGEND
    for item in shown:
        slide = open_slide(item.image, white=item.white)
        step = max(1, -(-max(slide.height, slide.width) // PREVIEW))
        small = open_slide(item.image, step, item.white).read_all()
        probability = open_slide(folder / "probabilities" / f"{item.id}.tiff", step).read_all()
        mask = Mask(item, slide.height, slide.width)
        pixels = range(0, slide.height, step)
        mask = np.stack([mask.read(y, 0, 1, slide.width)[0, ::step] for y in pixels])
        if (mask == VOID).any():
            legend = f"{LEGEND}    hatched: not labelled"
        pictures.append((draw_outlines(small, probability[..., 0] >= cut, mask),
                         f"{item.id}: Dice {dice[item.id]:.3f}"))
    contact_sheet(folder / "preview.png", pictures, legend=legend)
    save_score(folder / "score.json", found, {item.id: count_saved_objects(
        folder, item, found["thresholds"][0]) for item in items})
    return found["best_threshold"]


def summarize(out: Path, items: Sequence[Item], folds: Sequence[int]) -> None:
    """Writes summary.json of a run's folder once every fold has its model.pt. `folds`: the fold of
    each image. ValueError names a prediction that is missing or does not fit."""
    names = [f"fold{fold}" for fold in sorted(set(folds))]
    missing = [name for name in names if not (out / name / "model.pt").exists()]
    if missing:
        print(f"{', '.join(missing)} still to come (--folds {len(names)} trains what is not "
              f"there), then {out / 'summary.json'}")
        return
    counts = [count_saved(out / f"fold{fold}", item) for item, fold in zip(items, folds)]
    found = score(counts, items, folds)
    save_score(out / "summary.json", found, {item.id: count_saved_objects(
        out / f"fold{fold}", item, found["thresholds"][fold]) for item, fold in zip(items, folds)})


def open_saved(folder: Path, item: Item) -> tuple[Slide, Mask]:
    """An image's probabilities as `predict` left them in a fold's folder, and its mask. ValueError
    names what is missing or does not fit."""
    path = folder / "probabilities" / f"{item.id}.tiff"
    again = "were the data changed? Give another --out"
    if not path.exists():
        raise ValueError(f"{path}: is missing: {again}")
    result = open_slide(path)
    try:
        return result, Mask(item, result.height, result.width)
    except ValueError as error:
        raise ValueError(f"{path}: does not fit its mask ({error}): {again}")


def read_saved(folder: Path, item: Item) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """An image's probabilities in a fold's folder and its mask, uint8 (rows, width), from top to
    bottom."""
    result, mask = open_saved(folder, item)
    for y in range(0, result.height, 256):
        area = y, 0, min(256, result.height - y), result.width
        yield result.read(*area)[..., 0], mask.read(*area)


def count_saved(folder: Path, item: Item) -> Tensor:
    """What `predict` returned for an image, from the probabilities in a fold's folder."""
    return sum(count_known(*pair) for pair in read_saved(folder, item))


def count_saved_objects(folder: Path, item: Item, threshold: float) -> dict[str, int]:
    """The objects of an image that were found, missed, invented, at a threshold."""
    return count_objects(((levels >= threshold * 255) & (label != VOID), label == 1)
                         for levels, label in read_saved(folder, item))
