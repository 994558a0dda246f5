"""Does a trick help? Each alone against one baseline, over folds and seeds, with error bars.

    python -m lab.study --data DIR --folds 3 --seeds 2 --tile 128
    python -m lab.study --quick
    python -m lab.study --costs

An arm is the baseline (`train.py` with its defaults, on EfficientNet-Lite0 with ImageNet's weights)
with one thing changed (`ARMS`). Options that this program does not know are passed to `train.py`
and change the baseline. Every arm has the same folds and number of steps; seeds 0 and 1, and the
baseline also 2 to 4, which tell how much luck does. (With the same seed, tiles, their order and
augmentation are the same, but not always the first weights, because a network with more layers
draws more random numbers.)

**Along the way.** A run has one learning rate schedule, which ends after `--steps` steps. After an
eighth, a quarter, half and all of them, the averaged weights (EMA) are scored on whole held-out
images. The average over the last steps stands in for the rate's fall at the end; how good a
stand-in it is, a study with fewer `--steps` tells, in which the rate falls earlier: good for the
baseline, not for arms that begin slowly (docs/study.md).

Objects are counted after the last step. Some of the baseline's networks are also scored in other
ways (`WAYS`), and the errors are counted at each distance from a seam (`lab.seams`).

A study can stop (Ctrl-C) and go on, and several processes or machines can share OUT
(`lab.harness`). Runs whose lines are in docs/results/study-NAME.jsonl count as done: to measure
them anew, give another `--name`. At the end all lines are written there, with what follows from
them in study-NAME.json and docs/figures/study-NAME-*.png, also if some runs are missing. A seed
counts once all of its folds are there.

For each group, a result holds the numerator and the denominator of Dice at each of `THRESHOLDS`, so
that a fold can be cut at the threshold that is best on the others. `lab.effects` compares them.
`--costs` measures the arms' time and memory instead; nothing else should run meanwhile.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

import train
from minseg import CBAM, AttentionGate, make_loss
from minseg.files.masks import Item
from minseg.run.checkpoint import save_model
from minseg.run.config import DEFAULTS
from minseg.run.options import train_options
from minseg.run.prepare import draw_synthetic_slides, prepare
from minseg.run.scores import count_saved_objects, predict

from . import harness, measure, seams
from .effects import dice_of_groups, effect, holm, luck_alone, luck_of_both
from .harness import BASELINE, FEW, levels, mean, options_of
from .measure import in_turn
from .plots import charts_of, stored_chart
from .style import need_matplotlib, save

OPEN = 3.0  # a gate's logit at first, where it starts open: it lets 95 % through
LOWER = 0.3  # times the learning rate, in a second stage
ARMS = {
    "baseline": "", "gates": "--gates", "SCSE": "--attention scse", "CBAM": "--attention cbam",
    "hypercolumn": "--hypercolumn", "deep supervision": "--deep-supervision",
    "Lovász": "--loss lovasz", "BCE + Lovász": "--loss bce+lovasz",
    "Dice, then Lovász": "--loss batch_dice --then lovasz", "Dice": "--loss batch_dice",
    "BCE": "--loss bce", "all empty tiles": "--negatives all",
    "random weights": "--weights none",
    "gates, open at first": "--gates", "CBAM, open at first": "--attention cbam",
    "all together": "--gates --attention scse --hypercolumn --deep-supervision",
    "BCE + Dice, then Lovász at a lower rate": "--loss bce+batch_dice --then lovasz",
}
WAYS: dict[str, dict] = {
    **{f"overlap {share:g}, {window}": {"overlap": share, "window": window}
       for share in (0, 0.25, 0.5) for window in ("uniform", "linear", "gaussian")
       if share or window == "uniform"},  # without overlap, the window makes no difference
    "tiles not turned": {"overlap": 0.5, "window": "linear", "turn": False},
    "eight views": {"tta": True},
}
SCORED = "overlap 0.5, linear"  # how every network is scored
ROUNDS = 21  # in which each step is timed once
AGAIN = "the same again"  # a row of the costs: how far equal steps are from each other
LUCK_SEEDS = 5  # of the baseline: they tell how much luck does
WAY_SEEDS = 2  # of the baseline: their networks are also scored in the other ways
Job = tuple[str, int, int]  # arm, seed, fold
RATE = train.learning_rate_share


def build_open(*args) -> tuple[nn.Module, dict]:
    """`train.build`, with gates and CBAM's two sigmoids open at first."""
    net, network = train.build(*args)
    for module in net.modules():
        if isinstance(module, AttentionGate):
            nn.init.constant_(module.psi.get_parameter("bias"), OPEN)
        elif isinstance(module, CBAM):
            nn.init.constant_(module.expand.get_parameter("bias"), OPEN / 2)  # it is added twice
            nn.init.constant_(module.norm.get_parameter("bias"), OPEN)
    return net, network


