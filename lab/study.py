"""Does a trick help? Each alone against one baseline, over folds and seeds, with error bars.

    python -m lab.study --data DIR --folds 3 --seeds 2 --tile 128 --epochs 3
    python -m lab.study --quick

An arm is the baseline's command line for `train.py` with a few options changed (`TRAINING`), or the
baseline's networks with another way to predict (`INFERENCE`). Options that this program does not
know are `train.py`'s, and change the baseline. Every arm has the same folds, tiles, order of tiles,
augmentation, number of steps and seeds. (Not the same first weights everywhere: a network with more
layers draws more random numbers.)

    d(group) = mean over seeds of (Dice of the arm - Dice of the baseline)       `effects.py` says
                                                                                 how sure it is

Each run that ends is one line in OUT/HOST.jsonl. So a study stops (Ctrl-C) and goes on, and fills
from several processes, and from several machines that share OUT (or train apart, and bring their
.jsonl and runs/ together). Whoever finds nothing left to do writes docs/results/study-NAME.jsonl
and .json and draws docs/figures/study-NAME-*.png.

A line holds, for each group, twice the overlap and the size of prediction and label (the two halves
of Dice) at `THRESHOLDS`: a fold is cut where the other folds would have it.
"""

import argparse
import contextlib
import csv
import io
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import takewhile
from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor

import train
from minseg.crossval import dice_parts
from minseg.data.datasets import Item
from minseg.data.files import atomic
from minseg.deep_supervision import deep_supervision_loss
from minseg.run.checkpoint import load_model
from minseg.run.errors import out_of_memory
from minseg.run.loop import locked
from minseg.run.options import train_options
from minseg.run.prepare import draw, make_sampler, outside, prepare
from minseg.run.report import Parser, Progress, duration
from minseg.run.scores import count_saved, predict
from minseg.run.step import EMA, autocast_dtype

from .bench import RESULTS, environment, in_turn
from .effects import dice_of_groups, effect, holm
from .plots import draw_study, signed
from .seams import seams
from .steps import alive_after, batch
from .style import need_matplotlib

THRESHOLDS = [i / 64 for i in range(1, 64)]
BASELINE = ("--encoder", "efficientnet-lite0", "--weights", "imagenet", "--loss", "bce+dice",
            "--negatives", "all")
TRAINING = {
    "baseline": (),
    "random weights": ("--weights", "none"),
    "gates": ("--gates",),
    "SCSE": ("--attention", "scse"),
    "CBAM": ("--attention", "cbam"),
    "hypercolumn": ("--hypercolumn",),
    "deep supervision": ("--deep-supervision",),
    "all together": ("--gates", "--attention", "scse", "--hypercolumn", "--deep-supervision"),
    "BCE": ("--loss", "bce"),
    "Dice": ("--loss", "dice"),
    "Lovász": ("--loss", "lovasz"),
    "Dice + Lovász": ("--loss", "dice+lovasz"),
    "BCE + Lovász": ("--loss", "bce+lovasz"),
    "Dice, then Lovász": ("--loss", "dice", "--then", "lovasz"),
    "negatives 1:1": ("--negatives", "1"),
    "balanced bins": ("--negatives", "balanced"),
}
INFERENCE = {
    **{f"overlap {share:g}, {window}": {"overlap": share, "window": window}
       for share in (0, 0.25, 0.5) for window in ("uniform", "linear", "gaussian", "hann")
       if (share, window) != (0.5, "linear")},  # that is how the baseline was scored
    "tile × 0.5": {"tile": 0.5}, "tile × 2": {"tile": 2}, "flips and turns": {"tta": True},
}
SEAMS, COSTS = "seams", "costs"  # jobs that are no arms
SAME = "baseline, another seed"  # against the baseline with the first one: chance alone
FEW = 2, 5  # glomeruli in 1024 x 1024 pixels: a third of what `train.py` draws
QUICK = ("overlap 0, uniform", "overlap 0.5, uniform", "overlap 0.5, hann", "flips and turns",
         SEAMS)
GONE = 130  # the exit status of a program that was asked to stop


