"""Writes what the study, the race and the log measured into the pages that quote it.

    python -m lab.pages

First it writes study-NAME.json, race-NAME.json and small-PART.json anew, from the lines beside them
(`python -m lab.figures` draws their charts). Then it fills the pages: README.md has a cell for each
trick, each chapter a paragraph that begins with **Measured.**, and docs/study.md, race.md and
log.md have tables. A test fails where any of them does not follow. In the templates below, plus
favours the trick, and

    {gates}                           that arm's effects with their marks, study by study
    {gates@nuclei}                    one effect, with its mark and interval
    {gates@nuclei@75}                 one effect after 75 steps
    {split: overlap 0, uniform@nuclei}   objects; with "all" those that are there
    {end: gates@nuclei}               one effect, with its mark alone
    {blind: Dice@nuclei}              how many of the arm's networks found no object
    {high: Dice@nuclei}               the upper end of an arm's interval
    {p: Dice@nuclei}                  its p, after the correction
    {images: SCSE@nuclei}             one effect where each image counts, not each group
    {half@nuclei}                     how far an arm's interval reaches to each side: the median
    {luck@nuclei} {seeds@nuclei}      how much luck alone does; the least number of an arm's seeds
    {dice@nuclei} {steps}             the baseline's Dice; the length of a run
    {baseline@nuclei@75}              the baseline's Dice after 75 steps; with nuclei-150, in a
                                      study of runs that have 150 steps in all
    {group g5@nuclei@75}              the same, of one group
"""

import argparse
import json
import re
import shlex
import statistics
import sys
import textwrap
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
CELLS = {  # of README.md, by the file that its row ends with
    "effects": "±{luck@nuclei}; ±{luck@synthetic}<br>(each trick with {seeds@nuclei} seeds)",
    "unet": "the baseline: Dice {dice@nuclei}; {dice@synthetic}",
    "pretrained": "{random weights}<br>1,200 steps: –; {end: random weights@synthetic-1200}",
    "attention_gate": "{gates}", "scse": "{SCSE}",
    "cbam": "{CBAM}", "hypercolumn": "{hypercolumn}",
    "dice": "added to BCE: {BCE}<br>alone: {Dice}<br>1,200 steps: –; {end: Dice@synthetic-1200}",
    "lovasz": "alone: {Lovász}<br>1,200 steps: –; {end: Lovász@synthetic-1200} ({blind: "
              "Lovász@synthetic-1200} found nothing)",
    "losses": "BCE + Lovász: {BCE + Lovász}<br>1,200 steps: –; {end: BCE + "
              "Lovász@synthetic-1200}<br>Dice, then Lovász: {Dice, then Lovász} ({blind: "
              "Dice, then Lovász@synthetic} found nothing)",
    "deep_supervision": "{deep supervision}", "sampling": "{all empty tiles}",
    "tiling": "overlap and window: {overlap 0, uniform}<br>of which the window: {overlap 0.5, "
              "uniform}",
    "tta": "{eight views}",
}
NOTE = ("(brackets: 95 % intervals; luck alone: up to {luck@nuclei} and {luck@synthetic}; networks "
        "of {steps} steps of eight tiles; [study](../docs/study.md)).")