def lower_rate(step: int, steps: int, first_stage_steps: int) -> float:
    """`train.learning_rate_share`, with a lower rate in the second stage."""
    return RATE(step, steps, first_stage_steps) * (1 if step < first_stage_steps else LOWER)


HOW: dict[str, dict] = {  # where an option does not do it: arguments of `measure.train_minseg`
    "gates, open at first": {"build": build_open}, "CBAM, open at first": {"build": build_open},
    "BCE + Dice, then Lovász at a lower rate": {
        "changes": {"train.learning_rate_share": lower_rate}},
}


def folder_of(args: argparse.Namespace, *job: object) -> Path:
    """Where a run lives."""
    return args.out / "runs" / "{}, seed {}, fold {}".format(*job)


def identity(args: argparse.Namespace, arm: str) -> list[str]:
    """What the runs of an arm must have in common, to be compared."""
    return [*BASELINE.split(), *args.options, *ARMS[arm].split(), "--folds", str(args.folds),
            "--steps", str(args.steps)]


def scored(net: nn.Module, items: Sequence[Item], given: argparse.Namespace, **way) -> dict:
    """`levels` of the images; at the threshold 0.5, how many objects were found, missed, invented
    and split; and the errors near seams."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "probabilities").mkdir()
        counts = predict(net, items, given, folder=folder / "probabilities", **way)
        objects: Counter[str] = Counter()
        for item in items:
            objects.update(count_saved_objects(folder, item, 0.5))
        return {"levels": levels(items, counts), "objects": dict(objects),
                "seams": seams.errors(folder, items, given)}


def lengths(steps: int) -> list[int]:
    """The steps after which a run is scored on its way."""
    return [round(steps / parts) for parts in (8, 4, 2)]


def run(args: argparse.Namespace, arm: str, seed: int, fold: int) -> dict:
    """Trains one network with train.py's own loop, and scores it along the way."""
    given, items, tiles, train_on = harness.prepared(args, ARMS[arm], seed, fold)
    along = {}

    def after_step(steps: int, net: nn.Module) -> None:
        if steps in lengths(args.steps):
            along[str(steps)] = levels(items, predict(net, items, given, **WAYS[SCORED]))

    net, network, _ = measure.train_minseg(given, tiles, train_on, args.steps,
                                           after_step=after_step, **HOW.get(arm, {}))
    result = scored(net, items, given, **WAYS[SCORED])
    along[str(args.steps)] = result["levels"]
    found = {"along": along, "objects": result["objects"]}
    if arm == "baseline" and seed < WAY_SEEDS:
        found["ways"] = {name: result if name == SCORED else scored(net, items, given, **way)
                         for name, way in WAYS.items()}
    if seed == fold == 0:  # for `lab.shifts`
        save_model(folder_of(args, arm, seed, fold) / "model.pt", network, net.state_dict(),
                   scale=given.scale, tile=given.tile, threshold=0.5, microns=given.microns,
                   resample=bool(given.microns))
    return {"arm": arm, "seed": seed, "fold": fold, "options": identity(args, arm),
            "defaults": DEFAULTS, **found}


def jobs(args: argparse.Namespace) -> list[Job]:
    """All that is to be done: first the baseline, which tells how much luck does, then one seed of
    each arm."""
    seeds = max(args.seeds, 2 if args.quick else LUCK_SEEDS)
    order = [*(("baseline", seed) for seed in range(seeds)),
             *((arm, seed) for seed in range(args.seeds) for arm in args.arms[1:])]
    return [(arm, seed, fold) for arm, seed in order for fold in range(args.folds)]


