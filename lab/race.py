"""The race: train.py beside a recipe put together from what other libraries document.

    python -m lab.race --data DIR --tile 192
    python -m lab.race --half first --changes 'rate 1e-3' 'flips and turns only'

Two contestants start from the same encoder weights, get the same tiles in the same order for the
same number of steps, and are scored on whole images of groups that they have not seen:

- **minseg**: `train.py` with its defaults, and its own tiled prediction: overlap 0.5, linear.
- **peers**: segmentation_models.pytorch's U-Net; BCE + Dice; AdamW and OneCycle, up to 1e-3 and for
  the encoder 3e-4; random crops of the tiles with their margin, flips and quarter turns; MONAI's
  sliding window, Gaussian, overlap 0.25. It is set up for Lite0 to Lite4, has not been tuned here,
  and takes void pixels for background.

Each number of steps (a budget) is a run of its own, with a learning rate that ends there, so each
point of a curve is what somebody with that budget would get. Seconds are those of training, without
scoring; minseg's include building the network and saving, the peers' do not. "The same time" is
minseg's Dice at the moment when the peers finish, read off its curve over seconds.

The difference is that of groups, seed by seed (`lab.effects`); it is also given image by image, and
on the groups that are not in the lines of `TUNED`.

`--changes` runs minseg with one thing changed (`CHANGES`), to find out what a default is worth:
docs/log.md keeps what came out. Tune on `--half first` of the groups, report on `--half second`.

Each run leaves its result in OUT. So a race can stop (Ctrl-C) and go on, and several processes can
share OUT. The one that finds nothing left to do writes docs/results/race-NAME.jsonl, a line for
each run, and .json, and draws docs/figures/race-NAME.png.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import train
from minseg.files.datasets import Item, find_slides
from minseg.files.masks import Mask
from minseg.files.slides import open_slide
from minseg.pretrained import load_weights
from minseg.run.bands import enlarge
from minseg.run.config import DEFAULTS
from minseg.run.errors import Stopped
from minseg.run.loop import locked
from minseg.run.memory import keep_memory
from minseg.run.options import train_options
from minseg.run.prepare import draw_synthetic_slides, make_sampler, prepare, training_tiles
from minseg.run.report import Parser, Progress
from minseg.run.scores import count_known, predict
from minseg.run.tiles import Tiles
from minseg.training import autocast_dtype
from minseg.unet import UNet

from . import measure
from .effects import dice_of_groups, effect
from .plots import race_chart
from .study import FEW, add_data_options, levels, mean
from .style import need_matplotlib, save

MINSEG, PEERS = "minseg", "peers"
BASE = "--encoder efficientnet-lite0 --weights imagenet"
TARGETS = 0.6, 0.7, 0.75, 0.8, 0.825, 0.85, 0.875, 0.9  # Dice
RATE, ENCODER_RATE, OVERLAP = 1e-3, 3e-4, 0.25  # of the peers
BUILD = train.build
# One thing changed: options of train.py, or other values for names in modules.
CHANGES: dict[str, str | dict[str, object]] = {
    "Dice of each image": "--loss bce+dice",
    "BCE": "--loss bce",
    "starts at one half": {"train.build": lambda args, steps, _: BUILD(args, steps)},
    "flips and turns only": "--augment 0",
    "half the augmentation": "--augment 0.5",
    "no recolouring": {f"minseg.augment.{name}": 0.0
                       for name in ("STAIN", "CONTRAST", "BRIGHTNESS")},
    "all empty tiles": "--negatives all",
    "rate 1e-3": "--lr 1e-3",
    "rate 2e-3": "--lr 2e-3",
    "rate 3e-3": "--lr 3e-3",
    "encoder 0.2": {"train.ENCODER_LR": 0.2},
    "warm-up of 0.3": {"train.WARM_UP": 0.3},
    "no weight decay": {"train.WEIGHT_DECAY": 0.0},
    "weight decay 0.1": {"train.WEIGHT_DECAY": 0.1},
    "EMA of a tenth": {"train.EMA_SHARE": 0.1},
    "no EMA": {"train.EMA_SHARE": 0.0, "train.SHORTEST_EMA": 1},
    "no stochastic depth": {"train.DEPTH": 0.0},
}
# The lines of the runs with which the defaults were chosen: their groups were tuned on.
TUNED = {"nuclei": "log-nuclei.jsonl", "synthetic": "h200/log-synthetic.jsonl"}
Job = tuple[str, int, int, int]  # contestant, steps, seed, fold


def train_minseg(*arguments) -> tuple[nn.Module, float]:
    """`measure.train_minseg`: the network, and seconds."""
    net, _, seconds = measure.train_minseg(*arguments)
    return net, seconds


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
    name = args.encoder.replace("efficientnet-lite", "tu-tf_efficientnet_lite")  # "tu": of timm
    net = smp.Unet(name, encoder_weights=None)
    ours = UNet(args.encoder)
    mean, std = ours.mean.flatten().tolist(), ours.std.flatten().tolist()
    if args.weights:
        mean, std = load_weights(ours.encoder, args.weights)
        state = net.encoder.state_dict()
        names = [name for name in state if not name.startswith(("_conv_head", "_bn1"))]
        state.update(zip(names, ours.encoder.state_dict().values(), strict=True))
        net.encoder.load_state_dict(state)
    return Normalised(net, mean, std).to(args.device)


def flipped_crop(image: Tensor, size: int) -> Tensor:
    """A random crop of `size` pixels of an image (C, H, W), flipped and turned at random."""
    y, x = (int(torch.randint(length - size + 1, ())) for length in image.shape[1:])
    crop = image[:, y : y + size, x : x + size]
    crop = crop.flip(-1) if torch.rand(()) < 0.5 else crop
    return crop.rot90(int(torch.randint(4, ())), (-2, -1))


def train_peers(args: argparse.Namespace, tiles: Tiles, train_on: Tensor,
                steps: int) -> tuple[nn.Module, float]:
    """The peers' recipe. Returns the network, and seconds."""
    import segmentation_models_pytorch as smp

    net, device = build_peers(args).train(), torch.device(args.device)
    encoder = list(net.net.encoder.parameters())
    others = [*net.net.decoder.parameters(), *net.net.segmentation_head.parameters()]
    optimizer = torch.optim.AdamW([{"params": encoder}, {"params": others}])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, [ENCODER_RATE, RATE], steps)
    bce, dice = nn.BCEWithLogitsLoss(), smp.losses.DiceLoss("binary")
    dtype = autocast_dtype(device)
    scaler = torch.amp.GradScaler(device.type, enabled=args.amp and dtype == torch.float16)
    numbers_of = make_sampler(args, tiles, train_on)
    start = time.monotonic()
    epochs = math.ceil(steps / len(numbers_of(0)))
    numbers = torch.cat([numbers_of(epoch).flatten(0, 1) for epoch in range(epochs)])[:steps]
    for images, masks in tiles.batches(numbers, args.device, args.workers):
        both = torch.stack([flipped_crop(tile, args.tile)
                            for tile in torch.cat([images, masks], 1)])
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
        image = torch.tensor(slide.read_all()).permute(2, 0, 1)[None].to(args.device) / 255
        with torch.autocast(image.device.type, autocast_dtype(image.device), enabled=args.amp):
            result = sliding_window_inference(image, args.tile, args.batch,
                                              lambda tiles: net(tiles).float().sigmoid(),
                                              overlap=OVERLAP, mode="gaussian")[0].cpu()
        mask, total = Mask(item, slide.full_height, slide.full_width), torch.zeros(2, 256).long()
        for y, band in enlarge(slide, [(0, result)]):
            probability = (band[0] * 255).round().byte().numpy()
            total += count_known(probability, mask.read(y, 0, *probability.shape))
        counts.append(total)
    return counts