BOTH = "Dice {{{0}@nuclei}} on nuclei, {{{0}@synthetic}} on synthetic slides"
LONGER = " In runs of 1,200 steps on the slides: {{{0}@synthetic-1200}}."
PARAGRAPHS = {  # of the chapters, up to the next empty line
    "unet": "The baseline of all comparisons: Dice {dice@nuclei} on nuclei, {dice@synthetic} on "
            "synthetic slides ({steps} steps of eight tiles; [study](../docs/study.md)). "
            "With the same weights, the logits on B0 equal those of segmentation_models.pytorch "
            "([audit](../docs/results/audit.json)). On B1 to B7 they do only once that library's "
            "padding is corrected: it is fixed for the authors' image size, whatever the input's.",
    "crossval": "How far luck alone moves this score: {luck@nuclei} on nuclei and {luck@synthetic} "
                "on synthetic slides, 19 times in 20, if the baseline is compared with itself, "
                "trained with other seeds (networks of {steps} steps of eight tiles; "
                "[study](../docs/study.md)).",
    "sampling": "On synthetic slides where two tiles in three are empty, R = 1 instead of all "
                "tiles: Dice {all empty tiles@synthetic} after the same number of steps (brackets: "
                "95 % interval; luck alone: up to {luck@synthetic}; networks of {steps} steps of "
                "eight tiles; [study](../docs/study.md)). In another experiment, where 28 % of the "
                "tiles have something to find, 150 steps with R = 1 gave a Dice of 0.849, with all "
                "tiles 0.772 (one seed, which may be chance: [log](../docs/log.md)).",
    "pretrained": f"ImageNet instead of random weights: {BOTH.format('random weights')} {NOTE}"
                  + LONGER.format("random weights"),
    "attention_gate": f"Added to the baseline: {BOTH.format('gates')}; where they start open, "
                      "{gates, open at first@nuclei} and {gates, open at first@synthetic} " + NOTE,
    "scse": f"Added to the baseline: {BOTH.format('SCSE')} {NOTE}",
    "cbam": f"Added to the baseline: {BOTH.format('CBAM')}; where c and s start near 1, "
            "{CBAM, open at first@nuclei} and {CBAM, open at first@synthetic} " + NOTE,
    "hypercolumn": f"Added to the baseline: {BOTH.format('hypercolumn')} {NOTE}",
    "dice": f"Over the batch, alone instead of with BCE: {BOTH.format('Dice')} {NOTE}"
            + LONGER.format("Dice"),
    "lovasz": f"Alone instead of BCE + Dice: {BOTH.format('Lovász')} {NOTE}"
              + LONGER.format("Lovász")[:-1] + " ({blind: Lovász@synthetic-1200} networks found "
              "nothing).",
    "losses": "The score with another loss minus that with BCE + Dice, on nuclei and on synthetic "
              "slides. Dice, then Lovász: {Dice, then Lovász@nuclei} and {Dice, then "
              "Lovász@synthetic}, where {blind: Dice, then Lovász@synthetic} networks found "
              "nothing; BCE + Dice, then Lovász at a lower rate: {BCE + Dice, then Lovász at a "
              "lower rate@nuclei} and {BCE + Dice, then Lovász at a lower rate@synthetic}; BCE + "
              "Lovász: {BCE + Lovász@nuclei} and {BCE + Lovász@synthetic}. BCE + Dice minus BCE: "
              "{BCE@nuclei} and {BCE@synthetic} " + NOTE + " In runs of 1,200 steps on the "
              "slides, BCE + Lovász: {BCE + Lovász@synthetic-1200}.",
    "deep_supervision": f"Added to the baseline: {BOTH.format('deep supervision')} {NOTE}",
    "tiling": f"Overlap 0.5 and the linear window instead of no overlap: "
              f"{BOTH.format('overlap 0, uniform')}, in tiles of 64 pixels, where most pixels are "
              "near a border; instead of a plain average at this overlap: "
              "{overlap 0.5, uniform@nuclei} and {overlap 0.5, uniform@synthetic} (brackets: 95 % "
              "intervals; networks of {steps} steps of eight tiles; [study](../docs/study.md)).",
    "tta": f"Instead of one view: {BOTH.format('eight views')} (brackets: 95 % intervals; networks "
           "of {steps} steps of eight tiles; [study](../docs/study.md)).",
}
SUMMARY = (  # how docs/study.md begins
    "**Clear on the drawn slides**: tiles that overlap by half, with a window that falls "
    "({overlap 0, uniform@synthetic}, in tiles of 64 pixels, where most pixels are near a border).",
    "**Clear at first**, on the drawn slides: ImageNet's weights, {random weights@synthetic@75} "
    "after 75 steps and {random weights@synthetic} after 600. In runs of 1,200 steps they bring "
    "{random weights@synthetic-1200}, which may be chance (p {p: random weights@synthetic-1200} "
    "after the correction for four arms).",
    "**Not told from chance**: all other tricks of training, on both sets, and everything on the "
    "nuclei. The intervals reach about {half@nuclei} (nuclei) and {half@synthetic} (drawn slides) "
    "to each side, so smaller effects cannot be seen here.",
    "**Slow at the start**, on the drawn slides: Lovász, alone and beside BCE "
    "({Lovász@synthetic@75} and {BCE + Lovász@synthetic@75} after 75 steps). After runs of 1,200, "
    "beside BCE it is not told from the baseline ({BCE + Lovász@synthetic-1200}). Alone, {blind: "
    "Lovász@synthetic-1200} networks found nothing, as did {blind: Dice, then Lovász@synthetic} "
    "in runs of 600 that went on with Lovász after Dice alone.",
)
CLAIMS = (  # what docs/study.md says of them
    '**Hypercolumns and attention "did not improve my results significantly".** Nothing clear here '
    "either: on nuclei and on drawn slides, gates brought {gates}, SCSE {SCSE}, CBAM {CBAM} and "
    "the hypercolumn {hypercolumn}; intervals reach up to {high: CBAM@nuclei}. The short runs had "
    "seen gates and CBAM cost 0.11 on the slides: gates start low here, too ({gates@synthetic@75} "
    "after 75 steps, {gates@synthetic@300} after 300), CBAM does not, and why it lost there is "
    "open.",
    '**Deep supervision "did not provide much performance gain".** Nothing clear here either: '
    "{deep supervision} on nuclei and drawn slides. The short runs had said the same.",
    '**Weighted reconstruction "gave us a nice boost".** On the drawn slides it does: {overlap '
    "0.5, uniform@synthetic} for the weights, {overlap 0, uniform@synthetic} for weights and "
    "overlap together; on the nuclei, which are small and everywhere, nothing was told from "
    "chance. In the short runs the weights had brought 0.034 on the slides.",
    '**Lovász "may be difficult to train".** At first it is: on the drawn slides '
    "{Lovász@synthetic@75} after 75 steps, {Lovász@synthetic@300} after 300, "
    "{Lovász@synthetic@600} after 600, and {Lovász@synthetic-1200} in runs of 1,200, where {blind: "
    "Lovász@synthetic-1200} networks never found anything; on the nuclei {Lovász@nuclei@75}, then "
    "{Lovász@nuclei@600}. The short runs ended where this begins, at -0.554.",
    '**"Combine the Lovász-Hinge loss with some other loss", or train with Dice first.** The sum '
    "does better: on the drawn slides {BCE + Lovász@synthetic@75} after 75 steps, {BCE + "
    "Lovász@synthetic@600} after 600, and {BCE + Lovász@synthetic-1200} in runs of 1,200. After "
    "600 steps, Dice first ended at {Dice, then Lovász}, with {blind: Dice, then Lovász@synthetic} "
    "networks that found nothing on the slides, and BCE + Dice first, with a third of the rate "
    "afterwards, at {BCE + Dice, then Lovász at a lower rate} (which of the two changes helped was "
    "not measured). In the short runs, the sum had cost 0.227 on the slides, and Dice, then Lovász "
    "0.102.",
    "**Sampling the negatives saves time.** At equal numbers of steps, one empty tile for each "
    "full one, instead of all, is {all empty tiles@synthetic@75}, {all empty "
    "tiles@synthetic@150}, {all empty tiles@synthetic@300} and {all empty tiles@synthetic@600} "
    "ahead on the drawn slides after 75, 150, 300 and 600 steps: if anything, it helps at the "
    "start. The short runs had not told it from chance.",
    "**Pretrained weights**, which the post does not discuss, are worth {random "
    "weights@synthetic@75} on the drawn slides after 75 steps, {random weights@synthetic@600} "
    "after 600 and {end: random weights@synthetic-1200} in runs of 1,200: random ones are catching "
    "up. On the nuclei they are worth {random weights@nuclei@75} after 75 steps and {random "
    "weights@nuclei@600} at the end, where one group turns the sign (g5: see above). In "
    "the short runs it had been 0.769 and 0.023.",
    "**Eight views**, of which the post says nothing, bring {eight views} on nuclei and drawn "
    "slides. In the short runs they had brought 0.044 on the slides.",
    '**"A mislabeled sample completely destroyed the public leaderboard".** Such samples can be '
    "found: see [below](#which-labels-are-wrong).",
)
ALONG = (
    "On the drawn slides, the second half of a run still brings the baseline from "
    "{baseline@synthetic@300} to {baseline@synthetic@600}: it has not come to rest. On the nuclei "
    "it goes from {baseline@nuclei@300} to {baseline@nuclei@600}, because two small groups that "
    "look like none of the others fall: g5, of three images ({group g5@nuclei@300}, then {group "
    "g5@nuclei@600}), and g6, of one ({group g6@nuclei@300}, {group g6@nuclei@600}); the other "
    "eight gain up to 0.006. With groups as the unit, these two count as much as the others (g6's "
    "one image as much as g0's 42) and make the intervals wide: most of what SCSE, CBAM and the "
    "hypercolumn seem to bring on the nuclei comes from g5, and without g5, ImageNet's weights are "
    "better there, not worse. Image by image, the three bring {images: SCSE@nuclei}, {images: "
    "CBAM@nuclei} and {images: hypercolumn@nuclei}, and ImageNet's weights {images: random "
    "weights@nuclei}.")