def folder_of(args: argparse.Namespace, arm: str, seed: int, fold: int) -> Path:
    """Where a run lives. Each has its own, since epochs, and so settings, differ between folds."""
    return args.out / "runs" / f"{arm}, seed {seed}, fold {fold}"


def options_of(args: argparse.Namespace, arm: str, seed: int, fold: int) -> list[str]:
    """What `train.py` is given for a run."""
    return ["--data", str(args.data), *BASELINE, *args.options, *TRAINING[arm], "--folds",
            str(args.folds), "--fold", str(fold), "--seed", str(seed), "--resume", "--out",
            str(folder_of(args, arm, seed, fold))]


def prepared(args: argparse.Namespace, arm: str,
             fold: int) -> tuple[argparse.Namespace, list[Item], int]:
    """An arm's options as `train.py` understands them, the images that the fold holds out, and how
    many steps an epoch has."""
    given = train_options([*options_of(args, arm, 0, fold), "--out", str(args.out / "runs" / "no")])
    data = prepare(given)
    items, folds, tiles = data.items, data.folds, data.tiles
    return (given, [item for item, other in zip(items, folds) if other == fold],
            len(make_sampler(given, tiles, outside(tiles, folds, fold))(0)))


def levels(items: Sequence[Item], counts: Sequence[Tensor]) -> dict[str, list[list[int]]]:
    """The two halves of each group's Dice at each of `THRESHOLDS`."""
    groups = {item.group: 0 for item in items}
    for item, count in zip(items, counts):
        groups[item.group] = groups[item.group] + torch.stack(
            [dice_parts(count, threshold) for threshold in THRESHOLDS])
    return {group: halves.tolist() for group, halves in groups.items()}


def run_training(args: argparse.Namespace, arm: str, seed: int, fold: int) -> dict:
    """Trains and scores one network: as many steps as the baseline takes."""
    given, items, length = prepared(args, "baseline", fold)
    steps = max(1, round(given.epochs * length))
    epochs = steps / prepared(args, arm, fold)[2]
    train.main([*options_of(args, arm, seed, fold), "--epochs", f"{epochs:.12g}"])
    folder = folder_of(args, arm, seed, fold) / f"fold{fold}"
    rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    (folder / "resume.pt").unlink(missing_ok=True)  # nothing is left to resume, and it is large
    return {"options": TRAINING[arm], "steps": int(rows[-1]["steps"]),
            "seconds": round(sum(float(row["seconds"]) for row in rows), 1),
            "levels": levels(items, [count_saved(folder, item) for item in items])}


def run_inference(args: argparse.Namespace, arm: str, seed: int, fold: int) -> dict:
    """Scores a network of the baseline in another way, or measures its seams."""
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


def measure_costs(args: argparse.Namespace) -> dict:
    """Seconds a step (the median, all arms in turn), what its forward pass keeps for the backward
    pass, and parameters. Of two losses the second counts."""
    functions, rows = {}, {}
    for arm in args.arms:
        given = train_options(options_of(args, arm, 0, 0))
        net, _ = train.build(given, 1)
        optimizer, average = train.make_optimizer(net.train(), given), EMA(net, 0.99)
        dtype = autocast_dtype(given.device) if given.amp else None
        scaler = torch.amp.GradScaler(torch.device(given.device).type,
                                      enabled=dtype == torch.float16)
        images, masks = batch(argparse.Namespace(images=given.batch, size=given.tile,
                                                 device=given.device))
        loss = given.losses[-1]

        def forward(net=net, loss=loss, images=images, masks=masks, dtype=dtype):
            with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
                logits = net(images)
            return deep_supervision_loss(loss, logits, masks)

        def step(net=net, loss=loss, parts=[(images, masks)], optimizer=optimizer, scaler=scaler,
                 dtype=dtype, average=average):
            train.training_step(net, loss, parts, optimizer, scaler, dtype)
            average.update()

        functions[arm] = step
        rows[arm] = {"kept_bytes": alive_after(forward),
                     "parameters": sum(p.numel() for p in net.parameters())}
    for arm, seconds in in_turn(functions, 7).items():
        rows[arm]["seconds_a_step"] = round(seconds, 5)
    return {"rows": rows, "batch": given.batch, "tile": given.tile}


