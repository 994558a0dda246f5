"""What `lab.study`, `lab.race` and `lab.small` share: options, runs, and what is kept of them.

A run has a folder of its own and leaves its result there, in result.json. So a program can stop
(Ctrl-C) and go on, and several processes or machines can share the folders.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from minseg.crossval import dice_parts
from minseg.files.masks import Item
from minseg.run.config import DEFAULTS
from minseg.run.errors import Stopped, out_of_memory
from minseg.run.loop import locked
from minseg.run.memory import keep_memory
from minseg.run.options import train_options
from minseg.run.prepare import prepare, training_tiles
from minseg.run.report import Parser, Progress, duration
from minseg.run.tiles import Tiles

from .measure import write_json, write_text

BASELINE = "--encoder efficientnet-lite0 --weights imagenet"
THRESHOLDS = [i / 64 for i in range(1, 64)]
OWN = "--seed --fold --resume --epochs --accumulate"  # options that these programs set themselves
FEW = 2, 5  # glomeruli in 1024 x 1024 pixels: a third of what `train.py` draws


def make_parser(program: str, doc: str, seeds: int,
                data: str = "20 synthetic slides, few glomeruli") -> Parser:
    """A parser with the options that these programs share. `seeds`: how many they train by default;
    `data`: on what, without --data."""
    parser = Parser(prog=f"python -m lab.{program}", allow_abbrev=False,
                    description=doc.split("\n")[0], epilog="Other options are passed to train.py.")
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help=f"default: {data}")
    add("--seeds", type=int, default=seeds, metavar="N",
        help=f"default {seeds}: seeds 0 to {seeds - 1}")
    add("--out", type=Path, metavar="DIR", help="of the runs (default: a folder in runs/)")
    add("--docs", type=Path, metavar="DIR", help="for results/ and figures/ (default docs)")
    return parser


def add_folds(parser: Parser) -> None:
    """Two more, for one data set."""
    parser.add_argument("--name", help="of the results (default: the name of the data)")
    parser.add_argument("--folds", type=int, default=3, metavar="K", help="default 3")


def parse_known(parser: Parser, argv: Sequence[str] | None, own: str = "") -> argparse.Namespace:
    """The command line; what is left over is for `train.py`, but not `OWN` and the options in
    `own`."""
    args, args.options = parser.parse_known_args(argv)
    given = {option.split("=")[0] for option in args.options}
    for name in given.intersection([*OWN.split(), *own.split()]):
        parser.error(f"{name}: this program sets it itself")
    return args


def options_of(args: argparse.Namespace, change: str, seed: int, fold: int) -> list[str]:
    """The command line of a run for `train.py`, with the options of a `change`."""
    run = {"--data": args.data, "--folds": args.folds, "--fold": fold, "--seed": seed,
           "--out": args.out / "none"}
    return [*BASELINE.split(), *args.options, *change.split(),
            *(str(word) for pair in run.items() for word in pair)]


def prepared(args: argparse.Namespace, change: str, seed: int,
             fold: int) -> tuple[argparse.Namespace, list[Item], Tiles, Tensor]:
    """What a run needs: its options for train.py, the images to score, the tiles, and the numbers
    of those to train on."""
    given = train_options(options_of(args, change, seed, fold))
    data = prepare(given)
    keep_memory()
    return given, data.held_out(fold), data.tiles, training_tiles(data.tiles, data.folds, fold)


def levels(items: Sequence[Item], counts: Sequence[Tensor]) -> dict[str, list[list[int]]]:
    """The numerator and denominator of each group's Dice at each of `THRESHOLDS`."""
    groups: dict[str, Tensor | int] = {}
    for item, count in zip(items, counts):
        groups[item.group] = groups.get(item.group, 0) + count
    return {group: [dice_parts(count, threshold).tolist() for threshold in THRESHOLDS]
            for group, count in groups.items()}


def mean(seeds: Sequence[Mapping[str, float]]) -> float:
    """The mean over seeds and groups."""
    return statistics.mean(dice for seed in seeds for dice in seed.values())


def claim(out: Path, **settings: object) -> None:
    """Writes into OUT what its runs have in common. ValueError where that was something else: the
    names of their folders do not tell."""
    path, settings = out / "settings.json", {**settings, "defaults": DEFAULTS}
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise ValueError(f"{path}: belongs to runs with other data, folds, options or defaults of "
                         "train.py: give another --out")
    write_json(path, settings)


def attempt(folder: Path, job: Callable[[], dict], facts: dict) -> bool:
    """Does one job and writes its result. False where it failed; Ctrl-C ends the program."""
    log = io.StringIO()
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            write_json(folder / "result.json", {**job(), **facts})
    except Stopped:
        raise KeyboardInterrupt
    except (SystemExit, ArithmeticError, ValueError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not out_of_memory(error):
            raise
        last = (log.getvalue().splitlines() or [""])[-1] if isinstance(error, SystemExit) else error
        print(f"{folder.name}: {last}", file=sys.stderr, flush=True)
        return False
    return True


def work(name: str, jobs: Mapping[Path, Callable[[], dict]], facts: dict, done: int = 0) -> bool:
    """Does the jobs that have no result in their folder yet, and on which no other process works.
    Returns whether all of them succeeded. `facts` go into each result; `done` jobs more are done
    already."""
    bar, succeeded = Progress(done + len(jobs), name, done), True
    for folder, job in jobs.items():
        start = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder) as free:
            if free and not (folder / "result.json").exists():
                if attempt(folder, job, facts):
                    bar.say(f"{folder.name}: {duration(time.monotonic() - start)}")
                else:
                    succeeded = False
        bar.step()
    return succeeded


def finish(name: str, jobs: Collection[tuple], folder_of: Callable[..., Path],
           run: Callable[..., dict], facts: dict) -> dict[tuple, dict]:
    """Does what is left of all jobs, and returns their results. Ends the program where some are
    missing."""
    folders = {job: folder_of(*job) for job in jobs}
    work(name, {folder: partial(run, *job) for job, folder in folders.items()}, facts)
    paths = {job: folder / "result.json" for job, folder in folders.items()}
    if missing := sum(not path.exists() for path in paths.values()):
        sys.exit(f"{name}: {missing} of {len(jobs)} runs are missing: they failed, or another "
                 "process is working on them; the same command goes on")
    return {job: json.loads(path.read_text(encoding="utf-8")) for job, path in paths.items()}


def publish(path: Path, lines: Collection[dict], found: dict) -> Path:
    """Writes what was `found` and where it was measured to `path`, and the lines that it follows
    from to the .jsonl beside it."""
    facts = {name: sorted({line[name] for line in lines})
             for name in ("device", "torch", "threads", "commit", "date")}
    write_text(path.with_suffix(".jsonl"), "".join(
        json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines))
    return write_json(path, {**facts, **found})
