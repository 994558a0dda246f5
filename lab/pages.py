"""Writes the tables of five pages of docs/ from what was measured.

    python -m lab.pages

First it writes study-NAME.json, race-NAME.json and small-PART.json anew, from the lines beside them
(`python -m lab.figures` draws their charts). Then each table takes the place of the one on its page
whose header begins with the same cell. Everything else on the pages is written by hand, and
tests/test_pages.py asks that the numbers in it are among those of docs/results. Plus favours the
trick.
"""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from . import race, small, study
from .effects import effect
from .measure import RESULTS, write_json, write_text
from .plots import SEAMS, TAKEN_AWAY, favouring, mark, moves, signed
from .shifts import SHIFTS, WIDTH
from .study import AGAIN, ARMS, WAYS

STUDIES = "nuclei", "synthetic"
FORTY = "patients"  # the study of forty groups
OLD = "none: the old defaults"
LOG = {  # docs/log.md: the lines of each table, its title, the contestant of its row "none"
    "log-sparse": ("very few glomeruli", race.MINSEG, "none"),
    "log-sparse-old": ("the same, old defaults", "starts at one half", OLD),
    "log-sparse-slow": ("the same, at 1e-3", "starts at one half", OLD + " at 1e-3"),
    "log-nuclei": ("nuclei", OLD, OLD),
    "log-synthetic": ("few glomeruli", race.MINSEG, OLD),
    "h200/log-nuclei": ("nuclei, larger tiles", race.MINSEG, OLD)}
Studies = dict[str, dict]


def read(path: Path) -> dict:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def load(results: Path = RESULTS) -> Studies:
    """The studies' summaries, with the rows of all arms by their names in `arms`, turned so that
    plus favours the trick. After `STUDIES`, those of the same data with runs of other lengths, and
    `FORTY`."""
    names = sorted(path.stem.removeprefix("study-") for path in results.glob("study-*.json"))
    found = {}
    for name in (*STUDIES, *(name for name in names if name not in STUDIES)):
        study = read(results / f"study-{name}.json")
        study["arms"] = {row["arm"]: favouring(row) for row in (*study["training"], *study["ways"])}
        found[name] = study
    return found


def interval(row: dict, marks: str = "") -> str:
    """An effect with its marks and its interval."""
    difference, low, high = (signed(row[name]) for name in ("difference", "low", "high"))
    return f"{difference}{marks} [{low}, {high}]"


def uneven(found: dict) -> bool:
    """Whether some groups have more images than others."""
    return len({*(found.get("images") or {}).values()}) > 1


