"""# Annotations: polygons of a large slide, and regions that nobody labelled

    python -m lab.annotations large      a slide of 30,000 x 30,000 pixels with 600 polygons
    python -m lab.annotations hubmap     polygons beside run-length code
    python -m lab.annotations void       half of each image void, and its labels there wrong

`large` cuts training tiles, segments with polygons out, and makes a mask of polygons and polygons
of the mask again; each in a process of its own, whose memory above that of the idle one is told.
`hubmap` writes a slide in the competition's layout, and tells how far polygons and run-length code
agree. `void` trains four times: with right labels; with one half of each image cut off; with wrong
labels in that half, which is void by --ignore; and with these in earnest. What counts is Dice on
the other halves.
"""

import argparse
import json
import math
import multiprocessing
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from torch.nn import functional as F

from minseg.crossval import dice_of, dice_parts
from minseg.data.datasets import Item, find_slides
from minseg.data.files import atomic
from minseg.data.masks import Mask
from minseg.data.polygons import Polygons, read_polygons, write_objects
from minseg.data.rle import rle_encode
from minseg.data.slides import open_slide, shrink
from minseg.data.synthetic import write_slides
from minseg.data.tables import read_table
from minseg.data.tiles import cut
from minseg.run.checkpoint import Ensemble
from minseg.run.options import infer_options, train_options
from minseg.run.report import Parser
from minseg.run.scores import count_known

from .bench import RESULTS, environment, peak, write_large

BAND = 256  # rows at a time


def circle(y: float, x: float, radius: float, points: int, rng: np.random.Generator) -> list:
    """A closed ring of x, y with a wavy outline."""
    angle = np.arange(points) / points * 2 * math.pi
    wave = radius * (1 + 0.15 * np.sin(3 * angle + rng.uniform(0, 6)) + rng.uniform(-0.02, 0.02,
                                                                                      points))
    ring = np.stack([x + wave * np.cos(angle), y + wave * np.sin(angle)], 1).round(2).tolist()
    return [*ring, ring[0]]


def draw_polygons(path: Path, size: int) -> None:
    """600 polygons of 200 points that do not touch, of which 50 have a hole."""
    rng, cell, features = np.random.default_rng(0), size // 25, []
    for index, place in enumerate(rng.permutation(25 * 25)[:600].tolist()):
        y, x = ((part + 0.5) * cell for part in divmod(place, 25))
        radius = rng.uniform(0.2, 0.36) * cell
        rings = [circle(y, x, radius, 200, rng)]
        rings += [circle(y, x, radius / 3, 200, rng)] * (index < 50)
        features.append({"type": "Feature", "properties": {
            "classification": {"name": "glomerulus"}},
            "geometry": {"type": "Polygon", "coordinates": rings}})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def round_trip(folder: Path, size: int) -> dict:
    """Polygons -> mask -> polygons -> mask, band by band."""
    first = Mask(Item("slide", folder, folder / "masks" / "slide.geojson", "slide"), size, size)
    rows = [(y, 0, min(BAND, size - y), size) for y in range(0, size, BAND)]
    with write_objects(folder / "again.geojson", size, size) as add:
        for area in rows:
            add(*[first.read(*area)] * 2)
    found = read_polygons(folder / "again.geojson")
    again = Polygons(found, size, size)
    differ = sum(int(np.count_nonzero(first.read(*area) != again.window(*area))) for area in rows)
    return {"polygons_out": len(found), "pixels_that_differ": differ}


def cut_tiles(folder: Path, size: int) -> dict:
    """The training cache, at a scale of 4."""
    item = Item("slide", folder / "images" / "slide.tiff", folder / "masks" / "slide.geojson", "s")
    (folder / "tiles").mkdir(exist_ok=True)
    found = cut(item, folder / "tiles", scale=4, tile=256, stride=128, margin=32)
    return {"tiles": len(found["places"]), "positive": found["positive"]}