LENGTHS = (
    "**Other lengths.** A point along the way is not what a run of that length ends with. For the "
    "baseline it comes close: {baseline@synthetic@150} after 150 of 600 steps, "
    "{baseline@synthetic-150@150} at the end of a run of 150, whose rate falls earlier. But what "
    "begins slowly ends lower in a short run of its own: Lovász is at {Lovász@synthetic@150} and "
    "at {Lovász@synthetic-150@150}, gates at {gates@synthetic@150} and at "
    "{gates@synthetic-150@150} (with wide intervals). The four arms that moved most on the drawn "
    "slides, when only the baseline's luck was asked, were trained for 1,200, too. The baseline "
    "goes from "
    "{baseline@synthetic-1200@600} to {baseline@synthetic-1200@1200} in the second half of that, "
    "so it is not at rest there either. Lovász alone is at {Lovász@synthetic-1200}, since "
    "{blind: Lovász@synthetic-1200} networks never found anything. Beside BCE it is not told from "
    "the baseline any more ({BCE + Lovász@synthetic-1200}), nor is Dice alone "
    "({Dice@synthetic-1200}). ImageNet's weights bring {random weights@synthetic-1200}: random "
    "ones are catching up. (Holm's correction here is for these four, which were chosen for how "
    "they moved.)")
