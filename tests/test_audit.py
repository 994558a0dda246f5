import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lab import audit
from lab.audit import ROWS, Row, check, compare, difference, same_weights, table

X = torch.linspace(-1, 2, 12, dtype=torch.float64).view(3, 4)


def row(theirs, **arguments):
    """A comparison of x^2 with `theirs`."""
    return Row("square", "torch", "torch", (1,),
               lambda case: compare(torch.square, theirs, [X]), **arguments)


def test_what_is_the_same_passes_and_what_is_not_does_not():
    assert check(row(lambda x: x * x), 1)["verdict"] == "same"
    found = check(row(lambda x: x * x * (1 + 1e-8)), 1)
    assert found["verdict"] == "DIFFERS" and found["value"] == pytest.approx(1e-8)
    # Values agree, gradients do not.
    found = check(row(lambda x: x.detach() * x), 1)
    assert found["verdict"] == "DIFFERS" and found["value"] == 0 and found["gradient"] > 0.1
    found = check(row(lambda x: x * x * 2, differs=True), 1)
    assert found["verdict"] == "differs by design" and found["value"] == pytest.approx(0.5)


def test_zeros_beside_zeros_are_no_comparison():
    with pytest.raises(ValueError, match="nothing but zeros"):
        check(Row("zero", "torch", "torch", (1,),
                  lambda case: compare(lambda x: x * 0, lambda x: x * 0, [X])), 1)


def test_the_difference_is_a_share_of_the_largest_value_of_each_tensor():
    ones = torch.ones(3)
    assert difference([(ones, ones)]) == 0
    assert difference([(ones, ones), (torch.tensor([0.0, 8]), torch.tensor([1.0, 8]))]) == 1 / 8
    assert difference([(ones, ones[:2])]) == difference([(ones * torch.nan, ones)]) == torch.inf
    assert difference([(ones, ones * 0)]) == torch.inf


def test_weights_are_copied_in_order_and_refused_where_they_do_not_fit():
    ours, theirs = nn.Linear(2, 3), nn.Linear(2, 3)
    pairs = same_weights(ours, theirs)
    assert all(torch.equal(a, b) for a, b in pairs) and len(pairs) == 2
    with pytest.raises(ValueError):
        same_weights(ours, nn.Linear(2, 3, bias=False))


def test_a_missing_peer_is_one_line_and_nothing_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(audit, "ROWS", [row(torch.square)._replace(
        package="no-such-package", module="no_such_module")])
    with pytest.raises(SystemExit) as error:
        audit.main(["--out", str(tmp_path)])
    assert error.value.code == 2 and not list(tmp_path.iterdir())
    assert "needs no-such-package: python -m pip install -e '.[audit]'" in capsys.readouterr().err


def test_it_prints_a_table_writes_json_and_fails_where_something_differs(tmp_path, capsys,
                                                                         monkeypatch):
    monkeypatch.setattr(audit, "ROWS", [row(lambda x: x * x, remark="by hand")])
    audit.main(["--out", str(tmp_path)])
    line = "| square | torch {} | 0.0e+00 | 0.0e+00 | same (≤ 1e-9, 1e-7); by hand |"
    assert line.format(torch.__version__) in capsys.readouterr().out
    found = json.loads((tmp_path / "audit.json").read_text())
    assert found["rows"][0]["verdict"] == "same" and found["commit"] and found["device"]
    monkeypatch.setattr(audit, "ROWS", [row(lambda x: x * x * 2)])
    with pytest.raises(SystemExit) as error:
        audit.main(["--out", str(tmp_path)])
    assert error.value.code == 1 and "DIFFERS" in capsys.readouterr().out


def test_the_page_shows_the_table_as_it_was_written():
    root = Path(__file__).parent.parent
    rows = json.loads((root / "docs/results/audit.json").read_text())["rows"]
    assert table(rows) in (root / "docs/audit.md").read_text("utf-8")
    assert [r["what"] for r in rows] == [r.what for r in ROWS]
    assert all(r["verdict"] in ("same", "differs by design") for r in rows)


def test_each_peer_of_a_row_is_in_the_extra():
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    extra = text[text.index("audit = ["):]
    assert all(f'"{r.package}"' in extra for r in ROWS)
