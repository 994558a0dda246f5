"""# Annotations: polygons of a large slide, and regions that nobody labelled

    python -m lab.annotations large      a slide of 30,000 x 30,000 pixels with 600 polygons
    python -m lab.annotations hubmap     polygons beside run-length code
    python -m lab.annotations void       one half of each image is void, and its labels are wrong

`large` cuts training tiles, segments a slide into polygons, and turns polygons into a mask, that
into polygons and those into a mask again; each in a process of its own. `hubmap` writes a slide in
the competition's layout and tells how far polygons and run-length code agree. `void` trains four
times: with right labels; with one half of each image cut off; with wrong labels in that half, which
--ignore makes void; and with those wrong labels used. It reports Dice on the other halves.
"""

import argparse
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import train
from minseg.crossval import dice_of, dice_parts
from minseg.data.datasets import Item, find_slides
from minseg.data.masks import Mask
from minseg.data.polygons import Polygons, read_polygons, write_objects
from minseg.data.rle import rle_encode
from minseg.data.slides import shrink
from minseg.data.synthetic import write_slides
from minseg.data.tables import read_table
from minseg.data.tiles import cut
from minseg.run.report import Parser
from minseg.run.scores import count_saved

from . import measure

BAND = 256  # rows at a time


def wavy_ring(y: float, x: float, radius: float, rng: np.random.Generator) -> list:
    """A closed ring of 200 points (x, y) with a wavy outline."""
    angle = np.arange(200) / 200 * 2 * math.pi
    wave = radius * (1 + 0.15 * np.sin(3 * angle + rng.uniform(0, 6))
                     + rng.uniform(-0.02, 0.02, 200))
    ring = np.stack([x + wave * np.cos(angle), y + wave * np.sin(angle)], 1).round(2).tolist()
    return [*ring, ring[0]]


def feature(rings: list, name: str) -> dict:
    """A polygon of GeoJSON with a class, as QuPath writes it."""
    return {"type": "Feature", "properties": {"classification": {"name": name}},
            "geometry": {"type": "Polygon", "coordinates": rings}}


def draw_polygons(path: Path, size: int) -> None:
    """600 polygons of 200 points that do not touch; 50 of them have a hole."""
    rng, cell, features = np.random.default_rng(0), size // 25, []
    for index, place in enumerate(rng.permutation(25 * 25)[:600].tolist()):
        y, x = ((part + 0.5) * cell for part in divmod(place, 25))
        radius = rng.uniform(0.2, 0.36) * cell
        outline, hole = wavy_ring(y, x, radius, rng), wavy_ring(y, x, radius / 3, rng)
        features.append(feature([outline, hole] if index < 50 else [outline], "glomerulus"))
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def round_trip(folder: Path, size: int) -> dict:
    """Polygons -> mask -> polygons -> mask, band by band."""
    before = Mask(Item("slide", folder, folder / "masks" / "slide.geojson", "slide"), size, size)
    bands = [(y, 0, min(BAND, size - y), size) for y in range(0, size, BAND)]
    with write_objects(folder / "again.geojson", size, size) as add:
        for band in bands:
            mask = before.read(*band)
            add(mask, mask)
    polygons = read_polygons(folder / "again.geojson")
    after = Polygons(polygons, size, size)
    differ = sum(int(np.count_nonzero(before.read(*band) != after.window(*band))) for band in bands)
    return {"polygons_out": len(polygons), "pixels_that_differ": differ}


def cut_tiles(folder: Path, size: int) -> dict:
    """The tile cache for training, at a scale of 4."""
    item = Item("slide", folder / "images" / "slide.tiff", folder / "masks" / "slide.geojson", "s")
    (folder / "tiles").mkdir(exist_ok=True)
    facts = cut(item, folder / "tiles", scale=4, tile=256, stride=128, margin=32)
    return {"tiles": len(facts["places"]), "positive": facts["positive"]}


def dark(tiles: Tensor) -> Tensor:
    """In place of a network: what is dark on average around a pixel is positive."""
    return F.avg_pool2d(1 - tiles.float().mean(1, keepdim=True) / 255, 31, 1, 15)


def segment(folder: Path, size: int) -> dict:
    """infer.py's own loop with --geojson, without a network."""
    measure.segment_slide(folder / "images" / "slide.tiff", folder / "out", dark, 4, 256, 0.4,
                          "--geojson", "--device", "cpu")
    with open(folder / "out" / "slide.geojson") as file:  # one line each, and two around them
        return {"polygons_out": sum(1 for _ in file) - 2}


def large(args: argparse.Namespace) -> Iterator[dict]:
    """Seconds and memory of cutting, of segmenting, and of going from polygons to polygons."""
    folder = args.work / "large"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    measure.write_large(folder / "images" / "slide.tiff", args.size, args.size)
    draw_polygons(folder / "masks" / "slide.geojson", args.size)
    for job in (round_trip, cut_tiles, segment):
        result, seconds, memory = measure.measured(partial, job, folder, args.size)
        yield {"size": args.size, "job": job.__name__, "seconds": round(seconds, 1),
               "peak_gib_above_idle": round(memory, 3), **result}
    shutil.rmtree(folder)