OBJECTS = (
    "Without overlap, the baseline invents {invented: overlap 0, uniform@synthetic} objects on the "
    "drawn slides, which have {all: overlap 0, uniform@synthetic}; with overlap and the linear "
    "window {invented: overlap 0.5, linear@synthetic}. Split are {split: overlap 0, "
    "uniform@synthetic} without overlap and {split: overlap 0.5, linear@synthetic} with it (of "
    "{all: overlap 0, uniform@nuclei} nuclei {split: overlap 0, uniform@nuclei} and {split: "
    "overlap 0.5, linear@nuclei}). So on the drawn slides, seams invent objects rather than split "
    "them.")
LOG = {  # docs/log.md: the lines of each of its tables, and the contestant of its row "none"
    "log-sparse": race.MINSEG, "log-sparse-old": "starts at one half",
    "log-sparse-slow": "starts at one half", "log-nuclei": "none: the old defaults",
    "log-synthetic": race.MINSEG, "h200/log-nuclei": race.MINSEG}
SMALL = r"^\| small sets \|.*?(?=\n\n)"
RENAMED = {"the first prediction is the share": race.MINSEG}  # rows of docs/log.md
FILL: dict = {"width": 120, "break_on_hyphens": False, "break_long_words": False}
Studies = dict[str, dict]


def load(results: Path = RESULTS) -> Studies:
    """The studies' summaries, with the rows of all arms by their names in `arms`, turned so that
    plus favours the trick. After `STUDIES`, those of the same data with runs of other lengths."""
    others = sorted(path.stem.removeprefix("study-") for path in results.glob("study-*-*.json"))
    found = {}
    for name in (*STUDIES, *others):
        study = json.loads((results / f"study-{name}.json").read_text(encoding="utf-8"))
        study["arms"] = {row["arm"]: favouring(row) for row in (*study["training"], *study["ways"])}
        found[name] = study
    if len({found[name]["steps"] for name in STUDIES}) > 1:
        raise ValueError("the studies have runs of different lengths")
    return found


