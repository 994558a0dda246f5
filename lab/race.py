"""The race: train.py beside a recipe put together from what other libraries document.

    python -m lab.race --data DIR --tile 192
    python -m lab.race --changes 'all empty tiles' 'flips and turns only'

Two contestants start from the same encoder weights, get the same tiles in the same order for the
same number of steps, and are scored on whole images of groups that they have not seen:

- **minseg**: `train.py` with its defaults, and its own tiled prediction: overlap 0.5, linear.
- **peers**: a recipe put together from other libraries (`lab.peers`), with MONAI's sliding window.

Each number of steps (a budget) is a run of its own, with a learning rate that ends there, so each
point of a curve is what somebody with that budget would get. Seconds are those of training, without
scoring; minseg's include building the network and saving, the peers' do not. "The same time" is
minseg's Dice at the moment when the peers finish, read off its curve over seconds.

The difference is that of groups, seed by seed (`lab.effects`); it is also given image by image, and
on the groups that are not in the lines of `TUNED`.

`--changes` runs minseg with one thing changed (`CHANGES`), to find out what a default is worth:
docs/log.md keeps what came out. Tune on some groups (`--exclude` leaves images out), and report on
the others.

A race can stop and go on, and several processes can share OUT (`lab.harness`). The one that finds
all runs done writes docs/results/race-NAME.jsonl, a line for each, and .json, and draws
docs/figures/race-NAME.png.
"""

import argparse
import json
import math
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np

import train
from minseg.run.options import train_options
from minseg.run.prepare import draw_synthetic_slides, prepare
from minseg.run.scores import predict

from . import harness, measure, peers
from .effects import dice_of_groups, effect
from .harness import FEW, levels, mean, options_of
from .plots import race_chart
from .style import need_matplotlib, save

MINSEG, PEERS = "minseg", "peers"
CHANGES = {  # one thing changed: options of train.py
    "Dice of each image": "--loss bce+dice", "starts at one half": "",
    "flips and turns only": "--augment 0", "half the augmentation": "--augment 0.5",
    "all empty tiles": "--negatives all",
}
HOW = {  # where an option does not do it: arguments of `measure.train_minseg`
    "starts at one half": {"build": lambda args, steps, _: train.build(args, steps)}}
# The lines of the runs with which the defaults were chosen: their groups were tuned on.
TUNED = {"nuclei": "log-nuclei.jsonl", "synthetic": "h200/log-synthetic.jsonl"}
Job = tuple[str, int, int, int]  # contestant, steps, seed, fold


def run(args: argparse.Namespace, contestant: str, steps: int, seed: int, fold: int) -> dict:
    """Trains and scores one contestant. The peers' freed memory is kept in the process, too, though
    they do not ask for it: that makes them faster."""
    given, items, tiles, train_on = harness.prepared(args, CHANGES.get(contestant, ""), seed, fold)
    found = {}
    if contestant == PEERS:
        net, seconds = peers.train(given, tiles, train_on, steps)
        counts = peers.predict(net, items, given)
    else:
        net, _, seconds = measure.train_minseg(given, tiles, train_on, steps,
                                               **HOW.get(contestant, {}))
        counts = predict(net, items, given)
    if contestant == MINSEG:
        found["not_turned"] = levels(items, predict(net, items, given, turn=False))
    return {"contestant": contestant, "steps": steps, "seed": seed, "fold": fold,
            "seconds": round(seconds, 2), "levels": levels(items, counts), **found}


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


