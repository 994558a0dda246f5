"""docs/interop.md shows what a run has seen, and nothing else. Needs none of the programs."""

import json
import re

import page


def test_the_page_shows_the_tables_as_they_were_written():
    result = json.loads(page.RESULT.read_text("utf-8"))
    text = page.PAGE.read_text("utf-8")
    assert page.filled(text, result) == text, "python -m pytest tests/interop --write"
    assert result["commit"] and result["device"] and set(result["versions"]) == set(page.PACKAGES)


def test_the_versions_are_those_of_the_extra():
    text = (page.ROOT / "pyproject.toml").read_text("utf-8")
    extras = {name: re.findall(r'"([\w-]+)"', re.search(rf"^{name} = \[(.*?)\]\n", text,
                                                        re.M | re.S)[1])
              for name in ("interop", "codecs", "export")}
    assert set(page.PACKAGES) <= {*extras["interop"], *extras["codecs"], *extras["export"]}


def test_rows_that_say_the_same_become_one():
    rows = {"a: x": {"seen": "1"}, "a: y": {"seen": "1"}, "a: z": {"seen": "2|3"},
            "b: x": {"seen": "2|3"}}
    assert page.table(rows).splitlines()[2:] == [
        "| a | x; y | 1 |", "| a | z | 2\\|3 |", "| b | x | 2\\|3 |"]
    assert page.table({"a": {"what to do": "1"}, "b": {"seen": "2"}}, "way").splitlines() == [
        "| way | seen | what to do |", "| --- | --- | --- |", "| a |  | 1 |", "| b | 2 |  |"]