def jobs(args: argparse.Namespace) -> list[tuple[str, int, int]]:
    """What is to be done, (arm, seed, fold), in the order of doing: differences early."""
    ways = [arm for arm in (*INFERENCE, SEAMS) if not args.quick or arm in QUICK]
    return [(arm, seed, fold) for arms in (args.arms, ways) for seed in range(args.seeds)
            for fold in range(args.folds) for arm in arms] + [(COSTS, 0, 0)]


def read_lines(folder: Path) -> dict[tuple[str, int, int], dict]:
    """The runs that have ended. A line that a dying machine left unfinished does not count."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                found[row["arm"], row["seed"], row["fold"]] = row
    return found


def is_left(args: argparse.Namespace, job: tuple[str, int, int], lines: dict) -> bool:
    """Whether a job is still to be done, and can be: other ways to predict need the baseline's
    network; costs are measured anew, all in turn, where an arm has come since."""
    arm, seed, fold = job
    if arm == COSTS:
        return job not in lines or not set(args.arms) <= set(lines[job]["rows"])
    if arm not in TRAINING and ("baseline", seed, fold) not in lines:
        return False
    return job not in lines


def run(args: argparse.Namespace, job: tuple[str, int, int], facts: dict) -> bool:
    """Does one job and adds its line. False where it failed; Ctrl-C ends the program."""
    (arm, seed, fold), log = job, io.StringIO()
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            found = (measure_costs(args) if arm == COSTS else
                     (run_training if arm in TRAINING else run_inference)(args, arm, seed, fold))
        line = json.dumps({"arm": arm, "seed": seed, "fold": fold, **found, **facts},
                          ensure_ascii=False).encode()
        with open(args.out / f"{platform.node()}.jsonl", "ab", buffering=0) as file:
            # The first line end closes what a full disk or a power cut may have left open.
            if file.write(b"\n" + line + b"\n") < len(line) + 2:
                raise OSError(f"{file.name}: cannot be written: is the disk full?")
    except (SystemExit, ValueError, OSError, RuntimeError) as error:
        if getattr(error, "code", None) == GONE:
            raise KeyboardInterrupt
        if isinstance(error, RuntimeError) and not out_of_memory(error):
            raise
        last = (log.getvalue().splitlines() or [""])[-1] if isinstance(error, SystemExit) else error
        print(f"{arm}, seed {seed}, fold {fold}: {last}", file=sys.stderr, flush=True)
        return False
    return True


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; what is left over is for `train.py`."""
    parser = Parser(prog="python -m lab.study", allow_abbrev=False,
                    description=__doc__.split("\n")[0],
                    epilog="Other options are train.py's, and change the baseline.")
    parser.add_argument("--data", type=Path, metavar="DIR",
                        help="default: 20 synthetic slides with few glomeruli")
    parser.add_argument("--name", help="of the results (default: that of the data)")
    parser.add_argument("--folds", type=int, default=3, metavar="K", help="default 3")
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="default 2: 0 and 1")
    parser.add_argument("--arms", nargs="+", choices=TRAINING, default=list(TRAINING),
                        metavar="ARM", help="default all: " + ", ".join(TRAINING))
    parser.add_argument("--quick", action="store_true",
                        help="a minute on small slides, to see what it does")
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="folder of the runs (default: runs/study- and the name)")
    parser.add_argument("--results", type=Path, metavar="DIR",
                        help="default docs/results, with --quick that of --out")
    parser.add_argument("--figures", type=Path, metavar="DIR",
                        help="default docs/figures, with --quick that of --out")
    args, args.options = parser.parse_known_args(argv)
    for name in ("--seed", "--fold", "--resume", "--recipe"):
        if name in args.options:
            parser.error(f"{name}: is this program's to set")
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: needs a number from 1 up")
    args.name = args.name or ("quick" if args.quick else args.data.resolve().name if args.data
                              else "synthetic")
    args.out = args.out or Path("runs") / f"study-{args.name}"
    args.results = args.results or (args.out if args.quick else RESULTS)
    args.figures = args.figures or (args.out if args.quick else Path("docs/figures"))
    if args.quick:
        args.folds, args.seeds, args.arms = 2, 1, ["baseline", "SCSE", "Dice"]
        args.options = ["--weights", "none", "--epochs", "2", "--tile", "64", "--scale", "4",
                        *args.options]
    args.arms = ["baseline", *(arm for arm in args.arms if arm != "baseline")]
    return args