def segment(folder: Path, size: int) -> dict:
    """infer.py's own loop with --geojson, and a network that finds what is dark by and large."""
    import infer

    def predict(tiles):
        return F.avg_pool2d(1 - tiles.float().mean(1, keepdim=True) / 255, 31, 1, 15)

    path = folder / "images" / "slide.tiff"
    options = infer_options([str(path), "--model", "none", "--out", str(folder / "out"),
                             "--geojson",
                           "--device", "cpu"])
    options.out.mkdir(exist_ok=True)
    ensemble = Ensemble([], [], 4, 256, 0.4, None, None, None)
    infer.segment(path, predict, ensemble, options, set())
    with open(folder / "out" / "slide.geojson") as file:  # a line each, and two around them
        return {"polygons_out": sum(1 for _ in file) - 2}


def measured(job: Callable, *arguments) -> dict:
    """What a job returns, its seconds, and the memory that it takes above an idle process, GiB."""
    before, start = peak(), time.perf_counter()
    found = job(*arguments)
    return {"job": job.__name__, "seconds": round(time.perf_counter() - start, 1),
            "peak_gib_above_idle": round(peak() - before, 3), **found}


def large(args: argparse.Namespace) -> list[dict]:
    """Cutting, segmenting and back, each in a process of its own."""
    folder, rows = args.work / "large", []
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_large(folder / "images" / "slide.tiff", args.size, args.size)
    draw_polygons(folder / "masks" / "slide.geojson", args.size)
    for job in (round_trip, cut_tiles, segment):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measured, (job, folder, args.size)))
        print(rows[-1], flush=True)
    shutil.rmtree(folder)
    return [{"size": args.size, **row} for row in rows]


def hubmap(args: argparse.Namespace) -> list[dict]:
    """A synthetic slide in the competition's layout: wavy polygons, and run-length code of the
    pixels that lie inside by more than half, counted on a grid five times as fine. The agreement is
    what `cut` counts and train.py prints."""
    folder, size, fine = args.work / "hubmap", 6000, 5
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data" / "train").mkdir(parents=True)
    (folder / "tiles").mkdir()
    drawn = folder / "data" / "train" / "slide.json"
    write_large(drawn.with_suffix(".tiff"), size, size)
    draw_polygons(drawn, size)
    finer = [replace(each, rings=[ring * fine for ring in each.rings])
             for each in read_polygons(drawn)]
    finer = Polygons(finer, size * fine, size * fine)
    mask = np.concatenate([shrink(finer.window(y, 0, 500, size * fine) * np.uint8(255), fine) >= 128
                           for y in range(0, size * fine, 500)])
    (folder / "data" / "train.csv").write_text(f"id,encoding\nslide,{rle_encode(mask)}\n")
    item, = find_slides(folder / "data")
    found = cut(item, folder / "tiles", scale=4, tile=128, stride=64, margin=16)
    shared, total = found["agreement"]
    print(f"Dice of run-length code and polygons: {2 * shared / total:.5f}")
    return [{"size": size, "polygons": 600, "dice": round(2 * shared / total, 5)}]


def labelled(index: int, width: int) -> slice:
    """The columns of an image whose labels are right: one half, left and right in turn."""
    return slice(width // 2, width) if index % 2 else slice(0, width // 2)


def plant(right: Path, wrong: Path, half: Path) -> None:
    """Makes two data sets of one. `wrong` has its labels as polygons, which in one half of each
    image are those of the next image and none of its own; the class unlabelled covers that half.
    `half` has nothing but the other halves."""
    for folder in (wrong, half):
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True)
        shutil.copy(right / "groups.csv", folder)
    items = find_slides(right)
    for index, item in enumerate(items):
        mask = np.asarray(Image.open(item.mask)) > 0
        other = np.asarray(Image.open(items[(index + 1) % len(items)].mask)) > 0
        height, width = mask.shape
        known = labelled(index, width)
        Image.fromarray(mask[:, known]).save(half / "masks" / item.mask.name)
        Image.fromarray(np.asarray(Image.open(item.image))[:, known]).save(
            half / "images" / item.image.name)
        shutil.copy(item.image, wrong / "images")
        void = labelled(index + 1, width)
        mask = mask.copy()
        mask[:, void] = other[:height, void] & ~mask[:, void]
        left, stop = void.start, void.stop
        corners = [[left, 0], [stop, 0], [stop, height], [left, height], [left, 0]]
        drawn = wrong / "masks" / f"{item.id}.geojson"
        with write_objects(drawn, height, width, name="glomerulus") as add:
            add(mask, mask)
        content = json.loads(drawn.read_text())
        content["features"].append({
            "type": "Feature", "geometry": {"type": "Polygon", "coordinates": [corners]},
            "properties": {"classification": {"name": "unlabelled"}}})
        drawn.write_text(json.dumps(content))


