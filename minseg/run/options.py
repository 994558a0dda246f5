"""# The command lines of `train.py` and `infer.py`

Every option with its default. Values that are out of range, and options that contradict each other,
end the program with one line.
"""

import argparse
import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..efficientnet import SCALES
from ..losses import first_stage, make_loss
from ..training import has_bfloat16
from .errors import warn
from .report import Parser

TRAIN = "Train a U-Net on slides and score it on slides that it has not seen."
INFER = "Segment slides of any size with trained networks."
TRAIN_EXAMPLES = """examples:
  python train.py                                         synthetic slides, one fold
  python train.py --data DIR --weights imagenet --folds 5
  python train.py --data DIR --weights imagenet --folds 5 --resume

More: docs/training.md, and README.md for what DIR holds."""
INFER_EXAMPLES = """examples:
  python infer.py SLIDES/*.svs --model runs/NAME/fold*/model.pt --out masks
  python infer.py SLIDE --model model.pt --out masks --tta --geojson

More: README.md, "Whole slides"."""

RECIPES: dict[str, dict] = {
    "post": {"encoder": "efficientnet-b0", "tile": 640, "batch": 16, "loss": "dice",
             "then": "lovasz", "switch": 0.6, "negatives": 1.0},
    "winner-like": {"attention": "cbam3", "hypercolumn": True, "deep_supervision": True,
                    "loss": "bce+lovasz", "batch": 16, "negatives": "balanced"},
}


def data_group(parser: Parser) -> None:
    """What `train.py` trains on."""
    add = parser.add_argument_group("data").add_argument
    add("--data", type=Path, metavar="DIR",
        help="folder of slides and masks (default: draw synthetic slides)")
    add("--scale", type=int, metavar="S",
        help="train on images S times smaller (default 1; synthetic 4)")
    add("--microns", type=float, metavar="M", help="in place of --scale: bring every slide to "
        "pixels of M micrometres, whatever its magnification")
    add("--tile", type=int, metavar="PX",
        help="side of a training tile, after scaling (default 256; synthetic 128)")
    add("--stride", type=int, metavar="PX",
        help="distance from one tile to the next (default: half a tile; synthetic 48)")
    add("--folds", type=int, metavar="K", help="divide the groups into K folds and hold out each "
        "in turn (default: 5, or as many as there are groups, and only fold 0 is held out)")
    add("--fold", type=int, metavar="I",
        help="hold out only fold I, from 0 to K-1, so that separate processes can train the folds")
    add("--negatives", type=number_all_or_balanced, default=1.0, metavar="R",
        help="how many tiles without a positive pixel an epoch draws for each tile with one: a "
        "number (default 1), all, or balanced (1, and positives balanced over bins of mask area)")
    add("--exclude", type=Path, metavar="FILE",
        help="leave out the images whose IDs the file lists, one per line or in its first column")
    add("--label", nargs="+", metavar="NAME",
        help="polygon classes to find (default: all except those in --ignore)")
    add("--ignore", nargs="+", metavar="NAME", help="polygon classes to leave out of training "
        "and scoring; 255 does the same for that value in mask images")
    add("--white", type=int, metavar="N",
        help="value of white in 16-bit slides that do not state it (default 65535)")


def network_and_loss_groups(parser: Parser) -> None:
    """What `train.py` trains, and with which loss."""
    switch: dict[str, Any] = {"action": argparse.BooleanOptionalAction, "default": False}
    add = parser.add_argument_group("network").add_argument
    add("--encoder", default="efficientnet-b0", metavar="NAME", choices=SCALES,
        help="efficientnet-b0 to -b7 or -lite0 to -lite4 (default efficientnet-b0)")
    add("--weights", metavar="FILE",
        help="initial weights of the encoder: imagenet, or a published checkpoint (default: "
        "random)")
    add("--gates", **switch, help="attention gates on the skip connections")
    add("--attention", default="none", choices=("none", "scse", "cbam", "cbam3"),
        help="attention in each decoder block (cbam3: 3 x 3, without its norm; default none)")
    add("--hypercolumn", **switch, help="the head uses the decoder's maps of all sizes")
    add("--deep-supervision", **switch,
        help="also compute a loss on each of the decoder's smaller maps")
    add = parser.add_argument_group("loss").add_argument
    add("--loss", default="bce+batch_dice", metavar="SUM",
        help="a sum of bce, dice, batch_dice and lovasz, such as 0.5*bce+dice (default "
        "bce+batch_dice)")
    add("--then", metavar="SUM", help="the loss of a second stage (default: no second stage)")
    add("--switch", type=float, default=0.6, metavar="SHARE",
        help="share of the steps after which the second stage begins (default 0.6)")