def check_settings(args: argparse.Namespace) -> None:
    """Keeps in OUT/study.json what a study is. ValueError where it is another one already. More
    seeds and arms can be added; those that are there stay in `args`."""
    here = {"data": args.data.resolve().name, "folds": args.folds, "options": args.options}
    path = args.out / "study.json"
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        args.seeds = max(args.seeds, there.pop("seeds"))
        arms = {*args.arms, *there.pop("arms")}
        args.arms = [arm for arm in TRAINING if arm in arms]
        if there != here:
            raise ValueError(f"{path}: is of a study with other data, folds or options: give "
                             "another --out")
    args.out.mkdir(parents=True, exist_ok=True)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps({**here, "seeds": args.seeds, "arms": args.arms}, indent=1)
                             + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    """Does what is left to do; then, when all is there, says what came out."""
    args = parse(argv)
    args.synthetic = args.data is None
    try:
        if args.synthetic:
            small = {"count": 4, "height": 512, "width": 512}
            args.data = draw(args.out / "slides", **(small if args.quick else {"glomeruli": FEW}))
        need_matplotlib()  # for the charts at the end
        given, _, _ = prepared(args, "baseline", 0)  # what is wrong here is wrong with every run
        check_settings(args)
    except (ValueError, OSError) as error:
        print(f"study: {error}", file=sys.stderr)
        sys.exit(2)
    facts = environment(given.device)
    todo, failed = jobs(args), 0
    there = read_lines(args.out)
    bar = Progress(len(todo), args.name, sum(job in there for job in todo))
    for job in todo:
        name = "{}, seed {}, fold {}".format(*job)
        claim = args.out / "claims" / name
        claim.mkdir(parents=True, exist_ok=True)
        with locked(claim) as mine:
            if mine and is_left(args, job, read_lines(args.out)):
                start = time.monotonic()
                if run(args, job, facts):
                    bar.say(f"{name}: {duration(time.monotonic() - start)}")
                else:
                    failed += 1
        bar.step(job not in there)  # another process may have done it meanwhile
    lines = read_lines(args.out)
    missing = [job for job in todo if job not in lines]
    if missing:
        print(f"{len(missing)} of {len(todo)} runs are missing: another process may be at work on "
              "them; the same command goes on, and writes the results when all are there")
        sys.exit(1 if failed else 0)
    try:
        report(args, {job: lines[job] for job in todo})
    except OSError as error:
        print(f"study: {error}: the same command tries again", file=sys.stderr)
        sys.exit(1)


def summarize(args: argparse.Namespace, lines: dict[tuple[str, int, int], dict]) -> dict:
    """What came out: the effects by family, with costs; the error at each distance from a seam."""

    def dices(arm, own_cut=False):
        return [dice_of_groups([lines[arm, seed, fold]["levels"] for fold in range(args.folds)],
                               own_cut) for seed in range(args.seeds)]

    baseline, costs = dices("baseline"), lines[COSTS, 0, 0]["rows"]
    own, families = dices("baseline", True), {}
    for family, arms in (("training", args.arms[1:]), ("inference", INFERENCE)):
        rows = [{"arm": arm, **effect(dices(arm), baseline),
                 "at_own_cut": effect(dices(arm, True), own)["difference"]}
                for arm in arms if (arm, 0, 0) in lines]
        for row, p in zip(rows, holm([row["p"] for row in rows])):
            row["p_holm"] = p
            if family == "training":
                row.update(costs[row["arm"]], cost=round(costs[row["arm"]]["seconds_a_step"]
                                                         / costs["baseline"]["seconds_a_step"], 3))
        families[family] = rows
    ways = {}
    for (arm, _, _), line in lines.items():
        for way, counts in line["ways"].items() if arm == SEAMS else ():
            ways[way] = ways.get(way, 0) + torch.tensor([counts["wrong"], counts["pixels"]])
    errors = {way: [round(w / n, 6) for w, n in takewhile(itemgetter(1), total.T.tolist())]
              for way, total in ways.items()}
    runs = [line for (arm, _, _), line in lines.items() if arm in TRAINING]
    again = {"arm": SAME, **effect(baseline[1:2], baseline[:1])} if args.seeds > 1 else None
    return {"groups": len(baseline[0]), "seeds": args.seeds, "folds": args.folds,
            "steps": sorted({line["steps"] for line in runs}),
            "median_run_seconds": statistics.median(line["seconds"] for line in runs),
            "baseline": {"dice": statistics.mean(d for seed in baseline for d in seed.values()),
                         "seeds": [statistics.mean(seed.values()) for seed in baseline],
                         "at_own_cut": statistics.mean(d for seed in own for d in seed.values()),
                         **costs["baseline"]},
            "same_again": again, "effects": families, "error_by_distance": errors}