def markdown(*rows: Sequence[str]) -> str:
    """A table; the first row is its header."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def filled(text: str, tables: Sequence[str]) -> str:
    """A page with its tables. ValueError if it has no table that begins like one of them."""
    for table in tables:
        first = table.split("|")[1]
        pattern = rf"^\|{re.escape(first)}\|.*?(?=\n\n)"
        text, count = re.subn(pattern, lambda _, new=table: new, text, count=1, flags=re.S | re.M)
        if not count:
            raise ValueError(f"no table begins with {first.strip()!r}")
    return text


def cost(arm: str, costs: dict[str, dict]) -> list[str]:
    """What a step with the trick takes, compared with a step without it; and its parameters."""
    if arm not in costs:  # a way to predict
        return ["", "", ""]
    trick, without = costs[arm], costs["baseline"]
    if arm in TAKEN_AWAY:
        trick, without = without, trick
    return [*(f"{trick[what] / without[what]:.2f} ×" for what in ("seconds_a_step", "kept_bytes")),
            f"{trick['parameters'] / 1e6:.2f} M"]


def judged(row: dict) -> str:
    """An effect with its marks, its interval and, where it is below 1, p."""
    p = row["p_holm"]
    return interval(row, mark(row) + moves(row)) + (f" p {p:.2g}" if p < 1 else "")


def by_image(row: dict) -> str:
    """An effect where each image counts, not each group."""
    return interval(row["per_image"])


def effects(studies: Studies, costs: dict[str, dict]) -> str:
    """The table of all effects, with what the arms cost. Where groups have unequal numbers of
    images, a study has a second column."""
    columns: list[tuple[str, dict, Callable[[dict], str]]] = []
    for name, found in studies.items():
        columns.append((name, found, judged))
        if uneven(found):
            columns.append((f"{name}, image by image", found, by_image))

    def baseline(name: str, text: Callable[[dict], str], arm: str = "") -> list[str]:
        return [name, *(text(found) if show is judged else "" for _, found, show in columns),
                *cost(arm, costs)]

    def of_arm(arm: str) -> list[str]:
        name = next(study["arms"][arm]["arm"] for study in studies.values() if arm in study["arms"])
        return [name, *(show(found["arms"][arm]) if arm in found["arms"] else ""
                        for _, found, show in columns), *cost(arm, costs)]

    def dice(found: dict) -> str:
        return f"Dice {found['baseline']['dice']:.3f}, {found['baseline']['seeds']} seeds"

    def dice_of_ways(found: dict) -> str:  # compared on fewer of the baseline's networks
        way = found["ways"][0]
        return f"Dice {way['dice'] - way['difference']:.3f}, {way['seeds']} seeds"

    known = {arm for study in studies.values() for arm in study["arms"]}
    return markdown(
        ["trick", *(title for title, *_ in columns), "time of a step", "memory", "parameters"],
        baseline("the baseline", dice, "baseline"),
        baseline("luck alone", lambda found:
                 f"±{max(row['luck'] for row in found['training']):.3f}"),
        baseline(AGAIN, lambda _: "", AGAIN), *(of_arm(arm) for arm in ARMS if arm in known),
        baseline("the baseline, for ways to predict", dice_of_ways),
        *(of_arm(arm) for arm in WAYS if arm in known))


def objects(studies: Studies) -> str:
    """The table of objects: ways to predict with the baseline's networks, then the arms."""
    kinds = "found", "missed", "invented", "split"
    rows = [[f"the baseline, {way}", *(study["objects"].get(way) for study in studies.values())]
            for way in WAYS]
    rows += [[f"trained with: {arm}", *(study["arms"].get(arm, {}).get("objects")
                                        for study in studies.values())] for arm in ARMS]
    shown = {"invented": "false positives"}
    return markdown(["objects", *(f"{data}: {kind}" if kind == "found" else shown.get(kind, kind)
                                  for data in studies for kind in kinds)],
                    *([name, *(f"{counts[kind]:g}" if counts else "" for counts in all_counts
                               for kind in kinds)] for name, *all_counts in rows
                      if any(all_counts)))


def seams(studies: Studies) -> str:
    """The table of errors near seams and farther from them."""
    rows = [["wrong pixels", *(f"{data}: {where}" for data in studies for where in
                               ("within 8 pixels of a seam", "16 pixels or more"))]]
    for way in SEAMS:
        cells = []
        for found in studies.values():
            wrong, pixels = (np.array(found["seams"][way][name]) for name in ("wrong", "pixels"))
            cells += [f"{100 * wrong[part].sum() / pixels[part].sum():.2f} %"
                      for part in (slice(8), slice(16, None))]
        rows.append([way, *cells])
    return markdown(*rows)


def along(studies: Studies) -> str:
    """The table of the baseline's Dice on its way."""
    dices = {data: study["baseline"]["along"] for data, study in studies.items()}
    return markdown(["the baseline after", *(f"{steps} steps" for steps in dices[STUDIES[0]])],
                    *([data, *(f"{dice:.3f}" for dice in found.values())]
                      for data, found in dices.items()))


