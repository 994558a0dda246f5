"""Do the tests notice? Breaks one place of the code at a time and runs the tests of that file.

    python -m lab.mutants                        # 360 mutants of minseg/, train.py and infer.py
    python -m lab.mutants minseg/tiling.py       # all mutants of a file

A mutant is the code with one change: a comparison, an operator, a number, True or False, the sense
of a condition, `min` or `max`, or a statement that is left out. If all tests of the file pass, the
mutant has survived: either a test is missing, or the change makes no difference, and `REASONS` says
why. Mutants are drawn by a seed, in proportion to the places that each file has. The result of all
files is in docs/results/mutants.json.

**Source.** DeMillo, Lipton and Sayward, *Hints on Test Data Selection*, Computer 1978.
"""

import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from minseg.run.report import Parser, Progress

from .measure import RESULTS, environment, write_json

SWAPS = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
         ast.In: "not in", ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is", ast.Add: "-",
         ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.Pow: "*",
         ast.And: "or", ast.Or: "and", ast.BitAnd: "|", ast.BitOr: "&"}
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil", "ceil": "floor"}
# The tests of a file are tests/test_NAME.py and its doctests; these have theirs elsewhere, too.
TESTS = {"loop": "training train config", "prepare": "train datasets layouts",
         "describe": "train datasets config", "options": "train infer",
         "errors": "train infer training", "outputs": "infer", "tables": "datasets layouts",
         "weights": "pretrained", "config": "train", "scores": "train config", "report": "train",
         "predictor": "infer", "tiff": "slides", "slides": "tiff", "pixel_size": "tiff",
         "layouts": "datasets", "tiles": "train", "masks": "datasets remedies", "training": "train",
         "checkpoint": "infer", "unet": "train"}
