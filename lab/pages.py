"""Writes what the study measured into the pages that quote it.

    python -m lab.pages

README.md has a cell for each trick, each chapter a paragraph that begins with **Measured.**, and
docs/study.md its tables. All of them follow from docs/results/study-NAME.json; this program writes
them anew when a study has changed, and a test fails where they differ. In the templates below,
`{gates}` becomes the effects of that arm with their marks, one for each study that has it,
`{gates@nuclei}` one effect with its interval, `{luck@nuclei}` how much luck alone does,
`{seeds@nuclei}` how many seeds of a trick there are at least, and `{dice@nuclei}` the baseline's
Dice. Plus favours the trick.
"""

import json
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .measure import RESULTS, write_text
from .plots import SEAMS, favouring, mark, moves, signed
from .shifts import SHIFTS, WIDTH
from .study import WAYS, table

STUDIES = "nuclei", "synthetic"
CELLS = {  # of README.md, by the file that its row ends with
    "effects": "up to ±{luck@nuclei}; ±{luck@synthetic}<br>(seeds of a trick: {seeds@nuclei}; "
               "{seeds@synthetic})",
    "unet": "the baseline: Dice {dice@nuclei}; {dice@synthetic}",
    "pretrained": "{random weights}", "attention_gate": "{gates}", "scse": "{SCSE}",
    "cbam": "{CBAM}", "hypercolumn": "{hypercolumn}",
    "dice": "added to BCE: {BCE}<br>alone: {Dice}", "lovasz": "alone: {Lovász}",
    "losses": "BCE + Lovász: {BCE + Lovász}<br>Dice, then Lovász: {Dice, then Lovász}",
    "deep_supervision": "{deep supervision}", "sampling": "on the slides: {all empty tiles}",
    "tiling": "overlap: {overlap 0, uniform}<br>weighting: {overlap 0.5, uniform}",
    "tta": "{eight views}",
}
NOTE = ("(brackets: 95 % intervals; luck alone: up to {luck@nuclei} and {luck@synthetic}; networks "
        "of {steps} steps of eight tiles; [study](../docs/study.md)).")
BOTH = "Dice {{{0}@nuclei}} on nuclei, {{{0}@synthetic}} on synthetic slides"
PARAGRAPHS = {  # of the chapters, up to the next empty line
    "unet": "The baseline of all comparisons: Dice {dice@nuclei} on nuclei, {dice@synthetic} on "
            "synthetic slides; with two other seeds it could be {luck@nuclei} and {luck@synthetic} "
            "away from that (networks of {steps} steps of eight tiles; [study](../docs/study.md)). "
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
                "tiles 0.772 (one seed, [log](../docs/log.md)).",
    "pretrained": f"ImageNet instead of random weights: {BOTH.format('random weights')} {NOTE} "
                  "After ten epochs on the nuclei, in larger tiles: 0.888 against 0.875.",
    "attention_gate": f"Added to the baseline: {BOTH.format('gates')}; where they start open, "
                      "{gates, open at first@nuclei} and {gates, open at first@synthetic} " + NOTE,
    "scse": f"Added to the baseline: {BOTH.format('SCSE')} {NOTE}",
    "cbam": f"Added to the baseline: {BOTH.format('CBAM')}; where c and s start near 1, "
            "{CBAM, open at first@nuclei} and {CBAM, open at first@synthetic} " + NOTE,
    "hypercolumn": f"Added to the baseline: {BOTH.format('hypercolumn')} {NOTE}",
    "dice": f"Over the batch, alone instead of with BCE: {BOTH.format('Dice')} {NOTE}",
    "lovasz": f"Alone instead of BCE + Dice: {BOTH.format('Lovász')} {NOTE}",
    "losses": f"Against BCE + Dice, Dice and then Lovász: {BOTH.format('Dice, then Lovász')}; "
              "BCE + Dice, then Lovász at a lower rate: {BCE + Dice, then Lovász at a lower "
              "rate@nuclei} and {BCE + Dice, then Lovász at a lower rate@synthetic}; BCE + Lovász: "
              "{BCE + Lovász@nuclei} and {BCE + Lovász@synthetic}; what adding Dice to BCE brings: "
              "{BCE@nuclei} and {BCE@synthetic} " + NOTE,
    "deep_supervision": f"Added to the baseline: {BOTH.format('deep supervision')} {NOTE}",
    "tiling": f"Overlap 0.5 and the linear window instead of no overlap: "
              f"{BOTH.format('overlap 0, uniform')}; instead of a plain average at this overlap: "
              "{overlap 0.5, uniform@nuclei} and {overlap 0.5, uniform@synthetic} (brackets: 95 % "
              "intervals; networks of {steps} steps of eight tiles; [study](../docs/study.md)).",
    "tta": f"Instead of one view: {BOTH.format('eight views')} (brackets: 95 % intervals; networks "
           "of {steps} steps of eight tiles; [study](../docs/study.md)).",
}
Studies = dict[str, dict]