def read_lines(args: argparse.Namespace, groups: Sequence[set[str]] = ()) -> dict[Job, dict]:
    """The results that are there: published ones, and those of runs in OUT. ValueError if one was
    measured with other options or on other data: with other numbers of objects in a fold or, where
    the `groups` of each fold are given, with other groups."""
    paths, lines = sorted(args.out.glob("runs/*/result.json")), {}
    there: dict[int, int] = {}  # objects in each fold
    defaults = set()
    if args.published.exists():
        paths.insert(0, args.published)
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for line in map(json.loads, text.splitlines() if path == args.published else [text]):
            arm, fold, objects = line["arm"], line["fold"], line["objects"]
            if arm not in ARMS:
                continue  # it has been given up
            count = objects["found"] + objects["missed"]
            defaults.add(line.get("defaults", 1))
            if (line["options"] != identity(args, arm) or len(defaults) > 1
                    or count != there.setdefault(fold, count)
                    or (groups and groups[fold] != line["along"][str(args.steps)].keys())):
                raise ValueError(f"{path}: is of a study with other data, options, folds or steps, "
                                 "or with other defaults of train.py: give another --name")
            lines[arm, line["seed"], fold] = line
    return lines


def measure_costs(arms: Sequence[str], options: Sequence[str]) -> dict:
    """For each arm the seconds of a step (the median, all arms in turn), the bytes that the forward
    pass keeps for the backward pass, and the parameters. An arm with two losses is measured with
    the second; arms with the same network and loss are measured once, and the baseline `AGAIN`."""
    steps, costs, step_of = {}, {}, {}
    for arm in (*arms, AGAIN):
        given = train_options([*BASELINE.split(), "--batch", "8", *options,
                               *ARMS.get(arm, "").split()])
        net, network = train.build(given, 1)
        step_of[arm] = name = arm if arm == AGAIN else f"{network}, {given.then or given.loss}"
        if name in steps:
            continue
        optimizer = train.make_optimizer(net.train(), given)
        loss = make_loss(given.then or given.loss)
        batch = measure.random_batch(given.batch, given.tile, given.device)
        steps[name] = measure.train_step(net, optimizer, loss, batch, given.amp)
        kept = measure.alive_after(partial(measure.forward, net, loss, batch, given.amp))
        costs[name] = {"kept_bytes": kept, "parameters": sum(p.numel() for p in net.parameters())}
    for name, seconds in in_turn(steps, ROUNDS).items():
        costs[name]["seconds_a_step"] = round(seconds, 5)
    return {**measure.environment(given.device), "batch": given.batch, "tile": given.tile,
            "rows": {arm: costs[name] for arm, name in step_of.items()}}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; what is left over is for `train.py`."""
    parser = harness.make_parser("study", __doc__, seeds=2)
    harness.add_folds(parser)
    add = parser.add_argument
    add("--steps", type=int, default=600, metavar="N", help="of a run (default 600)")
    add("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM",
        help="default all: " + ", ".join(ARMS))
    add("--costs", action="store_true", help="measure time and memory of the arms, and nothing "
        "else")
    add("--quick", action="store_true", help="a minute or two on small slides, to see what it does")
    args = harness.parse_known(parser, argv, "--recipe")
    if args.seeds < 1 or args.steps < 8:
        parser.error(f"--seeds {args.seeds} --steps {args.steps}: needs 1 seed and 8 steps or more")
    args.images = None  # of each group
    args.synthetic = args.data is None
    args.name = args.name or ("quick" if args.quick else "synthetic" if args.synthetic
                              else args.data.resolve().name)
    args.out = args.out or Path("runs") / f"study-{args.name}"
    args.docs = args.docs or (args.out if args.quick else Path("docs"))
    args.published = args.docs / "results" / f"study-{args.name}.jsonl"
    if args.quick:  # whatever else was given
        args.folds, args.seeds, args.steps, args.arms = 2, 1, 24, ["SCSE", "Dice"]
        args.options = [*"--weights none --tile 64 --scale 4".split(), *args.options]
    args.arms = ["baseline", *(arm for arm in args.arms if arm != "baseline")]
    return args


def complete(lines: dict[Job, dict], folds: int) -> dict[str, list[list[dict]]]:
    """For each arm its seeds that have all folds: a list of the folds' lines for each."""
    arms: dict[str, list[list[dict]]] = {}
    for arm in ARMS:
        for seed in sorted({seed for name, seed, _ in lines if name == arm}):
            runs = [lines.get((arm, seed, fold)) for fold in range(folds)]
            if all(runs):
                arms.setdefault(arm, []).append(runs)
    return arms


