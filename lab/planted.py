"""Does `labels.py` find wrong labels? Plants faults in synthetic slides, and looks for them.

    python -m lab.planted

One mask in ten is spoilt (`KINDS`). For each seed: slides are drawn, a run is trained, its images
are ranked. Writes docs/results/labels.json and draws docs/figures/labels.jpg.
"""

import json
import math
import shutil
import statistics
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import labels
import train
from minseg.run.report import Parser
from minseg.synthetic import write_slides

from .measure import RESULTS, environment, write_json

SLIDES, SEEDS = 40, 3
KINDS = "shifted", "missing", "added", "another's"
OPTIONS = "--encoder efficientnet-lite0 --weights imagenet --epochs 4 --device cpu"  # of train.py
OUT = Path("runs/labels")


def plant(folder: Path, seed: int) -> dict[str, dict]:
    """Spoils one mask in ten of a synthetic data set: those of random slides, one kind of fault
    after the other. Returns for each its kind, and the shift (dy, dx) that would mend it."""
    rng = np.random.default_rng([seed, 7])
    paths = sorted((folder / "masks").glob("*.png"))
    chosen = rng.permutation(len(paths))[: max(1, len(paths) // 10)].tolist()
    planted = {}
    for kind, index in zip(cycle(KINDS), chosen):
        mask, shift = Image.open(paths[index]).convert("L"), None
        whole = np.count_nonzero(mask)
        image = np.asarray(Image.open(folder / "images" / paths[index].name)).mean(2)
        if kind == "shifted":
            angle = rng.uniform(0, 2 * math.pi)
            shift = dy, dx = round(40 * math.sin(angle)), round(40 * math.cos(angle))
            mask = mask.transform(mask.size, Image.Transform.AFFINE, (1, 0, dx, 0, 1, dy))
        while kind == "missing" and np.count_nonzero(mask) > whole / 2:
            y, x = rng.choice(np.argwhere(mask))
            ImageDraw.floodfill(mask, (int(x), int(y)), 0)  # removes one glomerulus
        while kind == "added" and np.count_nonzero(mask) < whole * 1.5:
            y, x = rng.choice(np.argwhere((image < 200) & (np.asarray(mask) == 0)))
            radius = rng.uniform(32, 58)
            ImageDraw.Draw(mask).ellipse([x - radius, y - radius, x + radius, y + radius], 255)
        if kind == "another's":
            mask = Image.open(paths[(index + len(paths) // 2) % len(paths)]).convert("L")
        mask.save(paths[index])
        planted[paths[index].stem] = {"kind": kind, "shift": shift}
    return planted


def check(seed: int) -> list[dict]:
    """Plants faults, trains and ranks. Returns a row for each fault: its place in the ranking."""
    folder, run = OUT / f"slides{seed}", OUT / f"run{seed}"
    if not (folder / "planted.json").exists():
        shutil.rmtree(folder, ignore_errors=True)  # an interrupted one is drawn anew
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_slides(folder, SLIDES, seed=seed)
        write_json(folder / "planted.json", plant(folder, seed))
    planted = json.loads((folder / "planted.json").read_text())
    train.main(["--data", str(folder), "--scale", "4", "--tile", "128", "--folds", "3",
                "--seed", str(seed), "--out", str(run), "--resume", *OPTIONS.split()])
    ranked = labels.report(run)
    if not seed:
        figure = RESULTS.parent / "figures" / "labels.jpg"
        figure.parent.mkdir(parents=True, exist_ok=True)
        labels.draw_regions(figure, ranked)
    return [{"seed": seed, "id": row["id"], **planted[row["id"]], "place": place,
             "of": len(ranked), "found": place <= len(planted),
             **{name: row[name] for name in ("score", "dice", "shifted_dice")},
             "best_shift": row["shift"], "named": row["shifted"]}
            for place, row in enumerate(ranked, 1) if row["id"] in planted]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes what came out, and prints its summary."""
    Parser(prog="python -m lab.planted", description=__doc__.split("\n")[0]).parse_args(argv)
    rows = [row for seed in range(SEEDS) for row in check(seed)]
    found = statistics.fmean(row["found"] for row in rows)
    error = max(abs(planted - best) for row in rows if row["shift"]
                for planted, best in zip(row["shift"], row["best_shift"]))
    print(f"{found:.0%} of the planted faults are in the first tenth; shifts are right to within "
          f"{error} pixels")
    print(write_json(RESULTS / "labels.json", {
        **environment("cpu"), "command": "python -m lab.planted", "options": OPTIONS,
        "found_in_first_tenth": found, "largest_error_of_shift": error, "rows": rows}))


if __name__ == "__main__":
    main()
