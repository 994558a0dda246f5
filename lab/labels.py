"""# Which labels are wrong? Ask networks that have not seen them

    python -m lab.labels RUN                       a run of train.py with all of its folds
    python -m lab.labels --check -- OPTIONS        the same on slides with planted faults;
                                                          OPTIONS are train.py's

**Idea.** In cross-validation every image is predicted by a network that did not train on it. Where
that network is sure and the label says otherwise, one of the two is wrong; the images in which they
disagree most are worth a look, before they spoil a score or a network.

    score = sum (p - y)^2 / (sum p^2 + sum y^2 + m)        p: probabilities out of fold, y: labels

Without m this is 1 minus the Dice of V-Net, which needs no threshold: pixels that the network is
not sure of count little. m is the mean label's size, so that a few doubtful pixels on an image
without any label are no scandal.

**The shift.** A mask that was drawn on another copy of the slide is right, but lies beside. Move it
by every (dy, dx) up to `REACH` pixels: the overlap with the prediction is a correlation, so all
shifts together cost a few Fourier transforms, added up block by block: slides stream.

    overlap(d) = sum_x a(x) y(x - d)        Dice(d) = 2 overlap(d) / (|a| + |y|)

**Regions.** Squares of half a tile's side, the ones with the largest sum of (p - y)^2.

Writes RUN/labels.csv, the worst image first, and RUN/labels.png, the worst regions. What you find
to be wrong goes, one ID a line, into a file for `train.py --exclude`.

**Source.** Northcutt, Jiang and Chuang, *Confident Learning*, JAIR 2021, arXiv 1911.00068 (errors
in labels from predictions out of sample); Milletari, Navab and Ahmadi, *V-Net*, 3DV 2016, arXiv
1606.04797, section 3 (Dice with squares).
"""

import argparse
import csv
import json
import math
import shlex
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from minseg.data.datasets import Item, find_slides
from minseg.data.files import atomic
from minseg.data.masks import VOID, Mask
from minseg.data.slides import Slide, open_slide
from minseg.data.synthetic import write_slides
from minseg.run.prepare import leave_out, of_masks
from minseg.run.report import Parser, Progress, contact_sheet, draw_outlines
from minseg.run.scores import open_saved

from .bench import RESULTS, environment

REACH, BLOCK = 128, 512  # pixels: of shifts that are tried; of what is read at once
WORTH, GOOD = 0.05, 0.5  # what a shift has to bring, and the Dice it has to reach, to be named
SHOWN = 9  # regions in the picture, three of an image at most


def load(run: Path) -> tuple[dict, list[tuple[Item, Path, float]]]:
    """A run's options, and each of its images with its fold's folder and threshold. ValueError
    where the run is not complete."""
    try:
        config = json.loads((run / "config.json").read_text())
        summary = json.loads((run / "summary.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{run}: is no complete run ({error}): train all of its folds")
    found = []
    for item in leave_out(find_slides(config["data"], **of_masks(config)), config.get("exclude")):
        fold = next((fold for fold in range(len(summary["thresholds"])) if
                     (run / f"fold{fold}" / "probabilities" / f"{item.id}.tiff").exists()), None)
        if fold is None:
            raise ValueError(f"{run}: holds no prediction of {item.id}: were the data changed?")
        found.append((item, run / f"fold{fold}", summary["thresholds"][fold]))
    return config, found


def around(mask: Mask, height: int, width: int, y: int, x: int, h: int, w: int) -> Tensor:
    """A window of a mask, float64 (h, w), that may reach beyond the image: 0 there."""
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + h, height), min(x + w, width)
    inside = torch.from_numpy(mask.read(top, left, bottom - top, right - left)).double()
    return F.pad(inside, (left - x, x + w - right, top - y, y + h - bottom))


