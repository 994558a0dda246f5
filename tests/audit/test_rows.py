"""Each comparison of `lab.audit`, case by case, against the packages that are installed."""

import pytest

from lab.audit import ROWS, check


@pytest.mark.parametrize("row, case", [
    pytest.param(row, case, id=f"{row.what}, {row.package}, {case}")
    for row in ROWS for case in row.cases])
def test_it_computes_what_the_peer_computes_or_differs_as_stated(row, case):
    pytest.importorskip(row.module,
                        reason=f"needs {row.package}: python -m pip install -e '.[audit]'")
    found = check(row, case)
    assert found["verdict"] == ("differs by design" if row.differs else "same"), found