def summarize(args: argparse.Namespace, lines: dict[Job, dict]) -> dict:
    """What follows from the lines: effects at the end and along the way, ways to predict, objects,
    and the errors at each distance from a seam. At least two seeds of the baseline and one of
    another arm must be complete."""
    runs, end = complete(lines, args.folds), args.steps
    marks = [*lengths(end), end]
    fold_of = {group: fold for fold, line in enumerate(runs["baseline"][0])
               for group in line["along"][str(end)]}

    base = {steps: dices(runs["baseline"], steps) for steps in marks}
    training = [{"arm": arm, **training_row(runs[arm], base, fold_of, args.images,
                                            two_stages="--then" in ARMS[arm])}
                for arm in runs if arm != "baseline"]
    predicted = [folds for folds in runs["baseline"] if all("ways" in line for line in folds)]
    by_way = {way: [[line["ways"][way] for line in folds] for folds in predicted]
              for way in WAYS
              if predicted and all(way in line["ways"] for folds in predicted for line in folds)}
    way_dices = {way: [dice_of_groups([found["levels"] for found in folds]) for folds in seeds]
                 for way, seeds in by_way.items()}
    ways = [{"arm": way, **effect(dice, way_dices[SCORED], fold_of, paired=True),
             **per_image(dice, way_dices[SCORED], fold_of, args.images, paired=True)}
            for way, dice in way_dices.items() if way != SCORED]
    for rows in (training, ways):
        for row, p in zip(rows, holm([row["p"] for row in rows])):
            row["p_holm"] = p
    return {"groups": len(fold_of), "folds": args.folds, "steps": end, "fold_of": fold_of,
            "images": args.images,
            "baseline": {"seeds": len(base[end]), "dice": mean(base[end]),
                         "along": {str(steps): mean(base[steps]) for steps in marks},
                         "groups": {group: {str(steps): round(statistics.mean(
                             seed[group] for seed in base[steps]), 4) for steps in marks}
                             for group in sorted(fold_of)}},
            "training": training, "ways": ways,
            "objects": {way: objects_of(seeds) for way, seeds in by_way.items()},
            "seams": {way: {name: np.sum([found["seams"][name] for folds in seeds
                                          for found in folds], 0).tolist()
                            for name in ("wrong", "pixels")} for way, seeds in by_way.items()}}


def dices(runs: Sequence[Sequence[dict]], steps: int) -> list[dict[str, float]]:
    """For each seed of an arm, the Dice of each group after so many steps."""
    return [dice_of_groups([line["along"][str(steps)] for line in folds]) for folds in runs]


def grown(*late_and_early: list[dict[str, float]]) -> list[dict[str, float]]:
    """What each group of each seed gained between two points of a run."""
    return [{group: late[group] - early[group] for group in late}
            for late, early in zip(*late_and_early)]


def per_image(arm: list[dict], baseline: list[dict], fold_of: dict[str, int], images: dict,
              paired: bool = False) -> dict:
    """The effect where each image counts, not each group; nothing if `images`, the number of images
    of each group, is empty."""
    if not images:
        return {}
    row = effect(arm, baseline, fold_of, paired, images)
    return {"per_image": {name: round(row[name], 5) for name in ("difference", "low", "high")}}


