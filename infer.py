"""Find what trained networks look for in slides of any size.

    python infer.py SLIDE... --model runs/NAME/fold*/model.pt --out DIR [--rle submission.csv]

Several checkpoints are averaged. For each slide ID it writes ID.tiff, a mask of 0 and 255 in the
slide's own size, and ID.preview.png, the slide with the mask's outline; --probabilities adds
ID.probabilities.tiff (0 to 255 for 0 to 1), --rle one CSV with the run-length code of all masks.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import tifffile
import torch

from minseg import flips_and_turns, predict_bands
from minseg.data.rle import rle_encode
from minseg.data.slides import open_slide
from minseg.run.checkpoint import atomic, load_model
from minseg.run.report import Parser, Progress, draw_outlines

PREVIEW = 1600  # pixels, the longer side


def parse(argv=None):
    """The command line."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("slides", nargs="+", type=Path, metavar="SLIDE", help="image files")
    group = parser.add_argument_group("network")
    group.add_argument("--model", type=Path, required=True, nargs="+", metavar="FILE",
                       help="model.pt of a run; several are averaged")
    group.add_argument("--tta", action="store_true",
                       help="average flips and quarter turns of each tile: 8 times the work")
    group.add_argument("--threshold", type=float, metavar="P",
                       help="probability from which a pixel is positive "
                       "(default: the mean of the models')")
    group = parser.add_argument_group("tiling")
    group.add_argument("--tile", type=int, metavar="PX", help="default: the tile of training")
    group.add_argument("--overlap", type=float, default=0.5, metavar="SHARE",
                       help="of a tile with the next, 0 to 0.9 (default 0.5)")
    group.add_argument("--window", default="linear",
                       choices=("linear", "gaussian", "hann", "uniform"),
                       help="how weights fall towards a tile's border (default linear)")
    group = parser.add_argument_group("run")
    group.add_argument("--batch", type=int, default=8, metavar="N", help="tiles at once, default 8")
    group.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda if there)")
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, required=True, metavar="DIR",
                       help="folder for the masks")
    group.add_argument("--probabilities", action="store_true",
                       help="write those, too, as 8-bit TIFF")
    group.add_argument("--rle", type=Path, metavar="FILE",
                       help="CSV with the columns id and predicted, HuBMAP's run-length form")
    args = parser.parse_args(argv)
    args.device = parser.device(args.device)
    if not 0 <= args.overlap <= 0.9:
        parser.error(f"--overlap {args.overlap}: needs a share from 0 to 0.9")
    for name in ("tile", "batch"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: needs a number from 1 up")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        parser.error(f"--threshold {args.threshold}: is a probability, 0 to 1")
    return args


def check_outputs(args):
    """Refuses to write two masks to one file, or over a file that is there."""
    seen = {}
    for path in args.slides:
        if path.stem in seen:
            raise ValueError(f"{path}: {seen[path.stem]} has the same name, so would its mask")
        seen[path.stem] = path
    ends = [".tiff", ".preview.png"] + [".probabilities.tiff"] * args.probabilities
    outputs = [args.out / f"{id}{end}" for id in seen for end in ends]
    if len(set(outputs)) < len(outputs):
        twice = next(output for output in outputs if outputs.count(output) > 1)
        raise ValueError(f"{twice}: two slides would write it: rename one of them")
    outputs += [args.rle] if args.rle else []
    for output in outputs:
        if output.exists():
            raise ValueError(f"{output}: exists already: move it away, or give another place")
    places = {path.resolve() for path in [args.out, *args.out.resolve().parents, *outputs[:-1]]}
    if args.rle and args.rle.resolve() in places:
        raise ValueError(f"{args.rle}: is the place of another output: give --rle another")


def load(args):
    """The networks, and what they were trained for: scale, tile, and their mean threshold."""
    nets, facts = zip(*(load_model(path, args.device) for path in args.model))
    for name in ("scale", "tile"):
        for path, fact in zip(args.model, facts):
            if fact[name] != facts[0][name] and (name == "scale" or not args.tile):
                raise ValueError(f"{path}: has {name} {fact[name]}, {args.model[0]} has "
                                 f"{facts[0][name]}: " + ("run them one by one" if name == "scale"
                                                          else "choose with --tile"))
    threshold = sum(fact["threshold"] for fact in facts) / len(facts)
    nets = [net.to(memory_format=torch.channels_last) for net in nets]
    return nets, {**facts[0], "threshold": threshold}


@torch.inference_mode()
def segment(path, nets, facts, args):
    """One slide: writes its mask, its preview and, if wanted, probabilities; returns the mask."""
    slide = open_slide(path, facts["scale"])
    tile = args.tile or facts["tile"]
    threshold = facts["threshold"] if args.threshold is None else args.threshold
    stride = max(1, round(tile * (1 - args.overlap)))
    options = dict(tile=tile, stride=stride, window=args.window, batch=args.batch)

    def predict(tiles):  # uint8 (N, 3, tile, tile) -> probabilities (N, 1, tile, tile)
        tiles = tiles.to(args.device).float() / 255
        return sum(net(tiles).sigmoid() for net in nets) / len(nets)

    if args.tta:
        predict = flips_and_turns(predict)

    mask = np.empty((slide.full_height, slide.full_width), np.uint8)
    probabilities = np.empty_like(mask) if args.probabilities else None
    progress = Progress(slide.full_height, path.stem)
    bands = predict_bands(predict, slide.read, slide.height, slide.width, **options)
    for y, band in slide.enlarge(bands):
        mask[y : y + band.shape[1]] = band[0] >= threshold
        if args.probabilities:
            probabilities[y : y + band.shape[1]] = (band[0] * 255).round()
        progress.step(band.shape[1])

    with atomic(args.out / f"{path.stem}.preview.png") as temporary:
        step = -(-max(mask.shape) // PREVIEW)
        picture = open_slide(path, step)
        picture = picture.read(0, 0, picture.height, picture.width)
        draw_outlines(picture, mask[::step, ::step]).save(temporary)
    layout = dict(compression="zlib", tile=(256, 256))
    if args.probabilities:
        with atomic(args.out / f"{path.stem}.probabilities.tiff") as temporary:
            tifffile.imwrite(temporary, probabilities, **layout)
    with atomic(args.out / f"{path.stem}.tiff") as temporary:  # last: it says the slide is done
        tifffile.imwrite(temporary, mask * np.uint8(255), **layout)
    return mask


def write_csv(path, rows):
    """The table that Kaggle takes: id,predicted."""
    with atomic(path) as temporary, open(temporary, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("id", "predicted"), *rows])


def main(argv=None):
    """Slide by slide; a bad one does not stop the others."""
    args = parse(argv)
    try:
        check_outputs(args)
        nets, facts = load(args)
        args.out.mkdir(parents=True, exist_ok=True)
        if args.rle:
            args.rle.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"infer.py: {error}", file=sys.stderr)
        sys.exit(2)

    rows, failed = [], 0
    for path in args.slides:
        try:
            mask = segment(path, nets, facts, args)
        except (ValueError, OSError) as error:
            print(f"infer.py: {error if isinstance(error, ValueError) else f'{path}: {error}'}",
                  file=sys.stderr)
            failed += 1
            continue
        rows.append((path.stem, rle_encode(mask)))
        print(f"{args.out / path.stem}.tiff  {mask.mean():.2%} positive", flush=True)
    if args.rle and rows:
        try:
            write_csv(args.rle, rows)
        except (OSError, ValueError) as error:  # a name may be no UTF-8
            print(f"infer.py: {args.rle}: cannot be written: {error}", file=sys.stderr)
            sys.exit(1)
        print(args.rle)
    if failed:  # a batch goes on without its bad slides and says so with 1
        sys.exit(2 if len(args.slides) == 1 else 1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninfer.py: stopped")