def main_studies(studies: Studies) -> Studies:
    """Those that all pages quote."""
    return {name: study for name, study in studies.items() if name in STUDIES}


def largest_luck(study: dict) -> float:
    """How much luck alone does, 19 times in 20; where arms have different numbers of seeds, in
    those that have fewest."""
    return max(row["luck"] for row in study["training"])


def interval(row: dict, marks: str = "") -> str:
    """An effect with its interval."""
    difference, low, high = (signed(row[name]) for name in ("difference", "low", "high"))
    return f"{difference}{marks} [{low}, {high}]"


def marked(row: dict) -> str:
    """An effect with its marks and interval."""
    return interval(row, mark(row) + moves(row))


def uneven(found: dict) -> bool:
    """Whether some groups have more images than others."""
    return len({*(found.get("images") or {}).values()}) > 1


def quoted(template: str, studies: Studies) -> str:
    """The template with its fields filled in. KeyError for an arm that does not exist."""

    def value(match: re.Match) -> str:
        arm, data, steps = [*match[1].split("@"), "", ""][:3]
        if arm == "steps":
            return str(studies[STUDIES[0]]["steps"])
        if arm == "seeds":
            return str(min(row["seeds"] for row in studies[data]["training"]))
        if arm == "half":
            widths = [(row["high"] - row["low"]) / 2 for row in studies[data]["training"]]
            return f"{statistics.median(widths):.2f}"
        if arm == "luck":
            return f"{largest_luck(studies[data]):.3f}"
        if arm == "dice":
            return f"{studies[data]['baseline']['dice']:.3f}"
        if arm == "baseline":
            return f"{studies[data]['baseline']['along'][steps]:.3f}"
        if arm.startswith("group "):
            return f"{studies[data]['baseline']['groups'][arm[6:]][steps]:.3f}"
        kind, _, way = arm.partition(": ")
        if kind == "blind":
            row = studies[data]["arms"][way]
            return f"{row['found_nothing']} of {row['networks']}"
        if kind == "end":
            row = studies[data]["arms"].get(way)
            return f"{signed(row['difference'])}{mark(row)}{moves(row)}" if row else "–"
        if kind == "high":
            return signed(studies[data]["arms"][way]["high"])
        if kind == "images":
            return signed(studies[data]["arms"][way]["per_image"]["difference"])
        if kind == "p":
            return f"{studies[data]['arms'][way]['p_holm']:.2f}"
        if way:
            counts = studies[data]["objects"][way]
            return f"{counts['found'] + counts['missed'] if kind == 'all' else counts[kind]:g}"
        if arm not in {*ARMS, *WAYS}:
            raise KeyError(f"no arm {arm!r}")
        if steps:
            return signed(studies[data]["arms"][arm]["along"][steps]["difference"])
        if data:
            row = studies[data]["arms"].get(arm)
            return marked(row) if row else "not measured yet"
        rows = [study["arms"].get(arm) for study in main_studies(studies).values()]
        return "; ".join(f"{signed(row['difference'])}{mark(row)}{moves(row)}" if row else "–"
                         for row in rows)

    return re.sub(r"{([^}]+)}", value, template)


def replaced(pattern: str, new: str, text: str) -> str:
    """The text with the one part that the pattern finds replaced. ValueError if there is none."""
    result, count = re.subn(pattern, lambda _: new, text, count=1, flags=re.S | re.M)
    if not count:
        raise ValueError(f"nothing begins like {new.splitlines()[0][:60]!r}")
    return result