def training_row(runs: Sequence[Sequence[dict]], base: dict[int, list[dict[str, float]]],
                 fold_of: dict[str, int], images: dict, two_stages: bool) -> dict:
    """What follows from the `runs` of an arm, the lines of each fold for each seed: its effect at
    the end, along the way, and how it moved. `base`: the baseline's Dice after so many steps."""
    *before, half, end = base
    # On the way to its second stage, an arm with two stages is one that has only the first.
    found = {steps: dices(runs, steps)
             for steps in ([end] if two_stages else [*before, half, end])}
    along = {str(steps): {**effect(dice, base[steps], fold_of),
                          "luck": luck_alone(base[steps], len(dice), fold_of)}
             for steps, dice in found.items()}
    row = {**along[str(end)], **per_image(found[end], base[end], fold_of, images),
           "objects": objects_of(runs), "networks": sum(map(len, runs)),
           "found_nothing": sum(not line["objects"]["found"] for folds in runs for line in folds)}
    row["along"] = {steps: {name: round(at[name], 5)
                            for name in ("difference", "low", "high", "luck")}
                    for steps, at in along.items()}
    if len(along) > 1:
        moved = along[str(end)]["difference"] - along[str(half)]["difference"]
        luck = luck_of_both(grown(found[end], found[half]), grown(base[end], base[half]), fold_of)
        row["moved"] = {"difference": round(moved, 5), "luck": round(luck, 5)}
    return row


def objects_of(seeds: Sequence[Sequence[dict]]) -> dict[str, float]:
    """The objects of all folds, the mean over the seeds."""
    return {name: round(statistics.mean(sum(line["objects"][name] for line in folds)
                                        for folds in seeds), 1)
            for name in seeds[0][0]["objects"]}


def report(args: argparse.Namespace, lines: dict[Job, dict]) -> None:
    """Writes the lines and the summary, and draws the charts."""
    words = [*([] if args.synthetic else ["--data", args.data.name]), "--name", args.name,
             "--folds", args.folds, "--seeds", args.seeds, "--steps", args.steps, *args.options,
             *([] if set(args.arms) == set(ARMS) else ["--arms", *args.arms[1:]])]
    command = shlex.join(["python", "-m", "lab.study", *map(str, words)])
    order = sorted(lines, key=lambda job: ([*ARMS].index(job[0]), *job[1:]))
    found = {"command": command, **summarize(args, lines)}
    path = args.published.with_suffix(".json")
    print(harness.publish(path, [lines[job] for job in order], found))
    for kind in charts_of(found):
        name = f"{path.stem}-{kind}"
        print(save(stored_chart(name, path.parent), args.docs / "figures" / f"{name}.png"))


def main(argv: list[str] | None = None) -> None:
    """Does what is left to do, and reports what is there."""
    args = parse(argv)
    try:
        if args.costs:
            print(measure.write_json(args.docs / "results/costs.json",
                                     measure_costs(args.arms, args.options)))
            return
        need_matplotlib()  # for the charts at the end
        if args.synthetic:
            small = {"count": 4, "height": 512, "width": 512}
            args.data = draw_synthetic_slides(
                args.out / "slides", **(small if args.quick else {"glomeruli": FEW}))
        given = train_options(options_of(args, "", 0, 0))
        data = prepare(given)  # what is wrong here is wrong with every run
        args.images = dict(sorted(Counter(item.group for item in data.items).items()))
        groups = [{item.group for item in data.held_out(fold)} for fold in range(args.folds)]
        lines = read_lines(args, groups)
        if lines:
            print(f"{len(lines)} runs are there already; another --name measures them anew")
    except (ValueError, OSError) as error:
        print(f"study: {error}", file=sys.stderr)
        sys.exit(2)
    todo = jobs(args)
    print(f"{len(set(todo) - set(lines))} trainings of {args.steps} steps; the time left follows "
          "the first one", flush=True)
    left = {folder_of(args, *job): partial(run, args, *job) for job in todo if job not in lines}
    succeeded = harness.work(args.name, left, measure.environment(given.device),
                             len(todo) - len(left))
    lines = read_lines(args, groups)
    if missing := len(set(todo) - set(lines)):
        print(f"{missing} of {len(todo)} runs are missing: another process may be working on them; "
              "the same command goes on")
    arms = complete(lines, args.folds)
    if len(arms.get("baseline", ())) > 1 and len(arms) > 1:
        report(args, lines)
    else:
        print("nothing to report yet: it needs two seeds of the baseline and one of another arm, "
              "with all folds")
    sys.exit(0 if succeeded else 1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstudy: stopped; the same command goes on")
