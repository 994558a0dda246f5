"""Does a trick help? Each alone against one baseline, over folds and seeds, with error bars.

    python -m lab.study --data DIR --folds 3 --seeds 2 --tile 128 --epochs 3
    python -m lab.study --quick

An arm is the baseline's command line for `train.py` with a few options changed (`TRAINING`), or the
baseline's networks with another way to predict (`INFERENCE`). Options that this program does not
know are passed to `train.py` and change the baseline. Every arm has the same folds, tiles, order of
tiles, augmentation, number of steps and seeds. (The first weights are not always the same, because
a network with more layers draws more random numbers.)

Each run has a folder in OUT/runs and leaves its result there, in result.json. So a study can stop
(Ctrl-C) and go on, and several processes or machines can share OUT. The one that finds nothing left
to do writes docs/results/study-NAME.jsonl, a line for each run, and .json, and draws
docs/figures/study-NAME-*.png.

For each group, a result holds the numerator and the denominator of Dice at each of `THRESHOLDS`, so
that a fold can be cut at the threshold that is best on the others. `lab.effects` compares them.
"""

import argparse
import contextlib
import csv
import io
import json
import shlex
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

import train
from minseg.crossval import dice_parts
from minseg.data.datasets import Item
from minseg.run.checkpoint import load_model
from minseg.run.errors import out_of_memory
from minseg.run.loop import locked
from minseg.run.options import train_options
from minseg.run.prepare import draw_synthetic_slides
from minseg.run.report import Parser, Progress, duration
from minseg.run.scores import count_saved, predict

from . import measure
from .effects import dice_of_groups, effect, holm
from .measure import in_turn
from .plots import KINDS, signed, stored_chart
from .seams import seams
from .style import need_matplotlib, save

THRESHOLDS = [i / 64 for i in range(1, 64)]
BASELINE = "--encoder efficientnet-lite0 --weights imagenet --loss bce+dice --negatives all"
TRAINING = {
    "baseline": "", "random weights": "--weights none",
    "gates": "--gates", "SCSE": "--attention scse", "CBAM": "--attention cbam",
    "hypercolumn": "--hypercolumn", "deep supervision": "--deep-supervision",
    "all together": "--gates --attention scse --hypercolumn --deep-supervision",
    "BCE": "--loss bce", "Dice": "--loss dice", "Lovász": "--loss lovasz",
    "Dice + Lovász": "--loss dice+lovasz", "BCE + Lovász": "--loss bce+lovasz",
    "Dice, then Lovász": "--loss dice --then lovasz",
    "negatives 1:1": "--negatives 1", "balanced bins": "--negatives balanced",
}
INFERENCE = {
    **{f"overlap {share:g}, {window}": {"overlap": share, "window": window}
       for share in (0, 0.25, 0.5) for window in ("uniform", "linear", "gaussian", "hann")
       if (share, window) != (0.5, "linear")},  # that is how the baseline is scored
    "tile × 0.5": {"tile": 0.5}, "tile × 2": {"tile": 2}, "flips and turns": {"tta": True},
}
SEAMS, COSTS = "seams", "costs"  # jobs that are no arms
SAME = "baseline, another seed"  # compared with the first seed: this is chance alone
FEW = 2, 5  # glomeruli in 1024 x 1024 pixels: a third of what `train.py` draws
QUICK = "overlap 0, uniform", "overlap 0.5, uniform", "overlap 0.5, hann", "flips and turns", SEAMS
STOPPED = 130  # the exit status of a program that was asked to stop
Job = tuple[str, int, int]  # arm, seed, fold


def folder_of(args: argparse.Namespace, *job: object) -> Path:
    """Where a run lives. Each has a folder of its own, since epochs differ from fold to fold."""
    return args.out / "runs" / "{}, seed {}, fold {}".format(*job)


def options_of(args: argparse.Namespace, arm: str, seed: int, fold: int) -> list[str]:
    """The command line of a run for `train.py`."""
    run = {"--data": args.data, "--folds": args.folds, "--fold": fold, "--seed": seed,
           "--out": folder_of(args, arm, seed, fold)}
    return [*BASELINE.split(), *args.options, *TRAINING[arm].split(), "--resume",
            *(str(word) for pair in run.items() for word in pair)]


def prepared(args: argparse.Namespace, arm: str,
             fold: int) -> tuple[argparse.Namespace, list[Item], int]:
    """`measure.prepare_fold` of an arm, without looking into the folder of a run."""
    return measure.prepare_fold([*options_of(args, arm, 0, fold), "--out", args.out / "runs/none"],
                                fold)


