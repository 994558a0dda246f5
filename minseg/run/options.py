"""# The options of `train.py` and `infer.py`"""

import argparse
import math
from pathlib import Path

from ..efficientnet import SCALES
from ..losses import first_stage, make_loss
from .report import Parser

TRAIN = "Train a U-Net on slides and score it on slides that it has not seen."
INFER = "Segment slides of any size with trained networks."

RECIPES = {
    "post": {"encoder": "efficientnet-b0", "tile": 640, "batch": 16, "loss": "dice",
             "then": "lovasz", "switch": 0.6, "negatives": 1.0},
    "winner-like": {"attention": "cbam3", "hypercolumn": True, "deep_supervision": True,
                    "loss": "bce+lovasz", "batch": 16, "negatives": "balanced"},
}


def data_options(add):
    """What to train on."""
    add("--data", type=Path, metavar="DIR", help="default: synthetic slides")
    add("--scale", type=int, metavar="S",
        help="train on images S times smaller (default 1; synthetic 4)")
    add("--tile", type=int, metavar="PX",
        help="side of a training tile at that scale (default 256; synthetic 128)")
    add("--stride", type=int, metavar="PX", help="from one tile to the next (default: half a tile)")
    add("--folds", type=int, metavar="K", help="cut the groups into K folds, hold each out in turn "
        "(default: 5 or as many as there are, only fold 0)")
    add("--fold", type=int, metavar="I",
        help="hold out fold I only, 0 to K-1: folds can run as processes apart")
    add("--negatives", type=number_all_or_balanced, default="all", metavar="R",
        help="tiles without a positive pixel, drawn anew each epoch: R per tile with one; all "
        "(default); balanced: 1, and bins of mask area")
    add("--exclude", type=Path, metavar="FILE",
        help="leave images out: their IDs, one a line (a table: its first column)")
    add("--label", nargs="+", metavar="NAME",
        help="polygon classes to find (default: all except those in --ignore)")
    add("--ignore", nargs="+", metavar="NAME", help="polygon classes to leave out of training "
        "and scoring; 255 does the same for that value in mask images")
    add("--white", type=int, metavar="N",
        help="value of white in 16-bit slides that do not state it (default 65535)")


def train_parser():
    """The parser of `train.py`."""
    parser = Parser(description=TRAIN)
    switch = {"action": argparse.BooleanOptionalAction, "default": False}
    data_options(parser.add_argument_group("data").add_argument)
    add = parser.add_argument_group("network").add_argument
    add("--encoder", default="efficientnet-b0", metavar="NAME", choices=SCALES,
        help="efficientnet-b0 to -b7 or -lite0 to -lite4 (default efficientnet-b0)")
    add("--weights", metavar="FILE",
        help="the encoder's: imagenet, or a published checkpoint (default none)")
    add("--gates", **switch, help="attention gates on the skips")
    add("--attention", default="none", choices=("none", "scse", "cbam", "cbam3"),
        help="in each decoder block (cbam3: 3 x 3, no norm; default none)")
    add("--hypercolumn", **switch, help="the head sees the decoder's maps of all sizes")
    add("--deep-supervision", **switch, help="a loss each size")
    add = parser.add_argument_group("loss").add_argument
    add("--loss", default="bce+dice", metavar="SUM",
        help="bce, dice and lovasz, joined by +, as 0.5*bce+dice (default bce+dice)")
    add("--then", metavar="SUM", help="the loss of a second stage (default none)")
    add("--switch", type=float, default=0.6, metavar="SHARE",
        help="of the steps, after which the second stage begins (default 0.6)")
    add = parser.add_argument_group("run").add_argument
    add("--recipe", choices=RECIPES,
        help="sets other options, as it prints; those given beside it win")
    add("--epochs", type=float, metavar="N",
        help="passes over the tiles, 2.5 as well (default 20; synthetic 14)")
    add("--batch", type=int, default=8, metavar="N", help="tiles at once (default 8)")
    add("--accumulate", type=int, default=1, metavar="N",
        help="batches a step: their gradients are averaged (default 1)")
    add("--lr", type=float, default=5e-3, help="highest learning rate (default 5e-3)")
    add("--encoder-lr", type=float, default=0.5, metavar="SHARE",
        help="of --lr, for an encoder with --weights (default 0.5)")
    add("--amp", choices=("auto", "on", "off"), default="auto",
        help="16-bit numbers in the network (default auto: on CUDA)")
    add("--compile", action="store_true", help="torch.compile: minutes to start, then faster")
    add("--checkpoint-activations", action="store_true",
        help="compute blocks twice instead of keeping their insides: less memory")
    add("--workers", type=int, default=2, metavar="N", help="threads that read ahead (default 2)")
    add("--seed", type=int, default=0, metavar="N", help="default 0")
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: cuda if there)")
    add("--resume", action="store_true", help="go on with folds that were interrupted")
    add("--out", type=Path, metavar="DIR", help="default: runs/ and the name of the data")
    return parser


def number_all_or_balanced(text):
    """What --negatives takes; argparse shows this name where it is something else."""
    if text not in ("all", "balanced") and not 0 <= float(text) < math.inf:
        raise ValueError
    return text if text.isalpha() else float(text)


