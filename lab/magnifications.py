"""What --microns brings where slides differ in magnification, beside one --scale for all.

    python -m lab.magnifications

Twelve synthetic patients with two slides each. Those of every second patient are then made 1.8
times smaller, as another scanner would see them: 0.4547 µm per pixel instead of 0.2527. Equally
many steps of `train.py` see them in four ways (`ARMS`); the last has them as they were drawn.
Writes docs/results/magnifications.json, and the runs before into runs/magnifications: the same
command goes on where it was stopped.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from minseg.run.scores import predict
from minseg.synthetic import write_slides

from . import harness, measure
from .effects import dice_of_groups, effect

SLIDES, FINE, COARSE = 24, 0.2527, 0.4547  # µm: what scanners state at "40x", and at "22x"
ARMS = {  # the data set, and the options
    "--microns 1": ("mixed", "--microns 1"),
    "--scale 4 for all": ("mixed", "--scale 4"), "--scale 3 for all": ("mixed", "--scale 3"),
    "one magnification": ("fine", "--microns 1")}
OPTIONS, FOLDS = "--tile 128 --stride 64", 2


def make(folder: Path, mixed: bool) -> Path:
    """Writes a data set of TIFFs that state the size of a pixel, unless it is there."""
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        drawn, here = Path(unfinished, "drawn"), Path(unfinished, folder.name)
        write_slides(drawn, SLIDES, seed=3, glomeruli=harness.FEW)
        for kind in ("images", "masks"):
            (here / kind).mkdir(parents=True)
        (here / "groups.csv").write_bytes((drawn / "groups.csv").read_bytes())
        for number, path in enumerate(sorted((drawn / "images").iterdir())):
            image, mask, microns = Image.open(path), Image.open(drawn / "masks" / path.name), FINE
            if mixed and number // 2 % 2:  # both slides of a patient
                microns = COARSE
                size = [round(pixels * FINE / COARSE) for pixels in image.size]
                image = image.resize(size, Image.Resampling.BOX)
                mask = mask.resize(size, Image.Resampling.NEAREST)
            mask.save(here / "masks" / path.name)
            tifffile.imwrite(here / "images" / f"{path.stem}.tif", np.asarray(image),
                             photometric="rgb", compression="zlib", resolutionunit="CENTIMETER",
                             resolution=(1e4 / microns,) * 2)
        with suppress(OSError):  # another process was quicker
            here.rename(folder)
    return folder


def run(args: argparse.Namespace, arm: str, seed: int, fold: int) -> dict:
    """Trains and scores once."""
    data, options = ARMS[arm]
    here = argparse.Namespace(data=args.out / data, folds=FOLDS, out=args.out,
                              options=[*OPTIONS.split(), *args.options])
    given, held_out, tiles, train_on = harness.prepared(here, options, seed, fold)
    net, _, seconds = measure.train_minseg(given, tiles, train_on, args.steps)
    return {"arm": arm, "seed": seed, "fold": fold, "steps": args.steps,
            "seconds": round(seconds, 1),
            "levels": harness.levels(held_out, predict(net, held_out, given))}


def summarize(lines: dict[tuple, dict], seeds: int) -> list[dict]:
    """A row for each arm: the mean Dice of the patients of either magnification and of all, and how
    it differs from that of the first arm."""
    dice = {arm: [dice_of_groups([lines[arm, seed, fold]["levels"] for fold in range(FOLDS)])
                  for seed in range(seeds)] for arm in ARMS}
    fold_of = {group: fold for fold in range(FOLDS)
               for group in lines[next(iter(ARMS)), 0, fold]["levels"]}
    groups = sorted(fold_of)
    parts = {"fine": groups[::2], "coarse": groups[1::2], "all": groups}
    rows = []
    for arm, seeds_of in dice.items():
        row: dict = {"arm": arm, "each_seed": [round(statistics.mean(each.values()), 4)
                                               for each in seeds_of]}
        for part, names in parts.items():
            row[part] = effect(seeds_of, dice["--microns 1"],
                               {name: fold_of[name] for name in names}, paired=True)
        rows.append(row)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Does what is left to do; when everything is there, writes and prints the results."""
    parser = harness.make_parser("magnifications", __doc__, 3, "24 slides, half of them reduced")
    parser.add_argument("--steps", type=int, default=150, metavar="N", help="default 150")
    args = harness.parse_known(parser, argv, "--data --scale --microns --folds --tile --stride")
    args.out, args.docs = args.out or Path("runs/magnifications"), args.docs or Path("docs")
    try:
        for data in ("mixed", "fine"):
            make(args.out / data, data == "mixed")
        harness.claim(args.out, options=args.options, steps=args.steps)
    except (ValueError, OSError) as error:
        print(f"magnifications: {error}", file=sys.stderr)
        sys.exit(2)
    jobs = [(arm, seed, fold) for seed in range(args.seeds) for arm in ARMS
            for fold in range(FOLDS)]

    def folder_of(*job: object) -> Path:
        return args.out / "runs" / "{}, seed {}, fold {}".format(*job)

    lines = harness.finish("magnifications", jobs, folder_of, partial(run, args),
                           measure.environment("cpu"))
    rows = summarize(lines, args.seeds)
    for row in rows:
        print(f"{row['arm']:20} " + ", ".join(
            f"{part} {row[part]['dice']:.3f} ({row[part]['difference']:+.3f} "
            f"[{row[part]['low']:+.3f}, {row[part]['high']:+.3f}])"
            for part in ("fine", "coarse", "all")))
    print(measure.write_json(args.docs / "results" / "magnifications.json", {
        **measure.environment("cpu"), "command": "python -m lab.magnifications",
        "options": [*OPTIONS.split(), *args.options], "steps": args.steps, "seeds": args.seeds,
        "fine_microns": FINE, "coarse_microns": COARSE, "rows": rows}))


if __name__ == "__main__":
    main()
