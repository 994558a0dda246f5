"""The grader of the exercises, conftest.py: it takes right answers and no wrong ones."""

import inspect
import re
import subprocess
import sys
from importlib import import_module, util
from pathlib import Path
from types import SimpleNamespace

import pytest

import minseg

ROOT = Path(__file__).parent.parent
CHAPTERS = [name for name in re.findall(r"^\| `minseg\.(\w+)` \|", minseg.__doc__, re.M)
            if (ROOT / f"minseg/{name}.py").exists() and name not in ("weights", "processes")]

# Each image by itself, as a matrix of pixels and channels; otherwise named than the chapter's.
RIGHT = '''
import torch
from torch import nn


class SCSE(nn.Module):
    def __init__(self, channels, reduction=16, merge="add"):
        super().__init__()
        self.merges = {"add": torch.add, "max": torch.max}
        if merge not in self.merges:
            raise ValueError(f"no such merge: {merge!r}")
        self.how, few = merge, channels // reduction or 1
        self.reduce, self.expand = nn.Conv2d(channels, few, 1), nn.Conv2d(few, channels, 1)
        self.spatial = nn.Conv2d(channels, 1, 1)
        self.reduce.bias.data[:] = 1

    def one(self, image):
        (w1, b1), (w2, b2), (v, b) = ((layer.weight[:, :, 0, 0], layer.bias) for layer in (
            self.reduce, self.expand, self.spatial))
        pixels = image.flatten(1)  # (C, HW)
        hidden = (w1 @ pixels.mean(1) + b1).clamp(min=0)
        c, s = torch.sigmoid(w2 @ hidden + b2), torch.sigmoid(v @ pixels + b)
        return self.merges[self.how](c[:, None] * pixels, s * pixels).view_as(image)

    def forward(self, x):
        return torch.stack([self.one(image) for image in x])
'''


