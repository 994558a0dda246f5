"""Train a U-Net on slides and score it on slides that it has not seen.

    python train.py                          synthetic kidney slides, drawn on first use; one fold
    python train.py --data DIR --folds 5     DIR/images, DIR/masks, DIR/groups.csv, or HuBMAP's
                                             DIR/train, DIR/train.csv; all folds

The run's folder holds config.json, and for each fold (of whole groups, never of single images)
log.csv, curves.png, preview.png, score.json, probabilities/ and model.pt, for infer.py; when every
fold is there, summary.json.
"""

import argparse
import json
import math
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from minseg import (EfficientNet, UNet, deep_supervision_loss, epoch_indices, group_folds,
                    load_weights, make_loss, predict_bands)
from minseg.crossval import count_levels
from minseg.data.augment import augment
from minseg.data.datasets import Mask, find_slides
from minseg.data.files import atomic
from minseg.data.slides import open_slide
from minseg.data.synthetic import write_slides
from minseg.data.tiles import Tiles, cut
from minseg.efficientnet import SCALES
from minseg.losses import first_stage
from minseg.run.bands import write_tiff
from minseg.run.checkpoint import save_model
from minseg.run.predictor import predictor
from minseg.run.report import Parser, Progress, duration
from minseg.run.scores import save_fold, save_log, score, summarize

RECIPES = {
    "post": {"encoder": "efficientnet-b0", "tile": 640, "batch": 16, "loss": "dice",
             "then": "lovasz", "switch": 0.6, "negatives": 1.0},
    "winner-like": {"attention": "cbam3", "hypercolumn": True, "deep_supervision": True,
                    "loss": "bce+lovasz", "batch": 16, "negatives": "balanced"},
}


def options():
    """The parser."""
    parser = Parser(description=__doc__.split("\n")[0])
    switch = argparse.BooleanOptionalAction
    group = parser.add_argument_group("data")
    group.add_argument("--data", type=Path, metavar="DIR", help="default: synthetic slides")
    group.add_argument("--scale", type=int, metavar="S",
                       help="train on images S times smaller (default 1; synthetic 4)")
    group.add_argument("--tile", type=int, metavar="PX",
                       help="side of a training tile at that scale (default 256; synthetic 128)")
    group.add_argument("--stride", type=int, metavar="PX",
                       help="from one tile to the next (default: half a tile)")
    group.add_argument("--folds", type=int, metavar="K", help="cut the groups into K parts, hold "
                       "each out in turn (default: 5 or as many as there are, only part 0)")
    group.add_argument("--fold", type=int, metavar="I",
                       help="hold out part I only, 0 to K-1: folds can run as processes apart")
    group.add_argument("--negatives", type=number_all_or_balanced, default="all", metavar="R",
                       help="tiles without a positive pixel, drawn anew each epoch: R per tile "
                       "with one; all (default); balanced: 1, and bins of mask area")
    group = parser.add_argument_group("network")
    group.add_argument("--encoder", default="efficientnet-b0", metavar="NAME", choices=SCALES,
                       help="efficientnet-b0 to -b7 or -lite0 to -lite4 (default efficientnet-b0)")
    group.add_argument("--weights", metavar="FILE",
                       help="the encoder's: imagenet, or a published checkpoint (default random)")
    group.add_argument("--gates", action=switch, default=False, help="attention gates on the skips")
    group.add_argument("--attention", default="none", choices=("none", "scse", "cbam", "cbam3"),
                       help="in each decoder block (cbam3: 3 x 3, no norm; default none)")
    group.add_argument("--hypercolumn", action=switch, default=False,
                       help="the head sees the decoder's maps of all sizes")
    group.add_argument("--deep-supervision", action=switch, default=False, help="a loss each size")
    group = parser.add_argument_group("loss")
    group.add_argument("--loss", default="bce+dice", metavar="SUM",
                       help="bce, dice and lovasz, joined by +, as 0.5*bce+dice (default bce+dice)")
    group.add_argument("--then", metavar="SUM", help="the loss of a second stage (default none)")
    group.add_argument("--switch", type=float, default=0.6, metavar="SHARE",
                       help="of the epochs, after which the second stage begins (default 0.6)")
    group = parser.add_argument_group("run")
    group.add_argument("--recipe", choices=RECIPES,
                       help="sets other options, as it prints; those given beside it win")
    group.add_argument("--epochs", type=int, metavar="N",
                       help="passes over the tiles (default 20; synthetic 14)")
    group.add_argument("--batch", type=int, default=8, metavar="N", help="tiles a step (default 8)")
    group.add_argument("--lr", type=float, default=5e-3, metavar="LR",
                       help="highest learning rate (default 5e-3)")
    group.add_argument("--encoder-lr", type=float, default=0.5, metavar="SHARE",
                       help="of --lr, for an encoder with --weights (default 0.5)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    group.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda if there)")
    group.add_argument("--out", type=Path, metavar="DIR",
                       help="folder of the run (default: runs/ and the name of the data)")
    return parser


