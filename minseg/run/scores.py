"""# What a run leaves: the log, the score of each fold, and that of all

Probabilities of held-out slides stay on disk: so folds can run as processes apart, and anyone can
score them again. score.json and summary.json hold what `crossval.cross_validate` returns: a fold
alone is cut at 0.5, and when every fold is there, each at the threshold that suits the others best.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..crossval import count_levels, cross_validate, threshold_of
from ..data.datasets import Item, Mask
from ..data.files import atomic
from ..data.slides import Slide, open_slide
from ..tiling import predict_bands
from .bands import write_tiff
from .predictor import predictor
from .report import contact_sheet, draw_curves, draw_outlines

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
    best_threshold, which suits all of them best. `folds`: of each image (default: one fold)."""
    found = cross_validate(counts, folds or [0] * len(counts), [item.group for item in items])
    found["images"] = {item.id: dice for item, dice in zip(items, found["images"])}
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
        slide, total = open_slide(item.image, args.scale), 0
        mask = Mask(item, slide.full_height, slide.full_width)
        bands = predict_bands(probabilities, slide.read, slide.height, slide.width, tile=args.tile,
                              stride=stride, window=window, batch=args.batch, device=args.device)
        with nullcontext(lambda band: None) if folder is None else write_tiff(
                folder / f"{item.id}.tiff", slide.full_height, slide.full_width) as write:
            for y, band in slide.enlarge(bands):
                band = (band[0] * 255).round().byte()  # (rows, width)
                total += count_levels(band, torch.from_numpy(mask.read(y, 0, *band.shape)))
                write(band.numpy())
        counts.append(total)
    return counts


def save_score(path: Path, found: dict) -> None:
    """Writes what `score` found as JSON and prints it."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(found, indent=2) + "\n")
    print(f"\nDice of each group, the worst first (its images: {path}):")
    for group in sorted(found["groups"], key=found["groups"].get)[:10]:
        print(f"  {found['groups'][group]:.4f}  {group}")
    print(f"pooled Dice {found['pooled_dice']:.4f}; mean of {len(found['groups'])} groups "
          f"{found['mean_dice']:.4f}, standard deviation {found['sd_dice']:.4f}, worst "
          f"{found['worst_group']}; threshold "
          + ", ".join(f"{threshold:.2f}" for threshold in found["thresholds"]))


def save_fold(folder: Path, items: Sequence[Item], counts: Sequence[Tensor]) -> float:
    """Writes score.json and preview.png of held-out images, whose probabilities/ lie in `folder`.
    Returns the threshold that suits these images best, for slides to come."""
    found = score(counts, items)
    dice, cut = list(found["images"].values()), found["thresholds"][0] * 255
    shown = sorted(range(len(dice)), key=dice.__getitem__)  # the worst first
    shown = shown if len(shown) <= 8 else shown[:4] + shown[-4:]
    pictures = []
    for item, value in ((items[i], dice[i]) for i in shown):
        slide = open_slide(item.image)
        step = max(1, -(-max(slide.height, slide.width) // PREVIEW))
        probability = folder / "probabilities" / f"{item.id}.tiff"
        small, probability = (open_slide(p, step).read_all() for p in (item.image, probability))
        mask = Mask(item, slide.height, slide.width)
        pixels = range(0, slide.height, step)
        mask = np.stack([mask.read(y, 0, 1, slide.width)[0, ::step] for y in pixels])
        pictures.append((draw_outlines(small, probability[..., 0] >= cut, mask),
                         f"{item.id}: Dice {value:.3f}"))
    contact_sheet(folder / "preview.png", pictures)
    save_score(folder / "score.json", found)
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
    save_score(out / "summary.json", score(counts, items, folds))


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


def count_saved(folder: Path, item: Item) -> Tensor:
    """What `predict` returned for an image, from the probabilities in a fold's folder."""
    result, mask = open_saved(folder, item)
    return sum(count_levels(torch.from_numpy(result.read(y, 0, rows, result.width)[..., 0]),
                            torch.from_numpy(mask.read(y, 0, rows, result.width)))
               for y in range(0, result.height, 256)
               for rows in [min(256, result.height - y)])