def markdown(*rows: Sequence[str]) -> str:
    """A table; the first row is its header."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def readme(text: str, studies: Studies) -> str:
    """README.md with the cells of its table of tricks."""
    lines = text.split("\n")
    for file, cell in CELLS.items():
        [i] = [i for i, line in enumerate(lines)
               if line.startswith("| ") and f"| [{file}](" in line]
        cells = lines[i].split(" | ")
        lines[i] = " | ".join([*cells[:-2], quoted(cell, studies), cells[-1]])
    return "\n".join(lines)


def chapter(text: str, paragraph: str, studies: Studies) -> str:
    """A chapter with its paragraph of what was measured."""
    words = textwrap.fill("**Measured.** " + quoted(paragraph, studies), **{**FILL, "width": 100})
    return replaced(r"^\*\*Measured\.\*\* .*?(?=\n\n)", words, text)


def effects(studies: Studies, costs: dict[str, dict]) -> str:
    """The table of all effects, with what the arms cost."""
    def cost(arm: str) -> list[str]:
        if arm not in costs:  # a way to predict
            return ["", "", ""]
        trick, without = costs[arm], costs["baseline"]
        if arm in TAKEN_AWAY:
            trick, without = without, trick
        return [*(f"{trick[what] / without[what]:.2f} ×"
                  for what in ("seconds_a_step", "kept_bytes")),
                f"{trick['parameters'] / 1e6:.2f} M"]

    def cells(cell: Callable[[dict], str], by_image: Callable[[dict], str] = str) -> list[str]:
        """One for each study, and where groups have unequal numbers of images, one more."""
        return [text for found in studies.values() for text in
                (cell(found), *([by_image(found)] if uneven(found) else []))]

    def judged(arm: str, found: dict) -> str:
        row = found["arms"].get(arm)
        p = row["p_holm"] if row else 1
        return (marked(row) if row else "") + (
            f" p {p:.3g}" if p < 0.1 else f" p {p:.2g}" if p < 1 else "")

    def by_image(arm: str, found: dict) -> str:
        return interval(found["arms"][arm]["per_image"]) if arm in found["arms"] else ""

    def row(arm: str) -> list[str]:
        name = next(found["arms"][arm]["arm"] for found in studies.values() if arm in found["arms"])
        return [name, *cells(partial(judged, arm), partial(by_image, arm)), *cost(arm)]

    def empty(_: dict) -> str:
        return ""

    rows = [["trick", *(text for name, found in studies.items() for text in
                        (name, *([f"{name}, image by image"] if uneven(found) else []))),
             "time of a step", "memory", "parameters"],
            ["the baseline", *cells(lambda found: f"Dice {found['baseline']['dice']:.3f}, "
                                    f"{found['baseline']['seeds']} seeds", empty),
             *cost("baseline")],
            ["luck alone", *cells(lambda found: f"±{largest_luck(found):.3f}", empty), "", "", ""]]
    if AGAIN in costs:
        rows.append([AGAIN, *cells(empty, empty), *cost(AGAIN)])
    known = {arm for found in studies.values() for arm in found["arms"]}
    rows += [row(arm) for arm in ARMS if arm in known]
    # Ways to predict are compared on fewer of the baseline's networks.
    rows.append(["the baseline, for ways to predict", *cells(lambda found: (
        f"Dice {found['ways'][0]['dice'] - found['ways'][0]['difference']:.3f}, "
        f"{found['ways'][0]['seeds']} seeds"), empty), "", "", ""])
    return markdown(*rows, *(row(arm) for arm in WAYS if arm in known))


def objects(studies: Studies) -> str:
    """The table of objects: ways to predict with the baseline's networks, then the arms."""
    kinds = "found", "missed", "invented", "split"
    found = {f"the baseline, {way}": [study["objects"].get(way) for study in studies.values()]
             for way in WAYS}
    found = {name: rows for name, rows in found.items() if any(rows)}
    for arm in ARMS:
        rows = [study["arms"].get(arm) for study in studies.values()]
        if any(rows):
            found[f"trained with: {arm}"] = [row and row["objects"] for row in rows]
    return markdown(["objects", *(f"{data}: {kind}" if kind == kinds[0] else kind
                                  for data in studies for kind in kinds)],
                    *([name, *(f"{counts[kind]:g}" if counts else "" for counts in all_counts
                               for kind in kinds)] for name, all_counts in found.items()))


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
    """The table of runs of different lengths, each at its end and where a shorter one ends."""
    lengths = sorted({study["steps"] for study in studies.values()})
    columns = [(run, steps) for run, shorter in zip(lengths, (0, *lengths))
               for steps in (shorter, run) if steps]
    rows = [["other lengths", *(
        f"a run of {run} steps, {'at its end' if run == steps else f'after {steps}'}"
        for run, steps in columns)]]

    def cell(data: str, arm: str, run: int, steps: int) -> str:
        for name, found in studies.items():
            if name.split("-")[0] == data and found["steps"] == run:
                if arm == "baseline":
                    return f"{found['baseline']['along'][str(steps)]:.3f}"
                if arm in found["arms"]:
                    return signed(found["arms"][arm]["along"][str(steps)]["difference"])
        return ""

    for data in main_studies(studies):
        others = {arm: study["arms"][arm]["arm"] for name, study in studies.items()
                  for arm in ARMS if name.startswith(f"{data}-") and arm in study["arms"]}
        for arm, name in {"baseline": "baseline", **others}.items():
            rows.append([f"{data}: {name}", *(cell(data, arm, *column) for column in columns)])
    return markdown(*rows)


