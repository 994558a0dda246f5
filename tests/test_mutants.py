"""The places that `lab.mutants` breaks."""

import ast
import json
from pathlib import Path

import pytest

from lab import mutants
from lab.mutants import changes, held_by, read_reasons


def mutants_of(tmp_path, text):
    path = tmp_path / "code.py"
    path.write_text(text, encoding="utf-8")
    return [text[:start] + new + text[end:] for start, end, new in changes(path)]


@pytest.mark.parametrize("text, broken", [
    ("a < b", ["a <= b"]), ("a == b", ["a != b"]), ("a in b", ["a not in b"]),
    ("a is None", ["a is not None"]), ("a + b", ["a - b"]), ("(a) * (b)", ["(a) / (b)"]),
    ("(a + b) * c", ["(a + b) / c", "(a - b) * c"]), ("a and b", ["a or b"]),
    ("x = 3", ["x = 4"]), ("x = True", ["x = False"]), ("x = 'three'", []),
    ("x = 'µ' + y", ["x = 'µ' - y"]), ("min(a, b)", ["max(a, b)", "pass"]),
    ("x = math.floor(a)", ["x = math.ceil(a)"]), ("x += y", ["pass"]), ("go()", ["pass"]),
    ("if a: b", ["if not (a): b"]), ("x = a if b else c", ["x = a if not (b) else c"]),
    ("def f(x: 'a[1]' = 0) -> g[2]: 'three'", ["def f(x: 'a[1]' = 1) -> g[2]: 'three'"]),
    ("raise ValueError(f'{a + 1}')", []), ("x = (\n  a  # one\n  + b)", ["x = (\n  a - b)"]),
])
def test_a_place_is_broken_in_one_way(tmp_path, text, broken):
    assert sorted(mutants_of(tmp_path, text)) == sorted(broken)


@pytest.mark.slow
def test_every_mutant_of_the_project_can_be_parsed():
    for file in ("train.py", "minseg/efficientnet.py"):
        text = Path(file).read_text(encoding="utf-8")
        for start, end, new in changes(Path(file)):
            ast.parse(text[:start] + new + text[end:])


def test_a_file_is_held_by_its_own_tests_and_its_doctests():
    assert held_by("minseg/dice.py") == ["minseg/dice.py", "tests/test_dice.py"]
    assert held_by("minseg/run/loop.py") == [
        "minseg/run/loop.py", "tests/test_loop.py", "tests/test_train.py", "tests/test_config.py"]


def test_reasons_are_about_mutants_that_exist(tmp_path, monkeypatch):
    assert all(read_reasons().values())
    monkeypatch.setattr(mutants, "REASONS", tmp_path / "reasons.json")
    mutants.REASONS.write_text(json.dumps({"minseg/dice.py": {"Why.": ["a < b -> a <= b"]}}))
    with pytest.raises(ValueError, match=r"minseg/dice.py has no such mutant: a < b -> a <= b"):
        read_reasons()
