"""Charts of what was measured: effects with their intervals, what they cost, curves.

Nothing is told by colour alone: a point is filled where a difference counts, and its numbers stand
beside it. `lab.study` and `lab.compare` draw them; `lab.figures` draws them anew from their files.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .style import BLUE, GREY, INK, LINES, RED, curves, sheet

LEAST = 1e-9  # the chart of shifts shows smaller differences here
KINDS = "effects", "costs", "seams"  # the charts of a study
# Arms that take a trick away from the baseline are turned round, so that plus favours the trick.
TAKEN_AWAY = {"random weights": "ImageNet, not random weights", "BCE": "BCE + Dice, not BCE",
              "overlap 0.5, uniform": "linear, not uniform window",
              **{f"overlap 0, {window}": f"overlap 0.5, not 0 ({window})"
                 for window in ("uniform", "linear", "gaussian", "hann")}}


def signed(value: float) -> str:
    """Three places with a sign; there is no minus zero.

    >>> signed(-0.0004), signed(-0.0123)
    ('+0.000', '-0.012')
    """
    return f"{round(value, 3) + 0:+.3f}"


def favouring(row: dict) -> dict:
    """An effect with the trick minus without it, whichever of the two the arm is."""
    if row["arm"] not in TAKEN_AWAY:
        return row
    turned = {**row, "arm": TAKEN_AWAY[row["arm"]], "difference": -row["difference"],
              "low": -row["high"], "high": -row["low"]}
    return {**turned, "cost": 1 / row["cost"]} if "cost" in row else turned


def forest(axes, rows: Sequence[dict | str]) -> None:
    """One line per row, from the top: an effect and its interval, as a point and as numbers; a
    string is a heading. What lies far outside becomes an arrow at the border."""
    effects = [(y, row) for y, row in enumerate(rows) if isinstance(row, dict)]
    bounds = sorted(abs(row[side]) for _, row in effects for side in ("low", "high"))
    typical = bounds[min(len(bounds) - 1, int(0.85 * len(bounds)) + 1)]
    limit = 1.1 * (bounds[-1] if bounds[-1] < 4 * typical else typical) or 1.0
    names, words = list(rows), [""] * len(rows)
    for y, row in effects:
        low, middle, high = row["low"], row["difference"], row["high"]
        names[y], words[y] = row["arm"], f"{signed(middle)}  [{signed(low)}, {signed(high)}]"
        counts = row["p_holm"] <= 0.05
        colour = GREY if not counts else BLUE if middle > 0 else RED
        axes.plot(np.clip([low, high], -limit, limit), [y, y], color=colour)
        for x, visible, marker in ((middle, abs(middle) <= limit, "o"), (-limit, low < -limit, "<"),
                                   (limit, high > limit, ">")):
            if visible:
                axes.plot(x, y, marker, color=colour, markersize=7, markeredgewidth=1.8,
                          markerfacecolor=colour if counts or marker != "o" else "white")
    axes.axvline(0, color=INK, linewidth=1.5, zorder=1)
    axes.set(xlabel="Dice with the trick minus without", xlim=(-1.15 * limit, 1.15 * limit),
             ylim=(len(rows) - 0.4, -0.6))
    axes.set_yticks(range(len(rows)), names)
    for row, label in zip(rows, axes.get_yticklabels()):
        label.set_weight("bold" if isinstance(row, str) else "normal")
    axes.locator_params("x", nbins=5)
    axes.xaxis.set_major_formatter("{x:+.3g}")
    axes.grid(axis="x")
    axes.secondary_yaxis("right").set_yticks(range(len(rows)), words)


def costs(rows: Sequence[dict], title: str):
    """Effects beside their costs, the time of a training step as a multiple of the baseline's; the
    cheapest is first."""
    rows = sorted(rows, key=lambda row: row["cost"])
    figure, (left, right) = sheet(title, 1, 2, height=1.5 + 0.3 * len(rows), sharey=True,
                                  width_ratios=(2, 3))
    forest(right, rows)
    for y, row in enumerate(rows):
        left.plot([1, row["cost"]], [y, y], color=INK, marker="s", markevery=[1])
    left.axvline(1, color=INK, linewidth=1.5)
    left.set_xlabel("time of a step")
    left.locator_params("x", nbins=4)
    left.xaxis.set_major_formatter("{x:.3g} ×")
    left.grid(axis="x")
    return figure


def study_chart(name: str, kind: str, found: dict):
    """One of the charts (`KINDS`) of a study, from the summary that `lab.study` writes."""
    about = f"{name}, {found['groups']} groups, {found['folds']} folds, {found['seeds']} seeds"
    families = {name: [favouring(row) for row in rows] for name, rows in found["effects"].items()}
    if kind == "costs":
        return costs(families["training"], f"What each trick brings and costs: {about}")
    if kind == "seams":
        return curves(f"Wrong pixels near seams: {about}",
                      {way: ([i + 0.5 for i, _ in enumerate(errors)], [100 * e for e in errors])
                       for way, errors in found["error_by_distance"].items()},
                      "pixels to the nearest border of a tile", "% of the pixels there")[0]
    chance = found["same_again"]
    for rows in families.values():
        rows.sort(key=lambda row: -row["difference"])
    if chance:
        families = {"chance": [{**chance, "p_holm": chance["p"]}], **families}
    lines = [line for family, rows in families.items() for line in (family, *rows)]
    figure, axes = sheet(f"What each trick brings: {about}", height=1.5 + 0.27 * len(lines),
                         note="filled: p at most 0.05 after Holm's correction; ring: not told "
                         "apart; line: 95 % interval;\npale band: as far from 0 as the interval of "
                         "chance, the baseline with another seed")
    forest(axes, lines)
    if chance:  # which of two seeds counts as the trick is arbitrary: to both sides
        width = max(abs(chance["low"]), abs(chance["high"]))
        axes.fill_betweenx([-0.6, lines.index("inference") - 0.6], -width, width, color="#eaf2f8",
                           zorder=0)
    return figure


def comparison(rows: Sequence[dict]):
    """The held-out Dice of runs, epoch by epoch, from the rows of `lab.compare`."""
    lines = {f"{row['name']}: {row['held_out_dice'][-1]:.3f}":
             (range(1, len(row["held_out_dice"]) + 1), row["held_out_dice"]) for row in rows}
    encoder = rows[0]["alike"].get("encoder", "")
    figure, axes = curves(f"Held-out Dice, mean of the folds, {encoder}", lines, "epoch", "Dice")
    axes.set_ylim(bottom=math.floor(10 * min(min(dice) for _, dice in lines.values())) / 10)
    return figure


def race_chart(name: str, found: dict):
    """The Dice of `lab.race`'s contestants over steps and over seconds, from its summary."""
    title = (f"Held-out Dice, mean of {found['groups']} groups: {name}, {found['folds']} folds, "
             f"{found['seeds']} seeds")
    figure, both = sheet(title, 1, 2, height=4.5, sharey=True)
    names = list(dict.fromkeys(row["contestant"] for row in found["rows"]))
    for axes, across in zip(both, ("steps", "seconds")):
        for who, (colour, line, marker) in zip(names, LINES):
            rows = [row for row in found["rows"] if row["contestant"] == who]
            axes.plot([row[across] for row in rows], [row["dice"] for row in rows], color=colour,
                      linestyle=line, marker=marker, label=who if across == "steps" else None)
        axes.set(xlabel={"steps": "steps of training", "seconds": "seconds of training"}[across])
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.grid()
    budgets = sorted({row["steps"] for row in found["rows"]})
    both[0].set_xticks(budgets, map(str, budgets))
    both[0].set_ylabel("Dice")
    figure.legend(loc="outside lower left", ncols=3)
    return figure