# Survivors that change nothing that anybody could see, as "FILE: BEFORE -> AFTER".
REASONS: dict[str, str] = {
    "minseg/augment.py: x_row = torch.stack([cos * flip, -sin, right], 1) -> x_row = "
    "torch.stack([cos / flip, -sin, right], 1)":
        "The flip is 1 or -1, so dividing by it is multiplying by it.",
    "minseg/augment.py: y_row = torch.stack([sin * flip, cos, down], 1) -> y_row = "
    "torch.stack([sin / flip, cos, down], 1)":
        "The flip is 1 or -1, so dividing by it is multiplying by it.",
    "minseg/files/atomic.py: while block := file.read(2**20): -> while block := file.read(2**21):":
        "The hash is that of all bytes, however many are read at a time.",
    "minseg/files/atomic.py: while block := file.read(2**20): -> while block := file.read(3**20):":
        "The hash is that of all bytes, however many are read at a time.",
    "minseg/files/masks.py: yield window.reshape(-1, channels) -> yield window.reshape(-2, "
    "channels)":
        "numpy takes any number below 0 for the size that is left.",
    "minseg/files/objects.py: empty_row = np.zeros((1, self.width), bool) -> empty_row = "
    "np.zeros((2, self.width), bool)":
        "The first empty row already ends all objects.",
    "minseg/files/objects.py: on_shell = np.diff(owner, prepend=-1) > 0 # the first corner of an "
    "object lies on its shell -> on_shell = np.diff(owner, prepend=-2) > 0 # the first corner "
    "of an object lies on its shell":
        "Ids begin at 0, so any number below 0 differs from them.",
    "minseg/files/objects.py: def __init__(self, height: int, width: int, min_area: int = 0): -> "
    "def __init__(self, height: int, width: int, min_area: int = 1):":
        "No object has fewer pixels than one.",
    "minseg/files/polygons.py: min_area: int = 0) -> Iterator[Callable[[np.ndarray, np.ndarray], "
    "None]]: -> min_area: int = 1) -> Iterator[Callable[[np.ndarray, np.ndarray], None]]:":
        "No object has fewer pixels than one.",
    "minseg/synthetic.py: if reach.mean() < 0.9 * radii[0]: -> if reach.mean() <= 0.9 * "
    "radii[0]:":
        "Means of 24 whole numbers or random ones are never exactly 0.9 times a radius.",
    "minseg/synthetic.py: places = places[((places >= 0) & (places < (height, "
    "width))).all(axis=1)] -> places = places[((places > 0) & (places < (height, "
    "width))).all(axis=1)]":
        "The border of a slide is glass, where nuclei are not shown.",
    "minseg/synthetic.py: radius = 1.05 * self.reach(AROUND).max() + 1 -> radius = 1.05 * "
    "self.reach(AROUND).max() + 2":
        "Beyond its outline a blob draws nothing, however large its window is.",
    "minseg/synthetic.py: canvas.mask[window] |= rho <= 1 -> canvas.mask[window] |= rho < 1":
        "A random number is never exactly at the limit.",
    "minseg/synthetic.py: self.tissue = np.sqrt(np.hypot(y**2, x**2)) < 0.84 + "
    "np.clip(edge, -0.3, 0.13) -> self.tissue = np.sqrt(np.hypot(y**2, x**2)) <= 0.84 + "
    "np.clip(edge, -0.3, 0.13)":
        "A random number is never exactly at the limit.",
    "minseg/synthetic.py: canvas.taken[window] |= blob.rho(window) <= 1 -> "
    "canvas.taken[window] |= blob.rho(window) < 1":
        "A random number is never exactly at the limit.",
    "minseg/synthetic.py: amount = np.where(rho + 0.07 * canvas.grain[window] < lumen, "
    "filling, wall * (1.1 - 0.2 * rho)) -> amount = np.where(rho + 0.07 * canvas.grain[window] "
    "<= lumen, filling, wall * (1.1 - 0.2 * rho))":
        "A random number is never exactly at the limit.",
    "minseg/synthetic.py: amount[rho > 1 - 1.8 / blob.radius] = rng.uniform(0.6, 0.85) -> "
    "amount[rho >= 1 - 1.8 / blob.radius] = rng.uniform(0.6, 0.85)":
        "A random number is never exactly at the limit.",
    "minseg/synthetic.py: cells, proximal = int(blob.radius * rng.uniform(0.3, 0.6)), "
    "rng.random() < 0.68 -> cells, proximal = int(blob.radius * rng.uniform(0.3, 0.6)), "
    "rng.random() <= 0.68":
        "A random number is never exactly at the limit.",
    "minseg/synthetic.py: amount = np.where(rho > 1 - 2.2 / blob.radius, rng.uniform(0.6, "
    "0.8), 0.03) -> amount = np.where(rho >= 1 - 2.2 / blob.radius, rng.uniform(0.6, 0.8), 0.03)":
        "A random number is never exactly at the limit.",
    "minseg/synthetic.py: is_open = (nearest < 3.2) & (canvas.grain[window][rows, cols] < "
    "0.8) -> is_open = (nearest <= 3.2) & (canvas.grain[window][rows, cols] < 0.8)":
        "A random number is never exactly at the limit.",
    "minseg/synthetic.py: is_open = (nearest < 3.2) & (canvas.grain[window][rows, cols] < "
    "0.8) -> is_open = (nearest < 3.2) & (canvas.grain[window][rows, cols] <= 0.8)":
        "A random number is never exactly at the limit.",
    "minseg/synthetic.py: loops[second - nearest < 2] = rng.uniform(0.45, 0.65) -> "
    "loops[second - nearest <= 2] = rng.uniform(0.45, 0.65)":
        "A random number is never exactly at the limit.",
    "minseg/synthetic.py: paint(canvas, window, rho <= 1, amount) -> paint(canvas, window, "
    "rho < 1, amount)":
        "A random number is never exactly at the limit.",
    "minseg/synthetic.py: paint(canvas, window, (rho <= 1) & ~canvas.mask[window], amount) "
    "-> paint(canvas, window, (rho < 1) & ~canvas.mask[window], amount)":
        "A random number is never exactly at the limit.",
    "minseg/synthetic.py: rows, cols = np.nonzero((tuft.rho(window) < 1) & (rho < 0.95)) "
    "-> rows, cols = np.nonzero((tuft.rho(window) <= 1) & (rho < 0.95))":
        "A random number is never exactly at the limit.",
    "minseg/synthetic.py: rows, cols = np.nonzero((tuft.rho(window) < 1) & (rho < 0.95)) "
    "-> rows, cols = np.nonzero((tuft.rho(window) < 1) & (rho <= 0.95))":
        "A random number is never exactly at the limit.",
    "minseg/synthetic.py: canvas.nuclei.append(gaps[rng.random(len(gaps)) < 1 / 180]) -> "
    "canvas.nuclei.append(gaps[rng.random(len(gaps)) <= 1 / 180])":
        "A random number is never exactly at the limit.",
    "minseg/synthetic.py: if (space < 1.1 * reach).any(): -> if (space <= 1.1 * "
    "reach).any():":
        "A random number is never exactly at the limit.",
    "minseg/synthetic.py: distance = np.maximum(np.abs(offset), 1e-3) -> distance = "
    "np.maximum(np.abs(offset), 1.001)":
        "Only at the centre of a blob is the distance smaller, and there nothing changes with "
        "it.",
    "minseg/files/tiff.py: def scratch_file(buffering: int = -1) -> IO[bytes]: -> def "
    "scratch_file(buffering: int = -2) -> IO[bytes]:":
        "Any number below 0 means the buffer of the system's choice.",
    "minseg/files/tiff.py: with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool: -> with "
    "ThreadPoolExecutor(max(8, os.cpu_count() or 1)) as pool:":
        "The number of threads changes nothing but the time.",
    "minseg/files/tiff.py: with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool: -> with "
    "ThreadPoolExecutor(min(9, os.cpu_count() or 1)) as pool:":
        "The number of threads changes nothing but the time.",
    "minseg/files/tiff.py: self.segment = lru_cache(max(HELD, row + row // 4) // self.size + 1)( "
    "-> self.segment = lru_cache(max(HELD, row + row // 4) // self.size + 2)(":
        "One segment more in the cache changes nothing but the memory.",
    "minseg/files/tiff.py: page.photometric, page.samplesperpixel = PHOTOMETRIC.MINISBLACK, 1 -> "
    "page.photometric, page.samplesperpixel = PHOTOMETRIC.MINISBLACK, 2":
        "For JPEG, tifffile goes by the colours and the stream, not by this number.",
    "minseg/files/tiff.py: if planes and page.compression == COMPRESSION.JPEG and "
    "page.samplesperpixel > 1: -> if planes and page.compression == COMPRESSION.JPEG and "
    "page.samplesperpixel >= 1:":
        "A page of one sample is grey already.",
    "minseg/run/tiles.py: text = json.dumps([5, source, item.runs, *map(identity, "
    "files_of(item).values())]) -> text = json.dumps([6, source, item.runs, *map(identity, "
    "files_of(item).values())])":
        "The number only has to differ from those of earlier versions.",
    "minseg/efficientnet.py: hidden = 1280 if lite else round_channels(1280, width) -> hidden = "
    "1280 if lite else round_channels(1281, width)":
        "Both are rounded to the same multiple of 8, at every width.",
    "minseg/losses.py: logits, target = logits.masked_fill(void, -1e4), "
    "target.masked_fill(void, 0) -> logits, target = logits.masked_fill(void, -10001.0), "
    "target.masked_fill(void, 0)":
        "Any number so far below 0 gives a probability of 0.",
    "minseg/run/describe.py: if scale > 1: -> if scale >= 1:":
        "At the full size no object vanishes, so nothing is printed.",
    'minseg/run/describe.py: positive = sum(fact["positive"] for fact in facts) / max(1, '
    'labelled) -> positive = sum(fact["positive"] for fact in facts) / max(2, labelled)':
        "Without a labelled pixel none is positive, and 0 / 2 is 0, too.",
    "minseg/run/errors.py: return f\"{where}{error.strerror}{remedy.get(error.errno or 0, '')}\" "
    "-> return f\"{where}{error.strerror}{remedy.get(error.errno or 1, '')}\"":
        "Neither 0 nor 1 has a remedy.",
    "minseg/run/loop.py: or time.monotonic() - self.last_save > SAVE_EVERY)): -> or "
    "time.monotonic() - self.last_save >= SAVE_EVERY)):":
        "A clock with nanoseconds never shows exactly 300 seconds.",
    "minseg/run/options.py: first_stage(2, args.switch) # ValueError for a share that is not "
    "between 0 and 1 -> first_stage(3, args.switch) # ValueError for a share that is not "
    "between 0 and 1":
        "Only the share is checked here, and three steps can be divided, too.",
    "minseg/run/prepare.py: masks = items[0].mask if items[0].runs is not None else "
    "items[0].mask.parent -> masks = items[0].mask if items[0].runs is not None else "
    "items[1].mask.parent":
        "In a data set all masks are in one folder, or all are run-length code.",
    "minseg/run/prepare.py: masks = items[0].mask if items[0].runs is not None else "
    "items[0].mask.parent -> masks = items[0].mask if items[1].runs is not None else "
    "items[0].mask.parent":
        "In a data set all masks are in one folder, or all are run-length code.",
    'minseg/run/report.py: share = (f"{self.done / (self.total or 1):.0%}" if '
    'isinstance(self.total, float) -> share = (f"{self.done / (self.total or 2):.0%}" if '
    "isinstance(self.total, float)":
        "Where nothing is to be done, nothing is done, and 0 / 2 is 0, too.",
    "minseg/run/report.py: if self.done > self.total - 1e-6: # fractions of 1 may add up to a "
    "little less -> if self.done >= self.total - 1e-6: # fractions of 1 may add up to a little "
    "less":
        "A share of the work is never exactly a millionth short of all.",
    "minseg/run/report.py: lines = next(lines for columns in range(len(title), 0, -1) -> lines "
    "= next(lines for columns in range(len(title), 1, -1)":
        "Two letters always fit on a line.",
    "minseg/run/report.py: if max(map(words.getlength, lines := textwrap.wrap(title, columns))) "
    "<= 1160) -> if max(map(words.getlength, lines := textwrap.wrap(title, columns))) < 1160)":
        "A title of exactly 1160 pixels could as well be wrapped.",
    "minseg/run/report.py: while draw.textlength(caption, font(size)) > side and len(caption) > "
    "4: -> while draw.textlength(caption, font(size)) >= side and len(caption) > 4:":
        "Letters have fractions of pixels: none of the captions is exactly as wide as a picture.",
    "minseg/run/scores.py: pictures.append((draw_outlines(image, probability[..., 0] >= "
    "threshold * 255, label, width), -> pictures.append((draw_outlines(image, probability[..., "
    "0] >= threshold * 256, label, width),":
        "A single fold is cut at 0.5: levels above 127.5 are those from 128 on.",
    "train.py: convolutions = [p for p in parameters if p.ndim > 1] -> convolutions = [p for p "
    "in parameters if p.ndim > 2]":
        "No tensor of the networks has two dimensions.",
}