def options_of(args: argparse.Namespace, contestant: str, seed: int, fold: int) -> list[str]:
    """The command line of a run for `train.py`."""
    change = CHANGES.get(contestant, "")
    run = {"--data": args.data, "--folds": args.folds, "--fold": fold, "--seed": seed,
           "--out": args.out / "none"}
    return [*BASE.split(), *args.options, *(change.split() if isinstance(change, str) else ()),
            *(str(word) for pair in run.items() for word in pair)]


def run(args: argparse.Namespace, job: Job) -> dict:
    """Trains and scores one contestant. The peers' freed memory is kept in the process, too, though
    they do not ask for it: that makes them faster."""
    contestant, steps, seed, fold = job
    change = CHANGES.get(contestant)
    with measure.changed(change if isinstance(change, dict) else {}):
        given = train_options(options_of(args, contestant, seed, fold))
        data = prepare(given)
        held_out = [item for item, other in zip(data.items, data.folds) if other == fold]
        train_on = training_tiles(data.tiles, data.folds, fold)
        keep_memory()
        ways = (train_peers, predict_peers) if contestant == PEERS else (train_minseg, predict)
        net, seconds = ways[0](given, data.tiles, train_on, steps)
        found = {"contestant": contestant, "steps": steps, "seed": seed, "fold": fold,
                 "seconds": round(seconds, 2),
                 "levels": levels(held_out, ways[1](net, held_out, given))}
        if contestant == MINSEG:
            found["not_turned"] = levels(held_out, predict(net, held_out, given, turn=False))
        return found