def hold_out(table: Path) -> None:
    """Makes two groups of all: a fifth of the patients is held out, whatever the labels are. (Else
    folds would be balanced by positives, and not be the same with other labels.)"""
    groups = read_table(table, "id", "group")
    patients = sorted(set(groups.values()))
    held = set(patients[-max(1, len(patients) // 5) :])
    table.write_text("id,group\n" + "".join(
        f"{id},{'held out' if group in held else 'others'}\n" for id, group in groups.items()))


def score_labelled(folder: Path, truth: Sequence[Item], name: str) -> float:
    """Dice, at 0.5, of held-out images on the halves that are labelled, whose true masks are known.
    What was trained on halves has predicted these alone."""
    total = 0
    for index, item in enumerate(truth):
        if item.group == "held out":
            with Image.open(item.mask) as image:
                mask = (np.asarray(image) > 0).astype(np.uint8)
            known = labelled(index, mask.shape[1])
            levels = open_slide(folder / "probabilities" / f"{item.id}.tiff").read_all()[..., 0]
            levels = levels if name == "half" else levels[:, known]
            total = total + dice_parts(count_known(levels, mask[:, known]), 0.5)
    return dice_of(total)


def void(args: argparse.Namespace) -> list[dict]:
    """Four trainings of the same number of steps for each seed."""
    import train

    rows = []
    for seed in range(args.seeds):
        folder = args.work / f"void{seed}"
        right, wrong, half = (folder / name for name in ("right", "wrong", "half"))
        if not half.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_slides(right, args.slides, seed=seed)
            hold_out(right / "groups.csv")
            plant(right, wrong, half)
        for name, options in (("right", ["--data", right]), ("half", ["--data", half]),
                              ("void", ["--data", wrong, "--ignore", "unlabelled"]),
                              ("wrong", ["--data", wrong, "--label", "glomerulus"])):
            command = [str(option) for option in (
                *options, "--scale", 4, "--tile", 128, "--seed", seed, "--folds", 2, "--fold", 1)]
            # How many steps an epoch has depends on how many tiles there are: counted beforehand.
            counted = train_options([*command, "--out", str(folder / "runs" / "none")])
            data = train.prepare(counted)
            epoch = len(train.outside(data.tiles, data.folds, 1)) // counted.batch
            train.main([*command, "--epochs", str(args.steps / epoch), "--resume",
                        "--out", str(folder / "runs" / name)])
            dice = score_labelled(folder / "runs" / name / "fold1", find_slides(right), name)
            rows.append({"seed": seed, "labels": name, "steps": args.steps, "dice": round(dice, 4)})
            print(rows[-1], flush=True)
    for name in ("right", "half", "void", "wrong"):
        scores = [row["dice"] for row in rows if row["labels"] == name]
        print(f"{name:6} mean Dice on the labelled halves {statistics.mean(scores):.4f}")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    jobs = {"large": large, "hubmap": hubmap, "void": void}
    parser = Parser(prog="python -m lab.annotations", description=__doc__.split("\n")[0][2:])
    parser.add_argument("what", choices=jobs)
    parser.add_argument("--size", type=int, default=30_000, help="of large: default 30000")
    parser.add_argument("--slides", type=int, default=20, help="of void: default 20")
    parser.add_argument("--seeds", type=int, default=2, help="of void: default 2")
    parser.add_argument("--steps", type=int, default=250, help="of void: default 250")
    parser.add_argument("--work", type=Path, default=Path("runs/annotations"), metavar="DIR",
                        help="for slides and runs (default runs/annotations)")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR",
                        help="default docs/results")
    args = parser.parse_args(argv)
    rows = jobs[args.what](args)
    args.out.mkdir(parents=True, exist_ok=True)
    with atomic(args.out / f"annotations-{args.what}.json") as temporary:
        temporary.write_text(json.dumps({**environment("cpu"), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