def changes(file: Path) -> Iterator[tuple[int, int, str]]:
    """The places of a file that can be broken: start and end in its text, and the text instead."""
    text = file.read_text(encoding="utf-8")
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line.decode()))

    def at(line: int, column: int) -> int:  # ast counts columns in bytes
        return starts[line - 1] + len(text.splitlines()[line - 1].encode()[:column].decode())

    def span(node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        return at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)

    def between(left: ast.expr, right: ast.expr, new: str) -> tuple[int, int, str]:
        start, end = span(left)[1], span(right)[0]
        gap = text[start:end]
        brackets = [(gap.count(c), c) for c in "()"]
        return start, end, f"{')' * brackets[1][0]} {new} {'(' * brackets[0][0]}"

    tree = ast.parse(text)
    skip: set[ast.AST] = set()  # type hints, and what only decides the words of a message
    for node in ast.walk(tree):
        hints = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        raised = [node.exc] if isinstance(node, ast.Raise) and node.exc else []
        for part in (*hints, *raised):
            skip.update(ast.walk(part) if part else ())
    for node in ast.walk(tree):
        if node in skip:
            continue
        if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield between(node.left, node.comparators[0], SWAPS[type(node.ops[0])])
        elif isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
            yield between(node.left, node.right, SWAPS[type(node.op)])
        elif isinstance(node, ast.BoolOp):
            yield between(node.values[0], node.values[1], SWAPS[type(node.op)])
        elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
            new = not node.value if isinstance(node.value, bool) else node.value + 1
            yield *span(node), repr(new)
        elif isinstance(node, ast.Name) and node.id in NAMES:
            yield *span(node), NAMES[node.id]
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            end = span(node)[1]
            yield end - len(node.attr), end, NAMES[node.attr]
        elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
            yield *span(node.test), f"not ({text[slice(*span(node.test))]})"
        elif isinstance(node, ast.AugAssign) or (
                isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
            yield *span(node), "pass"


def held_by(file: str) -> list[str]:
    """The files of tests that a mutant of `file` has to pass."""
    stem = Path(file).stem
    found = [Path(f"tests/test_{name}.py") for name in [stem, *TESTS.get(stem, "").split()]]
    return [file, *(str(path) for path in found if path.exists())]


def passes(copy: Path, tests: list[str], limit: float) -> bool:
    """Whether the tests pass in a copy of the project, within some seconds."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    try:
        return subprocess.run(command, cwd=copy, timeout=limit, capture_output=True, env={
            **os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def time_of(copies: "Queue[Path]", file: str) -> float:
    """The seconds that the tests of an unchanged file take; 0 if they fail."""
    copy, start = copies.get(), time.monotonic()
    passed = passes(copy, held_by(file), 900)
    copies.put(copy)
    return time.monotonic() - start if passed else 0.0


def try_out(copies: "Queue[Path]", seconds: dict[str, float], file: str,
            change: tuple[int, int, str]) -> dict:
    """One mutant: its place, what was changed, and whether it survived."""
    copy, (start, end, new) = copies.get(), change
    path = copy / file
    text = path.read_text(encoding="utf-8")
    try:
        path.write_text(text[:start] + new + text[end:], encoding="utf-8")
        survived = passes(copy, held_by(file), 60 + 4 * seconds[file])
    finally:
        path.write_text(text, encoding="utf-8")
        copies.put(copy)
    first, last = text.rfind("\n", 0, start) + 1, (text + "\n").find("\n", end)
    before = " ".join(text[first:last].split())
    after = " ".join((text[first:start] + new + text[end:last]).split())
    return {"file": file, "line": text.count("\n", 0, start) + 1, "before": before, "after": after,
            "survived": survived}


def main(argv: list[str] | None = None) -> None:
    """Draws mutants, tries them out, prints the survivors, and writes the result of all files."""
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", help="files to break (default: all)")
    parser.add_argument("--mutants", type=int, default=360, help="how many to draw (default 360)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at a time")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    files = args.files or ["train.py", "infer.py", *map(str, sorted(Path("minseg").rglob("*.py")))]
    places = [(file, change) for file in files for change in changes(Path(file))]
    drawn = places if args.files else random.Random(args.seed).sample(places, args.mutants)
    copies: Queue[Path] = Queue()
    with tempfile.TemporaryDirectory(prefix="minseg-mutants-") as folder:
        for job in range(args.jobs):
            copies.put(Path(folder) / str(job))
            for name in subprocess.run(["git", "ls-files"], capture_output=True, text=True,
                                       check=True).stdout.splitlines():
                target = Path(folder) / str(job) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(name, target)
        files, mutants = sorted({file for file, _ in drawn}), []
        with ThreadPoolExecutor(args.jobs) as pool:
            seconds = dict(zip(files, pool.map(lambda file: time_of(copies, file), files)))
            if wrong := [file for file, each in seconds.items() if not each]:
                parser.error(f"{wrong[0]}: its tests fail: {' '.join(held_by(wrong[0]))}")
            progress = Progress(len(drawn), "mutants")
            for mutant in pool.map(lambda each: try_out(copies, seconds, *each), drawn):
                mutants.append(mutant)
                progress.step(1, mutant["file"])
    survivors = [{**each, "reason": REASONS.get("{file}: {before} -> {after}".format(**each), "")}
                 for each in mutants if each["survived"]]
    for each in survivors:
        print("{file}:{line}: {before} -> {after}  {reason}".format(**each))
    print(f"{len(survivors)} of {len(mutants)} mutants survive, "
          f"{sum(not each['reason'] for each in survivors)} without a reason")
    if not args.files:
        print(write_json(RESULTS / "mutants.json", {
            "environment": environment("cpu"), "places": len(places), "seed": args.seed,
            "mutants": dict(Counter(each["file"] for each in mutants)),
            "killed": len(mutants) - len(survivors), "survivors": survivors}))


if __name__ == "__main__":
    main()
