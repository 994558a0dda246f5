"""The audit: this project's parts against the best-known implementation of each.

    python -m pip install -e '.[audit]' && python -m lab.audit

Runs the comparisons of `tests/audit/test_rows.py`, which says how they are made, prints a table of
what they measured and writes docs/results/audit.json.
"""

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

from minseg.run.report import Parser

from .measure import RESULTS, environment, write_json

TESTS = Path(__file__).parent.parent / "tests" / "audit" / "test_rows.py"


class Collector:
    """A plugin for pytest that keeps what the tests recorded, and counts those that were skipped.
    """

    def __init__(self):
        self.cases, self.skipped = {}, 0  # cases: by the name of the row

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.skipped += report.skipped
        for name, value in report.user_properties:
            if name == "audit" and report.when == "call":
                self.cases.setdefault((value["what"], value["package"]), []).append(value)


def summarize(cases: list[dict]) -> dict:
    """A row's worst case, with the values of all of them."""
    row = dict(max(cases, key=lambda case: (case["verdict"] == "DIFFERS", case["value"])))
    del row["case"]
    gradients = [case["gradient"] for case in cases if case["gradient"] is not None]
    return {**row, "version": importlib.metadata.version(row["package"]),
            "gradient": max(gradients, default=None),
            "cases": {case["case"]: case["value"] for case in cases}}


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | against | values | gradients | verdict |", "|---|---|---|---|---|"]
    for row in rows:
        value, gradient = ("-" if row[name] is None else f"{row[name]:.1e}"
                           for name in ("value", "gradient"))
        verdict = row["verdict"]
        if verdict != "differs by design":
            verdict += " (≤ {:.0e}, {:.0e})".format(*row["tolerance"]).replace("e-0", "e-")
        if row["remark"]:
            verdict += f"; {row['remark']}"
        lines.append(f"| {row['what']} | {row['package']} {row['version']} | {value} | {gradient} |"
                     f" {verdict} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Runs every comparison, prints the table and writes audit.json."""
    parser = Parser(prog="python -m lab.audit", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS, help="default docs/results")
    args, collector = parser.parse_args(argv), Collector()
    try:
        import pytest
    except ImportError:
        parser.error("needs pytest: python -m pip install -e '.[audit]'")
    status = pytest.main(["-q", "-rs", "--import-mode=importlib", str(TESTS)],
                         plugins=[collector])
    if collector.skipped or not collector.cases:
        parser.error("not all comparisons ran: python -m pip install -e '.[audit]'")
    rows = [summarize(cases) for cases in collector.cases.values()]
    print(table(rows))
    print(write_json(args.out / "audit.json", {**environment("cpu"), "rows": rows}))
    sys.exit(status)


if __name__ == "__main__":
    main()
