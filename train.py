"""Train a U-Net on slides and score it on slides that it has not seen.

    python train.py                 synthetic kidney slides, drawn on first use
    python train.py --data DIR      your own: DIR/images, DIR/masks and, if you can, groups.csv

One fold of the data is held out (whole groups, never single images). The run's folder then holds
config.json, and in fold0/ log.csv, curves.png, preview.png, score.json and model.pt for infer.py.
"""

import csv
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from minseg import UNet, best_threshold, dice_score, group_folds, make_loss, predict_bands
from minseg.data.augment import augment
from minseg.data.slides import find_slides
from minseg.data.synthetic import write_slides
from minseg.data.tiles import LabelledSlide, Tiles
from minseg.efficientnet import SCALES
from minseg.run.checkpoint import atomic, save_model
from minseg.run.report import Parser, Progress, contact_sheet, draw_curves, draw_outlines, duration

THRESHOLD = 0.5  # a held-out fold is scored with this, not with the threshold that flatters it


def parse(argv=None):
    """The command line; what is not given depends on the data."""
    parser = Parser(description=__doc__.split("\n")[0])
    group = parser.add_argument_group("data")
    group.add_argument("--data", type=Path, metavar="DIR", help="default: synthetic slides")
    group.add_argument("--scale", type=int, metavar="S",
                       help="train on images S times smaller (default 1; synthetic 4)")
    group.add_argument("--tile", type=int, metavar="PX",
                       help="side of a training tile at that scale (default 256; synthetic 128)")
    group.add_argument("--stride", type=int, metavar="PX",
                       help="from one tile to the next (default: half a tile)")
    group.add_argument("--folds", type=int, metavar="K",
                       help="parts to cut the groups into (default 5, or as many as there are)")
    group.add_argument("--fold", type=int, default=0, metavar="I",
                       help="the part to hold out, 0 to K-1 (default 0)")
    group = parser.add_argument_group("network")
    group.add_argument("--encoder", default="efficientnet-b0", metavar="NAME", choices=SCALES,
                       help="efficientnet-b0 to -b7 or -lite0 to -lite4 (default efficientnet-b0)")
    group = parser.add_argument_group("loss")
    group.add_argument("--loss", default="bce+dice", metavar="SUM",
                       help="bce, dice and lovasz, joined by +, as 0.5*bce+dice (default bce+dice)")
    group = parser.add_argument_group("run")
    group.add_argument("--epochs", type=int, metavar="N",
                       help="passes over the tiles (default 20; synthetic 14)")
    group.add_argument("--batch", type=int, default=8, metavar="N", help="tiles a step (default 8)")
    group.add_argument("--lr", type=float, default=5e-3, metavar="LR",
                       help="highest learning rate (default 5e-3)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    group.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cuda if there)")
    group.add_argument("--out", type=Path, metavar="DIR",
                       help="folder of the run (default: runs/ and the name of the data)")
    args = parser.parse_args(argv)

    synthetic = args.data is None
    for name, small, usual in (("scale", 4, 1), ("tile", 128, 256), ("epochs", 14, 20)):
        if getattr(args, name) is None:
            setattr(args, name, small if synthetic else usual)
    args.stride = args.tile // 2 if args.stride is None else args.stride
    args.out = args.out or Path("runs") / ("synthetic" if synthetic else args.data.resolve().name)
    args.device = parser.device(args.device)
    for name in ("scale", "tile", "stride", "epochs", "batch", "lr"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"--{name} {getattr(args, name)}: needs a number above 0")
    if args.stride > args.tile:
        parser.error(f"--stride {args.stride} leaves gaps: it is longer than --tile {args.tile}")
    if not 0 <= args.seed < 2**63:
        parser.error(f"--seed {args.seed}: needs a whole number from 0 to 2^63 - 1")
    return args