def dice_after(end: float, seconds: Sequence[float],
               dice: Sequence[Sequence[dict[str, float]]]) -> list[dict[str, float]]:
    """For each seed, the Dice of each group after `end` seconds: between two budgets, interpolated
    in the logarithm of time; after the last budget, that of this budget. `seconds` and `dice` have
    an entry for each budget, and `dice` in it one for each seed."""
    times = [math.log(each) for each in seconds]
    return [{group: float(np.interp(math.log(end), times, [budget[seed][group]
                                                           for budget in dice]))
             for group in of_seed} for seed, of_seed in enumerate(dice[0])]


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
            row["same_steps"] = {**effect(*both, fold_of, paired=True), "groups": {
                group: [round(a[group] - b[group], 6) for a, b in zip(*both)]
                for group in sorted(fold_of)}}
            row["per_image"] = effect(*both, fold_of, paired=True, weights=args.images)
            if 1 < len(others) < len(fold_of):
                row["not_tuned"] = effect(*both, others, paired=True)
            row["seeds"] = [statistics.mean(a.values()) - statistics.mean(b.values())
                            for a, b in zip(dice[who, steps], dice[other, steps])]
        # Before its shortest run has ended, minseg has no Dice to compare.
        if (who == MINSEG and PEERS in args.contestants
                and seconds[PEERS, steps] >= seconds[MINSEG, args.budgets[0]]):
            row["same_time"] = effect(dice_after(seconds[PEERS, steps], *curve(who)),
                                      dice[PEERS, steps], fold_of, paired=True)
        rows.append(row)
    settings = {name: getattr(args, name) for name in
                ("contestants", "budgets", "folds", "seeds", "images", "tuned_on")}
    return {**settings, "fold_of": dict(sorted(fold_of.items())), "groups": len(fold_of),
            "rows": rows}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; what is left over is for `train.py`."""
    parser = harness.make_parser("race", __doc__, seeds=3)
    harness.add_folds(parser)
    add = parser.add_argument
    add("--budgets", type=int, nargs="+", default=[75, 150, 300, 600], metavar="STEPS",
        help="default 75 150 300 600")
    add("--changes", nargs="+", choices=CHANGES, default=[], metavar="NAME",
        help="also minseg with one thing changed: " + ", ".join(CHANGES))
    args = harness.parse_known(parser, argv)
    args.name = args.name or (args.data.resolve().name if args.data else "synthetic")
    args.out = args.out or Path("runs") / f"race-{args.name}"
    args.docs = args.docs or Path("docs")
    args.images = None  # of each group
    args.tuned_on = tuned_on(args.name, args.docs / "results")
    args.contestants = [MINSEG, *args.changes]
    if peers.installed():
        args.contestants.insert(0, PEERS)
    return args


def report(args: argparse.Namespace, lines: Mapping[Job, dict]) -> None:
    """Writes the lines, the summary and the chart, and prints the rows."""
    found = {"options": args.options, **summarize(args, lines)}
    for row in found["rows"]:
        differences = "".join("  {} {difference:+.4f} [{low:+.4f}, {high:+.4f}]".format(
            name, **row[name]) for name in ("same_steps", "same_time") if name in row)
        print(f"{row['steps']:5d} steps  {row['seconds']:7.1f} s  Dice {row['dice']:.4f}  "
              f"{row['contestant']}{differences}")
    print(harness.publish(args.docs / "results" / f"race-{args.name}.json", lines.values(), found))
    print(save(race_chart(args.name, found), args.docs / "figures" / f"race-{args.name}.png"))


def main(argv: Sequence[str] | None = None) -> None:
    """Does what is left to do; when everything is there, reports the results."""
    args = parse(argv)
    try:
        need_matplotlib()  # for the chart at the end
        args.data = args.data or draw_synthetic_slides(args.out / "slides", glomeruli=FEW)
        given = train_options(options_of(args, "", 0, 0))
        if PEERS in args.contestants and "lite" not in given.encoder:
            raise ValueError(f"--encoder {given.encoder}: the peers are set up for "
                             "efficientnet-lite0 to -lite4")
        items = prepare(given).items  # what is wrong here is wrong with every run
        args.images = dict(sorted(Counter(item.group for item in items).items()))
        harness.claim(args.out, data=args.data.resolve().name, folds=args.folds,
                      options=args.options)
    except (ValueError, OSError) as error:
        print(f"race: {error}", file=sys.stderr)
        sys.exit(2)
    jobs = [(who, steps, seed, fold) for steps in args.budgets for seed in range(args.seeds)
            for who in args.contestants for fold in range(args.folds)]
    report(args, harness.finish(
        args.name, jobs, lambda *job: args.out / "{}, {} steps, seed {}, fold {}".format(*job),
        partial(run, args), measure.environment(given.device)))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nrace: stopped; the same command goes on")