def load(results: Path = RESULTS) -> Studies:
    """The studies' summaries, with the rows of all arms by their names in `arms`, turned so that
    plus favours the trick."""
    found = {}
    for name in STUDIES:
        study = json.loads((results / f"study-{name}.json").read_text(encoding="utf-8"))
        study["arms"] = {row["arm"]: favouring(row) for row in (*study["training"], *study["ways"])}
        found[name] = study
    return found


def luck(study: dict) -> float:
    """How much luck alone does, 19 times in 20; where arms have different numbers of seeds, in
    those that have fewest."""
    return max(row["luck"] for row in study["training"])


def quoted(template: str, studies: Studies) -> str:
    """The template with its fields filled in."""

    def value(match: re.Match) -> str:
        arm, _, data = " ".join(match[1].split()).partition("@")
        if arm == "steps":
            return str(studies[STUDIES[0]]["steps"])
        if arm == "luck":
            return f"{luck(studies[data]):.3f}"
        if arm == "seeds":
            return str(min(row["seeds"] for row in studies[data]["training"]))
        if arm == "dice":
            return f"{studies[data]['baseline']['dice']:.3f}"
        if data:
            row = studies[data]["arms"][arm]
            return f"{signed(row['difference'])} [{signed(row['low'])}, {signed(row['high'])}]"
        rows = [study["arms"][arm] for study in studies.values() if arm in study["arms"]]
        return "; ".join(f"{signed(row['difference'])}{mark(row)}{moves(row)}" for row in rows)

    return re.sub(r"{([^}]+)}", value, template)


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
    words = textwrap.fill("**Measured.** " + quoted(paragraph, studies), 100,
                          break_on_hyphens=False, break_long_words=False)
    return re.sub(r"(?m)^\*\*Measured\.\*\* .*?(?=\n\n)", lambda _: words, text, count=1,
                  flags=re.S)


