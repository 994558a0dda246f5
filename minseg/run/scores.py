"""# What a run leaves: the log, the score of each fold, and that of all

Probabilities of held-out slides stay on disk: so folds can run as processes apart, and anyone can
score them again. score.json and summary.json hold what `crossval.cross_validate` returns: a fold
alone is cut at 0.5, and when every fold is there, each at the threshold that suits the others best.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import tifffile
import torch
from torch import Tensor

from ..crossval import count_levels, cross_validate, threshold_of
from ..data.slides import read_array
from ..data.tiles import LabelledSlide
from .checkpoint import atomic
from .report import contact_sheet, draw_curves, draw_outlines


def save_log(folder: Path, rows: Sequence[dict], title: str) -> None:
    """Writes log.csv and draws curves.png anew: one row an epoch, with loss and held_out_dice."""
    with atomic(folder / "log.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    curves = {"loss": "loss", "held-out Dice": "held_out_dice"}
    draw_curves(folder / "curves.png",
                {name: [row[key] for row in rows] for name, key in curves.items()}, title)


def score(slides: Sequence[LabelledSlide], results: Sequence[Tensor],
          folds: Sequence[int] | None = None) -> dict:
    """`cross_validate` of uint8 probabilities (H, W), with the images' names; also best_threshold,
    which suits all of these slides best. `folds`: the fold of each slide (default: one fold)."""
    pairs = zip(results, slides, strict=True)
    counts = [count_levels(result, torch.from_numpy(slide.mask)) for result, slide in pairs]
    found = cross_validate(counts, folds or [0] * len(counts), [s.item.group for s in slides])
    found["images"] = {slide.item.id: dice for slide, dice in zip(slides, found["images"])}
    total = sum(counts)  # where nothing is positive, the best would be never to find anything
    return {**found, "best_threshold": threshold_of(total)[0] if total[1].any() else 0.5}


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


def save_fold(folder: Path, slides: Sequence[LabelledSlide], results: Sequence[Tensor]) -> float:
    """Writes probabilities/, preview.png and score.json of held-out slides. `results`: uint8 (H, W)
    in steps of 1/255. Returns the threshold that suits these slides best, for slides to come."""
    found = score(slides, results)
    (folder / "probabilities").mkdir()
    for slide, result in zip(slides, results):
        with atomic(folder / "probabilities" / f"{slide.item.id}.tiff") as temporary:
            tifffile.imwrite(temporary, result.numpy(), compression="zlib", tile=(256, 256))
    dice, cut = list(found["images"].values()), found["thresholds"][0] * 255
    shown = sorted(range(len(dice)), key=dice.__getitem__)  # the worst first
    shown = shown if len(shown) <= 8 else shown[:4] + shown[-4:]
    contact_sheet(folder / "preview.png", [
        (draw_outlines(slides[i].image, results[i].numpy() >= cut, slides[i].mask),
         f"{slides[i].item.id}: Dice {dice[i]:.3f}") for i in shown])
    save_score(folder / "score.json", found)
    return found["best_threshold"]


def summarize(out: Path, slides: Sequence[LabelledSlide], folds: Sequence[int]) -> None:
    """Writes summary.json of a run's folder once every fold has its model.pt. `folds`: the fold of
    each slide. ValueError names a prediction that is missing or does not fit."""
    names = [f"fold{fold}" for fold in sorted(set(folds))]
    missing = [name for name in names if not (out / name / "model.pt").exists()]
    if missing:
        print(f"{', '.join(missing)} still to come (--folds {len(names)} trains what is not "
              f"there), then {out / 'summary.json'}")
        return
    results = []
    for slide, fold in zip(slides, folds):
        path = out / f"fold{fold}" / "probabilities" / f"{slide.item.id}.tiff"
        if not path.exists() or (result := read_array(path)).shape != slide.mask.shape:
            raise ValueError(f"{path}: missing, or not of its mask's size: were the data changed? "
                             "Give another --out")
        results.append(torch.from_numpy(result))
    save_score(out / "summary.json", score(slides, results, folds))
