"""The recipe on small data sets: five images, of which train.py sees four.

    python -m lab.small --data DIR                      # DIR: the nuclei
    python -m lab.small --data DIR --part tuned --contestants minseg 'flips and turns only'

The race (`lab.race`) has a hundred images. Most people begin with five, and nobody tunes for them.
Here are ten such data sets (`SETS`): five of nuclei that look alike, and five of synthetic slides
with different stains, sizes and numbers of glomeruli. In six of them no object that touches the
border of its image is labelled, as by somebody who outlines only whole objects.

Each image is held out in turn, and cut at the threshold that is best on the other four. The
contestants are those of the race: `train.py` with its defaults, the peers, and `race.CHANGES`.
With `--longer N`, minseg also runs for N steps, as many as it takes in the peers' time. The
defaults were chosen on the sets of `--part tuned`; the others only tell how good they are.

`worst` is the Dice of the image of a set that is found worst (in the mean of the seeds). The unit
of the intervals is the set (`lab.effects`).

A measurement can stop and go on, and several processes can share OUT (`lab.harness`). The one that
finds all runs done writes docs/results/small-PART.jsonl, a line for each, and small-PART.json.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice, product
from operator import itemgetter
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from minseg.files.datasets import find_slides
from minseg.synthetic import synthetic_slide

from . import harness, measure, peers, race
from .effects import dice_of_groups, effect
from .harness import mean
from .race import MINSEG, PEERS

IMAGES = 5  # in each set
NOT_TURNED = "minseg, tiles not turned"  # the same networks (see `minseg.tiling`)
TILE = 64
LEAST = 0.04  # share of the pixels of nuclei in an image
# What a set is made of: the group of the nuclei, or the size of the slides after cropping, the
# number of their stains, glomeruli in 1024 x 1024 pixels, and the scale; and whether objects at the
# border are labelled.
SETS: dict[str, dict] = {
    "nuclei 0": {"group": "g0", "border": True},
    "nuclei 1": {"group": "g1", "border": False},
    "few glomeruli": {"size": 1024, "stains": 5, "glomeruli": (2, 5), "scale": 3, "border": False},
    "one stain": {"size": 768, "stains": 1, "glomeruli": (4, 8), "scale": 3, "border": True},
    "small": {"size": 1280, "stains": 2, "glomeruli": (3, 6), "scale": 4, "border": False},
    "nuclei 3": {"group": "g3", "border": False},
    "nuclei 4": {"group": "g4", "border": True},
    "nuclei 9": {"group": "g9", "border": True},
    "two stains": {"size": 1024, "stains": 2, "glomeruli": (2, 5), "scale": 3, "border": False},
    "large": {"size": 640, "stains": 5, "glomeruli": (5, 9), "scale": 2, "border": False},
}
Images = Iterator[tuple[str, np.ndarray, np.ndarray]]
PARTS = {"tuned": list(SETS)[:5], "others": list(SETS)[5:]}


def without_border(mask: np.ndarray) -> np.ndarray:
    """A mask of 0 and 255 without the objects that touch its border."""
    image = Image.fromarray(mask).copy()  # one that can be written to
    height, width = mask.shape
    border = [*product(range(width), (0, height - 1)), *product((0, width - 1), range(height))]
    for place in border:
        if image.getpixel(place):
            ImageDraw.floodfill(image, place, 0)
    return np.asarray(image)


def nuclei(folder: Path, group: str, **_) -> Images:
    """A corner of the first five images of a group with enough in it: name, image, mask."""
    corner = np.s_[:160, :224]
    for item in find_slides(folder):
        mask = np.asarray(Image.open(item.mask).convert("L"))[corner]
        if item.group == group and without_border(mask).mean() >= LEAST * 255:
            yield item.id, np.asarray(Image.open(item.image).convert("RGB"))[corner], mask


def glomeruli(number: int, size: int, stains: int, glomeruli: tuple[float, float],
              **_) -> Images:
    """Five synthetic slides, cropped from the middle of larger ones: name, image, mask."""
    edge = size // 4
    for k in range(IMAGES):
        seed = 1000 * number + k
        image, mask = synthetic_slide(seed, size + 2 * edge, size + 2 * edge,
                                      patient=1000 * number + k % stains, glomeruli=glomeruli)
        inner = np.s_[edge : edge + size, edge : edge + size]
        yield f"s{k}", image[inner], mask[inner] * 255


def make(name: str, folder: Path, data: Path | None) -> Path:
    """Writes a set into `folder`, unless it is there, and returns its path."""
    path, made = folder / name, SETS[name]
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    images = (nuclei(data, **made) if "group" in made
              else glomeruli(list(SETS).index(name), **made))
    with tempfile.TemporaryDirectory(dir=folder) as unfinished:
        here = Path(unfinished) / name
        for kind in ("images", "masks"):
            (here / kind).mkdir(parents=True)
        for id, image, mask in islice(images, IMAGES):
            mask = mask if made["border"] else without_border(mask)
            Image.fromarray(image).save(here / "images" / f"{id}.png")
            Image.fromarray(mask).save(here / "masks" / f"{id}.png")
        with suppress(OSError):  # another process was quicker
            here.rename(path)
    return path


def settings(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """What `race.run` needs to know about a set."""
    return argparse.Namespace(
        data=args.out / "sets" / name, folds=IMAGES, out=args.out / "sets",
        options=["--tile", str(TILE), "--scale", str(SETS[name].get("scale", 1)),
                 *args.options])


Job = tuple[str, str, int, int, int]  # set, contestant, steps, seed, fold


Seeds = list[dict[str, dict[str, float]]]  # for each seed: set -> image -> Dice


def means(seeds: Seeds) -> list[dict[str, float]]:
    """For each seed, the mean Dice of each set."""
    return [{name: statistics.mean(dice.values()) for name, dice in sets.items()}
            for sets in seeds]


def worst(seeds: Seeds) -> list[dict[str, float]]:
    """For each seed, the Dice of the image of each set that has the lowest mean over seeds."""
    def mean_of(name: str) -> Callable[[str], float]:
        return lambda image: statistics.mean(sets[name][image] for sets in seeds)

    lowest = {name: min(dice, key=mean_of(name)) for name, dice in seeds[0].items()}
    return [{name: sets[name][image] for name, image in lowest.items()} for sets in seeds]


def summarize(args: argparse.Namespace, lines: Mapping[Job, dict]) -> dict:
    """A row for each contestant: the Dice of each image in each seed; the mean and the worst image
    of the sets; and how both differ from the peers, those of a change from minseg."""
    def seeds_of(who: str, steps: int, levels: str = "levels") -> Seeds:
        return [{name: dice_of_groups([lines[name, who, steps, seed, fold][levels]
                                       for fold in range(IMAGES)]) for name in args.sets}
                for seed in range(args.seeds)]

    dice = {job: seeds_of(*job) for job in args.contestants}
    if (MINSEG, args.steps) in dice and all(
            "not_turned" in line for job, line in lines.items() if job[1] == MINSEG):
        dice[NOT_TURNED, args.steps] = seeds_of(MINSEG, args.steps, "not_turned")
    number = {name: fold for fold, name in enumerate(args.sets)}  # each set is a fold of its own
    rows = []
    for (who, steps), seeds in dice.items():
        trained = (MINSEG if who == NOT_TURNED else who), steps
        row = {"contestant": who, "steps": steps,
               "seconds": statistics.median(line["seconds"] for job, line in lines.items()
                                            if job[1:3] == trained),
               "dice": mean(means(seeds)), "worst": mean(worst(seeds)),
               "sets": {name: [round(statistics.mean(each[name] for each in found), 4)
                               for found in (means(seeds), worst(seeds))] for name in args.sets},
               "images": [{name: {image: round(value, 4) for image, value in images.items()}
                           for name, images in sets.items()} for sets in seeds]}
        other = dice.get((PEERS if who == MINSEG else MINSEG, args.steps))
        if who != PEERS and other:
            for kind, of in (("mean", means), ("worst", worst)):
                row[f"{kind}_difference"] = effect(of(seeds), of(other), number, paired=True)
        rows.append(row)
    return {"seeds": args.seeds, "sets": args.sets, "rows": rows}


def read_lines(path: Path) -> tuple[argparse.Namespace, dict[Job, dict]]:
    """The lines of a published file, and what `summarize` needs to know about them."""
    found = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    lines = {(line["set"], line["contestant"], line["steps"], line["seed"], line["fold"]): line
             for line in found}
    names, contestants = (list(dict.fromkeys(map(of, lines))) for of in
                          (itemgetter(0), itemgetter(1, 2)))
    return argparse.Namespace(sets=names, contestants=contestants, steps=contestants[0][1],
                              seeds=1 + max(job[3] for job in lines)), lines


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what is left over is for `train.py`."""
    parser = harness.make_parser("small", __doc__, 3, "the synthetic sets, without the nuclei")
    add = parser.add_argument
    add("--part", choices=PARTS, default="others", help="which five sets (default others)")
    add("--steps", type=int, default=150, metavar="N", help="of a run (default 150)")
    add("--longer", type=int, metavar="N", help="steps that minseg takes in the peers' time")
    add("--contestants", nargs="+", default=[PEERS, MINSEG], metavar="NAME",
        choices=[PEERS, MINSEG, *race.CHANGES], help="default peers minseg")
    args = harness.parse_known(parser, argv, "--exclude")
    args.out, args.docs = args.out or Path("runs/small"), args.docs or Path("docs")
    args.sets = [name for name in PARTS[args.part] if args.data or "group" not in SETS[name]]
    args.contestants = [(who, args.steps) for who in args.contestants
                        if who != PEERS or peers.installed()]
    if args.longer:
        args.contestants.append((MINSEG, args.longer))
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Does what is left to do; when everything is there, reports the results."""
    args = parse(argv)
    try:
        for name in args.sets:
            make(name, args.out / "sets", args.data)
        harness.claim(args.out, options=args.options)
    except (ValueError, OSError) as error:
        print(f"small: {error}", file=sys.stderr)
        sys.exit(2)

    def folder_of(*job: object) -> Path:
        return args.out / "runs" / "{}, {}, {} steps, seed {}, fold {}".format(*job)

    def run(name: str, *job) -> dict:
        return {"set": name, **race.run(settings(args, name), *job)}

    jobs = [(name, who, steps, seed, fold) for seed in range(args.seeds)  # first one of each set
            for who, steps in args.contestants for name in args.sets for fold in range(IMAGES)]
    lines = harness.finish(f"small-{args.part}", jobs, folder_of, run, measure.environment("cpu"))
    found = {"options": args.options, **summarize(args, lines)}
    print(harness.publish(args.docs / "results" / f"small-{args.part}.json", lines.values(), found))
    for row in found["rows"]:
        print(f"{row['steps']:5d} steps  {row['seconds']:6.1f} s  mean {row['dice']:.4f}  worst "
              f"{row['worst']:.4f}  {row['contestant']}  " + "  ".join(
                  "{} {difference:+.4f} [{low:+.4f}, {high:+.4f}]".format(kind, **row[kind])
                  for kind in ("mean_difference", "worst_difference") if kind in row))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nsmall: stopped; the same command goes on")