def levels(items: Sequence[Item], counts: Sequence[Tensor]) -> dict[str, list[list[int]]]:
    """The numerator and denominator of each group's Dice at each of `THRESHOLDS`."""
    groups: dict[str, Tensor | int] = {}
    for item, count in zip(items, counts):
        groups[item.group] = groups.get(item.group, 0) + count
    return {group: [dice_parts(count, threshold).tolist() for threshold in THRESHOLDS]
            for group, count in groups.items()}


def run_training(args: argparse.Namespace, arm: str, seed: int, fold: int) -> dict:
    """Trains one network for as many steps as the baseline takes, and scores it."""
    given, items, length = prepared(args, "baseline", fold)
    epochs = max(1, round(given.epochs * length)) / prepared(args, arm, fold)[2]
    train.main([*options_of(args, arm, seed, fold), "--epochs", f"{epochs:.12g}"])
    folder = folder_of(args, arm, seed, fold) / f"fold{fold}"
    rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    (folder / "resume.pt").unlink(missing_ok=True)  # large, and nothing is left to resume
    return {"options": TRAINING[arm].split(), "steps": int(rows[-1]["steps"]),
            "seconds": round(sum(float(row["seconds"]) for row in rows), 1),
            "levels": levels(items, [count_saved(folder, item) for item in items])}


def run_inference(args: argparse.Namespace, arm: str, seed: int, fold: int) -> dict:
    """Scores a network of the baseline in another way, or measures its errors near seams."""
    given, items, _ = prepared(args, "baseline", fold)
    folder = folder_of(args, "baseline", seed, fold) / f"fold{fold}"
    net, _ = load_model(folder / "model.pt", given.device)
    start = time.monotonic()
    if arm == SEAMS:
        return {"ways": seams(net, items, given)}
    way = dict(INFERENCE[arm])
    given.tile = max(1, round(given.tile * way.pop("tile", 1)))
    counts = predict(net, items, given, **way)
    return {"options": INFERENCE[arm], "levels": levels(items, counts),
            "seconds": round(time.monotonic() - start, 1)}


def measure_costs(args: argparse.Namespace, *_: object) -> dict:
    """For each arm the seconds of a step (the median, all arms in turn), the bytes that the forward
    pass keeps for the backward pass, and the parameters. Of two losses the second one counts."""
    steps, rows = {}, {}
    for arm in args.arms:
        given = train_options(options_of(args, arm, 0, 0))
        net, _ = train.build(given, 1)
        optimizer, loss = train.make_optimizer(net.train(), given), given.losses[-1]
        batch = measure.random_batch(given.batch, given.tile, given.device)
        steps[arm] = measure.train_step(net, optimizer, loss, batch, given.amp)
        kept = measure.alive_after(partial(measure.forward, net, loss, batch, given.amp))
        rows[arm] = {"kept_bytes": kept, "parameters": sum(p.numel() for p in net.parameters())}
    for arm, seconds in in_turn(steps, 7).items():
        rows[arm]["seconds_a_step"] = round(seconds, 5)
    return {"rows": rows, "batch": given.batch, "tile": given.tile}


def jobs(args: argparse.Namespace) -> list[Job]:
    """All that is to be done, in an order that gives the first differences early."""
    ways = QUICK if args.quick else (*INFERENCE, SEAMS)
    return [(arm, seed, fold) for arms in (args.arms, ways) for seed in range(args.seeds)
            for fold in range(args.folds) for arm in arms] + [(COSTS, 0, 0)]


def read_result(args: argparse.Namespace, job: Job) -> dict:
    """What a run that has ended left behind; {} where it has not."""
    path = folder_of(args, *job) / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def is_left(args: argparse.Namespace, job: Job) -> bool:
    """Whether a job is still to be done, and can be: another way to predict needs the baseline's
    network. Costs are measured anew, all in turn, when arms have been added."""
    arm, seed, fold = job
    if arm == COSTS:
        return not set(args.arms) <= read_result(args, job).get("rows", {}).keys()
    possible = arm in TRAINING or read_result(args, ("baseline", seed, fold))
    return bool(possible and not read_result(args, job))


def run(args: argparse.Namespace, job: Job, facts: dict) -> bool:
    """Does one job and writes its result. False where it failed; Ctrl-C ends the program."""
    (arm, seed, fold), folder, log = job, folder_of(args, *job), io.StringIO()
    work = measure_costs if arm == COSTS else run_training if arm in TRAINING else run_inference
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            result = work(args, *job)
        measure.write_json(folder / "result.json",
                           {"arm": arm, "seed": seed, "fold": fold, **result, **facts})
    except (SystemExit, ValueError, OSError, RuntimeError) as error:
        if getattr(error, "code", None) == STOPPED:
            raise KeyboardInterrupt
        if isinstance(error, RuntimeError) and not out_of_memory(error):
            raise
        last = (log.getvalue().splitlines() or [""])[-1] if isinstance(error, SystemExit) else error
        print(f"{folder.name}: {last}", file=sys.stderr, flush=True)
        return False
    return True