def prepare(args):
    """Reads and checks everything, writes only synthetic slides. ValueError says what is wrong."""
    loss = make_loss(args.loss)
    config = {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items()}
    del config["fold"], config["device"]
    folder = args.out / f"fold{args.fold}"
    if folder.exists():
        raise ValueError(f"{folder}: holds a run already: give another --out, or delete it")
    written = args.out / "config.json"
    if written.exists() and written.read_text() != json.dumps(config, indent=2) + "\n":
        raise ValueError(f"{args.out}: holds a run with other settings: give another --out")

    data = args.data
    if data is None:
        data = args.out.parent / "synthetic-slides"
        if not data.exists():
            print(f"drawing 20 synthetic slides in {data}", flush=True)
            data.parent.mkdir(parents=True, exist_ok=True)
            write_slides(data, 20)
    items = find_slides(data)
    groups = [item.group for item in items]
    progress = Progress(len(items), "reading slides")
    slides = []
    for item in items:
        slides.append(LabelledSlide(item, args.scale))
        progress.step()
    positives = [int(slide.mask.sum()) for slide in slides]
    if not any(positives):
        raise ValueError(f"{data / 'masks'}: no mask has a positive pixel: nothing to learn from")
    if len(set(groups)) < 2:
        raise ValueError(f"{data}: is all one group: one has to be held out, so add another")
    if args.folds is None:
        args.folds = max(2, min(5, len(set(groups))))
    folds = group_folds(groups, positives, args.folds)
    if not 0 <= args.fold < args.folds:
        raise ValueError(f"--fold {args.fold}: with {args.folds} folds it is 0 to {args.folds - 1}")
    trained = [slide for slide, fold in zip(slides, folds) if fold != args.fold]
    held_out = [slide for slide, fold in zip(slides, folds) if fold == args.fold]
    if not any(slide.mask.any() for slide in trained):
        raise ValueError(f"{data}: outside fold {args.fold} no mask has a positive pixel: "
                         "use another --fold")
    tiles = Tiles(trained, args.tile, args.stride, margin=args.tile // 8)
    if not tiles.mask_area.any():
        raise ValueError(f"{data / 'masks'}: nothing positive is left at --scale {args.scale}: "
                         "use a smaller one")

    print(f"{data}: {len(slides)} images in {len(set(groups))} groups, fold {args.fold} of "
          f"{args.folds} held out: {len(trained)} images to train on, {len(held_out)} to score")
    if not (data / "groups.csv").exists():
        print("no groups.csv: each image counts alone, and one patient may be on both sides")
    print(f"{len(tiles)} tiles of {args.tile} x {args.tile} pixels, "
          f"{int(tiles.blank.sum())} of them blank and left out")

    # Stochastic depth keeps long runs from overfitting and holds short ones up: the paper's 0.2
    # from 50,000 steps on.
    steps = args.epochs * len(tiles) / args.batch
    network = {"encoder": args.encoder, "stochastic_depth": 0.2 * min(1, steps / 50_000)}
    torch.manual_seed(args.seed)
    net = UNet(**network).to(args.device)
    network.update(mean=net.mean.flatten().tolist(), std=net.std.flatten().tolist())
    return net, network, loss, tiles, held_out, folder, config


def learning_rate(step, steps):
    """Share of the highest rate: up over a tenth (500 steps at most), then down half a cosine."""
    warm_up = max(1, min(500, steps // 10))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


@torch.inference_mode()
def predict(net, slides, args, overlap=0.5):
    """Probabilities of whole slides at their files' own size, uint8 in steps of 1/255."""
    net.eval()

    def probabilities(tiles):  # uint8 (N, 3, tile, tile) -> (N, 1, tile, tile)
        return net(tiles.to(args.device).float() / 255).sigmoid()

    results = []
    for slide in (labelled.slide for labelled in slides):
        stride = max(1, round(args.tile * (1 - overlap)))
        bands = predict_bands(probabilities, slide.read, slide.height, slide.width,
                              tile=args.tile, stride=stride, batch=args.batch)
        result = torch.cat([band[0] for _, band in slide.enlarge(bands)])  # (H, W)
        result = (result * 255).round().byte().numpy()
        results.append(result)
    return results


def dice(results, slides, threshold=THRESHOLD):
    """Dice of each slide, and Dice pooled over the pixels of all."""
    masks = [torch.from_numpy(result >= threshold * 255) for result in results]
    targets = [torch.from_numpy(slide.mask) for slide in slides]
    each = [dice_score(mask, target) for mask, target in zip(masks, targets)]
    flat = [torch.cat([mask.flatten() for mask in side]) for side in (masks, targets)]
    return each, dice_score(*flat)


def train(args, net, loss, tiles, held_out, folder):
    """The training loop. Returns the network with averaged weights."""
    net = net.to(memory_format=torch.channels_last)
    usable = (~tiles.blank).nonzero()[:, 0]
    batch = min(args.batch, len(usable))
    batches = len(usable) // batch
    steps = args.epochs * batches

    weights = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim == 1]  # norms and biases are not shrunk
    optimizer = torch.optim.AdamW([{"params": weights, "weight_decay": 1e-2},
                                   {"params": others, "weight_decay": 0}], args.lr, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, steps))
    # The average reaches back over a twentieth of the run, batch norm's statistics included.
    average = get_ema_multi_avg_fn(1 - 1 / max(10, steps / 20))
    averaged = AveragedModel(net, multi_avg_fn=average, use_buffers=True)

    generator = torch.Generator().manual_seed(args.seed)
    progress = Progress(steps, "training")
    rows = []
    for epoch in range(args.epochs):
        start, total = time.monotonic(), torch.zeros((), device=args.device)
        net.train()
        order = usable[torch.randperm(len(usable), generator=generator)]
        for indices in order[: batches * batch].view(batches, batch).tolist():
            images, masks = (t.to(args.device) for t in tiles.batch(indices))
            images, targets = augment(images, masks, args.tile, generator)
            value = loss(net(images.contiguous(memory_format=torch.channels_last)), targets)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            averaged.update_parameters(net)
            total += value.detach()
            progress.step(text=f"epoch {epoch + 1}/{args.epochs}")

        if not total.isfinite():
            raise FloatingPointError(f"the loss is no longer finite in epoch {epoch + 1}: "
                                     f"delete {folder} and lower --lr")

        results = predict(averaged.module, held_out, args, overlap=0)  # quick: no overlap
        rows.append({"epoch": epoch + 1, "steps": (epoch + 1) * batches,
                     "loss": round(total.item() / batches, 5),
                     "held_out_dice": round(dice(results, held_out)[1], 5),
                     "seconds": round(time.monotonic() - start, 1)})
        row = rows[-1]
        progress.say(f"epoch {row['epoch']}  loss {row['loss']:.4f}  "
                     f"held-out Dice {row['held_out_dice']:.4f}  {row['seconds']} s")
        with atomic(folder / "log.csv") as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        draw_curves(folder / "curves.png",
                    {"loss": [row["loss"] for row in rows],
                     "held-out Dice": [row["held_out_dice"] for row in rows]},
                    f"{args.encoder}, {args.loss}, {folder}")
    return averaged.module


def report(args, network, net, held_out, folder):
    """Scores the held-out slides, stitched from weighted tiles; writes model, score, preview."""
    results = predict(net, held_out, args)
    each, pooled = dice(results, held_out)
    threshold, best = best_threshold([torch.from_numpy(result) for result in results],
                                     [torch.from_numpy(slide.mask) for slide in held_out])
    state = {name: value.cpu() for name, value in net.state_dict().items()}
    save_model(folder / "model.pt", network, state, scale=args.scale, tile=args.tile,
               threshold=threshold)

    names = [slide.item.id for slide in held_out]
    score = {"threshold": THRESHOLD, "pooled_dice": pooled, "mean_dice": float(np.mean(each)),
             "dice": dict(zip(names, each)), "best_threshold": threshold}
    with atomic(folder / "score.json") as temporary:
        temporary.write_text(json.dumps(score, indent=2) + "\n")

    worst_first = sorted(range(len(each)), key=each.__getitem__)
    chosen = worst_first if len(each) <= 8 else worst_first[:4] + worst_first[-4:]
    contact_sheet(folder / "preview.png", [
        (draw_outlines(held_out[i].image, results[i] >= THRESHOLD * 255, held_out[i].mask),
         f"{names[i]}: Dice {each[i]:.3f}") for i in chosen])

    print("\nDice of the held-out images (threshold 0.5):")
    for i in worst_first[:10]:
        print(f"  {each[i]:.4f}  {names[i]}")
    if len(each) > 10:
        print(f"  ... and {len(each) - 10} better ones, in {folder / 'score.json'}")
    print(f"pooled Dice {pooled:.4f}, mean {np.mean(each):.4f} over {len(each)} images "
          f"(best possible: {best:.4f} with threshold {threshold:.2f}, which model.pt keeps)")


def main(argv=None):
    """Prepare, train, report."""
    args = parse(argv)
    start = time.monotonic()
    try:
        net, network, loss, tiles, held_out, folder, config = prepare(args)
        folder.mkdir(parents=True)
        with atomic(args.out / "config.json") as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n")
    except (ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    try:
        net = train(args, net, loss, tiles, held_out, folder)
        report(args, network, net, held_out, folder)
    except (FloatingPointError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"{duration(time.monotonic() - start)}; look at {folder / 'preview.png'}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ntrain.py: stopped")