def objects(studies: Studies) -> str:
    """The table of objects: ways to predict with the baseline's networks, then the arms."""
    names = "found", "missed", "invented", "split"
    lines = ["| objects | " + " | ".join(f"{data}: found | missed | invented | split"
                                         for data in studies) + " |",
             "|---" * (1 + 4 * len(studies)) + "|"]
    rows = {f"the baseline, {way}": [study["objects"].get(way) for study in studies.values()]
            for way in WAYS}
    arms = dict.fromkeys(row["arm"] for study in studies.values() for row in study["training"])
    rows |= {arm: [next((row["objects"] for row in study["training"] if row["arm"] == arm), None)
                   for study in studies.values()] for arm in arms}
    for name, found in rows.items():
        cells = [f"{counts[kind]:g}" if counts else "" for counts in found for kind in names]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def seams(studies: Studies) -> str:
    """The table of errors near seams and farther from them."""
    lines = ["| wrong pixels | " + " | ".join(f"{data}: within 8 pixels of a seam | 16 to 32 pixels"
                                              for data in studies) + " |",
             "|---" * (1 + 2 * len(studies)) + "|"]
    for way in SEAMS:
        cells = []
        for study in studies.values():
            errors = study["error_by_distance"][way]
            cells += [f"{100 * sum(part) / len(part):.2f} %" for part in (errors[:8], errors[16:])]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def along(studies: Studies) -> str:
    """The table of the baseline's Dice on its way."""
    steps = list(next(iter(studies.values()))["baseline"]["along"])
    lines = ["| the baseline after | " + " | ".join(f"{number} steps" for number in steps) + " |",
             "|---" * (1 + len(steps)) + "|"]
    for data, study in studies.items():
        dices = study["baseline"]["along"].values()
        lines.append(f"| {data} | {' | '.join(f'{dice:.3f}' for dice in dices)} |")
    return "\n".join(lines)


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
    lines = [f"| {reach} pixels inside | 32 pixels apart | the same, means of one tile | "
             "16 pixels apart, means of one tile | for comparison: 32 apart, at the border |",
             "|---|---|---|---|---|"]
    for row in found["rows"]:
        cells = [inside(row, key.format(shift), means, reach) for shift, means in
                 ((32, "as they are"), (32, "same means"), (16, "same means"))]
        cells.append(row["mismatch"][key.format(32)]["as they are"][0])
        lines.append(f"| {row['name']} | {' | '.join(map(number, cells))} |")
    return "\n".join(lines)


def shifted(found: dict) -> str:
    """The table of what two small tiles say of the pixels in their middle, for each shift."""
    tile = found["tiles"][0]
    lines = [f"| tiles of {tile}, apart by | " + " | ".join(f"{shift}" for shift in SHIFTS) + " |",
             "|---" * (1 + len(SHIFTS)) + "|"]
    for row in found["rows"]:
        cells = [number(inside(row, f"tile {tile}, shift {shift}", "as they are", 32))
                 for shift in SHIFTS]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def blended(found: dict) -> str:
    """The table of what each way to blend leaves between two predictions of an image."""
    ways = list(found["rows"][0]["left"]["shift 32"])
    lines = ["| left after blending | " + " | ".join(ways) + " |", "|---" * (1 + len(ways)) + "|"]
    for row in found["rows"]:
        cells = [number(row["left"]["shift 32"][way]) for way in ways]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page(text: str, studies: Studies, costs: dict, moved: dict) -> str:
    """docs/study.md with its tables: each replaces the one that begins with the same words."""
    for new in (table({name: studies[name] for name in STUDIES}, costs), objects(studies),
                seams(studies), along(studies), mismatches(moved), shifted(moved), blended(moved)):
        first = re.escape(new.split("|")[1])
        text = re.sub(rf"(?m)^\|{first}\|.*?(?=\n\n)", lambda _, new=new: new, text, count=1,
                      flags=re.S)
    return text


def pages(root: Path) -> dict[Path, Callable[[str], str]]:
    """For each page, what makes its new text of its old one."""
    studies = load(root / RESULTS)
    costs, shifts = (json.loads((root / RESULTS / f"{name}.json").read_text(encoding="utf-8"))
                     for name in ("costs", "shifts"))
    return {root / "README.md": lambda text: readme(text, studies),
            root / "docs/study.md": lambda text: page(text, studies, costs["rows"], shifts),
            **{root / f"minseg/{file}.py":
               lambda text, paragraph=paragraph: chapter(text, paragraph, studies)
               for file, paragraph in PARAGRAPHS.items()}}


def main() -> None:
    """Writes the pages, and names those that have changed."""
    try:
        for path, new in pages(Path(".")).items():
            before = path.read_text(encoding="utf-8")
            if (after := new(before)) != before:
                print(write_text(path, after))
    except (OSError, KeyError) as error:
        sys.exit(f"pages: {error}: is missing: run the studies first (docs/study.md)")


if __name__ == "__main__":
    main()
