"""# The race: train.py beside the recipe that other libraries document, on the same pixels

    python -m lab.race --data DIR --folds 3 --seeds 3 --budgets 75 150 300 600
    python -m lab.race --data DIR --changes 'rate 1e-3' 'no stain' --half first

Two contestants see the same tiles in the same order, with the same encoder weights, for the same
number of steps, and are scored on whole images of groups that they have not seen:

- **minseg**: `train.py` with its defaults, and its own tiled prediction.
- **peers**: segmentation_models.pytorch's U-Net, BCE + Dice, AdamW and OneCycle at 1e-3 (encoder
  3e-4), flips and quarter turns; MONAI's sliding window with its Gaussian and an overlap of 0.25.
  Without these libraries (`pip install -e '.[audit]'`) only minseg runs, and a line says so.

Each number of steps (a budget) is a run of its own, with a schedule that ends there. So the curve
over steps is honest at each of its points. Seconds are those of training alone, without scoring.
"The same time" compares minseg's curve over seconds, interpolated, with the seconds of the peers.

`--changes` runs minseg with one thing changed (`CHANGES`), to find out what a default is worth.
Tune on `--half first` of the groups and report on `--half second`. Other options go to train.py.

Each run that ends becomes a line of OUT/HOST.jsonl; the same command goes on where it stopped, and
several processes may share OUT.
"""

import argparse
import json
import math
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import train
from minseg.data.datasets import Item, find_slides
from minseg.data.masks import Mask
from minseg.data.slides import open_slide
from minseg.data.tiles import Tiles
from minseg.dice import dice_loss
from minseg.losses import LOSSES
from minseg.pretrained import load_weights
from minseg.run.loop import locked
from minseg.run.options import train_options
from minseg.run.prepare import draw_synthetic_slides, make_sampler, prepare, training_tiles
from minseg.run.report import Parser, Progress, duration
from minseg.run.scores import count_known, predict
from minseg.run.step import autocast_dtype
from minseg.unet import UNet

from . import measure
from .effects import dice_of_groups, effect
from .study import FEW, levels

BASE = ("--encoder", "efficientnet-lite0", "--weights", "imagenet")
PEERS, MINSEG = "peers", "minseg"
RATE, ENCODER_RATE, OVERLAP = 1e-3, 3e-4, 0.25  # of the peers' recipe
# One thing changed: options of train.py, or constants of its modules.
AUGMENT = "minseg.data.augment."
CHANGES: dict[str, tuple[str, ...] | dict[str, object]] = {
    "rate 1e-3": ("--lr", "1e-3"),
    "rate 2e-3": ("--lr", "2e-3"),
    "rate 1e-2": ("--lr", "1e-2"),
    "encoder 0.1": ("--encoder-lr", "0.1"),
    "encoder 0.2": ("--encoder-lr", "0.2"),
    "encoder 1": ("--encoder-lr", "1"),
    "2e-3, 0.3": ("--lr", "2e-3", "--encoder-lr", "0.3"),
    "2e-3, 1": ("--lr", "2e-3", "--encoder-lr", "1"),
    "1e-3, 0.3": ("--lr", "1e-3", "--encoder-lr", "0.3"),
    "1e-2, 0.1": ("--lr", "1e-2", "--encoder-lr", "0.1"),
    "flips and turns only": {AUGMENT + name: 0.0 for name in
                             ("ANGLE", "SCALE", "STAIN", "CONTRAST", "BRIGHTNESS")},
    "no recolouring": {AUGMENT + name: 0.0 for name in ("STAIN", "CONTRAST", "BRIGHTNESS")},
    "half the augmentation": {AUGMENT + "ANGLE": 5.0, AUGMENT + "SCALE": 0.05, AUGMENT + "STAIN": .075,
                     AUGMENT + "CONTRAST": 0.05, AUGMENT + "BRIGHTNESS": 0.05},
    "twice the augmentation": {AUGMENT + "ANGLE": 20.0, AUGMENT + "SCALE": 0.2, AUGMENT + "STAIN": .3,
                     AUGMENT + "CONTRAST": 0.2, AUGMENT + "BRIGHTNESS": 0.2},
    "twice the recolouring": {AUGMENT + "STAIN": .3,
                     AUGMENT + "CONTRAST": 0.2, AUGMENT + "BRIGHTNESS": 0.2},
    "no weight decay": {"train.WEIGHT_DECAY": 0.0},
    "weight decay 0.1": {"train.WEIGHT_DECAY": 0.1},
    "EMA 0.1": {"train.EMA_SHARE": 0.1},
    "EMA 0.2": {"train.EMA_SHARE": 0.2},
    "no EMA": {"train.EMA_SHARE": 0.0, "train.SHORTEST_EMA": 1},
    "warm-up 0.02": {"train.WARM_UP": 0.02},
    "warm-up 0.3": {"train.WARM_UP": 0.3},
    "linear": {"train.learning_rate_share": lambda step, steps, first: min(
        (step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))},
    "no stochastic depth": {"train.DEPTH": 0.0},
    "stochastic depth 0.2": {"train.DEPTH_STEPS": 1},
    "dice over the batch": {"minseg.losses.LOSSES": {
        **LOSSES, "dice": partial(dice_loss, per_image=False)}},
    "bce": ("--loss", "bce"),
    "dice": ("--loss", "dice"),
    "bce+lovasz": ("--loss", "bce+lovasz"),
    "one negative per positive": ("--negatives", "1"),
    "batch norm 0.05": {"train.build": lambda *a: momentum(0.05, *a)},
    "batch norm 0.2": {"train.build": lambda *a: momentum(0.2, *a)},
    "beta2 0.99": {"torch.optim.AdamW": partial(torch.optim.AdamW, betas=(0.9, 0.99))},
    "beta2 0.95": {"torch.optim.AdamW": partial(torch.optim.AdamW, betas=(0.9, 0.95))},
    "clipped": {"train.training_step": lambda *a, **k: clipped(*a, **k)},
}
_build, _step = train.build, train.training_step


