"""Do the tests notice? Breaks one place of the code at a time and runs the tests of that file.

    python -m lab.mutants                        # 360 mutants of minseg/, train.py and infer.py
    python -m lab.mutants minseg/tiling.py       # all mutants of a file

A mutant is the code with one change: a comparison, an operator, a number, True or False, the sense
of a condition, `min` or `max`, or a statement that is left out. If all tests of the file pass, the
mutant has survived: either a test is missing, or the change makes no difference, and
lab/mutants-reasons.json says why. Mutants are drawn by a seed, in proportion to the places that
each file has. The result of all files is in docs/results/mutants.json.

**Source.** DeMillo, Lipton and Sayward, *Hints on Test Data Selection*, Computer 1978.
"""

import ast
import json
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
from itertools import accumulate
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
TESTS = {"loop": "train config", "prepare": "train datasets layouts",
         "describe": "train datasets config", "options": "train infer",
         "errors": "train infer training", "outputs": "infer", "tables": "datasets layouts",
         "weights": "pretrained", "config": "train", "scores": "train config", "report": "train",
         "predictor": "infer", "tiff": "slides", "slides": "tiff", "pixel_size": "tiff slides",
         "layouts": "datasets", "datasets": "layouts", "tiles": "train config",
         "masks": "datasets remedies", "training": "train", "checkpoint": "infer", "unet": "train"}
REASONS = Path(__file__).with_name("mutants-reasons.json")  # {file: {reason: [survivor, ...]}}


def changes(file: Path) -> Iterator[tuple[int, int, str]]:
    """The places of a file that can be broken: start and end in its text, and the text instead."""
    text = file.read_text(encoding="utf-8")
    lines = text.encode().splitlines(keepends=True)
    starts = [0, *accumulate(len(line.decode()) for line in lines)]

    def at(line: int, column: int) -> int:  # ast counts columns in bytes
        return starts[line - 1] + len(lines[line - 1][:column].decode())

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


def lines_of(text: str, change: tuple[int, int, str]) -> tuple[str, str]:
    """The lines of a text that a change concerns, before and after it, without their spaces."""
    start, end, new = change
    first, last = text.rfind("\n", 0, start) + 1, (text + "\n").find("\n", end)
    before, after = text[first:last], text[first:start] + new + text[end:last]
    return " ".join(before.split()), " ".join(after.split())


def read_reasons() -> dict[tuple[str, str], str]:
    """Why some mutants change nothing that anybody could see, by file and "BEFORE -> AFTER".
    ValueError if one of them is no mutant of its file any more."""
    reasons = {}
    for file, survivors_of in json.loads(REASONS.read_text(encoding="utf-8")).items():
        text = Path(file).read_text(encoding="utf-8")
        mutants = {" -> ".join(lines_of(text, change)) for change in changes(Path(file))}
        for reason, survivors in survivors_of.items():
            if gone := [each for each in survivors if each not in mutants]:
                raise ValueError(f"{REASONS}: {file} has no such mutant: {gone[0]}")
            reasons.update({(file, each): reason for each in survivors})
    return reasons


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
    before, after = lines_of(text, change)
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
    reasons = read_reasons()
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
    survivors = [each for each in mutants if each["survived"]]
    for each in survivors:
        each["reason"] = reasons.get((each["file"], "{before} -> {after}".format(**each)), "")
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
