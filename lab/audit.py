"""The audit: this project's parts against the best-known implementation of each.

    python -m pip install -e '.[audit]' && python -m lab.audit

Runs the comparisons of `tests/audit/test_rows.py`, which says how they are made, prints a table of
what they measured and writes docs/results/audit.json.
"""

import importlib.metadata
import runpy
import sys
from pathlib import Path

from minseg.run.report import Parser, Progress

from .measure import RESULTS, environment, write_json

TESTS = Path(__file__).parent.parent / "tests" / "audit" / "test_rows.py"


def summarize(cases: dict[str, dict]) -> dict:
    """The worst of a row's cases, with the values of all of them."""
    worst = max(cases.values(), key=lambda case: (case["verdict"] == "DIFFERS", case["value"]))
    gradients = [case["gradient"] for case in cases.values() if case["gradient"] is not None]
    return {**worst, "gradient": max(gradients, default=None),
            "cases": {name: case["value"] for name, case in cases.items()}}


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
    args, rows = parser.parse_args(argv), []
    try:
        tests = runpy.run_path(str(TESTS))
        progress = Progress(len(tests["ROWS"]), "comparing")
        for row in tests["ROWS"]:
            cases = {str(case): tests["check"](row, case) for case in row.cases}
            rows.append({"what": row.what, "package": row.package, "remark": row.remark,
                         "version": importlib.metadata.version(row.package), **summarize(cases)})
            progress.step()
    except ImportError as error:
        parser.error(f"{error}: python -m pip install -e '.[audit]'")
    print(table(rows))
    print(write_json(args.out / "audit.json", {**environment("cpu"), "rows": rows}))
    sys.exit(any(row["verdict"] == "DIFFERS" for row in rows))


if __name__ == "__main__":
    main()
