"""# What a run leaves: the log, the scores of a fold, and the summary of all

A fold alone is cut at 0.5, not at the threshold that would have flattered it. When every fold is
there, each is cut at the threshold that suits all others best (`crossval`). Its probabilities stay
on disk, so that folds can run as processes apart, and anyone can score them again.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import tifffile
import torch
from torch import Tensor

from ..crossval import count_levels, cross_validate, dice_of, overlap, threshold_of
from ..data.slides import read_array
from ..data.tiles import LabelledSlide
from .checkpoint import atomic
from .report import contact_sheet, draw_curves, draw_outlines

THRESHOLD = 0.5


def write_json(path: Path, content: dict) -> None:
    """Complete or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def save_log(folder: Path, rows: Sequence[dict], title: str) -> None:
    """Writes log.csv and draws curves.png anew: one row an epoch, with loss and held_out_dice."""
    with atomic(folder / "log.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    curves = {"loss": "loss", "held-out Dice": "held_out_dice"}
    draw_curves(folder / "curves.png",
                {name: [row[key] for row in rows] for name, key in curves.items()}, title)


def pooled_dice(slides: Sequence[LabelledSlide], results: Sequence[Tensor]) -> float:
    """Dice over the pixels of all slides, of uint8 probabilities (H, W) cut at 0.5."""
    return dice_of(sum(overlap(counts, THRESHOLD) for counts in count_slides(slides, results)))


def count_slides(slides: Sequence[LabelledSlide], results: Sequence[Tensor]) -> list[Tensor]:
    """`count_levels` of each slide."""
    pairs = zip(results, slides, strict=True)
    return [count_levels(result, torch.from_numpy(slide.mask)) for result, slide in pairs]


def save_scores(
    folder: Path, slides: Sequence[LabelledSlide], results: Sequence[Tensor]
) -> float:
    """Writes probabilities/, preview.png and score.json of held-out slides, and prints the score.

    `results`: uint8 probabilities (H, W) in steps of 1/255. Returns the threshold that suits these
    slides best, for slides to come.
    """
    counts = count_slides(slides, results)
    each = [dice_of(overlap(c, THRESHOLD)) for c in counts]
    pooled, mean = dice_of(overlap(sum(counts), THRESHOLD)), sum(each) / len(each)
    threshold, best = threshold_of(sum(counts))
    names = [slide.item.id for slide in slides]

    (folder / "probabilities").mkdir()
    for name, result in zip(names, results):
        with atomic(folder / "probabilities" / f"{name}.tiff") as temporary:
            tifffile.imwrite(temporary, result.numpy(), compression="zlib", tile=(256, 256))
    worst_first = sorted(range(len(each)), key=each.__getitem__)
    shown = worst_first if len(each) <= 8 else worst_first[:4] + worst_first[-4:]
    contact_sheet(folder / "preview.png", [
        (draw_outlines(slides[i].image, results[i].numpy() >= THRESHOLD * 255, slides[i].mask),
         f"{names[i]}: Dice {each[i]:.3f}") for i in shown])
    write_json(folder / "score.json", {
        "threshold": THRESHOLD, "pooled_dice": pooled, "mean_dice": mean,
        "dice": dict(zip(names, each)), "best_threshold": threshold})

    print(f"\nDice of the images held out in {folder} (threshold {THRESHOLD}):")
    for i in worst_first[:10]:
        print(f"  {each[i]:.4f}  {names[i]}")
    if len(each) > 10:
        print(f"  ... and {len(each) - 10} better ones, in {folder / 'score.json'}")
    print(f"pooled Dice {pooled:.4f}, mean {mean:.4f} over {len(each)} images "
          f"(best possible: {best:.4f} with threshold {threshold:.2f}, which model.pt keeps)")
    return threshold


def summarize(out: Path, slides: Sequence[LabelledSlide], folds: Sequence[int]) -> None:
    """Writes summary.json of a run's folder once every fold has its model.pt, and prints it.

    `folds`: the fold of each slide. ValueError names a prediction that is missing or does not fit.
    """
    names = [f"fold{fold}" for fold in sorted(set(folds))]
    missing = [name for name in names if not (out / name / "model.pt").exists()]
    if missing:
        print(f"{', '.join(missing)} still to come (--folds {len(names)} trains what is not "
              f"there), then {out / 'summary.json'}")
        return
    counts = []
    for slide, fold in zip(slides, folds):
        path = out / f"fold{fold}" / "probabilities" / f"{slide.item.id}.tiff"
        try:
            counts += count_slides([slide], [torch.from_numpy(read_array(path))])
        except ValueError as error:
            raise ValueError(f"{path}: does not fit the data, were they changed? ({error})")
    summary = cross_validate(counts, folds, [slide.item.group for slide in slides])
    summary["images"] = {slide.item.id: d for slide, d in zip(slides, summary["images"])}
    write_json(out / "summary.json", summary)
    worst, thresholds = summary["worst_group"], summary["thresholds"]
    print(f"\n{len(names)} folds, {len(summary['groups'])} groups: pooled Dice "
          f"{summary['pooled_dice']:.4f}, mean {summary['mean_dice']:.4f}, standard deviation "
          f"{summary['sd_dice']:.4f}\nworst group: {worst}, {summary['groups'][worst]:.4f}; "
          f"thresholds, chosen by the other folds: {', '.join(f'{t:.2f}' for t in thresholds)}\n"
          f"{out / 'summary.json'}")