def number(value: float) -> str:
    """A small number, with two digits.

    >>> number(0.0), number(0.0173), number(2.34e-5)
    ('0', '0.017', '2.3e-5')
    """
    return "0" if value == 0 else f"{value:.2g}".replace("e-0", "e-")


def inside(row: dict, key: str, means: str, beyond: int) -> float:
    """The mean mismatch (`lab.shifts`) of the pixels that lie `beyond` so many pixels or more from
    every border."""
    found = row["mismatch"][key]
    pixels = np.array(found["pixels"])[beyond // WIDTH :]
    return float((np.array(found[means])[beyond // WIDTH :] * pixels).sum() / pixels.sum())


def mismatches(found: dict) -> str:
    """The table of what two large tiles say of the same pixel, far from their borders."""
    key, reach = f"tile {found['tiles'][-1]}, shift {{}}", found["reach"]
    rows = [["mean difference, far inside", "32 pixels apart", "32 apart, shared means",
             "16 apart, shared means", "for comparison: 32 apart, within 8 pixels of a border"]]
    for row in found["rows"]:
        cells = [inside(row, key.format(shift), means, reach) for shift, means in
                 ((32, "as they are"), (32, "same means"), (16, "same means"))]
        cells.append(row["mismatch"][key.format(32)]["as they are"][0])
        rows.append([row["name"], *map(number, cells)])
    return markdown(*rows)


def shifted(found: dict) -> str:
    """The table of what two small tiles say of the pixels in their middle, for each shift."""
    tile = found["tiles"][0]
    return markdown([f"mean difference, tiles of {tile} apart by", *map(str, SHIFTS)],
                    *([row["name"], *(number(inside(row, f"tile {tile}, shift {shift}",
                                                    "as they are", 32)) for shift in SHIFTS)]
                      for row in found["rows"]))


def blended(found: dict) -> str:
    """The table of what each way to blend leaves between two predictions of an image."""
    ways = list(found["rows"][0]["left"])
    return markdown(["mean difference after blending", *ways],
                    *([row["name"], *(number(row["left"][way]) for way in ways)]
                      for row in found["rows"]))


def page(text: str, studies: Studies, costs: dict, moved: dict) -> str:
    """docs/study.md with its tables, each in the place of the one whose header has the same first
    cell, and with what it says of the post's claims."""
    main = main_studies(studies)
    for new in (effects(main, costs), along(main), schedules(studies), objects(main), seams(main),
                mismatches(moved), shifted(moved), blended(moved)):
        first = re.escape(new.split("|")[1])
        text = replaced(rf"^\|{first}\|.*?(?=\n\n)", new, text)
    for items in (SUMMARY, CLAIMS):
        new = "\n".join(textwrap.fill(f"- {quoted(item, studies)}", subsequent_indent="  ", **FILL)
                        for item in items)
        text = replaced(rf"^- {re.escape(items[0][:20])}.*?(?=\n\n)", new, text)
    for paragraph in (ALONG, LENGTHS, OBJECTS):
        text = replaced(rf"^{re.escape(paragraph[:20])}.*?(?=\n\n)",
                        textwrap.fill(quoted(paragraph, studies), **FILL), text)
    return text


def race_table(found: dict) -> str:
    """The table of a race."""
    rows = {(row["contestant"], row["steps"]): row for row in found["rows"]}
    images = ["image by image"] if uneven(found) else []
    table = [["steps", race.MINSEG, race.PEERS, "difference", "its three seeds", *images,
              "groups not tuned on", "in the same time", "minseg's time", "peers' time"]]
    for steps in found["budgets"]:
        ours, theirs = rows[race.MINSEG, steps], rows[race.PEERS, steps]
        table.append([str(steps), f"{ours['dice']:.3f}", f"{theirs['dice']:.3f}",
                      interval(ours["same_steps"]), ", ".join(map(signed, ours["seeds"])),
                      *(interval(ours["per_image"]) for _ in images), interval(ours["not_tuned"]),
                      interval(ours["same_time"]), f"{ours['seconds']:.0f} s",
                      f"{theirs['seconds']:.0f} s"])
    return markdown(*table)


def race_page(text: str, results: Path) -> str:
    """docs/race.md with its tables."""
    for name, title in (("nuclei", "Nuclei"), ("synthetic", "Synthetic slides")):
        found = json.loads((results / f"race-{name}.json").read_text(encoding="utf-8"))
        start, heading, rest = text.partition(f"\n## {title}")
        text = start + heading + replaced(r"^\| steps \|.*?(?=\n\n)", race_table(found), rest)
    return replaced(SMALL, small_table(results / "small-others.jsonl"), text)


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


def log_page(text: str, results: Path) -> str:
    """docs/log.md with the numbers of its rows."""
    parts = text.split("\n## ")
    for lines, base in LOG.items():
        fold_of, dice = race.complete(race.read_lines(results / f"{lines}.jsonl"), 3)

        def row(match: re.Match, base=base, fold_of=fold_of, dice=dice) -> str:
            name = match[1]
            plain = name.startswith("none")
            arm = dice[base if plain else RENAMED.get(name, name)]
            found = effect(arm, dice[base], fold_of, paired=True)
            return f"| {name} | {found['dice']:.3f} | {'' if plain else interval(found) + ' '}|"

        [i] = [i for i, part in enumerate(parts) if f"(results/{lines}.jsonl)" in part]
        parts[i] = re.sub(r"^\| (.+?) \| [\d.]* \| .*\|$", row, parts[i], flags=re.M)
    return replaced(SMALL, small_table(results / "log-small.jsonl"), "\n## ".join(parts))


def summary(path: Path) -> dict:
    """A file docs/results/study-NAME.json, race-NAME.json or small-PART.json, anew from the lines
    beside it."""
    found, lines = json.loads(path.read_text(encoding="utf-8")), path.with_suffix(".jsonl")
    kind, _, name = path.stem.partition("-")
    if kind == "study":
        args = study.parse(shlex.split(found["command"])[3:])
        args.published, args.out, args.images = lines, Path("none"), found.get("images")
        return {**found, **study.summarize(args, study.read_lines(args))}
    if kind == "small":
        return {**found, **small.summarize(*small.read_lines(lines))}
    args = argparse.Namespace(**{**found, "tuned_on": race.tuned_on(name, path.parent)})
    return {**found, **race.summarize(args, race.read_lines(lines))}


def summaries(root: Path) -> list[Path]:
    """The files that `summary` writes."""
    return sorted(path.with_suffix(".json") for kind in ("study", "race", "small")
                  for path in (root / RESULTS).glob(f"{kind}-*.jsonl"))


def pages(root: Path) -> dict[Path, Callable[[str], str]]:
    """For each page, what makes its new text of its old one."""
    studies = load(root / RESULTS)
    costs, shifts = (json.loads((root / RESULTS / f"{name}.json").read_text(encoding="utf-8"))
                     for name in ("costs", "shifts"))
    return {root / "README.md": lambda text: readme(text, studies),
            root / "docs/study.md": lambda text: page(text, studies, costs["rows"], shifts),
            root / "docs/race.md": lambda text: race_page(text, root / RESULTS),
            root / "docs/log.md": lambda text: log_page(text, root / RESULTS),
            **{root / f"minseg/{file}.py":
               lambda text, paragraph=paragraph: chapter(text, paragraph, studies)
               for file, paragraph in PARAGRAPHS.items()}}


def main() -> None:
    """Writes the summaries and the pages, and names the pages that have changed."""
    try:
        for path in summaries(Path(".")):
            write_json(path, summary(path))
        for path, new in pages(Path(".")).items():
            before = path.read_text(encoding="utf-8")
            if (after := new(before)) != before:
                print(write_text(path, after))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"pages: {error}")


if __name__ == "__main__":
    main()
