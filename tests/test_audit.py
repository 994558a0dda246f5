import importlib.metadata
import json
from pathlib import Path

import pytest

from lab import audit
from lab.audit import table

ROOT = Path(__file__).parent.parent
ROWS = """
from types import SimpleNamespace

ROWS = [SimpleNamespace(what="square", package="torch", remark="by hand", cases=[1, 2])]


def check(row, case):
    {start}
    return {{"dtype": "float64", "value": case * 1e-11, "gradient": None,
             "tolerance": [1e-9, 1e-7], "verdict": "same" if case < {limit} else "DIFFERS"}}
"""


def run(monkeypatch, folder, start="", limit=9):
    """The program, with comparisons in place of the audit's own."""
    (folder / "rows.py").write_text(ROWS.format(start=start, limit=limit))
    monkeypatch.setattr(audit, "TESTS", folder / "rows.py")
    with pytest.raises(SystemExit) as error:
        audit.main(["--out", str(folder / "out")])
    return error.value.code


def test_it_prints_a_table_and_writes_json_with_the_worst_case(tmp_path, capsys, monkeypatch):
    assert run(monkeypatch, tmp_path) == 0
    line = "| square | torch {} | 2.0e-11 | - | same (≤ 1e-9, 1e-7); by hand |"
    assert line.format(importlib.metadata.version("torch")) in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert result["rows"][0]["cases"] == {"1": 1e-11, "2": 2e-11}
    assert result["commit"] and result["device"]


def test_it_fails_where_something_differs(tmp_path, capsys, monkeypatch):
    assert run(monkeypatch, tmp_path, limit=2) == 1
    assert "| DIFFERS (≤ 1e-9, 1e-7); by hand |" in capsys.readouterr().out


def test_where_a_peer_is_missing_one_line_says_so_and_nothing_is_written(tmp_path, capsys,
                                                                         monkeypatch):
    assert run(monkeypatch, tmp_path, start="import a_package_that_nobody_has") == 2
    assert not (tmp_path / "out").exists()
    line = capsys.readouterr().err
    assert "a_package_that_nobody_has" in line and line.count("\n") == 1
    assert line.endswith(": python -m pip install -e '.[audit]'\n")


def test_every_row_has_what_the_program_reads():
    tests = audit.runpy.run_path(str(audit.TESTS))
    assert callable(tests["check"])
    assert all(row.what and row.package and row.cases and row.remark is not None
               for row in tests["ROWS"])


def test_the_page_shows_the_table_as_it_was_written():
    rows = json.loads((ROOT / "docs/results/audit.json").read_text())["rows"]
    assert table(rows) in (ROOT / "docs/audit.md").read_text("utf-8")
    assert all(row["verdict"] in ("same", "differs by design") for row in rows)
