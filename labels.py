"""# Which labels are wrong? Ask networks that have not seen them

    python labels.py RUN                           RUN: a run of train.py with all of its folds

**Idea.** In cross-validation every image is predicted by a network that did not train on it. Where
that network is sure and the label says otherwise, one of the two is wrong.

    score = sum (p - y)^2 / (sum p^2 + sum y^2 + m)        p: out-of-fold probabilities, y: labels

Without m this is 1 minus the Dice of V-Net: no threshold. m is the mean size of a label: with it, a
few doubtful pixels on an image without any label do not give a high score.

**The shift.** A mask that was drawn on another copy of the slide is right but displaced. Move it by
every (dy, dx) up to `REACH` pixels: the overlap with the prediction is a correlation, so all shifts
together cost a few Fourier transforms, which are added up block by block. So slides stream.

    overlap(d) = sum_x a(x) y(x - d)        Dice(d) = 2 overlap(d) / (|a| + |y|)

**Regions.** The squares, half a tile wide, with the largest sum of (p - y)^2.

How well it works on synthetic slides with planted faults, `lab/planted.py` measures.

Writes RUN/labels.csv, the worst image first, and RUN/labels.png, the worst regions. The IDs of
images that you find to be wrong go into a file, one per line, for `train.py --exclude`.

**Source.** Northcutt, Jiang and Chuang, *Confident Learning*, JAIR 2021, arXiv 1911.00068 (errors
in labels from predictions out of sample); Milletari, Navab and Ahmadi, *V-Net*, 3DV 2016, arXiv
1606.04797, section 3 (Dice with squares).
"""

import csv
import io
import json
import math
import statistics
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from minseg.files.atomic import atomic
from minseg.files.datasets import find_slides
from minseg.files.masks import VOID, Mask
from minseg.files.slides import Slide, open_slide
from minseg.run.config import check_made_from
from minseg.run.errors import plain
from minseg.run.prepare import leave_out, mask_options
from minseg.run.report import Parser, Progress, contact_sheet, draw_outlines
from minseg.run.scores import open_saved
from minseg.run.tiles import made_from

REACH, BLOCK = 128, 512  # pixels: the longest shift that is tried; what is read at once
GAIN, GOOD = 0.05, 0.5  # what a shift must add to Dice, and the Dice it must reach, to be reported
SHOWN = 9  # regions in the picture, at most three of an image


def around(mask: Mask, height: int, width: int, y: int, x: int) -> Tensor:
    """A block of a mask with `REACH` pixels on each side, float64; 0 outside of the image."""
    top, left, side = y - REACH, x - REACH, BLOCK + 2 * REACH
    y, x = max(top, 0), max(left, 0)
    bottom, right = min(top + side, height), min(left + side, width)
    inside = torch.from_numpy(mask.read(y, x, bottom - y, right - x)).double()
    return F.pad(inside, (x - left, left + side - right, y - top, top + side - bottom))