def train_options(argv=None):
    """The command line; what is not given depends on the recipe and on the data."""
    parser = train_parser()
    args = parser.parse_args(argv)
    if args.recipe:
        recipe = RECIPES[args.recipe]
        parser.set_defaults(**recipe)
        args = parser.parse_args(argv)  # again, with the recipe's values as defaults
        words = [f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
                 for name, value in recipe.items() if getattr(args, name) == value]
        print(f"--recipe {args.recipe}: {' '.join(words)}")
    for name in ("then", "weights"):  # "none" takes back what a recipe set
        setattr(args, name, None if getattr(args, name) == "none" else getattr(args, name))
    synthetic = args.data is None
    for name, small, usual in (("scale", 4, 1), ("tile", 128, 256), ("epochs", 14, 20)):
        if getattr(args, name) is None:
            setattr(args, name, small if synthetic else usual)
    args.stride = max(1, args.tile // 2) if args.stride is None else args.stride
    args.out = args.out or Path("runs") / ("synthetic" if synthetic else args.data.resolve().name)
    args.device = parser.device(args.device)
    args.amp = args.amp == "on" or (args.amp == "auto" and args.device.startswith("cuda"))
    for name in ("scale", "tile", "stride", "epochs", "batch", "accumulate", "workers", "lr",
                 "encoder_lr"):
        if not 0 < getattr(args, name) < (math.inf if "lr" in name else 2**31):
            option = f"--{name.replace('_', '-')}"
            parser.error(f"{option} {getattr(args, name)}: needs a number above 0")
    if args.stride > args.tile:
        parser.error(f"--stride {args.stride} leaves gaps: it is longer than --tile {args.tile}")
    if args.white is not None and not 0 < args.white < 65536:
        parser.error(f"--white {args.white}: is a value of 16 bits, 1 to 65535")
    if both := set(args.label or ()) & set(args.ignore or ()):
        parser.error(f"--label and --ignore both name {', '.join(both)}")
    if not 0 <= args.seed < 2**63:
        parser.error(f"--seed {args.seed}: needs a whole number from 0 to 2^63 - 1")
    try:
        args.losses = [make_loss(spec) for spec in (args.loss, args.then) if spec is not None]
        first_stage(2, args.switch)  # a share that cannot be is told now
    except ValueError as error:
        parser.error(f"--loss, --then, --switch: {error}")
    return args


def infer_options(argv=None):
    """The command line."""
    parser = Parser(description=INFER)
    parser.add_argument("slides", nargs="+", type=Path, metavar="SLIDE", help="image files")
    group = parser.add_argument_group("network")
    group.add_argument("--model", type=Path, required=True, nargs="+", metavar="FILE",
                       help="model.pt of a run; the probabilities of several are averaged")
    group.add_argument("--tta", action="store_true",
                       help="average flips and quarter turns of each tile: 8 times the work")
    group.add_argument("--threshold", type=float, metavar="P",
                       help="probability from which a pixel is positive "
                       "(default: the mean of the models')")
    group.add_argument("--white", type=int, metavar="N", help="value of white in 16-bit slides "
                       "that do not state it (default: as in training)")
    group = parser.add_argument_group("tiling")
    group.add_argument("--tile", type=int, metavar="PX", help="default: the tile of training")
    group.add_argument("--overlap", type=float, default=0.5, metavar="SHARE",
                       help="of a tile with the next, 0 to 0.9 (default 0.5)")
    group.add_argument("--window", default="linear",
                       choices=("linear", "gaussian", "hann", "uniform"),
                       help="how weights fall towards a tile's border (default linear)")
    group.add_argument("--skip-flat", action="store_true",
                       help="leave out tiles without contrast: bare glass holds nothing")
    group = parser.add_argument_group("run")
    group.add_argument("--batch", type=int, default=8, metavar="N", help="tiles at once, default 8")
    group.add_argument("--amp", action="store_true",
                       help="16-bit numbers in the network where they are good enough")
    group.add_argument("--compile", action="store_true", help="torch.compile: a slow start, then "
                       "faster")
    group.add_argument("--device", metavar="NAME",
                       help="cpu, cuda or cuda:N (default: cuda if there)")
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, required=True, metavar="DIR",
                       help="folder for the masks")
    group.add_argument("--probabilities", action="store_true",
                       help="write those, too, as 8-bit TIFF")
    group.add_argument("--geojson", action="store_true",
                       help="write objects as polygons, for QuPath")
    group.add_argument("--min-area", type=int, default=0, metavar="PX",
                       help="leave smaller objects out of --geojson (default 0)")
    group.add_argument("--rle", type=Path, metavar="FILE",
                       help="CSV with the columns id and predicted, HuBMAP's run-length form")
    args = parser.parse_args(argv)
    args.device = parser.device(args.device)
    if not 0 <= args.overlap <= 0.9:
        parser.error(f"--overlap {args.overlap}: needs a share from 0 to 0.9")
    for name in ("tile", "batch"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: needs a number from 1 up")
    if args.white is not None and not 0 < args.white < 65536:
        parser.error(f"--white {args.white}: is a value of 16 bits, 1 to 65535")
    if args.min_area < 0 or (args.min_area and not args.geojson):
        parser.error(f"--min-area {args.min_area}: needs pixels from 0 up, and --geojson")
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        parser.error(f"--threshold {args.threshold}: is a probability, 0 to 1")
    return args
