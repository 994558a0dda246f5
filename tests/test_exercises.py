"""The exercises of the chapters: what they ask for is there, and their answers are true. The
answers to "by hand" are doctests of the chapters."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import minseg

ROOT = Path(__file__).parent.parent
CHAPTERS = [name for name in re.findall(r"^\| `minseg\.(\w+)` \|", minseg.__doc__, re.M)
            if (ROOT / "minseg" / f"{name}.py").exists() and name not in ("weights", "processes")]


def page(chapter):
    """A chapter's prose and its code."""
    text = (ROOT / "minseg" / f"{chapter}.py").read_text("utf-8")
    prose = ast.get_docstring(ast.parse(text))
    return prose, text.partition('\n"""\n')[2]


def broken(chapter):
    """What to replace by what, and the tests that fail then."""
    prose, _ = page(chapter)
    (old, new), = re.findall(r"replace\s+`([^`]+)`\s+by\s+`([^`]+)`", prose)
    answer, = re.findall(r"\*\*Answers\.\*\*\n1\. .*?^2\. (.*?)\n\n", prose, re.S | re.M)
    return old, new, set(re.findall(r"`(test_\w+)`", answer))


def test_contents_readme_and_next_are_one_order():
    readme = (ROOT / "README.md").read_text("utf-8")
    rows = re.findall(r"^\|.*\| \[(\w+)\]\(minseg/\1\.py\),", readme, re.M)
    assert rows == [chapter for chapter in CHAPTERS if chapter in rows] and len(rows) > 10
    following = [re.findall(r"^Next: `([\w.]+)`, ", page(chapter)[0], re.M) for chapter in CHAPTERS]
    assert following == [*([f"minseg.{chapter}"] for chapter in CHAPTERS[1:]), ["train.py"]]


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_an_exercise_names_what_is_there(chapter):
    prose, code = page(chapter)
    asked = prose.partition("**Exercises.**\n")[2].partition("\nNext: ")[0]
    assert re.findall(r"^(\d\. \*.*?\*)", asked, re.M) == [
        "1. *By hand.*", "2. *Break it.*", "3. *Write it.*"]
    asked = " ".join(asked.split())
    assert f"`python -m pytest tests/test_{chapter}.py --mine my_{chapter}.py`" in asked
    assert f"In a copy of this file, my_{chapter}.py, replace " in asked
    for name, arguments in re.findall(r"`(\w+)(\([^`]*\))`", asked.partition("*Write it.*")[2]):
        signature = inspect.signature(getattr(importlib.import_module(f"minseg.{chapter}"), name))
        bare = [each.replace(annotation=inspect.Parameter.empty)
                for each in signature.parameters.values()]
        wanted = str(inspect.Signature(bare)).replace("'", '"')
        assert arguments == wanted
    old, _, failing = broken(chapter)
    assert code.count(old) == 1
    tests = (ROOT / "tests" / f"test_{chapter}.py").read_text("utf-8")
    assert failing and failing <= set(re.findall(r"^def (test_\w+)", tests, re.M))
    assert prose.rpartition("**Answers.**")[2].count(">>> ")  # "by hand" is computed


@pytest.mark.slow
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_tests_that_an_answer_names_and_no_others_fail(chapter, tmp_path):
    """A copy of the chapter passes all its tests; with the change, the named ones fail."""
    mine, (_, code) = tmp_path / f"my_{chapter}.py", page(chapter)
    old, new, named = broken(chapter)
    for answer, wanted in ((code, set()), (code.replace(old, new), named)):
        mine.write_text(answer, "utf-8")
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-v", "--tb=no", "-p", "no:cacheprovider",
             f"tests/test_{chapter}.py", "--mine", str(mine)],
            cwd=ROOT, capture_output=True, text=True)
        outcomes = re.findall(r"::(test_\w+)\S* (PASSED|FAILED|SKIPPED)", run.stdout)
        skipped = {name for name, outcome in outcomes if outcome == "SKIPPED"}  # for want of extras
        assert {name for name, outcome in outcomes if outcome == "FAILED"} == wanted - skipped
        assert run.returncode == bool(wanted) and "has no" not in run.stdout, run.stdout