def add_data_options(parser: argparse.ArgumentParser, seeds: int) -> None:
    """What a study trains on, and how often."""
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="default: 20 synthetic slides, few glomeruli")
    add("--name", help="of the results (default: the name of the data)")
    add("--folds", type=int, default=3, metavar="K", help="default 3")
    add("--seeds", type=int, default=seeds, metavar="N",
        help=f"default {seeds}: seeds 0 to {seeds - 1}")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; what is left over is for `train.py`."""
    parser = Parser(prog="python -m lab.study", allow_abbrev=False,
                    description=__doc__.split("\n")[0],
                    epilog="Other options are passed to train.py and change the baseline.")
    add = parser.add_argument
    add_data_options(parser, seeds=2)
    add("--arms", nargs="+", choices=TRAINING, default=list(TRAINING), metavar="ARM",
        help="default all: " + ", ".join(TRAINING))
    add("--quick", action="store_true", help="one minute on small slides, to see what it does")
    add("--out", type=Path, metavar="DIR", help="of the runs (default: runs/study- and the name)")
    add("--docs", type=Path, metavar="DIR", help="for results/ and figures/ (default docs, or with "
        "--quick the folder of --out)")
    args, args.options = parser.parse_known_args(argv)
    for name in {"--seed", "--fold", "--resume", "--recipe"} & {*args.options}:
        parser.error(f"{name}: this program sets it itself")
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: needs a number from 1 up")
    args.synthetic = args.data is None
    args.name = args.name or ("quick" if args.quick else "synthetic" if args.synthetic
                              else args.data.resolve().name)
    args.out = args.out or Path("runs") / f"study-{args.name}"
    args.docs = args.docs or (args.out if args.quick else Path("docs"))
    if args.quick:
        args.folds, args.seeds, args.arms = 2, 1, ["SCSE", "Dice"]
        args.options = [*"--weights none --epochs 2 --tile 64 --scale 4".split(), *args.options]
    args.arms = ["baseline", *(arm for arm in args.arms if arm != "baseline")]
    return args


def check_settings(args: argparse.Namespace) -> None:
    """Writes the settings of a study into OUT/study.json. Seeds and arms can be added to a study,
    and `args` gets those that it has already; ValueError where anything else differs."""
    path = args.out / "study.json"
    settings = {"data": args.data.resolve().name, "folds": args.folds, "options": args.options}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        args.seeds, arms = max(args.seeds, before.pop("seeds")), before.pop("arms")
        args.arms = [arm for arm in TRAINING if arm in {*args.arms, *arms}]
        if before != settings:
            raise ValueError(f"{path}: belongs to a study with other data, folds or options: give "
                             "another --out")
    measure.write_json(path, {**settings, "seeds": args.seeds, "arms": args.arms})


def main(argv: list[str] | None = None) -> None:
    """Does what is left to do; when everything is there, reports the results."""
    args = parse(argv)
    try:
        need_matplotlib()  # for the charts at the end
        if args.synthetic:
            small = {"count": 4, "height": 512, "width": 512}
            args.data = draw_synthetic_slides(
                args.out / "slides", **(small if args.quick else {"glomeruli": FEW}))
        given, _, _ = prepared(args, "baseline", 0)  # what is wrong here is wrong with every run
        check_settings(args)
    except (ValueError, OSError) as error:
        print(f"study: {error}", file=sys.stderr)
        sys.exit(2)
    facts, todo, failed = measure.environment(given.device), jobs(args), False
    ended = [job for job in todo if read_result(args, job)]
    bar = Progress(len(todo), args.name, len(ended))
    for job in todo:
        folder, start = folder_of(args, *job), time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder) as free:
            if free and is_left(args, job):
                if run(args, job, facts):
                    bar.say(f"{folder.name}: {duration(time.monotonic() - start)}")
                else:
                    failed = True
        bar.step(job not in ended)  # another process may have done it meanwhile
    lines = {job: result for job in todo if (result := read_result(args, job))}
    if missing := len(todo) - len(lines):
        print(f"{missing} of {len(todo)} runs are missing. Another process may be working on them; "
              "the same command goes on, and writes the results when all are there")
        sys.exit(failed)
    try:
        report(args, lines)
    except OSError as error:
        sys.exit(f"study: {error}: the same command tries again")


def summarize(args: argparse.Namespace, lines: dict[Job, dict]) -> dict:
    """The results: effects by family, with costs, and the error at each distance from a seam."""

    def dices(arm: str) -> list[dict[str, float]]:
        return [dice_of_groups([lines[arm, seed, fold]["levels"] for fold in range(args.folds)])
                for seed in range(args.seeds)]

    def overall(seeds: Iterable[dict[str, float]]) -> float:
        return statistics.mean(dice for seed in seeds for dice in seed.values())

    baseline, costs = dices("baseline"), lines[COSTS, 0, 0]["rows"]
    families = {
        "training": [{"arm": arm, **effect(dices(arm), baseline), **costs[arm],
                      "cost": round(costs[arm]["seconds_a_step"]
                                    / costs["baseline"]["seconds_a_step"], 3)}
                     for arm in args.arms[1:]],
        "inference": [{"arm": arm, **effect(dices(arm), baseline)}
                      for arm in INFERENCE if (arm, 0, 0) in lines]}
    for rows in families.values():
        for row, p in zip(rows, holm([row["p"] for row in rows])):
            row["p_holm"] = p
    ways: dict[str, np.ndarray | int] = {}
    for line in lines.values():
        for way, counts in line.get("ways", {}).items():
            ways[way] = ways.get(way, 0) + np.array([counts["wrong"], counts["pixels"]])
    errors = {way: [round(wrong / pixels, 6) for wrong, pixels in total.T.tolist() if pixels]
              for way, total in ways.items()}
    runs = [line for (arm, _, _), line in lines.items() if arm in TRAINING]
    chance = {"arm": SAME, **effect(baseline[1:2], baseline[:1])} if args.seeds > 1 else None
    return {"groups": len(baseline[0]), "seeds": args.seeds, "folds": args.folds,
            "steps": sorted({line["steps"] for line in runs}),
            "median_run_seconds": statistics.median(line["seconds"] for line in runs),
            "baseline": {"dice": overall(baseline), "seeds": [overall([s]) for s in baseline],
                         **costs["baseline"]},
            "same_again": chance, "effects": families, "error_by_distance": errors}


def cell(row: dict | None) -> str:
    """An effect as text, bold where it survives Holm's correction."""
    if row is None:
        return ""
    difference, low, high = (signed(row[name]) for name in ("difference", "low", "high"))
    text, p = f"{difference} [{low}, {high}]", row.get("p_holm", row["p"])
    return (f"**{text}**" if p <= 0.05 else text) + f" p {p:.2g}"