def shifts_chart(found: dict):
    """How much two tiles disagree at each distance from their borders, from the summary of
    `lab.shifts`, for the largest tiles: on one grid, the same with one tile's means, off the grid.
    """
    tile = found["tiles"][-1]
    figure, panels = sheet(f"The same pixel in two tiles of {tile} x {tile} pixels", 1, 3,
                           height=5, sharey=True)
    for axes, (shift, means, title) in zip(panels, (
            (32, "as they are", "32 pixels apart"),
            (32, "same means", "32 apart, same means"),
            (16, "same means", "16 apart, same means"))):
        for row, (colour, line, marker) in zip(found["rows"], LINES):
            # The last bin is not a full one.
            each = row["mismatch"][f"tile {tile}, shift {shift}"][means][:-1]
            axes.plot(found["bin"] * (np.arange(len(each)) + 0.5), np.maximum(each, LEAST),
                      color=colour, linestyle=line, marker=marker, markersize=5, markevery=8,
                      linewidth=1.5, label=row["name"] if axes is panels[0] else None)
        axes.axvline(found["reach"], color=INK, linestyle="--", linewidth=1,
                     label="Lite0 sees no farther" if axes is panels[0] else None)
        axes.set(yscale="log", xticks=(0, 200, 400))
        axes.set_title(title, fontsize=10)
        axes.minorticks_off()
        axes.grid()
    panels[0].set_ylabel("mean difference in probability")
    panels[1].set_xlabel("pixels to the nearest border of a tile")
    figure.legend(loc="outside lower left", ncols=4)
    return figure


def stored_chart(name: str, results: Path):
    """A chart, by the name of its file, from the files in `results`."""
    study, _, kind = name.rpartition("-")
    stored = results / f"{study if kind in KINDS else name}.json"
    found = json.loads(stored.read_text(encoding="utf-8"))
    if kind in KINDS:
        return study_chart(study.removeprefix("study-"), kind, found)
    if name.startswith("race-"):
        return race_chart(name.removeprefix("race-"), found)
    if name == "shifts":
        return shifts_chart(found)
    return comparison(found["rows"])