def disagreement(result: Slide, mask: Mask, threshold: float, side: int) -> dict:
    """How an image's probabilities p differ from its mask y. Returns apart, sum (p - y)^2; size,
    sum p^2 + sum y^2; label, sum y; dice; shift, the (dy, dx) by which the mask would fit best, and
    shifted_dice; regions, at most three (score, y, x): squares of `side` pixels by their centre."""
    height, width = result.height, result.width
    cell = 2 ** max(4, min(9, int(math.log2(max(side, 4) / 4))))  # 16 pixels or more
    grid = torch.zeros(-(-height // BLOCK) * BLOCK // cell, -(-width // BLOCK) * BLOCK // cell,
                       dtype=torch.float64)
    spectrum = torch.zeros(BLOCK + 2 * REACH, BLOCK // 2 + REACH + 1, dtype=torch.complex128)
    apart = size = labelled = predicted = 0.0
    for y, x in product(range(0, height, BLOCK), range(0, width, BLOCK)):
        h, w = min(BLOCK, height - y), min(BLOCK, width - x)
        levels = torch.from_numpy(result.read(y, x, h, w)[..., 0])
        p = F.pad(levels / 255.0, (0, BLOCK - w, 0, BLOCK - h))
        surrounded = around(mask, height, width, y, x)
        p[surrounded[REACH:-REACH, REACH:-REACH] == VOID] = 0  # there is nothing to disagree with
        surrounded = (surrounded == 1).double()
        label = surrounded[REACH:-REACH, REACH:-REACH]
        positive = (p >= threshold).double()
        p = p.double()
        squares = (p - label) ** 2
        apart += squares.sum().item()
        size += (p**2 + label).sum().item()
        labelled += label.sum().item()
        predicted += positive.sum().item()
        grid[y // cell : (y + BLOCK) // cell, x // cell : (x + BLOCK) // cell] = (
            F.avg_pool2d(squares[None], cell)[0] * cell**2)
        if positive.any() and surrounded.any():
            spectrum += (torch.fft.rfft2(positive, surrounded.shape).conj()
                         * torch.fft.rfft2(surrounded))
    dice, shift, shifted_dice = best_shift(spectrum, predicted + labelled)
    regions = [(score, min(y, height - 1), min(x, width - 1))
               for score, y, x in worst_squares(grid, cell, side)]
    return {"apart": apart, "size": size, "label": labelled, "dice": dice, "shift": shift,
            "shifted_dice": shifted_dice, "regions": regions}


def best_shift(spectrum: Tensor, size: float) -> tuple[float, tuple[int, int], float]:
    """From the correlation's spectrum: Dice as it is, the best shift (dy, dx) of the mask, and the
    Dice that it gives. `size` is |a| + |y|."""
    shared = torch.fft.irfft2(spectrum, (2 * REACH + BLOCK,) * 2)[: 2 * REACH + 1, : 2 * REACH + 1]
    dice = 2 * shared.round() / size if size else torch.ones_like(shared)  # at REACH - (dy, dx)
    y, x = divmod(int(dice.argmax()), dice.shape[1])
    if dice[y, x] == dice[REACH, REACH]:
        y = x = REACH
    return dice[REACH, REACH].item(), (REACH - y, REACH - x), dice[y, x].item()


def worst_squares(grid: Tensor, cell: int, side: int) -> list[tuple[float, int, int]]:
    """At most three squares that do not overlap, as (sum, y, x of the centre)."""
    cells = max(1, min(round(side / cell), *grid.shape))
    sums = F.avg_pool2d(grid[None], cells, 1)[0] * cells**2
    squares: list[tuple[float, int, int]] = []
    while len(squares) < 3 and sums.max() > 0:
        y, x = divmod(int(sums.argmax()), sums.shape[1])
        squares.append((sums[y, x].item(), (2 * y + cells) * cell // 2,
                        (2 * x + cells) * cell // 2))
        sums[max(0, y - cells + 1) : y + cells, max(0, x - cells + 1) : x + cells] = 0
    return squares


def rank(run: Path, data: Path | None = None) -> list[dict]:
    """The images of a run, the most suspicious first: id, group, score, whether its shift is worth
    reporting (shifted), and what `disagreement` returns. `data`: where its images and masks lie now
    (default: where they lay). ValueError where the run is not complete, or its data have
    changed."""
    try:
        config, summary = (json.loads((run / name).read_text(encoding="utf-8"))
                           for name in ("config.json", "summary.json"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{run}: is not a complete run ({plain(error)}): train all of its folds")
    items = leave_out(find_slides(data or config["data"], **mask_options(config)),
                      config.get("exclude"))
    check_made_from(run, {item.id: made_from(item) for item in items}, None, config)
    folders = {path.stem: path.parents[1] for path in run.glob("fold*/probabilities/*.tiff")}
    rows, progress = [], Progress(len(items), "comparing")
    for item in items:
        if item.id not in folders:
            raise ValueError(f"{run}: holds no prediction of {item.id}: were the data changed?")
        folder = folders[item.id]
        threshold = summary["thresholds"][int(folder.name.removeprefix("fold"))]
        probabilities, mask = open_saved(folder, item)
        factor = config["scale"]  # pixels of the image for one that the network saw
        if microns := config.get("microns"):
            factor = microns / probabilities.microns
        side = max(1, int(config["tile"] * factor / 2))
        row = disagreement(probabilities, mask, threshold, side)
        rows.append({"id": item.id, "group": item.group, "item": item, "folder": folder, **row,
                     "threshold": threshold, "side": side,
                     "shifted": row["shifted_dice"] >= max(row["dice"] + GAIN, GOOD)})
        progress.step()
    mean = statistics.mean(row["label"] for row in rows)
    for row in rows:
        row["score"] = row["apart"] / (row["size"] + mean) if row["apart"] else 0.0
    return sorted(rows, key=lambda row: -row["score"])


def draw_regions(path: Path, rows: Sequence[dict]) -> None:
    """Draws the worst regions of all images, each in the middle of twice its side."""
    regions = sorted(((score, y, x, row) for row in rows for score, y, x in row["regions"]),
                     key=lambda region: -region[0])[:SHOWN]
    pictures = []
    for _, y, x, row in regions:
        slide, side = open_slide(row["item"].image, white=row["item"].white), row["side"]
        result, mask = open_saved(row["folder"], row["item"])
        top, left = (max(0, min(at - side, length - 2 * side))
                     for at, length in ((y, slide.height), (x, slide.width)))
        window = top, left, min(2 * side, slide.height), min(2 * side, slide.width)
        predicted = result.read(*window)[..., 0] >= row["threshold"] * 255
        picture = draw_outlines(slide.read(*window), predicted, mask.read(*window),
                                max(1, round(side / 85)))
        pictures.append((picture.resize((520, 520 * picture.height // picture.width)),
                         f"{row['id'][:16]} ({y}, {x})"))
    contact_sheet(path, pictures, 520, 3, 30)


def report(run: Path, data: Path | None = None) -> list[dict]:
    """Ranks a run's images; writes its labels.csv and labels.png, and prints the worst."""
    rows, text = rank(run, data), io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("id", "group", "score", "dice", "shift_y", "shift_x", "shifted_dice",
                     "region_y", "region_x"))
    for row in rows:
        shift = (*row["shift"], round(row["shifted_dice"], 4)) if row["shifted"] else ("", "", "")
        region = row["regions"][0][1:] if row["regions"] else ("", "")
        writer.writerow((row["id"], row["group"], round(row["score"], 4), round(row["dice"], 4),
                         *shift, *region))
    with atomic(run / "labels.csv") as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
    print("score   Dice    image")
    for row in rows[:10]:
        note = (f"   its mask fits better moved by {row['shift']}: Dice {row['shifted_dice']:.3f}"
                if row["shifted"] else "")
        print(f"{row['score']:.3f}   {row['dice']:.3f}   {row['id']}{note}")
    if any(row["regions"] for row in rows):
        draw_regions(run / "labels.png", rows)
        print(f"look at {run / 'labels.png'}")
    print(f"{run / 'labels.csv'}: write the IDs of images to leave out into a file for train.py "
          "--exclude")
    return rows


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="labels.py", description=__doc__.split("\n")[0][2:])
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a complete run")
    parser.add_argument("--data", type=Path, metavar="DIR",
                        help="where the run's images and masks lie, if they were moved")
    args = parser.parse_args(argv)
    try:
        report(args.run, args.data)
    except (ValueError, OSError) as error:
        parser.error(error)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nlabels: stopped")