def run_group(parser: Parser) -> None:
    """How `train.py` trains, and where its results go."""
    add = parser.add_argument_group("run").add_argument
    add("--recipe", choices=RECIPES,
        help="set several options, which are printed; options that you give yourself take "
        "precedence")
    add("--epochs", type=float, metavar="N",
        help="passes over the tiles; fractions are allowed (default 20; synthetic 5)")
    add("--batch", type=int, metavar="N", help="tiles in a batch (default 8; synthetic 4)")
    add("--accumulate", type=int, default=1, metavar="N",
        help="batches in a step, whose gradients are averaged (default 1)")
    add("--lr", type=float, help="highest learning rate (default 5e-3; synthetic 6e-3); an encoder "
        "with --weights learns at half of it")
    add("--augment", type=float, metavar="S", help="strength of the augmentation; 0: only flips, "
        "quarter turns and shifts (default 1; synthetic 0)")
    add("--amp", choices=("auto", "on", "off"), default="auto",
        help="mixed precision: the network computes in 16 bits (default auto: on CUDA; training on "
        "a CPU gains nothing from it)")
    add("--compile", action="store_true",
        help="torch.compile, for GPUs: takes minutes to start; on a CPU it was slower")
    add("--checkpoint-activations", action="store_true",
        help="recompute activations in the backward pass: slower, but less memory")
    add("--workers", type=int, default=2, metavar="N",
        help="threads that read tiles ahead (default 2)")
    add("--seed", type=int, default=0, metavar="N", help="seed of the initial weights, the drawing "
        "of tiles, augmentation and stochastic depth (default 0); the folds and the synthetic "
        "slides do not depend on it")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: cuda if there is one)")
    add("--resume", action="store_true", help="continue folds that were interrupted")
    add("--out", type=Path, metavar="DIR",
        help="folder of the run (default: runs/ and the name of the data)")


def number_all_or_balanced(text: str) -> float | str:
    """The value of --negatives. argparse shows this function's name in its error message."""
    if text not in ("all", "balanced") and not 0 <= float(text) < math.inf:
        raise ValueError
    return text if text.isalpha() else float(text)