def read_lines(path: Path) -> dict[Job, dict]:
    """The lines of a published file."""
    found = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {(line["contestant"], line["steps"], line["seed"], line["fold"]): line for line in found}


def tuned_on(name: str, results: Path) -> list[str]:
    """The groups of a race that were tuned on."""
    path = results / TUNED.get(name, "none")
    return sorted({group for line in read_lines(path).values() for group in line["levels"]}
                  if path.exists() else ())


def complete(lines: Mapping[Job, dict], folds: int) -> tuple[dict, dict]:
    """The fold of each group; and for each contestant that has all folds of all its seeds, the Dice
    of each group, seed by seed. The lines are of one number of steps."""
    fold_of = {group: job[-1] for job, line in lines.items() for group in line["levels"]}
    runs: dict[str, dict] = {}
    for (who, _, seed, fold), line in lines.items():
        runs.setdefault(who, {}).setdefault(seed, {})[fold] = line["levels"]
    return fold_of, {who: [dice_of_groups([seeds[seed][fold] for fold in range(folds)])
                           for seed in sorted(seeds)] for who, seeds in runs.items()
                     if all(len(found) == folds for found in seeds.values())}


def compared(ours: Sequence[dict], theirs: Sequence[dict], fold_of: Mapping[str, int]) -> dict:
    """The effect, seed by seed, and what it is made of: the differences of each group's seeds."""
    return {**effect(ours, theirs, fold_of, paired=True),
            "groups": {group: [round(a[group] - b[group], 6) for a, b in zip(ours, theirs)]
                       for group in sorted(fold_of)}}


def dice_after(end: float, seconds: Sequence[float],
               dice: Sequence[Sequence[dict[str, float]]]) -> list[dict[str, float]]:
    """For each seed, the Dice of each group after `end` seconds: between two budgets, interpolated
    in the logarithm of time; after the last budget, that of this budget. `seconds` and `dice` have
    an entry for each budget, and `dice` in it one for each seed."""
    times = [math.log(each) for each in seconds]
    return [{group: float(np.interp(math.log(end), times, [budget[seed][group]
                                                           for budget in dice]))
             for group in of_seed} for seed, of_seed in enumerate(dice[0])]


def time_to(target: float, seconds: Sequence[float],
            dice: Sequence[Sequence[dict[str, float]]]) -> float | None:
    """The seconds after which the mean Dice first is `target`, interpolated as above; those of the
    first budget if it is already reached there. None if it never is."""
    points = [(math.log(time), mean(seeds)) for time, seeds in zip(seconds, dice)]
    if points[0][1] >= target:
        return round(math.exp(points[0][0]), 1)
    for (start, low), (end, high) in pairwise(points):
        if low < target <= high:
            return round(math.exp(start + (end - start) * (target - low) / (high - low)), 1)
    return None


