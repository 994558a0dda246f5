"""Two runs of train.py side by side: how their options differ, and which scores higher, and sooner.

    python train.py --data DIR --folds 3 --out runs/a
    python train.py --data DIR --folds 3 --weights imagenet --out runs/b
    python -m lab.compare runs/a runs/b

Prints a table, writes docs/results/compare-A-B.json and draws docs/figures/compare-A-B.png.
"""

import csv
import json
import shlex
import statistics
from pathlib import Path

from minseg.run.config import NOT_COMPARED
from minseg.run.report import Parser, some
from minseg.run.tiles import differences

from . import style
from .measure import RESULTS, environment, write_json
from .plots import comparison


def read_run(run: Path) -> tuple[dict, dict]:
    """A run's options and its summary. ValueError where the run is not complete."""
    try:
        return tuple(json.loads((run / name).read_text(encoding="utf-8"))
                     for name in ("config.json", "summary.json"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{run}: is not a complete run ({error}): train all of its folds")


def load(run: Path) -> dict:
    """A run's options, scores, and held-out Dice after each epoch (the mean over its folds)."""
    config, summary = read_run(run)
    config["data"] = Path(config.get("data") or "").name  # the path means nothing on other machines
    made_from = config.get("made_from", {}).get("images", {})
    config = {name: value for name, value in config.items() if name not in NOT_COMPARED or
              name in ("data", "closed")}
    logs = [list(csv.DictReader(path.read_text().splitlines()))
            for path in sorted(run.glob("fold*/log.csv"))]
    curves = [[float(row["held_out_dice"]) for row in rows] for rows in logs]
    seconds = sum(float(row["seconds"]) for rows in logs for row in rows)
    return {"name": run.name, "config": config, "made_from": made_from,
            **{name: summary[name] for name in ("groups", "pooled_dice", "mean_dice", "sd_dice")},
            "minutes": round(seconds / 60, 1),
            "held_out_dice": [round(statistics.mean(values), 5) for values in zip(*curves)]}


def compare(runs: list[Path]) -> list[dict]:
    """A row for each of two runs, with the options that differ. ValueError where they were not
    scored on the same groups, or not trained for the same number of epochs."""
    first, second = rows = [load(run) for run in runs]
    if first["groups"].keys() != second["groups"].keys():
        raise ValueError(f"{runs[1]}: was not scored on the same groups as {runs[0]}")
    if len(first["held_out_dice"]) != len(second["held_out_dice"]):
        raise ValueError(f"{runs[1]}: was not trained for as many epochs as {runs[0]}")
    files = [row.pop("made_from") for row in rows]
    if all(files) and (names := differences(*files)):
        raise ValueError(f"{runs[1]}: was not made from the same files as {runs[0]}: {some(names)}")
    configs = [row.pop("config") for row in rows]
    for row, other in ((first, second), (second, first)):
        row["passes_the_others_end_in_epoch"] = next(
            (epoch for epoch, dice in enumerate(row["held_out_dice"], 1)
             if dice > other["held_out_dice"][-1]), None)
        row["groups_above_the_other"] = sum(dice > other["groups"][group]
                                            for group, dice in row["groups"].items())
    shared = {name for name, value in configs[0].items() if configs[1].get(name) == value}
    for row, config in zip(rows, configs):
        row["apart"] = {name: value for name, value in config.items() if name not in shared}
        row["alike"] = {name: value for name, value in config.items() if name in shared}
    return rows


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = ["| run | pooled Dice | mean of groups ± deviation | above in | "
             "passes the other's end |", "|---|---|---|---|---|"]
    for row in rows:
        epoch, epochs = row["passes_the_others_end_in_epoch"], len(row["held_out_dice"])
        lines.append("| {name} | {pooled_dice:.4f} | {mean_dice:.4f} ± {sd_dice:.4f} | "
                     "{groups_above_the_other} of ".format(**row) + f"{len(row['groups'])} groups "
                     f"| {f'in epoch {epoch} of {epochs}' if epoch else 'never'} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m lab.compare", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="folders of complete runs")
    parser.add_argument("--docs", type=Path, default=RESULTS.parent, metavar="DIR",
                        help="for results/ and figures/ (default docs)")
    args = parser.parse_args(argv)
    try:
        style.need_matplotlib()
        rows = compare(args.runs)
    except ValueError as error:
        parser.error(error)
    print(table(rows))
    name = "compare-" + "-".join(run.name for run in args.runs)
    command = shlex.join(["python", "-m", "lab.compare", *map(str, args.runs)])
    print(write_json(args.docs / "results" / f"{name}.json",
                     {**environment("cpu"), "command": command, "rows": rows}))
    print(style.save(comparison(rows), args.docs / "figures" / f"{name}.png"))


if __name__ == "__main__":
    main()
