"""# Scores: the log, the score of each fold, and the score of all folds

The probabilities of held-out slides stay on disk, so folds can be trained by separate processes,
and anyone can score them again. score.json and summary.json hold what `crossval.cross_validate`
returns. One fold alone is scored at the threshold 0.5; once every fold is there, each is scored at
the threshold that suits the other folds best. Beside Dice, objects are counted
(`minseg.data.objects`). Void pixels, which nobody labelled, are left out everywhere.
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
from ..data.memory import trim_memory
from ..data.objects import count_objects, object_f1
from ..data.slides import Slide, open_slide
from ..tiling import predict_bands
from .bands import write_tiff
from .predictor import predictor
from .report import LEGEND, contact_sheet, draw_curves, draw_outlines

PREVIEW = 840  # pixels: the longer side of a held-out image in preview.png


def save_log(folder: Path, rows: Sequence[dict], title: str) -> None:
    """Writes log.csv and draws curves.png. `rows`: one per epoch, with loss and held_out_dice."""
    with atomic(folder / "log.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    curves = {"loss": "loss", "held-out Dice": "held_out_dice"}
    draw_curves(folder / "curves.png",
                {name: [row[key] for row in rows] for name, key in curves.items()}, title)


def score(counts: Sequence[Tensor], items: Sequence[Item],
          folds: Sequence[int] | None = None) -> dict:
    """`cross_validate` of what `count_levels` counted in each image, with the images' names, and
    `best_threshold`, which suits all images together best. `folds`: the fold of each image
    (default: all in one). The Dice of an image that is all void is None. ValueError where a fold
    has no image with a Dice."""
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
    # Without a positive pixel the best threshold would be one that never finds anything.
    return {**result, "best_threshold": threshold_of(total)[0] if total[1].any() else 0.5}


def predict(net: nn.Module, items: Sequence[Item], args: argparse.Namespace, *,
            overlap: float = 0.5, window: str = "linear", tta: bool = False,
            folder: Path | None = None) -> list[Tensor]:
    """Predicts images, and returns for each what `count_levels` counts of its probabilities, at the
    size of the image's file. With `folder`, the probabilities are also written there, as uint8 in
    steps of 1/255."""
    probabilities = predictor([net], device=args.device, amp=args.amp, tta=tta)
    stride, counts = max(1, round(args.tile * (1 - overlap))), []
    for item in items:
        slide, total = open_slide(item.image, args.scale, item.white), torch.zeros(2, 256).long()
        mask = Mask(item, slide.full_height, slide.full_width)
        bands = predict_bands(probabilities, slide.read, slide.height, slide.width, tile=args.tile,
                              stride=stride, window=window, batch=args.batch, device=args.device)
        with nullcontext(lambda band: None) if folder is None else write_tiff(
                folder / f"{item.id}.tiff", slide.full_height, slide.full_width) as write:
            for y, band in slide.enlarge(bands):
                levels = (band[0] * 255).round().byte().numpy()  # (rows, width)
                total += count_known(levels, mask.read(y, 0, *levels.shape))
                write(levels)
                trim_memory()
        counts.append(total)
    return counts


def count_known(levels: np.ndarray, label: np.ndarray) -> Tensor:
    """`count_levels` of the pixels that are not void. Probabilities and labels: uint8 (H, W)."""
    known = label != VOID
    if not known.all():
        levels, label = levels[known], label[known]
    return count_levels(torch.from_numpy(levels), torch.from_numpy(label))


def save_score(path: Path, result: dict, objects: dict[str, dict]) -> None:
    """Writes what `score` returned and the `objects` counted in each image as JSON, and prints
    it."""
    pooled = {name: sum(counts[name] for counts in objects.values())
              for name in ("found", "missed", "invented")}
    result = {**result, "objects": {**pooled, "f1": object_f1(pooled), "images": objects}}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\nDice of each group, the worst first (its images: {path}):")
    for group, dice in sorted(result["groups"].items(), key=lambda pair: pair[1])[:10]:
        print(f"  {dice:.4f}  {group}")
    print(f"pooled Dice {result['pooled_dice']:.4f}; mean of {len(result['groups'])} groups "
          f"{result['mean_dice']:.4f}, standard deviation {result['sd_dice']:.4f}, worst "
          f"{result['worst_group']}; threshold "
          + ", ".join(f"{threshold:.2f}" for threshold in result["thresholds"]))
    if void := [id for id, dice in result["images"].items() if dice is None]:
        print(f"not scored, since all is void: {', '.join(void)}")
    print("objects: {found} found, {missed} missed, {invented} invented; F1 {f1:.4f}".format(
        **result["objects"]))


def save_fold(folder: Path, items: Sequence[Item], counts: Sequence[Tensor]) -> float:
    """Writes score.json and preview.png of held-out images, whose probabilities/ lie in `folder`.
    Returns the threshold that suits these images best, for `infer.py`."""
    result = score(counts, items)
    threshold, dice = result["thresholds"][0], result["images"]
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
        label = np.stack([mask.read(y, 0, 1, slide.width)[0, ::step]
                          for y in range(0, slide.height, step)])
        if (label == VOID).any():
            legend = f"{LEGEND}    hatched: not labelled"
        pictures.append((draw_outlines(small, probability[..., 0] >= threshold * 255, label),
                         f"{item.id}: Dice {dice[item.id]:.3f}"))
    contact_sheet(folder / "preview.png", pictures, legend=legend)
    save_score(folder / "score.json", result, {
        item.id: count_saved_objects(folder, item, threshold) for item in items})
    return result["best_threshold"]


def summarize(out: Path, items: Sequence[Item], folds: Sequence[int]) -> None:
    """Writes a run's summary.json once every fold has its model.pt. `folds`: the fold of each
    image. ValueError names a prediction that is missing or does not fit."""
    names = [f"fold{fold}" for fold in sorted(set(folds))]
    missing = [name for name in names if not (out / name / "model.pt").exists()]
    if missing:
        print(f"{', '.join(missing)} still to come (--folds {len(names)} trains what is not "
              f"there), then {out / 'summary.json'}")
        return
    counts = [count_saved(out / f"fold{fold}", item) for item, fold in zip(items, folds)]
    result = score(counts, items, folds)
    save_score(out / "summary.json", result, {
        item.id: count_saved_objects(out / f"fold{fold}", item, result["thresholds"][fold])
        for item, fold in zip(items, folds)})


def open_saved(folder: Path, item: Item) -> tuple[Slide, Mask]:
    """An image's probabilities as `predict` wrote them into a fold's folder, and its mask.
    ValueError names what is missing or does not fit."""
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
    """An image's probabilities in a fold's folder and its mask, uint8 (rows, width), band by band
    from top to bottom."""
    probabilities, mask = open_saved(folder, item)
    for y in range(0, probabilities.height, 256):
        area = y, 0, min(256, probabilities.height - y), probabilities.width
        yield probabilities.read(*area)[..., 0], mask.read(*area)


def count_saved(folder: Path, item: Item) -> Tensor:
    """What `predict` returned for an image, from the probabilities in a fold's folder."""
    return torch.stack([count_known(*pair) for pair in read_saved(folder, item)]).sum(0)


def count_saved_objects(folder: Path, item: Item, threshold: float) -> dict[str, int]:
    """The numbers of an image's objects that were found, missed and invented at a threshold."""
    return count_objects(((levels >= threshold * 255) & (label != VOID), label == 1)
                         for levels, label in read_saved(folder, item))
