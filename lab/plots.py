"""Charts of what was measured: effects with their intervals, and curves.

Nothing is told by colour alone: a point is filled where a difference counts, and its numbers stand
beside it. The programs that measure draw them; `lab.figures` draws them anew from their files.
"""

import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .style import BLUE, GREY, INK, LINES, RED, curves, sheet

BAND = "#dbe9f4"  # of luck alone
SEAMS = "overlap 0, uniform", "overlap 0.5, uniform", "overlap 0.5, linear", "overlap 0.5, gaussian"
LEAST = 1e-9  # the chart of shifts shows smaller differences here
KINDS = "effects", "lengths", "seams"  # the charts of a study
# Arms that take a trick away from the baseline are turned round, so that plus favours the trick.
TAKEN_AWAY = {"random weights": "ImageNet, not random weights", "BCE": "Dice added to BCE",
              "all empty tiles": "one empty tile per full one, not all",
              "overlap 0, uniform": "overlap 0.5 linear, not 0",
              "overlap 0.5, uniform": "linear, not uniform window",
              "tiles not turned": "tiles turned"}
# Other ways to predict are compared with overlap 0.5 and the linear window, and say so.
INSTEAD = {"overlap 0.5, gaussian": "Gaussian, not linear window",
           "overlap 0.25, linear": "overlap 0.25, not 0.5",
           "overlap 0.25, uniform": "overlap 0.25 uniform, not 0.5 linear",
           "overlap 0.25, gaussian": "overlap 0.25 Gaussian, not 0.5 linear"}


def signed(value: float) -> str:
    """Three places with a sign; there is no minus zero.

    >>> signed(-0.0004), signed(-0.0123)
    ('+0.000', '-0.012')
    """
    return f"{round(value, 3) + 0:+.3f}"


def favouring(row: dict) -> dict:
    """An effect with the trick minus without it, whichever of the two the arm is, under the name
    that says what is compared."""
    if row["arm"] not in TAKEN_AWAY:
        return {**row, "arm": INSTEAD.get(row["arm"], row["arm"])}

    def turned(found: dict) -> dict:
        sides = {"low": -found["high"], "high": -found["low"]} if "low" in found else {}
        return {**found, "difference": -found["difference"], **sides}

    row = {**turned(row), "arm": TAKEN_AWAY[row["arm"]]}
    if "along" in row:
        row["along"] = {steps: turned(found) for steps, found in row["along"].items()}
    for name in {"moved", "per_image"} & row.keys():
        row[name] = turned(row[name])
    return row


def mark(row: dict) -> str:
    """▲ or ▼ where an effect is clear: p at most 0.05 after Holm's correction and, where a network
    was trained for it, more than luck alone."""
    clear = row["p_holm"] <= 0.05 and abs(row["difference"]) > row.get("luck", 0)
    return (" ▲" if row["difference"] > 0 else " ▼") if clear else ""


def moves(row: dict) -> str:
    """↗ or ↘ where an effect went up or down between half of the run and its end, by more than luck
    does."""
    moved = row.get("moved", {"difference": 0, "luck": 0})
    if abs(moved["difference"]) <= moved["luck"]:
        return ""
    return " ↗" if moved["difference"] > 0 else " ↘"


def forest(axes, rows: Sequence[dict | str]) -> None:
    """One line per row, from the top: an effect and its interval, as a point and as numbers; a
    string is a heading. What lies far outside becomes an arrow at the border."""
    effects = [(y, row) for y, row in enumerate(rows) if isinstance(row, dict)]
    bounds = sorted(abs(row[side]) for _, row in effects for side in ("low", "high"))
    typical = bounds[min(len(bounds) - 1, int(0.85 * len(bounds)) + 1)]
    limit = 1.1 * (bounds[-1] if bounds[-1] < 4 * typical else typical) or 1.0
    points = [abs(row["difference"]) for _, row in effects]  # none beside the border's arrows
    limit = max([limit, *(1.2 * each for each in points if 0.85 * limit < each <= limit)])
    names, words = list(rows), [""] * len(rows)
    for y, row in effects:
        low, middle, high = row["low"], row["difference"], row["high"]
        names[y], words[y] = row["arm"], f"{signed(middle)}  [{signed(low)}, {signed(high)}]"
        counts = bool(mark(row))
        colour = GREY if not counts else BLUE if middle > 0 else RED
        if "luck" in row:
            width = min(row["luck"], 1.15 * limit)
            axes.fill_betweenx([y - 0.5, y + 0.5], -width, width, color=BAND, linewidth=0, zorder=0)
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