def hubmap(args: argparse.Namespace) -> Iterator[dict]:
    """A synthetic slide in the competition's layout: wavy polygons, and the run-length code of the
    pixels of which more than half is inside, counted on a grid five times as fine. The agreement is
    what `cut` counts and train.py prints."""
    folder, size, fine = args.work / "hubmap", 6000, 5
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "data" / "train").mkdir(parents=True)
    (folder / "tiles").mkdir()
    drawn = folder / "data" / "train" / "slide.json"
    measure.write_large(drawn.with_suffix(".tiff"), size, size)
    draw_polygons(drawn, size)
    finer = Polygons([replace(each, rings=[ring * fine for ring in each.rings])
                      for each in read_polygons(drawn)], size * fine, size * fine)
    mask = np.concatenate([shrink(finer.window(y, 0, 500, size * fine) * np.uint8(255), fine) >= 128
                           for y in range(0, size * fine, 500)])
    (folder / "data" / "train.csv").write_text(f"id,encoding\nslide,{rle_encode(mask)}\n")
    item, = find_slides(folder / "data")
    facts = cut(item, folder / "tiles", scale=4, tile=128, stride=64, margin=16)
    shared, total = facts["agreement"]
    yield {"size": size, "polygons": 600, "dice": round(2 * shared / total, 5)}


def hold_out(table: Path) -> None:
    """Rewrites groups.csv so that there are two groups, and a fifth of the patients is held out,
    whatever the labels are. (Folds that are balanced by positives would change with the labels.)"""
    groups = read_table(table, "id", "group")
    patients = sorted(set(groups.values()))
    held = set(patients[-max(1, len(patients) // 5) :])
    table.write_text("id,group\n" + "".join(
        f"{id},{'held out' if group in held else 'others'}\n" for id, group in groups.items()))


def plant(right: Path, wrong: Path, half: Path) -> None:
    """Makes two data sets from one. In `wrong`, one half of each image (left and right in turn) has
    the objects of the next image and none of its own, and a polygon of the class unlabelled covers
    it. `half` has nothing but the other halves."""
    for folder in (wrong, half):
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True)
        shutil.copy(right / "groups.csv", folder)
    items = find_slides(right)
    masks = [np.asarray(Image.open(item.mask)) > 0 for item in items]
    for index, (item, mask) in enumerate(zip(items, masks)):
        height, width = mask.shape
        sides = slice(0, width // 2), slice(width // 2, width)
        known, void = sides if index % 2 == 0 else sides[::-1]
        Image.fromarray(mask[:, known]).save(half / "masks" / item.mask.name)
        Image.fromarray(np.asarray(Image.open(item.image))[:, known]).save(
            half / "images" / item.image.name)
        shutil.copy(item.image, wrong / "images")
        spoiled = mask.copy()
        spoiled[:, void] = masks[(index + 1) % len(items)][:height, void] & ~mask[:, void]
        drawn = wrong / "masks" / f"{item.id}.geojson"
        with write_objects(drawn, height, width, name="glomerulus") as add:
            add(spoiled, spoiled)
        content, left, right_end = json.loads(drawn.read_text()), void.start, void.stop
        ring = [[left, 0], [right_end, 0], [right_end, height], [left, height], [left, 0]]
        content["features"].append(feature([ring], "unlabelled"))
        drawn.write_text(json.dumps(content))


def score_labelled(run: Path, truth: Sequence[Item]) -> float:
    """Dice at 0.5 of the held-out images, on the pixels that are not void in `truth`."""
    return dice_of(torch.stack([dice_parts(count_saved(run, item), 0.5) for item in truth
                                if item.group == "held out"]).sum(0))


def void(args: argparse.Namespace) -> Iterator[dict]:
    """Four trainings for each seed, all of the same number of steps."""
    for seed in range(args.seeds):
        folder = args.work / f"void{seed}"
        right, wrong, half = (folder / name for name in ("right", "wrong", "half"))
        if not half.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_slides(right, 20, seed=seed)
            hold_out(right / "groups.csv")
            plant(right, wrong, half)
        # What is void there is what `half` lacks; elsewhere the labels are right.
        labelled_halves = find_slides(wrong, ignore=["unlabelled"])
        for name, options in (("right", ["--data", right]), ("half", ["--data", half]),
                              ("void", ["--data", wrong, "--ignore", "unlabelled"]),
                              ("wrong", ["--data", wrong, "--label", "glomerulus"])):
            command = [*options, "--scale", 4, "--tile", 128, "--seed", seed, "--folds", 2,
                       "--fold", 1]
            run = folder / "runs" / name
            _, _, epoch = measure.prepare_fold([*command, "--out", run.with_name("none")], 1)
            train.main([str(option) for option in (*command, "--epochs", args.steps / epoch,
                                                   "--resume", "--out", run)])
            dice = score_labelled(run / "fold1",
                                  find_slides(half) if name == "half" else labelled_halves)
            yield {"seed": seed, "labels": name, "steps": args.steps, "dice": round(dice, 4)}


JOBS: dict[str, Callable[[argparse.Namespace], Iterator[dict]]] = {
    "large": large, "hubmap": hubmap, "void": void}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m lab.annotations", description=__doc__.split("\n")[0][2:])
    add = parser.add_argument
    add("what", choices=JOBS)
    add("--size", type=int, default=30_000, help="large: side in pixels (default 30000)")
    add("--seeds", type=int, default=2, help="void: default 2")
    add("--steps", type=int, default=250, help="void: default 250")
    add("--work", type=Path, default=Path("runs/annotations"), metavar="DIR",
        help="for slides and runs (default runs/annotations)")
    add("--out", type=Path, default=measure.RESULTS, metavar="DIR", help="default docs/results")
    args = parser.parse_args(argv)
    measure.record(args.out / f"annotations-{args.what}.json", "cpu", JOBS[args.what](args))


if __name__ == "__main__":
    main()