def train_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of `train.py`. Defaults depend on the recipe, and on whether --data is given."""
    parser = Parser(description=TRAIN, epilog=TRAIN_EXAMPLES,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    for add_group in (data_group, network_and_loss_groups, run_group):
        add_group(parser)
    args = parser.parse_args(argv)
    if args.recipe:
        recipe = RECIPES[args.recipe]
        parser.set_defaults(**recipe)
        args = parser.parse_args(argv)  # again, with the recipe's values as defaults
        changed = [f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
                   for name, value in recipe.items() if getattr(args, name) == value]
        print(f"--recipe {args.recipe}: {' '.join(changed)}")
    for name in ("then", "weights"):  # "none" overrides the value of a recipe
        if getattr(args, name) == "none":
            setattr(args, name, None)
    synthetic = args.data is None
    if synthetic and args.tile is args.stride is None:
        args.stride = 48
    if args.microns is not None and args.scale is not None:
        parser.error(f"--microns {args.microns:g} is in place of --scale {args.scale}: give one")
    if args.microns is not None:
        args.scale = 1
    for name, small, usual in (("scale", 4, 1), ("tile", 128, 256), ("epochs", 5, 20),
                               ("batch", 4, 8), ("lr", 6e-3, 5e-3), ("augment", 0, 1)):
        if getattr(args, name) is None:
            setattr(args, name, small if synthetic else usual)
    args.stride = max(1, args.tile // 2) if args.stride is None else args.stride
    args.out = args.out or Path("runs") / ("synthetic" if synthetic else args.data.resolve().name)
    args.command = list(sys.argv[1:] if argv is None else argv)
    args.close = False  # --resume with fewer --epochs sets it
    args.device = parser.device(args.device)
    args.amp = args.amp == "on" or (args.amp == "auto" and args.device.startswith("cuda"))
    check_train_options(parser, args)
    check_device_options(parser, args)
    try:
        for spec in (args.loss, args.then or args.loss):
            make_loss(spec)
        first_stage(2, args.switch)  # ValueError for a share that is not between 0 and 1
    except ValueError as error:
        parser.error(f"--loss, --then, --switch: {error}")
    return args


def check_train_options(parser: Parser, args: argparse.Namespace) -> None:
    """Ends the program with one line if a value is out of range, or contradicts another."""
    for name in ("scale", "tile", "stride", "epochs", "batch", "accumulate", "workers", "lr"):
        if not 0 < getattr(args, name) < (math.inf if name == "lr" else 2**31):
            option = f"--{name.replace('_', '-')}"
            parser.error(f"{option} {getattr(args, name)}: needs a number above 0")
    if args.stride > args.tile:
        parser.error(f"--stride {args.stride} leaves gaps: it is longer than --tile {args.tile}")
    if args.deep_supervision and args.tile % 8:
        near = max(8, args.tile // 8 * 8)
        parser.error(f"--tile {args.tile}: with --deep-supervision it is a multiple of 8, such as "
                     f"{near} or {near + 8}, or smaller targets are shifted")
    if args.microns is not None and not 0.001 <= args.microns <= 100:
        parser.error(f"--microns {args.microns:g}: needs micrometres from 0.001 to 100; slides "
                     "have 0.25 at 40x and 0.5 at 20x")
    if not 0 <= args.augment <= 5:
        parser.error(f"--augment {args.augment}: needs a number from 0 to 5")
    check_white(parser, args)
    if both := set(args.label or ()) & set(args.ignore or ()):
        parser.error(f"--label and --ignore both name {', '.join(both)}")
    if not 0 <= args.seed < 2**63:
        parser.error(f"--seed {args.seed}: needs a whole number from 0 to 2^63 - 1")


def check_device_options(parser: Parser, args: argparse.Namespace) -> None:
    """One line if --compile finds no compiler, which ends the program, and if --amp is slow here:
    a CPU without bfloat16 instructions takes many times as long."""
    compilers = os.environ.get("CXX", ""), "g++", "clang++", "c++", "cl", "gcc", "clang", "cc"
    if args.compile and not any(map(shutil.which, compilers)):
        parser.error("--compile: there is no C++ compiler, such as g++ or clang++: install one, or "
                     "leave out --compile")
    if args.amp and args.device == "cpu" and not has_bfloat16():
        warn("--amp: this CPU has no bfloat16 instructions, so 16 bits are many times slower than "
             "32: leave it out")


def check_white(parser: Parser, args: argparse.Namespace) -> None:
    """Ends the program with one line if --white is not a 16-bit value."""
    if args.white is not None and not 0 < args.white < 65536:
        parser.error(f"--white {args.white}: needs a 16-bit value, 1 to 65535")


def infer_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of `infer.py`."""
    parser = Parser(description=INFER, epilog=INFER_EXAMPLES,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", nargs="+", type=Path, metavar="SLIDE", help="image files")
    add = parser.add_argument_group("network").add_argument
    add("--model", type=Path, required=True, nargs="+", metavar="FILE",
        help="model.pt of a run; the probabilities of several models are averaged")
    add("--tta", action="store_true", help="test-time augmentation: average the eight flips and "
        "quarter turns of each tile, for eight times the work")
    add("--threshold", type=float, metavar="P",
        help="probability from which a pixel is positive (default: the mean of the models')")
    add("--white", type=int, metavar="N",
        help="value of white in 16-bit slides that do not state it (default: as in training)")
    add = parser.add_argument_group("tiling").add_argument
    add("--tile", type=int, metavar="PX",
        help="side of a tile, after scaling (default: as in training)")
    add("--overlap", type=float, default=0.5, metavar="SHARE",
        help="share of a tile that the next tile covers, too, 0 to 0.9 (default 0.5)")
    add("--window", default="linear", choices=("linear", "gaussian", "hann", "uniform"),
        help="how a tile's weights fall towards its border (default linear)")
    add("--skip-flat", action="store_true",
        help="skip tiles without contrast, such as bare glass: their result is 0")
    add = parser.add_argument_group("run").add_argument
    add("--batch", type=int, default=8, metavar="N", help="tiles in a batch (default 8)")
    add("--amp", action="store_true", help="mixed precision: the network computes in 16 bits")
    add("--compile", action="store_true",
        help="torch.compile, for GPUs: takes a while to start")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: cuda if there is one)")
    add = parser.add_argument_group("output").add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the masks")
    add("--probabilities", action="store_true", help="also write probabilities, as 8-bit TIFF")
    add("--geojson", action="store_true", help="also write objects as polygons, for QuPath")
    add("--min-area", type=int, default=0, metavar="PX",
        help="leave objects smaller than this out of --geojson (default 0)")
    add("--rle", type=Path, metavar="FILE",
        help="also write a CSV of HuBMAP's run-length codes, with the columns id and predicted")
    args = parser.parse_args(argv)
    args.device = parser.device(args.device)
    check_infer_options(parser, args)
    check_device_options(parser, args)
    if args.device == "cpu" and not (args.amp or args.compile) and has_bfloat16():
        print("this CPU has bfloat16 instructions: --amp would be faster", flush=True)
    return args


def check_infer_options(parser: Parser, args: argparse.Namespace) -> None:
    """Ends the program with one line if a value is out of range, or contradicts another."""
    if not 0 <= args.overlap <= 0.9:
        parser.error(f"--overlap {args.overlap}: needs a share from 0 to 0.9")
    for name in ("tile", "batch"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: needs a number from 1 up")
    check_white(parser, args)
    if args.min_area < 0 or (args.min_area and not args.geojson):
        parser.error(f"--min-area {args.min_area}: needs pixels from 0 up, and --geojson")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        parser.error(f"--threshold {args.threshold}: is a probability, 0 to 1")