def cell(row: dict | None) -> str:
    """An effect as text, bold where it survives Holm's correction."""
    if row is None:
        return ""
    difference, low, high = (signed(row[name]) for name in ("difference", "low", "high"))
    text = f"{difference} [{low}, {high}]"
    p = row.get("p_holm", row["p"])
    return (f"**{text}**" if p <= 0.05 else text) + f" p {p:.2g}"


def table(studies: dict[str, dict]) -> str:
    """Studies side by side as a Markdown table; costs are those of the first that has the arm."""
    rows = {name: {row["arm"]: row for rows in found["effects"].values() for row in rows}
            for name, found in studies.items()}
    base = [found["baseline"] for found in studies.values()]
    lines = [f"| arm | {' | '.join(studies)} | time of a step | memory | parameters |",
             "|---" * (4 + len(studies)) + "|",
             f"| baseline | {' | '.join('Dice {:.3f}'.format(b['dice']) for b in base)} | "
             f"1.00 × | 1.00 × | {base[0]['parameters'] / 1e6:.2f} M |"]
    same = [found["same_again"] for found in studies.values()]
    lines.append(f"| {SAME} | {' | '.join(cell(row) for row in same)} | | | |")
    for arm in (*TRAINING, *INFERENCE):
        there = {name: found[arm] for name, found in rows.items() if arm in found}
        if not there:
            continue
        name, row = next(iter(there.items()))
        costs = " | | " if arm in INFERENCE else (
            f"{row['cost']:.2f} × | "
            f"{row['kept_bytes'] / studies[name]['baseline']['kept_bytes']:.2f} × | "
            f"{row['parameters'] / 1e6:.2f} M")
        cells = " | ".join(cell(there.get(name)) for name in studies)
        lines.append(f"| {arm} | {cells} | {costs} |")
    return "\n".join(lines)


def report(args: argparse.Namespace, lines: dict[tuple[str, int, int], dict]) -> None:
    """Writes the lines and the summary, draws the pictures, and prints the table of all studies
    whose summaries lie there."""
    found = summarize(args, lines)
    data = [] if args.synthetic else ["--data", args.data.name]
    arms = [] if len(args.arms) == len(TRAINING) else ["--arms", *args.arms]
    words = ["--quick"] if args.quick else [
        *data, "--folds", str(args.folds), "--seeds", str(args.seeds), *arms, *args.options]
    runs = [line for line in lines.values() if "commit" in line]
    facts = {name: sorted({line[name] for line in runs})
             for name in ("device", "torch", "threads", "commit", "date")}
    for folder in (args.results, args.figures):
        folder.mkdir(parents=True, exist_ok=True)
    with atomic(args.results / f"study-{args.name}.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n"
                                     for line in lines.values()), encoding="utf-8")
    with atomic(args.results / f"study-{args.name}.json") as temporary:
        summary = {**facts, "command": shlex.join(["python", "-m", "lab.study", *words]),
                   **found}
        temporary.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n",
                             encoding="utf-8")
    pictures = draw_study(args.figures, args.name, found)
    print(table({path.stem.removeprefix("study-"): json.loads(path.read_text(encoding="utf-8"))
                 for path in sorted(args.results.glob("study-*.json"))}))
    print(args.results / f"study-{args.name}.json", *pictures, sep="\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstudy: stopped; the same command goes on")