def table(studies: dict[str, dict]) -> str:
    """Studies side by side as a Markdown table; costs are those of the first that has the arm."""
    columns = [{row["arm"]: row for rows in study["effects"].values() for row in rows}
               for study in studies.values()]
    bases = [study["baseline"] for study in studies.values()]
    dices = " | ".join(f"Dice {base['dice']:.3f}" for base in bases)
    same = " | ".join(cell(study["same_again"]) for study in studies.values())
    lines = [f"| arm | {' | '.join(studies)} | time of a step | memory | parameters |",
             "|---" * (4 + len(studies)) + "|",
             f"| baseline | {dices} | 1.00 × | 1.00 × | {bases[0]['parameters'] / 1e6:.2f} M |",
             f"| {SAME} | {same} | | | |"]
    for arm in (*TRAINING, *INFERENCE):
        if known := [(base, column[arm]) for base, column in zip(bases, columns) if arm in column]:
            base, row = known[0]
            costs = " | | " if arm in INFERENCE else (
                f"{row['cost']:.2f} × | {row['kept_bytes'] / base['kept_bytes']:.2f} × | "
                f"{row['parameters'] / 1e6:.2f} M")
            cells = " | ".join(cell(column.get(arm)) for column in columns)
            lines.append(f"| {arm} | {cells} | {costs} |")
    return "\n".join(lines)


def report(args: argparse.Namespace, lines: dict[Job, dict]) -> None:
    """Writes the lines and the summary, draws the figures, and prints the table of all studies
    whose summaries lie in the same folder."""
    words = ["--quick"] if args.quick else [
        *([] if args.synthetic else ["--data", args.data.name]),
        "--folds", str(args.folds), "--seeds", str(args.seeds),
        *([] if len(args.arms) == len(TRAINING) else ["--arms", *args.arms]), *args.options]
    runs = [line for line in lines.values() if "commit" in line]
    facts = {name: sorted({line[name] for line in runs})
             for name in ("device", "torch", "threads", "commit", "date")}
    facts["command"] = shlex.join(["python", "-m", "lab.study", *words])
    summary = args.docs / "results" / f"study-{args.name}.json"
    measure.write_text(summary.with_suffix(".jsonl"), "".join(
        json.dumps(line, ensure_ascii=False) + "\n" for line in lines.values()))
    measure.write_json(summary, {**facts, **summarize(args, lines)})
    print(table({path.stem.removeprefix("study-"): json.loads(path.read_text(encoding="utf-8"))
                 for path in sorted(summary.parent.glob("study-*.json"))}))
    print(summary)
    for kind in KINDS:
        name = f"{summary.stem}-{kind}"
        print(save(stored_chart(name, summary.parent), args.docs / "figures" / f"{name}.png"))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstudy: stopped; the same command goes on")