def summarize(args: argparse.Namespace, lines: dict[Job, dict]) -> dict:
    """A row for each contestant and budget: its mean Dice of a group, its seconds, and how it
    differs from the other one (changes: from minseg) after the same steps and in the same time;
    after the same steps also where each image counts, and on the groups that were not tuned on."""
    dice, seconds = {}, {}
    for steps in args.budgets:
        here = {job: line for job, line in lines.items() if job[1] == steps}
        fold_of, found = complete(here, args.folds)
        for who in args.contestants:
            dice[who, steps] = found[who]
            seconds[who, steps] = statistics.median(
                line["seconds"] for job, line in here.items() if job[0] == who)
    others = {group: fold for group, fold in fold_of.items() if group not in args.tuned_on}

    def curve(who: str) -> tuple[list[float], list[list[dict[str, float]]]]:
        """The seconds and the Dice of a contestant at each budget."""
        return ([seconds[who, steps] for steps in args.budgets],
                [dice[who, steps] for steps in args.budgets])

    rows = []
    for who, steps in product(args.contestants, args.budgets):
        row = {"contestant": who, "steps": steps, "seconds": seconds[who, steps],
               "dice": mean(dice[who, steps])}
        other = PEERS if who == MINSEG else MINSEG
        if who != PEERS and other in args.contestants:
            both = dice[who, steps], dice[other, steps]
            row["same_steps"] = compared(*both, fold_of)
            row["per_image"] = effect(*both, fold_of, paired=True, weights=args.images)
            if 1 < len(others) < len(fold_of):
                row["not_tuned"] = effect(*both, others, paired=True)
            row["seeds"] = [statistics.mean(a.values()) - statistics.mean(b.values())
                            for a, b in zip(dice[who, steps], dice[other, steps])]
        # Before its shortest run has ended, minseg has no Dice to compare.
        if (who == MINSEG and PEERS in args.contestants
                and seconds[PEERS, steps] >= seconds[MINSEG, args.budgets[0]]):
            row["same_time"] = compared(dice_after(seconds[PEERS, steps], *curve(who)),
                                        dice[PEERS, steps], fold_of)
        rows.append(row)
    times = {f"{target:g}": {who: time_to(target, *curve(who)) for who in args.contestants}
             for target in TARGETS}
    settings = {name: getattr(args, name) for name in
                ("contestants", "budgets", "folds", "seeds", "images", "tuned_on")}
    return {**settings, "fold_of": dict(sorted(fold_of.items())), "groups": len(fold_of),
            "rows": rows, "seconds_to_dice": times}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; what is left over is for `train.py`."""
    parser = Parser(prog="python -m lab.race", allow_abbrev=False,
                    description=__doc__.split("\n")[0],
                    epilog="Other options are passed to train.py.")
    add = parser.add_argument
    add_data_options(parser, seeds=3)
    add("--budgets", type=int, nargs="+", default=[75, 150, 300, 600], metavar="STEPS",
        help="default 75 150 300 600")
    add("--changes", nargs="+", choices=CHANGES, default=[], metavar="NAME",
        help="also minseg with one thing changed: " + ", ".join(CHANGES))
    add("--half", choices=("first", "second"), help="every other group only, by their size")
    add("--out", type=Path, metavar="DIR", help="of the runs (default: runs/race- and the name)")
    add("--docs", type=Path, default=Path("docs"), metavar="DIR",
        help="for results/ and figures/ (default docs)")
    args, args.options = parser.parse_known_args(argv)
    given = {option.split("=")[0] for option in args.options}
    for name in {"--seed", "--fold", "--resume", "--epochs", "--exclude", "--accumulate"} & given:
        parser.error(f"{name}: this program sets it itself")
    args.name = args.name or (args.data.resolve().name if args.data else "synthetic")
    args.out = args.out or Path("runs") / f"race-{args.name}"
    args.images = None  # of each group
    args.tuned_on = tuned_on(args.name, args.docs / "results")
    args.contestants = [MINSEG, *args.changes]
    if has_peers():
        args.contestants.insert(0, PEERS)
    return args


def has_peers() -> bool:
    """Whether the peers are installed. If not, says so."""
    found = all(find_spec(name) for name in ("segmentation_models_pytorch", "monai", "timm"))
    if not found:
        print("minseg runs alone: the peers are not installed (pip install -e '.[audit]')")
    return found


def leave_out_half(args: argparse.Namespace) -> list[str]:
    """The option of train.py that leaves out the images of the other half of the groups."""
    groups: dict[str, list[str]] = {}
    for item in find_slides(args.data):
        groups.setdefault(item.group, []).append(item.id)
    by_size = sorted(groups, key=lambda group: (-len(groups[group]), group))
    other = by_size[1::2] if args.half == "first" else by_size[::2]
    text = "".join(f"{id}\n" for group in other for id in groups[group])
    return ["--exclude", str(measure.write_text(args.out / f"not-{args.half}.csv", text))]


def same_settings(args: argparse.Namespace) -> None:
    """Writes into OUT what its runs have in common. ValueError where that was something else: the
    names of their folders do not tell."""
    path = args.out / "race.json"
    settings = {"data": args.data.resolve().name, "half": args.half, "folds": args.folds,
                "options": args.options, "defaults": DEFAULTS}
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise ValueError(f"{path}: belongs to a race with other data, folds, options or "
                         "defaults of train.py: give another --out")
    measure.write_json(path, settings)


def report(args: argparse.Namespace, lines: dict[Job, dict]) -> None:
    """Writes the lines, the summary and the chart, and prints the rows."""
    summary = args.docs / "results" / f"race-{args.name}.json"
    found = {name: sorted({line[name] for line in lines.values()})
             for name in ("device", "threads", "torch", "commit", "date")}
    found |= {"options": args.options, **summarize(args, lines)}
    measure.write_text(summary.with_suffix(".jsonl"), "".join(
        json.dumps(line, ensure_ascii=False) + "\n" for line in lines.values()))
    measure.write_json(summary, found)
    for row in found["rows"]:
        differences = "".join("  {} {difference:+.4f} [{low:+.4f}, {high:+.4f}]".format(
            name, **row[name]) for name in ("same_steps", "same_time") if name in row)
        print(f"{row['steps']:5d} steps  {row['seconds']:7.1f} s  Dice {row['dice']:.4f}  "
              f"{row['contestant']}{differences}")
    for target, times in found["seconds_to_dice"].items():
        print(f"Dice {target} after", ", ".join(f"{who}: {time or '-'} s"
                                                for who, time in times.items()))
    print(summary, save(race_chart(args.name, found),
                        args.docs / "figures" / f"race-{args.name}.png"), sep="\n")


def main(argv: list[str] | None = None) -> None:
    """Does what is left to do; when everything is there, reports the results."""
    args = parse(argv)
    try:
        need_matplotlib()  # for the chart at the end
        args.data = args.data or draw_synthetic_slides(args.out / "slides", glomeruli=FEW)
        args.options += leave_out_half(args) if args.half else []
        given = train_options(options_of(args, MINSEG, 0, 0))
        if PEERS in args.contestants and "lite" not in given.encoder:
            raise ValueError(f"--encoder {given.encoder}: the peers are set up for "
                             "efficientnet-lite0 to -lite4")
        items = prepare(given).items  # what is wrong here is wrong with every run
        args.images = dict(sorted(Counter(item.group for item in items).items()))
        same_settings(args)
    except (ValueError, OSError) as error:
        print(f"race: {error}", file=sys.stderr)
        sys.exit(2)
    facts = measure.environment(given.device)
    jobs = [(who, steps, seed, fold) for steps in args.budgets for seed in range(args.seeds)
            for who in args.contestants for fold in range(args.folds)]
    bar, lines = Progress(len(jobs), args.name), {}
    for job in jobs:
        folder = args.out / "{}, {} steps, seed {}, fold {}".format(*job)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder) as free:
            if free and not (folder / "result.json").exists():
                measure.write_json(folder / "result.json", {**run(args, job), **facts})
        bar.step()
    for job in jobs:
        path = args.out / "{}, {} steps, seed {}, fold {}".format(*job) / "result.json"
        if not path.exists():
            sys.exit(f"race: {path}: is missing: another process may be working on it; the same "
                     "command goes on")
        lines[job] = json.loads(path.read_text(encoding="utf-8"))
    report(args, lines)


if __name__ == "__main__":
    try:
        main()
    except (KeyboardInterrupt, Stopped):  # train.py's loop raises the latter
        sys.exit("\nrace: stopped; the same command goes on")