def number_all_or_balanced(text):
    """What --negatives takes; argparse shows this name where it is something else."""
    if text not in ("all", "balanced") and not 0 <= float(text) < math.inf:
        raise ValueError
    return text if text.isalpha() else float(text)


def parse(argv=None):
    """The command line; what is not given depends on the recipe and on the data."""
    parser = options()
    args = parser.parse_args(argv)
    if args.recipe:
        recipe = RECIPES[args.recipe]
        parser.set_defaults(**recipe)
        args = parser.parse_args(argv)
        words = [f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
                 for name, value in recipe.items() if getattr(args, name) == value]
        print(f"--recipe {args.recipe}: {' '.join(words)}")
    args.then = None if args.then == "none" else args.then
    synthetic = args.data is None
    for name, small, usual in (("scale", 4, 1), ("tile", 128, 256), ("epochs", 14, 20)):
        if getattr(args, name) is None:
            setattr(args, name, small if synthetic else usual)
    args.stride = max(1, args.tile // 2) if args.stride is None else args.stride
    args.out = args.out or Path("runs") / ("synthetic" if synthetic else args.data.resolve().name)
    args.device = parser.device(args.device)
    for name in ("scale", "tile", "stride", "epochs", "batch", "lr", "encoder_lr"):
        if not 0 < getattr(args, name) < (math.inf if "lr" in name else 2**31):
            option = f"--{name.replace('_', '-')}"
            parser.error(f"{option} {getattr(args, name)}: needs a number above 0")
    if args.stride > args.tile:
        parser.error(f"--stride {args.stride} leaves gaps: it is longer than --tile {args.tile}")
    if not 0 <= args.seed < 2**63:
        parser.error(f"--seed {args.seed}: needs a whole number from 0 to 2^63 - 1")
    try:
        args.losses = [make_loss(spec) for spec in (args.loss, args.then) if spec is not None]
        args.first = first_stage(args.epochs, args.switch) if args.then else args.epochs
    except ValueError as error:
        parser.error(f"--loss, --then, --switch: {error}")
    return args


def prepare(args):
    """Reads and checks everything, writes synthetic slides and the tile cache only. ValueError says
    what is wrong. Returns the images, the fold of each, their tiles, and the folds to train."""
    if args.folds is None and args.fold is None:
        args.fold = 0
    folder = args.out / f"fold{args.fold}"
    if args.fold is not None and folder.exists():
        raise ValueError(f"{folder}: holds a run already: give another --out, or delete it")
    if args.weights:  # said before slides are cut
        load_weights(EfficientNet(args.encoder, num_classes=0), args.weights)
    if args.data is None:
        args.data = draw(args.out.parent / "synthetic-slides")
    items = find_slides(args.data)
    groups = [item.group for item in items]
    several = len(set(groups))
    if several < 2:
        raise ValueError(f"{args.data}: is all one group: one has to be held out, so add another")
    args.folds = min(5, several) if args.folds is None else args.folds
    if not 2 <= args.folds <= several:
        raise ValueError(f"--folds {args.folds}: with {several} groups it is 2 to {several}")
    if args.fold is not None and not 0 <= args.fold < args.folds:
        raise ValueError(f"--fold {args.fold}: with {args.folds} folds it is 0 to {args.folds - 1}")
    written = args.out / "config.json"
    if any(args.out.glob("fold*")) and written.exists() and written.read_text() != config(args):
        raise ValueError(f"{args.out}: holds a run with other settings: give another --out")

    facts, tiles = cut_all(items, args)
    masks = items[0].mask if items[0].runs is not None else items[0].mask.parent
    if not any(found["positive"] for found in facts):
        raise ValueError(f"{masks}: no mask has a positive pixel: nothing to learn from")
    if not tiles.mask_area.any():
        raise ValueError(f"{masks}: nothing positive is left at --scale {args.scale}: use a "
                         "smaller one")
    folds = group_folds(groups, [found["positive"] for found in facts], args.folds)
    chosen = range(args.folds) if args.fold is None else [args.fold]
    for fold in chosen:
        if not tiles.mask_area[outside(tiles, folds, fold)].any():
            raise ValueError(f"{args.data}: outside fold {fold} no mask has a positive pixel: "
                             "add images of other groups that have some")

    print(f"{args.data}: {len(items)} images in {several} groups, {args.folds} folds of "
          + ", ".join(str(folds.count(fold)) for fold in range(args.folds)))
    if all(item.group == item.id for item in items):
        print("no groups: each image counts alone, and one patient may be on both sides")
    print(f"{len(tiles)} tiles of {args.tile} x {args.tile} pixels, "
          f"{int((tiles.mask_area > 0).sum())} of them with something to find; {tiles.blank} "
          "blank ones are left out of training")
    return items, folds, tiles, chosen


def draw(folder):
    """Synthetic slides, unless they are there."""
    if not folder.exists():
        print(f"drawing 20 synthetic slides in {folder}", flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_slides(folder, 20)
        except (OSError, ValueError):
            if not folder.exists():  # else another process was faster
                raise
    return folder


def cut_all(items, args):
    """The tiles of all images, cut once for all folds and all runs beside this one."""
    cache, margin = args.out.parent / "tiles", args.tile // 8
    cache.mkdir(parents=True, exist_ok=True)
    progress = Progress(len(items), "cutting slides")
    facts = [cut(item, cache, scale=args.scale, tile=args.tile, stride=args.stride, margin=margin,
                 progress=progress.step) for item in items]
    known = [found["microns"] for found in facts if found["microns"]]
    args.microns = statistics.median(known) if known else None
    return facts, Tiles(cache, facts, args.tile, margin)


def config(args):
    """What all folds of a run share, as config.json holds it."""
    apart = ("out", "fold", "device", "losses", "first", "microns")
    shared = {name: value.resolve() if isinstance(value, Path) else value
              for name, value in vars(args).items() if name not in apart}
    return json.dumps(shared, indent=2, default=str) + "\n"


def outside(tiles, folds, fold):
    """The tiles to train on when `fold` is held out: indices."""
    return torch.tensor([folds[slide] != fold for slide, _, _ in tiles.places]).nonzero()[:, 0]


def build(args, steps):
    """The network and its arguments, which the checkpoint keeps."""
    network = {"encoder": args.encoder, "gates": args.gates, "hypercolumn": args.hypercolumn,
               "attention": None if args.attention == "none" else args.attention,
               "deep_supervision": args.deep_supervision,
               # Holds long runs back from overfitting but slows short ones: the paper's 0.2 only
               # from 50,000 steps on.
               "stochastic_depth": 0.2 * min(1, steps / 50_000)}
    torch.manual_seed(args.seed)
    net = UNet(**network)
    if args.weights:
        for ours, values in zip((net.mean, net.std), load_weights(net.encoder, args.weights)):
            ours.copy_(torch.tensor(values).view_as(ours))
    network.update(mean=net.mean.flatten().tolist(), std=net.std.flatten().tolist(),
                   padding=net.encoder.padding, bn_eps=net.encoder.bn_eps)
    return net.to(args.device, memory_format=torch.channels_last), network


def learning_rate(step, steps, first):
    """Share of the highest rate: up over a tenth (500 steps at most), then down half a cosine.

    The `first` of all `steps` are a stage of their own, and so is the rest.
    """
    step, steps = (step, first) if step < first else (step - first, steps - first)
    warm_up = max(1, min(500, steps // 10))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def predict(net, items, args, overlap=0.5, folder=None):
    """What `count_levels` counts of each image's probabilities at its file's own size; `folder`
    gets those, too, uint8 in steps of 1/255."""
    probabilities, counts = predictor([net], device=args.device), []
    for item in items:
        slide, total = open_slide(item.image, args.scale), 0
        mask = Mask(item, slide.full_height, slide.full_width)
        stride = max(1, round(args.tile * (1 - overlap)))
        bands = predict_bands(probabilities, slide.read, slide.height, slide.width, tile=args.tile,
                              stride=stride, batch=args.batch, device=args.device)
        with nullcontext(lambda band: None) if folder is None else write_tiff(
                folder / f"{item.id}.tiff", slide.full_height, slide.full_width) as write:
            for y, band in slide.enlarge(bands):
                band = (band[0] * 255).round().byte()  # (rows, width)
                total += count_levels(band, torch.from_numpy(mask.read(y, 0, *band.shape)))
                write(band.numpy())
        counts.append(total)
    return counts


def train(args, tiles, train_on, held_out, folder):
    """The training loop. Returns the network with averaged weights, and its arguments."""

    def sample(generator):  # the tiles of one epoch
        ratio = {"all": math.inf, "balanced": 1.0}.get(args.negatives, args.negatives)
        bins = 4 if args.negatives == "balanced" else None
        return train_on[epoch_indices(tiles.mask_area[train_on], negatives=ratio, bins=bins,
                                      generator=generator)]

    drawn = len(sample(torch.Generator()))  # the same number each epoch
    batch = min(args.batch, drawn)
    batches = drawn // batch
    steps, first = args.epochs * batches, args.first * batches
    net, network = build(args, steps)

    # Published weights move slowly; norms and biases are not shrunk.
    share = args.encoder_lr if args.weights else 1
    optimizer = torch.optim.AdamW([
        {"params": [p for name, p in net.named_parameters()
                    if name.startswith("encoder.") == encoder and (p.ndim > 1) == shrunk],
         "lr": args.lr * (share if encoder else 1), "weight_decay": 1e-2 * shrunk}
        for encoder in (True, False) for shrunk in (True, False)], fused=True)
    schedule = LambdaLR(optimizer, lambda step: learning_rate(step, steps, first))
    # The average reaches back over a twentieth of the run, batch norm's statistics included.
    average = get_ema_multi_avg_fn(1 - 1 / max(10, steps / 20))
    averaged = AveragedModel(net, multi_avg_fn=average, use_buffers=True)

    generator = torch.Generator().manual_seed(args.seed)
    progress = Progress(steps, f"training {folder.name}")
    rows = []
    for epoch in range(args.epochs):
        start, total = time.monotonic(), torch.zeros((), device=args.device)
        loss = args.losses[epoch >= args.first]
        net.train()
        for indices in sample(generator)[: batches * batch].view(batches, batch).tolist():
            images, masks = (t.to(args.device) for t in tiles.batch(indices))
            images, targets = augment(images, masks, args.tile, generator)
            logits = net(images.contiguous(memory_format=torch.channels_last))
            value = deep_supervision_loss(loss, logits, targets)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            averaged.update_parameters(net)
            total += value.detach()
            progress.step(text=f"epoch {epoch + 1}/{args.epochs}")

        finite = all(value.isfinite().all() for value in averaged.module.state_dict().values())
        if not finite or not total.isfinite():
            raise FloatingPointError(f"loss or weights are no longer finite in epoch {epoch + 1}: "
                                     f"delete {folder} and lower --lr")

        quick = score(predict(averaged.module, held_out, args, overlap=0), held_out)
        rows.append({"epoch": epoch + 1, "steps": (epoch + 1) * batches,
                     "stage": 1 + (epoch >= args.first), "loss": round(total.item() / batches, 5),
                     "held_out_dice": round(quick["pooled_dice"], 5),
                     "seconds": round(time.monotonic() - start, 1)})
        progress.say("epoch {epoch}  loss {loss:.4f}  held-out Dice {held_out_dice:.4f}  "
                     "{seconds} s".format(**rows[-1]))
        title = args.loss + (f", then {args.then}" if args.then else "")
        save_log(folder, rows, f"{args.encoder}, {title}, {folder}")
    return averaged.module, network


def main(argv=None):
    """Prepare; train and report, fold by fold; summarize."""
    args = parse(argv)
    start = time.monotonic()
    try:
        items, folds, tiles, chosen = prepare(args)
        args.out.mkdir(parents=True, exist_ok=True)
        with atomic(args.out / "config.json") as temporary:
            temporary.write_text(config(args))
    except (ValueError, OSError, MemoryError) as error:
        remedy = ": use a smaller --tile or a larger --scale" * isinstance(error, MemoryError)
        print(f"train.py: {error}{remedy}", file=sys.stderr)
        sys.exit(2)
    try:
        for fold in chosen:
            folder = args.out / f"fold{fold}"
            try:
                folder.mkdir()  # who makes the folder trains the fold: processes can share a run
            except FileExistsError:
                print(f"{folder}: " + ("is there already" if (folder / "model.pt").exists() else
                      "is unfinished: if no process is at work there, delete it and start again"))
                continue
            held_out = [item for item, other in zip(items, folds) if other == fold]
            print(f"{folder}: {len(items) - len(held_out)} images to train on, "
                  f"{len(held_out)} to score", flush=True)
            net, network = train(args, tiles, outside(tiles, folds, fold), held_out, folder)
            (folder / "probabilities").mkdir()
            counts = predict(net, held_out, args, folder=folder / "probabilities")
            threshold = save_fold(folder, held_out, counts)
            state = {name: value.cpu() for name, value in net.state_dict().items()}
            save_model(folder / "model.pt", network, state, scale=args.scale, tile=args.tile,
                       threshold=threshold, microns=args.microns)  # last: the fold is complete
            print(f"{duration(time.monotonic() - start)}; look at {folder / 'preview.png'}")
        summarize(args.out, items, folds)
    except (FloatingPointError, ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ntrain.py: stopped")