def schedules(studies: Studies) -> str:
    """The table of runs of different lengths on the slides, each at its end and where a shorter one
    ends."""
    found = {study["steps"]: study for name, study in studies.items()
             if name.startswith("synthetic")}
    lengths = sorted(found)
    columns = [(run, steps) for run, shorter in zip(lengths, (0, *lengths))
               for steps in (shorter, run) if steps]

    def cell(arm: str, run: int, steps: int) -> str:
        if arm == "baseline":
            return f"{found[run]['baseline']['along'][str(steps)]:.3f}"
        row = found[run]["arms"].get(arm)
        return signed(row["along"][str(steps)]["difference"]) if row else ""

    others = {arm: study["arms"][arm]["arm"] for name, study in studies.items() for arm in ARMS
              if name.startswith("synthetic-") and arm in study["arms"]}
    return markdown(["other lengths", *(
        f"a run of {run} steps, {'at its end' if run == steps else f'after {steps}'}"
        for run, steps in columns)], *([name, *(cell(arm, *column) for column in columns)]
                                       for arm, name in {"baseline": "baseline", **others}.items()))


def forty(found: dict) -> str:
    """The table of the study of forty patients: each trick on its way and at the end."""
    *on_the_way, end = found["baseline"]["along"]
    rows = [["forty patients", *(f"{steps} steps" for steps in (*on_the_way, end))],
            ["the baseline", *(f"{dice:.3f}" for dice in found["baseline"]["along"].values())]]
    for arm in [*ARMS, *WAYS]:
        if row := found["arms"].get(arm):
            rows.append([row["arm"], *(interval(row["along"][steps]) if "along" in row else ""
                                       for steps in on_the_way), judged(row)])
    return markdown(*rows)