def grade(chapter, mine, *options):
    """What pytest prints, and its exit code."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider",
               f"tests/test_{chapter}.py", "--mine", str(mine), *options]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return run.stdout + run.stderr, run.returncode


@pytest.mark.slow
def test_a_right_answer_passes(tmp_path):
    mine = tmp_path / "my_scse.py"
    mine.write_text(RIGHT)
    text, code = grade("scse", mine)
    assert code == 0 and re.search(r"\d\d passed", text), text


def test_a_wrong_answer_fails_where_it_is_wrong(tmp_path):
    mine = tmp_path / "my_scse.py"
    mine.write_text(RIGHT.replace("torch.max", "torch.min"))
    text, code = grade("scse", mine)
    assert f"grading {mine} in place of minseg/scse.py: SCSE" in text.splitlines()[:6]
    assert code == 1 and re.search(r"3 failed, \d\d passed", text), text
    assert set(re.findall(r"FAILED .*::(\w+)", text)) == {"test_it_is_its_equation"}


@pytest.fixture
def grader():
    spec = util.spec_from_file_location("grader", ROOT / "conftest.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("minseg.mine", None)


def refusal(grader, tests, mine):
    """The one line that it says, and nothing of minseg has changed."""
    before = minseg.SCSE, minseg.scse.SCSE, minseg.unet.SCSE
    with pytest.raises(pytest.UsageError) as error:
        grader.pytest_configure(SimpleNamespace(option=SimpleNamespace(mine=mine), args=tests))
    assert before == (minseg.SCSE, minseg.scse.SCSE, minseg.unet.SCSE)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_graded_is_refused_in_one_line(grader, tmp_path):
    scse, dice, training, other = (str(ROOT / "tests" / f"test_{name}.py") for name in (
        "scse", "dice", "training", "style"))
    mine = tmp_path / "my_scse.py"
    assert refusal(grader, [scse], tmp_path / "my_scse") == f"{tmp_path / 'my_scse'}: no such file"
    mine.write_text("import torch\nfrom minseg import SCSE\n\nclass Scse:\n    pass\n")
    for tests in ([], ["tests", "minseg", "lab"], [scse, dice]):
        assert refusal(grader, tests, mine).startswith("which chapter? --mine needs one test file")
    assert refusal(grader, ["tests/test_sces.py"], mine) == "tests/test_sces.py: no such file"
    assert refusal(grader, [str(ROOT / "minseg/scse.py")], mine).endswith(
        "scse.py: holds no tests: give tests/test_scse.py")
    assert refusal(grader, [scse], Path(minseg.scse.__file__)).endswith(
        "scse.py: is the chapter itself: give a copy of it")
    assert refusal(grader, [other], mine).startswith(f"{other}: is about no chapter; there are att")
    assert refusal(grader, [f"{scse}::a", f"{scse}::b"], mine) == f"{mine}: has no SCSE"
    assert refusal(grader, [dice], mine) == f"{mine}: has no dice_loss or dice_score"
    assert refusal(grader, [training], mine).endswith("or backward_whole or EMA")  # no public name


def test_a_file_that_is_not_there_is_written_to_be_filled_in(grader, tmp_path):
    tests, mine = [str(ROOT / "tests" / "test_lovasz.py")], tmp_path / "my_lovasz.py"
    assert refusal(grader, tests, mine).startswith(f"{mine}: was not there: now it holds what")
    text = mine.read_text()
    assert "the shapes differ" in text and "jaccard_weights" not in text
    with pytest.raises(NotImplementedError):
        grader.run_alone(mine).lovasz_hinge(None, None)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_skeleton_has_what_the_exercise_asks_for_and_not_its_code(grader, tmp_path, chapter):
    module = import_module(f"minseg.{chapter}")
    mine = tmp_path / "mine.py"
    mine.write_text(grader.skeleton(module))
    written = {name: part for name, part in vars(grader.run_alone(mine)).items()
               if getattr(part, "__module__", None) == "minseg.mine"}
    assert written
    for name, part in written.items():
        assert part.__doc__ and part.__doc__ == getattr(module, name).__doc__
        assert inspect.signature(part) == inspect.signature(getattr(module, name))
    assert mine.read_text().count("raise NotImplementedError") >= len(written)


@pytest.mark.parametrize("code, line", [
    ("x = 1\nclass SCSE(:\n", "2: SyntaxError: invalid syntax"),
    ("\n\nclass SCSE(nn.Module):\n    pass\n", "3: NameError: name 'nn' is not defined"),
    ("from minseg import no_such\n", "1: ImportError: cannot import name 'no_such'"),
    ("def f():\n    return 1 / 0\n\nf()\n", "2: ZeroDivisionError: division by zero")])
def test_an_error_in_the_answer_is_one_line_with_its_place(grader, tmp_path, code, line):
    mine = tmp_path / "my_scse.py"
    mine.write_text(code)
    found = refusal(grader, [str(ROOT / "tests" / "test_scse.py")], mine)
    assert found.startswith(f"{mine}:{line}")


def test_only_tests_of_helpers_that_the_answer_lacks_are_skipped(grader):
    def helper():
        return 1

    def item(function):
        marks = []
        return SimpleNamespace(function=function, module=module, add_marker=marks.append), marks

    module = SimpleNamespace(helper=helper)
    config = SimpleNamespace(option=SimpleNamespace(mine="my_dice.py"), lacking={"helper": helper})
    names = {"module": module, "helper": helper}
    tests = {}
    exec("def direct(): return helper()\n"
         "def inside(): return [helper() for _ in range(2)], lambda: helper()\n"
         "def other(): return module.elper\n", names, tests)
    items, marks = zip(*(item(test) for test in tests.values()))
    grader.pytest_collection_modifyitems(config, items)
    assert [[mark.kwargs["reason"] for mark in each] for each in marks] == [
        ["my_dice.py has no helper"], ["my_dice.py has no helper"], []]
