import json
from pathlib import Path

import pytest
import torch

from lab import audit
from lab.audit import table

ROOT = Path(__file__).parent.parent
CASES = """
import pytest

@pytest.mark.parametrize("case", [1, 2])
def test_row(case, record_property):
    {skip}
    result = {{"what": "square", "package": "torch", "remark": "by hand", "case": str(case),
              "dtype": "float64", "value": case * 1e-11, "gradient": None,
              "tolerance": [1e-9, 1e-7], "verdict": "same" if case < {limit} else "DIFFERS"}}
    record_property("audit", result)
    assert result["verdict"] == "same"
"""


def run(monkeypatch, folder, skip="", limit=9):
    """The program, with comparisons in place of the audit's own."""
    file = folder / f"{folder.name}.py"  # a name of its own: pytest keeps modules by their names
    file.write_text(CASES.format(skip=skip, limit=limit))
    monkeypatch.setattr(audit, "TESTS", file)
    with pytest.raises(SystemExit) as error:
        audit.main(["--out", str(folder / "out")])
    return error.value.code


def test_it_prints_a_table_and_writes_json_with_the_worst_case(tmp_path, capsys, monkeypatch):
    assert run(monkeypatch, tmp_path) == 0
    line = "| square | torch {} | 2.0e-11 | - | same (≤ 1e-9, 1e-7); by hand |"
    assert line.format(torch.__version__) in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert result["rows"][0]["cases"] == {"1": 1e-11, "2": 2e-11}
    assert result["commit"] and result["device"]


def test_it_fails_where_something_differs(tmp_path, capsys, monkeypatch):
    assert run(monkeypatch, tmp_path, limit=2) == 1
    assert "| DIFFERS (≤ 1e-9, 1e-7); by hand |" in capsys.readouterr().out


def test_where_a_peer_is_missing_nothing_is_written(tmp_path, capsys, monkeypatch):
    code = run(monkeypatch, tmp_path, skip="if case == 2: pytest.skip('needs a package')")
    assert code == 2 and not (tmp_path / "out").exists()
    captured = capsys.readouterr()
    assert "needs a package" in captured.out
    assert captured.err.endswith("not all comparisons ran: python -m pip install -e '.[audit]'\n")


def test_the_page_shows_the_table_as_it_was_written():
    rows = json.loads((ROOT / "docs/results/audit.json").read_text())["rows"]
    assert table(rows) in (ROOT / "docs/audit.md").read_text("utf-8")
    assert all(row["verdict"] in ("same", "differs by design") for row in rows)