def inside(row: dict, key: str, means: str, beyond: int) -> float:
    """The mean mismatch (`lab.shifts`) of the pixels that lie `beyond` so many pixels or more from
    every border."""
    found = row["mismatch"][key]
    pixels = np.array(found["pixels"])[beyond // WIDTH :]
    return float((np.array(found[means])[beyond // WIDTH :] * pixels).sum() / pixels.sum())


def shift_tables(found: dict) -> list[str]:
    """What two tiles say of the same pixel: in large tiles, far from their borders; in the middle
    of small ones, for each shift; and what each way to blend leaves between two predictions."""
    small, large = (f"tile {tile}, shift {{}}".format for tile in found["tiles"])

    def table(title: str, columns: dict[str, Callable[[dict], float]]) -> str:
        return markdown([title, *columns], *(
            [row["name"], *(f"{value(row):.2g}".replace("e-0", "e-") for value in columns.values())]
            for row in found["rows"]))

    return [
        table("mean difference, far inside", {
            "32 pixels apart": lambda row: inside(row, large(32), "as they are", found["reach"]),
            "32 apart, shared means":
                lambda row: inside(row, large(32), "same means", found["reach"]),
            "16 apart, shared means":
                lambda row: inside(row, large(16), "same means", found["reach"]),
            "for comparison: 32 apart, within 8 pixels of a border":
                lambda row: row["mismatch"][large(32)]["as they are"][0]}),
        table(f"mean difference, tiles of {found['tiles'][0]} apart by", {
            str(shift): partial(inside, key=small(shift), means="as they are", beyond=32)
            for shift in SHIFTS}),
        table("mean difference after blending", {
            way: lambda row, way=way: row["left"][way] for way in found["rows"][0]["left"]})]


def race_table(found: dict, title: str) -> str:
    """The table of a race."""
    rows = {(row["contestant"], row["steps"]): row for row in found["rows"]}
    images = ["image by image"] if uneven(found) else []
    table = [[title, race.MINSEG, race.PEERS, "difference", "its three seeds", *images,
              "groups not tuned on", "in the same time", "minseg's time", "peers' time"]]
    for steps in found["budgets"]:
        ours, theirs = rows[race.MINSEG, steps], rows[race.PEERS, steps]
        table.append([str(steps), f"{ours['dice']:.3f}", f"{theirs['dice']:.3f}",
                      interval(ours["same_steps"]), ", ".join(map(signed, ours["seeds"])),
                      *(interval(ours["per_image"]) for _ in images), interval(ours["not_tuned"]),
                      interval(ours["same_time"]), f"{ours['seconds']:.0f} s",
                      f"{theirs['seconds']:.0f} s"])
    return markdown(*table)


def small_table(path: Path) -> str:
    """The table of small data sets, from the lines of `lab.small`."""
    rows = small.summarize(*small.read_lines(path))["rows"]
    several = len({row["steps"] for row in rows}) > 1
    table = [["small sets", *(["steps", "time"] if several else []), "mean", "difference",
              "worst image", "difference"]]
    for row in rows:
        mean, worst = (interval(row[f"{kind}_difference"]) if f"{kind}_difference" in row else ""
                       for kind in ("mean", "worst"))
        table.append([row["contestant"], *([str(row["steps"]), f"{row['seconds']:.0f} s"]
                                           if several else []),
                      f"{row['dice']:.3f}", mean, f"{row['worst']:.3f}", worst])
    return markdown(*table)


def magnifications(found: dict) -> str:
    """The table of slides of two magnifications."""
    return markdown(["seen with", "fine slides", "difference", "coarse slides", "difference",
                     "all", "difference"],
                    *([row["arm"], *(text for part in ("fine", "coarse", "all") for text in (
                        f"{row[part]['dice']:.3f}",
                        interval(row[part]) if row[part]["difference"] else ""))]
                      for row in found["rows"]))


def log_table(lines: Path, title: str, base: str, plain: str) -> str:
    """A table of what was tried, best first. `plain` is the name of the row of `base`."""
    fold_of, dice = race.complete(race.read_lines(lines), 3)
    found = {arm: effect(dice[arm], dice[base], fold_of, paired=True) for arm in dice}
    named = {race.MINSEG: "the first prediction is the share", base: plain,
             "1e-3, 0.3": "rate 1e-3, encoder 0.3"}
    return markdown([title, "Dice", "difference"],
                    *([named.get(arm, arm), f"{row['dice']:.3f}",
                       "" if arm == base else interval(row)] for arm, row in
                      sorted(found.items(), key=lambda item: -item[1]["dice"])))


def summary(path: Path) -> dict:
    """A file docs/results/study-NAME.json, race-NAME.json or small-PART.json, anew from the lines
    beside it."""
    found, lines = read(path), path.with_suffix(".jsonl")
    kind, _, name = path.stem.partition("-")
    if kind == "study":
        args = study.parse(shlex.split(found["command"])[3:])
        args.published, args.out, args.images = lines, Path("none"), found.get("images")
        return {**found, **study.summarize(args, study.read_lines(args))}
    if kind == "small":
        return {**found, **small.summarize(*small.read_lines(lines))}
    args = argparse.Namespace(**{**found, "tuned_on": race.tuned_on(name, path.parent)})
    return {**found, **race.summarize(args, race.read_lines(lines))}


def summaries(results: Path) -> list[Path]:
    """The files that `summary` writes."""
    return sorted(path.with_suffix(".json") for kind in ("study", "race", "small")
                  for path in results.glob(f"{kind}-*.jsonl"))


def pages(results: Path) -> dict[str, list[str]]:
    """The tables of each page."""
    studies, shifts = load(results), read(results / "shifts.json")
    main = {name: studies[name] for name in STUDIES}
    races = [race_table(read(results / f"race-{name}.json"), title)
             for name, title in (("nuclei", "steps, nuclei"), ("synthetic", "steps, slides"))]
    return {
        "docs/study.md": [
            effects(main, read(results / "costs.json")["rows"]), forty(studies[FORTY]),
            along(main), schedules(studies), objects(main), seams(main)],
        "docs/shifts.md": shift_tables(shifts),
        "docs/training.md": [magnifications(read(results / "magnifications.json"))],
        "docs/race.md": [*races, small_table(results / "small-others.jsonl")],
        "docs/log.md": [*(log_table(results / f"{lines}.jsonl", *row)
                          for lines, row in LOG.items()),
                        small_table(results / "log-small.jsonl")]}


def main() -> None:
    """Writes the summaries and the pages, and names the pages that have changed."""
    try:
        for path in summaries(RESULTS):
            write_json(path, summary(path))
        for page, tables in pages(RESULTS).items():
            before = Path(page).read_text(encoding="utf-8")
            if (after := filled(before, tables)) != before:
                print(write_text(Path(page), after))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"pages: {error}")


if __name__ == "__main__":
    main()
