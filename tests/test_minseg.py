import ast
import doctest
import graphlib
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import minseg
from minseg import data

ROOT = Path(__file__).parent.parent
TRICKS = ("unet efficientnet pretrained attention_gate scse cbam hypercolumn dice lovasz losses "
          "deep_supervision sampling augment training tiling tta predictor crossval "
          "synthetic").split()
NAMES = ("EfficientNet load_weights UNet AttentionGate SCSE CBAM Hypercolumn dice_loss dice_score "
         "lovasz_hinge deep_supervision_loss make_loss tile_starts blend_window predict_bands "
         "predict_image flips_and_turns epoch_indices group_folds best_threshold rle_encode "
         "rle_decode open_slide")


def test_every_public_name_is_there():
    for name in NAMES.split():
        assert getattr(minseg, name).__doc__, name


# An arrow leads from a room to what it may import. The order of the rooms is that of CONTRIBUTING.
ROOMS = ["lab", "programs", "minseg/run", "minseg/files", "chapters"]
TOGETHER = {"unet", "losses", "predictor", "pretrained", "training"}  # these put chapters together


def room_of(file):
    folder = file.parent.relative_to(ROOT).as_posix()
    return {".": "programs", "minseg": "chapters"}.get(folder, folder)


def imports_of(file):
    """The files of this project that a file imports."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = file.relative_to(ROOT).parts[:-node.level] if node.level else ()
            name = ".".join([*above, *([node.module] if node.module else [])])
            names = [name, *(f"{name}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            path = (ROOT / name.replace(".", "/")).with_suffix(".py")
            if path.exists():
                yield path


FILES = [*ROOT.glob("*.py"), *ROOT.glob("lab/*.py"), *ROOT.glob("minseg/**/*.py")]


def test_imports_follow_the_arrows():
    arrows = {file: set(imports_of(file)) for file in FILES
              if file.name not in ("__init__.py", "conftest.py")}
    assert len(arrows) > 60 and sum(map(len, arrows.values())) > 150
    for file, others in arrows.items():
        for other in others:
            assert ROOMS.index(room_of(file)) <= ROOMS.index(room_of(other)), (file, other)
        if room_of(file) == "chapters" and file.stem not in TOGETHER:
            assert not others, file
    graphlib.TopologicalSorter(arrows).prepare()  # CycleError names a circle


def test_no_function_is_longer_than_fifty_lines_and_the_two_loops_stay_short():
    for file in FILES:
        text = file.read_text("utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 50, (file, node.name)
        limit = {"train.py": 220, "infer.py": 150}.get(file.name, 1000)
        assert len(text.splitlines()) < limit, file


def test_what_moved_is_found_under_its_old_name_too():
    for old, new in data.MOVED.items():
        assert importlib.import_module(f"minseg.{old}") is importlib.import_module(f"minseg.{new}")
    from minseg.data.slides import open_slide
    from minseg.run.predictor import predictor
    from minseg.run.step import EMA
    assert open_slide is minseg.open_slide
    assert (predictor.__module__, EMA.__module__) == ("minseg.predictor", "minseg.training")


@pytest.mark.parametrize("trick", TRICKS)
def test_the_example_of_a_trick_can_be_pasted(trick):
    page = importlib.import_module(f"minseg.{trick}").__doc__
    example = doctest.DocTestParser().get_doctest(page, {}, trick, None, 0)  # no names are there
    assert len(example.examples) > 2
    assert not doctest.DocTestRunner().run(example).failed


def test_it_is_found_beside_a_folder_of_its_name(tmp_path):
    """As in the folder that holds the clone, where `minseg` is first of all the clone itself."""
    (tmp_path / "parent" / "minseg" / "minseg").mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(folder):
        command = [sys.executable, "-c", "from importlib.util import find_spec\n"
                   "print(find_spec('minseg').origin or 1 / 0)"]  # without importing torch
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    if run(tmp_path).returncode:
        pytest.skip("minseg is not installed: python -m pip install -e .")
    found = run(tmp_path / "parent")
    assert found.stdout == f"{minseg.__file__}\n", found.stderr