def small_multiples(rows: Sequence[dict], title: str):
    """A panel for each arm: its effect along the way, with intervals, beside the band of luck."""
    rows = [row for row in rows if len(row["along"]) > 1]
    height, columns = -(-len(rows) // 4), min(len(rows), 4)
    figure, grid = sheet(title, height, columns, height=1.6 + 1.5 * height, sharex=True,
                         sharey=True, squeeze=False, note="steps of training; point: Dice with the "
                         "trick minus without, filled where it is clear at the end; line: 95 % "
                         "interval;\npale band: luck alone. What leaves the panel is written at "
                         "its border.")
    ends = sorted(max(abs(found["difference"]) for found in row["along"].values()) for row in rows)
    wide = sorted(max(-found["low"], found["high"]) for row in rows
                  for found in row["along"].values())
    limit = max(1.3 * min(ends[-1], 2 * ends[len(ends) // 2]), 1.5 * wide[len(wide) // 2]) or 1.0
    steps = [int(number) for number in rows[0]["along"]]
    for axes, row in zip(grid.flat, rows):
        found = row["along"].values()
        middle, low, high, luck = (np.array([at[name] for at in found])
                                   for name in ("difference", "low", "high", "luck"))
        colour = GREY if not mark(row) else BLUE if row["difference"] > 0 else RED
        axes.fill_between(steps, -luck, luck, color=BAND, linewidth=0)
        axes.axhline(0, color=INK, linewidth=1)
        inside = np.abs(middle) <= 0.95 * limit
        axes.vlines(np.array(steps)[inside], low[inside], high[inside], color=colour, linewidth=2)
        axes.plot(steps, np.where(inside, middle, np.nan), "o-", color=colour, markersize=5,
                  linewidth=1.5, markeredgewidth=1.5,
                  markerfacecolor=colour if mark(row) else "white")
        for x, value in zip(np.array(steps)[~inside], middle[~inside]):
            axes.text(x, math.copysign(0.93 * limit, value), f"{value:+.2f}".replace("0.", "."),
                      ha="center", va="top" if value > 0 else "bottom", fontsize=8, color=colour)
        axes.set_title(textwrap.fill(row["arm"], 22), fontsize=9)
        axes.set(xscale="log", ylim=(-limit, limit), xlim=(steps[0] / 1.35, steps[-1] * 1.35))
        axes.set_xticks(steps, map(str, steps), fontsize=8)
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:+.3g}")
        axes.tick_params("y", labelsize=8)
        axes.grid(axis="y")
    for axes in grid.flat[len(rows):]:
        axes.set_axis_off()
    return figure


def charts_of(found: dict) -> list[str]:
    """Those of `KINDS` that a study has something for."""
    some = {"effects": True, "lengths": any(len(row["along"]) > 1 for row in found["training"]),
            "seams": bool(found["seams"])}
    return [kind for kind in KINDS if some[kind]]


def study_chart(name: str, kind: str, found: dict):
    """One of the charts (`KINDS`) of a study, from the summary that `lab.study` writes."""
    about = f"{name}, {found['groups']} groups, {found['folds']} folds, {found['steps']} steps"
    if kind == "seams":
        lines = {}
        for way in SEAMS:
            wrong, pixels = (np.array(found["seams"][way][name]) for name in ("wrong", "pixels"))
            at = np.flatnonzero(pixels)
            lines[way] = at + 0.5, 100 * wrong[at] / pixels[at]
        return curves(f"Wrong pixels near seams: {about}", lines, "pixels to the nearest seam",
                      "% of the pixels there")[0]
    training, ways = (sorted(map(favouring, found[rows]), key=lambda row: -row["difference"])
                      for rows in ("training", "ways"))
    if kind == "lengths":
        return small_multiples(training, f"Along the way: {about}")
    lines = ["training", *training, *(["prediction", *ways] if ways else [])]
    figure, axes = sheet(f"What each trick brings: {about}", height=1.5 + 0.27 * len(lines),
                         note="filled: p at most 0.05 after Holm's correction, and more than luck "
                         "alone; ring: not told\napart; line: 95 % interval; pale band: luck "
                         "alone, 19 times in 20")
    forest(axes, lines)
    return figure


def weights_chart(studies: dict[str, dict]):
    """The Dice of the baseline on its way, with ImageNet's weights and with random ones, from the
    summaries of studies."""
    lines = {}
    for name, found in studies.items():
        base = found["baseline"]["along"]
        [random] = [row["along"] for row in found["training"] if row["arm"] == "random weights"]
        steps = [int(number) for number in base]
        lines[f"{name}: ImageNet"] = steps, list(base.values())
        lines[f"{name}: random"] = steps, [base[at] + random[at]["difference"] for at in base]
    figure, axes = curves("Held-out Dice, mean of the groups, Lite0", lines, "steps of training",
                          "Dice")
    axes.set(xscale="log", ylim=(0, 1))
    axes.set_xticks(marks := sorted({at for steps, _ in lines.values() for at in steps}),
                    map(str, marks))
    axes.minorticks_off()
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
            (32, "same means", "32 apart, shared means"),
            (16, "same means", "16 apart, shared means"))):
        for at, (row, (colour, line, marker)) in enumerate(zip(found["rows"], LINES)):
            here = row["mismatch"][f"tile {tile}, shift {shift}"]
            each = [value for value, pixels in zip(here[means], here["pixels"])
                    if pixels > 0.05 * here["pixels"][0]]  # the last bins hold few pixels
            axes.plot(found["bin"] * (np.arange(len(each)) + 0.5), np.maximum(each, LEAST),
                      color=colour, linestyle=line, linewidth=1.5, marker=marker, markersize=5,
                      markevery=(at, 8), label=row["name"] if axes is panels[0] else None)
        axes.axvline(found["reach"], color=GREY, linewidth=1,
                     label="Lite0 and B0 see no farther" if axes is panels[0] else None)
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
    def read(stored: str) -> dict:
        return json.loads((results / f"{stored}.json").read_text(encoding="utf-8"))

    study, _, kind = name.rpartition("-")
    if kind in KINDS:
        return study_chart(study.removeprefix("study-"), kind, read(study))
    if name == "pretrained":
        return weights_chart({"nuclei": read("study-nuclei"),
                              "synthetic": read("study-synthetic-1200")})
    if name == "shifts":
        return shifts_chart(read(name))
    return race_chart(name.removeprefix("race-"), read(name))