def momentum(value, *a):
    net, network = _build(*a)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = value
    return net, network


def clipped(net, loss, micro_batches, optimizer, scaler, *a, **k):
    step = optimizer.step
    def with_clip(*aa, **kk):
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        return step(*aa, **kk)
    optimizer.step = with_clip
    try:
        return _step(net, loss, micro_batches, optimizer, scaler, *a, **k)
    finally:
        optimizer.step = step


Job = tuple[str, int, int, int]  # contestant, steps, seed, fold


@contextmanager
def changed(constants: dict[str, object]) -> Iterator[None]:
    """Inside the block, module constants have other values: {"train.EMA_SHARE": 0.1}."""
    before = []
    for name, value in constants.items():
        module, _, constant = name.rpartition(".")
        before.append((import_module(module), constant, getattr(import_module(module), constant)))
        setattr(import_module(module), constant, value)
    try:
        yield
    finally:
        for module, constant, value in before:
            setattr(module, constant, value)


def train_minseg(args: argparse.Namespace, tiles: Tiles, train_on: Tensor,
                 steps: int) -> tuple[nn.Module, float]:
    """train.py's own training, without its scoring after each epoch. Returns the network and the
    seconds that training took."""
    args.epochs = steps / len(make_sampler(args, tiles, train_on)(0))
    score, train.score = train.score, lambda *_: {"pooled_dice": 0.0}
    try:
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            net, _ = train.train(args, tiles, train_on, [], Path(folder))
            measure.synchronize()
            return net, time.monotonic() - start
    finally:
        train.score = score


class Normalised(nn.Module):
    """A network that takes images in [0, 1]."""

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)


def build_peers(args: argparse.Namespace) -> Normalised:
    """segmentation_models.pytorch's U-Net, with the encoder weights that train.py starts from."""
    import segmentation_models_pytorch as smp

    torch.manual_seed(args.seed)
    lite = args.encoder.partition("-lite")[2]
    net = smp.Unet(f"tu-tf_efficientnet_lite{lite}" if lite else args.encoder,
                   encoder_weights=None)
    ours = UNet(args.encoder)
    mean, std = ours.mean.flatten().tolist(), ours.std.flatten().tolist()
    if args.weights:
        mean, std = load_weights(ours.encoder, args.weights)
        theirs = net.encoder.state_dict()
        names = [name for name in theirs if not name.startswith(("_conv_head", "_bn1"))]
        values = ours.encoder.state_dict().values()
        net.encoder.load_state_dict({**theirs, **dict(zip(names, values, strict=True))})
    return Normalised(net, mean, std).to(args.device)


