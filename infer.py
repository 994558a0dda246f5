"""Find what a trained network looks for in slides of any size.

    python infer.py SLIDE... --model runs/NAME/fold0/model.pt --out DIR [--rle submission.csv]

For each slide ID it writes ID.tiff, a mask of 0 and 255 in the slide's own size, and
ID.preview.png, the slide with the mask's outline; --rle adds one CSV with the run-length code of
all masks.
"""

import csv
import sys
from pathlib import Path

import numpy as np
import tifffile
import torch

from minseg import predict_bands
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
    group.add_argument("--model", type=Path, required=True, metavar="FILE",
                       help="model.pt of a run")
    group.add_argument("--threshold", type=float, metavar="P",
                       help="probability from which a pixel is positive (default: the model's)")
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
    outputs = [args.out / f"{id}{end}" for id in seen for end in (".tiff", ".preview.png")]
    outputs += [args.rle] if args.rle else []
    for output in outputs:
        if output.exists():
            raise ValueError(f"{output}: exists already: move it away, or give another place")
    if args.rle and args.rle.resolve() in {path.resolve() for path in [args.out, *outputs[:-1]]}:
        raise ValueError(f"{args.rle}: is the place of another output: give --rle another")


@torch.inference_mode()
def segment(path, net, facts, args):
    """One slide: writes its mask and its preview, returns the mask."""
    slide = open_slide(path, facts["scale"])
    tile = args.tile or facts["tile"]
    threshold = facts["threshold"] if args.threshold is None else args.threshold
    stride = max(1, round(tile * (1 - args.overlap)))
    options = dict(tile=tile, stride=stride, window=args.window, batch=args.batch)

    def predict(tiles):  # uint8 (N, 3, tile, tile) -> probabilities (N, 1, tile, tile)
        return net(tiles.to(args.device).float() / 255).sigmoid()

    mask = np.empty((slide.full_height, slide.full_width), np.uint8)
    progress = Progress(slide.full_height, path.stem)
    bands = predict_bands(predict, slide.read, slide.height, slide.width, **options)
    for y, band in slide.enlarge(bands):
        mask[y : y + band.shape[1]] = band[0] >= threshold
        progress.step(band.shape[1])

    with atomic(args.out / f"{path.stem}.preview.png") as temporary:
        step = -(-max(mask.shape) // PREVIEW)
        picture = open_slide(path, step)
        picture = picture.read(0, 0, picture.height, picture.width)
        draw_outlines(picture, mask[::step, ::step]).save(temporary)
    with atomic(args.out / f"{path.stem}.tiff") as temporary:  # last: it says the slide is done
        tifffile.imwrite(temporary, mask * np.uint8(255), compression="zlib", tile=(256, 256))
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
        net, facts = load_model(args.model, args.device)
        net = net.to(memory_format=torch.channels_last)
        args.out.mkdir(parents=True, exist_ok=True)
        if args.rle:
            args.rle.parent.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"infer.py: {error}", file=sys.stderr)
        sys.exit(2)

    rows, failed = [], 0
    for path in args.slides:
        try:
            mask = segment(path, net, facts, args)
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
        except OSError as error:
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