def disagreement(result: Slide, mask: Mask, threshold: float, side: int) -> dict:
    """How an image's probabilities differ from its mask: apart, sum (p - y)^2; size, sum p^2 + sum
    y^2; label, sum y; dice; shift (dy, dx), by which the mask would fit best, and shifted_dice;
    regions, up to three (score, y, x): squares of `side` pixels, by their centre."""
    height, width = result.height, result.width
    cell = 2 ** max(4, min(9, int(math.log2(max(side, 4) / 4))))  # 16 pixels or more
    grid = torch.zeros(-(-height // BLOCK) * BLOCK // cell, -(-width // BLOCK) * BLOCK // cell,
                       dtype=torch.float64)
    spectrum, predicted = 0, 0
    totals = dict.fromkeys(("apart", "size", "label"), 0.0)
    for y in range(0, height, BLOCK):
        for x in range(0, width, BLOCK):
            h, w = min(BLOCK, height - y), min(BLOCK, width - x)
            p = torch.from_numpy(result.read(y, x, h, w)[..., 0]) / 255.0
            label = around(mask, height, width, y - REACH, x - REACH, *(2 * REACH + BLOCK,) * 2)
            p[label[REACH : REACH + h, REACH : REACH + w] == VOID] = 0  # nothing to disagree with
            label = (label == 1).double()
            here = label[REACH : REACH + h, REACH : REACH + w]
            apart = (p.double() - here) ** 2
            for name, part in (("apart", apart), ("size", p.double() ** 2 + here), ("label", here)):
                totals[name] += part.sum().item()
            apart = F.pad(apart, (0, BLOCK - w, 0, BLOCK - h))[None]
            grid[y // cell : (y + BLOCK) // cell, x // cell : (x + BLOCK) // cell] = (
                F.avg_pool2d(apart, cell)[0] * cell**2)
            positive = (p >= threshold).double()
            predicted += positive.sum().item()
            if positive.any() and label.any():
                spectrum = spectrum + (torch.fft.rfft2(positive, label.shape).conj()
                                       * torch.fft.rfft2(label))
    dice, shift, best = best_shift(spectrum, predicted + totals["label"])
    regions = [(score, min(y, height - 1), min(x, width - 1))
               for score, y, x in worst_squares(grid, cell, side)]
    return {**totals, "dice": dice, "shift": shift, "shifted_dice": best, "regions": regions}


def best_shift(spectrum: Tensor | int, size: float) -> tuple[float, tuple[int, int], float]:
    """From the correlation's spectrum: Dice as it is, the best shift (dy, dx) of the mask, and the
    Dice it gives. `size`: |a| + |y|."""
    if not isinstance(spectrum, Tensor):  # nothing near anything
        return (0.0 if size else 1.0), (0, 0), (0.0 if size else 1.0)
    shape = (2 * REACH + BLOCK,) * 2
    shared = torch.fft.irfft2(spectrum, shape)[: 2 * REACH + 1, : 2 * REACH + 1].round()
    dice = 2 * shared / size  # at [REACH - dy, REACH - dx]
    y, x = divmod(int(dice.argmax()), dice.shape[1])
    if dice[y, x] == dice[REACH, REACH]:
        y = x = REACH
    return dice[REACH, REACH].item(), (REACH - y, REACH - x), dice[y, x].item()


def worst_squares(grid: Tensor, cell: int, side: int) -> list[tuple[float, int, int]]:
    """Up to three squares that do not overlap, as (sum, y, x of the centre)."""
    cells = max(1, min(round(side / cell), *grid.shape))
    sums = F.avg_pool2d(grid[None], cells, 1)[0] * cells**2
    found = []
    for _ in range(3):
        y, x = divmod(int(sums.argmax()), sums.shape[1])
        if sums[y, x] <= 0:
            break
        found.append((sums[y, x].item(), (2 * y + cells) * cell // 2, (2 * x + cells) * cell // 2))
        sums[max(0, y - cells + 1) : y + cells, max(0, x - cells + 1) : x + cells] = 0
    return found


def rank(run: Path) -> list[dict]:
    """The images of a run, the most suspicious first: id, group, score, and what `disagreement`
    tells. ValueError where the run is not complete, or its data have changed."""
    config, images = load(run)
    side, rows = max(1, config["tile"] * config["scale"] // 2), []
    progress = Progress(len(images), "comparing")
    for item, folder, threshold in images:
        rows.append({"id": item.id, "group": item.group, "item": item, "folder": folder,
                     "threshold": threshold, "side": side,
                     **disagreement(*open_saved(folder, item), threshold, side)})
        progress.step()
    mean = statistics.mean(row["label"] for row in rows)
    for row in rows:
        row["score"] = row["apart"] / (row["size"] + mean) if row["apart"] else 0.0
    return sorted(rows, key=lambda row: -row["score"])


def fits(row: dict) -> bool:
    """Whether the mask fits so much better elsewhere that its shift is worth telling."""
    return row["shifted_dice"] >= max(row["dice"] + WORTH, GOOD)


def draw_regions(path: Path, rows: Sequence[dict]) -> None:
    """The worst regions of all images, each with twice its side of surroundings."""
    regions = sorted(((score, y, x, row) for row in rows for score, y, x in row["regions"]),
                     key=lambda region: -region[0])[:SHOWN]
    pictures = []
    for _score, y, x, row in regions:
        slide, half = open_slide(row["item"].image, white=row["item"].white), row["side"]
        result, mask = open_saved(row["folder"], row["item"])
        top, left = (max(0, min(at - half, length - 2 * half))
                     for at, length in ((y, slide.height), (x, slide.width)))
        window = top, left, min(2 * half, slide.height), min(2 * half, slide.width)
        picture = draw_outlines(slide.read(*window), result.read(*window)[..., 0]
                                >= row["threshold"] * 255, mask.read(*window),
                                max(1, round(half / 85)))
        pictures.append((picture, f"{row['id'][:16]} ({y}, {x})"))
    contact_sheet(path, [(picture.resize((520, 520 * picture.height // picture.width)), caption)
                         for picture, caption in pictures], 520, 3, 30)


def report(run: Path) -> list[dict]:
    """Ranks a run's images; writes its labels.csv and labels.png, and prints the worst."""
    rows = rank(run)
    columns = ("id", "group", "score", "dice", "shift_y", "shift_x", "shifted_dice", "region_y",
               "region_x")
    with atomic(run / "labels.csv") as temporary, open(temporary, "w", newline="",
                                                       encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            region = row["regions"][0][1:] if row["regions"] else ("", "")
            shift = [*row["shift"], round(row["shifted_dice"], 4)] if fits(row) else [""] * 3
            writer.writerow([row["id"], row["group"], round(row["score"], 4), round(row["dice"], 4),
                             *shift, *region])
    print("score   Dice    image")
    for row in rows[:10]:
        print(f"{row['score']:.3f}   {row['dice']:.3f}   {row['id']}" + (
            "   its mask fits better moved by ({}, {}): ".format(*row["shift"])
            + f"Dice {row['shifted_dice']:.3f}") * fits(row))
    if any(row["regions"] for row in rows):
        draw_regions(run / "labels.png", rows)
        print(f"look at {run / 'labels.png'}")
    print(f"{run / 'labels.csv'}: the IDs of images to leave out go into a file for train.py "
          "--exclude")
    return rows


# What it is worth, on slides whose faults are known

KINDS = ("shifted", "missing", "added", "another's")


def plant(folder: Path, seed: int) -> dict[str, dict]:
    """Spoils one mask in ten of a synthetic data set: those of random slides, one kind after the
    other. Returns for each its kind, and the shift (dy, dx) that would mend it."""
    rng = np.random.default_rng([seed, 7])
    paths = sorted((folder / "masks").glob("*.png"))
    chosen = rng.permutation(len(paths))[: max(1, len(paths) // 10)].tolist()
    planted = {}
    for kind, index in zip(KINDS * len(chosen), chosen):
        mask, shift = Image.open(paths[index]).convert("L"), None
        whole = np.count_nonzero(mask)
        if kind == "shifted":
            angle = rng.uniform(0, 2 * math.pi)
            shift = round(40 * math.sin(angle)), round(40 * math.cos(angle))
            moved = Image.new("L", mask.size)
            moved.paste(mask, (-shift[1], -shift[0]))
            mask = moved
        while kind == "missing" and np.count_nonzero(mask) > whole / 2:
            y, x = rng.choice(np.argwhere(mask))
            ImageDraw.floodfill(mask, (int(x), int(y)), 0)  # one glomerulus
        image = np.asarray(Image.open(folder / "images" / paths[index].name)).mean(2)
        while kind == "added" and np.count_nonzero(mask) < whole * 1.5:
            y, x = rng.choice(np.argwhere((image < 200) & (np.asarray(mask) == 0)))
            radius = rng.uniform(32, 58)
            ImageDraw.Draw(mask).ellipse([x - radius, y - radius, x + radius, y + radius], 255)
        if kind == "another's":
            mask = Image.open(paths[(index + len(paths) // 2) % len(paths)]).convert("L")
        mask.save(paths[index])
        planted[paths[index].stem] = {"kind": kind, "shift": shift}
    return planted


def check(args: argparse.Namespace, options: Sequence[str]) -> None:
    """Plants faults in slides, trains with `options`, ranks, and tells how many were in the first
    tenth; for each of `args.seeds`."""
    import train

    for folder in (args.results, args.figures):
        folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(args.seeds):
        folder, run = args.out / f"slides{seed}", args.out / f"run{seed}"
        if not folder.exists():
            draft = folder.with_suffix(".draft")  # of one that was interrupted nothing is kept
            shutil.rmtree(draft, ignore_errors=True)
            draft.parent.mkdir(parents=True, exist_ok=True)
            write_slides(draft, args.slides, seed=seed)
            (draft / "planted.json").write_text(json.dumps(plant(draft, seed)))
            draft.rename(folder)
        planted = json.loads((folder / "planted.json").read_text())
        train.main(["--data", str(folder), "--scale", "4", "--tile", "128", "--folds", "3",
                    "--seed", str(seed), "--out", str(run), "--resume", *options])
        ranked = report(run)
        if not seed:
            draw_regions(args.figures / "labels.jpg", ranked)
        for place, row in enumerate(ranked, 1):
            if row["id"] in planted:
                rows.append({"seed": seed, "id": row["id"], **planted[row["id"]], "place": place,
                             "of": len(ranked), "found": place <= len(planted),
                             "score": row["score"], "dice": row["dice"],
                             "shifted_dice": row["shifted_dice"], "best_shift": row["shift"],
                             "named": fits(row)})
    found = sum(row["found"] for row in rows) / len(rows)
    errors = [max(abs(a - b) for a, b in zip(row["shift"], row["best_shift"])) for row in rows
              if row["shift"]]
    with atomic(args.results / "labels.json") as temporary:
        temporary.write_text(json.dumps(
            {**environment("cuda" if torch.cuda.is_available() else "cpu"),
             "command": shlex.join(["python", "-m", "lab.labels", "--check", "--slides",
                                    str(args.slides), "--seeds", str(args.seeds), "--", *options]),
             "found_in_first_tenth": found, "largest_error_of_shift": max(errors), "rows": rows},
            indent=1) + "\n")
    for row in rows:
        print(f"seed {row['seed']}  place {row['place']:2}  {row['kind']:10} Dice {row['dice']:.3f}"
              + f"  planted {row['shift']}, best {row['best_shift']}" * bool(row["shift"]))
    print(f"{found:.0%} of the planted faults in the first tenth; shifts named to within "
          f"{max(errors)} pixels\n{args.results / 'labels.json'}")


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m lab.labels", description=__doc__.split("\n")[0][2:],
                    epilog="What follows -- is for train.py, with --check.")
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="folder of a complete run")
    parser.add_argument("--check", action="store_true",
                        help="plant faults in synthetic slides, and see whether they are found")
    parser.add_argument("--slides", type=int, default=40, metavar="N", help="default 40")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument("--out", type=Path, default=Path("runs/labels"), metavar="DIR",
                        help="of --check (default runs/labels)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR",
                        help="of --check (default docs/results)")
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"), metavar="DIR",
                        help="of --check (default docs/figures)")
    argv = sys.argv[1:] if argv is None else argv
    end = argv.index("--") if "--" in argv else len(argv)
    args, options = parser.parse_args(argv[:end]), argv[end + 1 :]
    if bool(args.run) == args.check or (args.run and options):
        parser.error("give either the folder of a run, or --check and options of train.py")
    if args.seeds < 1 or args.slides < 6:
        parser.error(f"--seeds {args.seeds}, --slides {args.slides}: need 1 or more, 6 or more")
    try:
        check(args, options) if args.check else report(args.run)
    except (ValueError, OSError) as error:
        parser.error(error)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nlabels: stopped")