def train_peers(args: argparse.Namespace, tiles: Tiles, train_on: Tensor,
                steps: int) -> tuple[nn.Module, float]:
    """The peers' recipe, as their documentation shows it. Returns the network and the seconds."""
    import segmentation_models_pytorch as smp

    net, device = build_peers(args).train(), torch.device(args.device)
    parts = net.net
    optimizer = torch.optim.AdamW([
        {"params": parts.encoder.parameters(), "lr": ENCODER_RATE},
        {"params": [*parts.decoder.parameters(), *parts.segmentation_head.parameters()]}], RATE)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, [ENCODER_RATE, RATE], steps)
    bce, dice = nn.BCEWithLogitsLoss(), smp.losses.DiceLoss("binary")
    dtype, margin = autocast_dtype(device), (tiles.size - args.tile) // 2
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp and dtype == torch.float16)
    steps_of = make_sampler(args, tiles, train_on)
    length = len(steps_of(0))
    start = time.monotonic()
    order = [batch for epoch in range(-(-steps // length)) for [batch] in steps_of(epoch)][:steps]
    for images, masks in tiles.batches(order, args.device, args.workers):
        both = torch.cat([images, masks], 1)[..., margin:-margin, margin:-margin]
        turns = torch.randint(4, (len(both), 2)).tolist()
        both = torch.stack([(x.flip(-1) if flip % 2 else x).rot90(turn, (-2, -1))
                            for x, (turn, flip) in zip(both, turns)]).float()
        images, masks = both[:, :3] / 255, (both[:, 3:] == 1).float()
        with torch.autocast(device.type, dtype, enabled=args.amp):
            logits = net(images)
            loss = bce(logits, masks) + dice(logits, masks)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    measure.synchronize()
    return net.eval(), time.monotonic() - start


@torch.inference_mode()
def predict_peers(net: nn.Module, items: Sequence[Item], args: argparse.Namespace) -> list[Tensor]:
    """What `scores.predict` returns, with MONAI's sliding window."""
    from monai.inferers import sliding_window_inference

    counts = []
    for item in items:
        slide = open_slide(item.image, args.scale, item.white)
        image = torch.from_numpy(slide.read_all()).permute(2, 0, 1)[None].to(args.device) / 255
        with torch.autocast(image.device.type, autocast_dtype(image.device), enabled=args.amp):
            result = sliding_window_inference(image, args.tile, args.batch,
                                              lambda tiles: net(tiles).float().sigmoid(),
                                              overlap=OVERLAP, mode="gaussian")[0].cpu()
        mask = Mask(item, slide.full_height, slide.full_width)
        total = torch.zeros(2, 256).long()
        for y, band in slide.enlarge(iter([(0, result)])):
            value = (band[0] * 255).round().byte().numpy()
            total += count_known(value, mask.read(y, 0, *value.shape))
        counts.append(total)
    return counts


def options_of(args: argparse.Namespace, contestant: str, seed: int, fold: int) -> list[str]:
    """The command line of a run for `train.py`."""
    change = CHANGES.get(contestant, ())
    return ["--data", str(args.data), *BASE, *args.options,
            *(() if isinstance(change, dict) else change), "--folds", str(args.folds), "--fold",
            str(fold), "--seed", str(seed), "--out", str(args.out / "none")]


def run(args: argparse.Namespace, job: Job) -> dict:
    """One contestant's run: trains, predicts and returns its line."""
    contestant, steps, seed, fold = job
    change = CHANGES.get(contestant)
    with changed(change if isinstance(change, dict) else {}):
        given = train_options(options_of(args, contestant, seed, fold))
        data = prepare(given)
        held_out = [item for item, other in zip(data.items, data.folds) if other == fold]
        train_on = training_tiles(data.tiles, data.folds, fold)
        if contestant == PEERS:
            net, seconds = train_peers(given, data.tiles, train_on, steps)
            counts = predict_peers(net, held_out, given)
        else:
            net, seconds = train_minseg(given, data.tiles, train_on, steps)
            counts = predict(net, held_out, given)
    return {"contestant": contestant, "steps": steps, "seed": seed, "fold": fold,
            "seconds": round(seconds, 2), "levels": levels(held_out, counts)}


def jobs(args: argparse.Namespace) -> list[Job]:
    """All runs, in an order that gives whole folds and seeds early."""
    return [(contestant, steps, seed, fold) for steps in args.budgets
            for seed in range(args.seeds) for contestant in args.contestants
            for fold in range(args.folds)]


def read_lines(folder: Path) -> dict[Job, dict]:
    """The runs that have ended."""
    rows = [json.loads(line) for path in sorted(folder.glob("*.jsonl"))
            for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return {(row["contestant"], row["steps"], row["seed"], row["fold"]): row for row in rows}


def summarize(args: argparse.Namespace, lines: dict[Job, dict]) -> list[dict]:
    """One row for each budget and contestant: its Dice and seconds, and how it differs from the
    peers' Dice at the same steps and in the same time (changes: from minseg's)."""
    dices = {(who, steps): [dice_of_groups([lines[who, steps, seed, fold]["levels"]
                                            for fold in range(args.folds)])
                            for seed in range(args.seeds)]
             for who in args.contestants for steps in args.budgets
             if all((who, steps, seed, fold) in lines for seed in range(args.seeds)
                    for fold in range(args.folds))}
    seconds = {key: statistics.median(lines[*key, seed, fold]["seconds"]
                                      for seed in range(args.seeds) for fold in range(args.folds))
               for key in dices}
    rows = []
    for (who, steps), dice in dices.items():
        row = {"contestant": who, "steps": steps, "seconds": seconds[who, steps],
               "dice": statistics.mean(value for seed in dice for value in seed.values())}
        other = PEERS if who == MINSEG else MINSEG
        if who != PEERS and (other, steps) in dices:
            row["same_steps"] = effect(dice, dices[other, steps])
        if who == MINSEG and (PEERS, steps) in dices:
            row["same_time"] = effect(at_seconds(who, seconds[PEERS, steps], dices, seconds),
                                      dices[PEERS, steps])
        rows.append(row)
    return rows


def at_seconds(who: str, time: float, dices: dict, seconds: dict) -> list[dict[str, float]]:
    """A contestant's Dice of each group after so many seconds: interpolated in the logarithm of
    time between its budgets; before the first and after the last budget, that budget's."""
    budgets = [steps for name, steps in dices if name == who]
    x = [math.log(seconds[who, steps]) for steps in budgets]
    return [{group: float(np.interp(math.log(time), x, [dices[who, steps][seed][group]
                                                        for steps in budgets]))
             for group in dices[who, budgets[0]][seed]} for seed in range(len(dices[who, budgets[0]]))]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; what is left over is for `train.py`."""
    parser = Parser(prog="python -m lab.race", allow_abbrev=False,
                    description=__doc__.split("\n")[0][2:],
                    epilog="Other options are passed to train.py.")
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="default: 20 synthetic slides, few glomeruli")
    add("--name", help="of the results (default: the name of the data)")
    add("--folds", type=int, default=3, metavar="K", help="default 3")
    add("--seeds", type=int, default=3, metavar="N", help="default 3: seeds 0, 1 and 2")
    add("--budgets", type=int, nargs="+", default=[75, 150, 300, 600], metavar="STEPS",
        help="default 75 150 300 600")
    add("--changes", nargs="+", choices=CHANGES, default=[], metavar="NAME",
        help="also minseg with one thing changed: " + ", ".join(CHANGES))
    add("--half", choices=("first", "second"), help="every other group (default: all groups)")
    add("--out", type=Path, metavar="DIR", help="of the runs (default: runs/race- and the name)")
    add("--results", type=Path, default=measure.RESULTS, metavar="DIR",
        help="default docs/results")
    args, args.options = parser.parse_known_args(argv)
    args.name = args.name or (args.data.resolve().name if args.data else "synthetic")
    args.out = args.out or Path("runs") / f"race-{args.name}"
    args.contestants = [MINSEG, *args.changes]
    if all(find_spec(name) for name in ("segmentation_models_pytorch", "monai")):
        args.contestants.insert(0, PEERS)
    else:
        print("without the peers: pip install -e '.[audit]' brings them")
    return args


def leave_out_half(args: argparse.Namespace) -> list[str]:
    """The option that leaves the images of the other half of the groups out."""
    groups: dict[str, list[str]] = {}
    for item in find_slides(args.data):
        groups.setdefault(item.group, []).append(item.id)
    order = sorted(groups, key=lambda group: (-len(groups[group]), group))
    other = order[1::2] if args.half == "first" else order[::2]
    path = args.out / f"not-{args.half}.csv"
    path.write_text("".join(f"{id}\n" for group in other for id in groups[group]))
    return ["--exclude", str(path)]


def main(argv: list[str] | None = None) -> None:
    """Does what is left to do; reports what is there."""
    args = parse(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.data is None:
        args.data = draw_synthetic_slides(args.out / "slides", glomeruli=FEW)
    if args.half:
        args.options = [*args.options, *leave_out_half(args)]
    given = train_options(options_of(args, MINSEG, 0, 0))
    facts, todo = measure.environment(given.device), jobs(args)
    bar = Progress(len(todo), args.name, 0)
    for job in todo:
        name = "{}, {} steps, seed {}, fold {}".format(*job)
        claim = args.out / "claims" / name
        claim.mkdir(parents=True, exist_ok=True)
        with locked(claim) as free:
            if free and not (claim / "done").exists():
                line = json.dumps({**run(args, job), **facts}, ensure_ascii=False)
                with open(args.out / f"{platform.node()}.jsonl", "ab", buffering=0) as file:
                    file.write(line.encode() + b"\n")
                (claim / "done").touch()
        bar.step()
    rows = summarize(args, read_lines(args.out))
    for row in rows:
        print(row["contestant"], row["steps"], row["seconds"], round(row["dice"], 4),
              *(f"{key} {row[key]['difference']:+.4f} [{row[key]['low']:+.4f}, {row[key]['high']:+.4f}]"
                for key in ("same_steps", "same_time") if key in row))
    measure.write_json(args.results / f"race-{args.name}.json", {**facts, "rows": rows})


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nrace: stopped; the same command goes on")
