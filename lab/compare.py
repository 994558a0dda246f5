"""Two runs of train.py side by side: how their options differ, and which scores higher, and sooner.

    python train.py --data DIR --folds 3 --out runs/a
    python train.py --data DIR --folds 3 --weights imagenet --out runs/b
    python -m lab.compare runs/a runs/b

Prints a table, writes docs/results/compare-A-B.json and draws docs/figures/compare-A-B.png.
"""

import csv
import json
import statistics
from pathlib import Path

from minseg.data.files import atomic
from minseg.run.report import Parser

from . import style
from .measure import RESULTS, environment
from .plots import comparison


def load(run: Path) -> dict:
    """A run's options, scores, and held-out Dice after each epoch (the mean over its folds).
    ValueError where the run is not complete."""
    try:
        config = json.loads((run / "config.json").read_text())
        summary = json.loads((run / "summary.json").read_text())
        logs = [list(csv.DictReader(path.read_text().splitlines()))
                for path in sorted(run.glob("fold*/log.csv"))]
    except (OSError, ValueError) as error:
        raise ValueError(f"{run}: is not a complete run ({error}): train all of its folds")
    config["data"] = Path(config.get("data") or "").name  # the path means nothing on other machines
    curves = [[float(row["held_out_dice"]) for row in rows] for rows in logs]
    seconds = sum(float(row["seconds"]) for rows in logs for row in rows)
    return {"name": run.name, "config": config, "groups": summary["groups"],
            "pooled_dice": summary["pooled_dice"], "mean_dice": summary["mean_dice"],
            "sd_dice": summary["sd_dice"], "minutes": round(seconds / 60, 1),
            "held_out_dice": [round(statistics.mean(values), 5) for values in zip(*curves)]}


def passes(curve: list[float], other: list[float]) -> int | None:
    """The first epoch, from 1, at which `curve` lies above the end of `other`.

    >>> passes([0.1, 0.6, 0.7], [0.2, 0.3, 0.5]), passes([0.2, 0.3, 0.5], [0.1, 0.6, 0.7])
    (2, None)
    """
    return next((i for i, dice in enumerate(curve, 1) if dice > other[-1]), None)


def compare(runs: list[Path]) -> list[dict]:
    """A row for each of two runs, with the options that differ. ValueError where they were not
    scored on the same groups, or not trained for the same number of epochs."""
    first, second = rows = [load(run) for run in runs]
    if first["groups"].keys() != second["groups"].keys():
        raise ValueError(f"{runs[1]}: was not scored on the same groups as {runs[0]}")
    if len(first["held_out_dice"]) != len(second["held_out_dice"]):
        raise ValueError(f"{runs[1]}: was not trained for as many epochs as {runs[0]}")
    for row, other in ((first, second), (second, first)):
        row["passes_the_others_end_in_epoch"] = passes(row["held_out_dice"],
                                                       other["held_out_dice"])
        row["groups_above_the_other"] = sum(dice > other["groups"][group]
                                            for group, dice in row["groups"].items())
    shared = {key for key, value in first["config"].items() if second["config"].get(key) == value}
    for row in rows:
        config = row.pop("config")
        row["apart"] = {key: value for key, value in config.items() if key not in shared}
        row["alike"] = {key: value for key, value in config.items() if key in shared}
    return rows


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = ["| run | pooled Dice | mean of groups ± deviation | above in | "
             "passes the other's end |", "|---|---|---|---|---|"]
    for row in rows:
        epoch = row["passes_the_others_end_in_epoch"]
        lines.append(f"| {row['name']} | {row['pooled_dice']:.4f} | {row['mean_dice']:.4f} ± "
                     f"{row['sd_dice']:.4f} | {row['groups_above_the_other']} of "
                     f"{len(row['groups'])} groups | "
                     + (f"in epoch {epoch} of {len(row['held_out_dice'])}" if epoch else "never")
                     + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = Parser(prog="python -m lab.compare", description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="folders of complete runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default docs/results")
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"),
                        help="default docs/figures")
    args = parser.parse_args(argv)
    try:
        style.need_matplotlib()
        rows = compare(args.runs)
    except ValueError as error:
        parser.error(error)
    print(table(rows))
    name = "compare-" + "-".join(run.name for run in args.runs)
    for folder in (args.out, args.figures):
        folder.mkdir(parents=True, exist_ok=True)
    with atomic(args.out / f"{name}.json") as temporary:
        command = " ".join(["python -m lab.compare", *map(str, args.runs)])
        temporary.write_text(json.dumps({**environment("cpu"), "command": command, "rows": rows},
                                        indent=2) + "\n")
    style.save(comparison(rows), args.figures / f"{name}.png")
    print(args.out / f"{name}.json", args.figures / f"{name}.png", sep="\n")


if __name__ == "__main__":
    main()
