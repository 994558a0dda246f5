"""docs/interop.md: its tables, from docs/results/interop.json, which a run of the tests writes."""

import importlib.metadata
import json
import re
import textwrap
from itertools import groupby
from pathlib import Path

from minseg.files.atomic import atomic
from minseg.run.report import environment

ROOT = Path(__file__).parents[2]
PAGE, RESULT = ROOT / "docs" / "interop.md", ROOT / "docs" / "results" / "interop.json"
PACKAGES = ("openslide-bin openslide-python tiffslide pyvips pyvips-binary rasterio slideio "
            "large-image-source-tiff SimpleITK shapely geopandas dlup pycocotools onnx onnxruntime "
            "onnxscript opencv-python-headless scikit-image imagecodecs").split()


def table(rows: dict[str, dict[str, str]], heading: str = "program") -> str:
    """Rows as Markdown. Rows named "program: file" that follow one another and say the same become
    one, with all their files."""
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    columns.sort(key=["areas", "what to do"].count)  # these come last
    split = any(": " in name for name in rows)
    lines = [[heading, *["file"] * split, *columns]]
    lines.append(["---"] * len(lines[0]))
    for (program, *cells), group in groupby(rows, lambda name: (
            name.partition(": ")[0], *(rows[name].get(column, "") for column in columns))):
        files = "; ".join(name.partition(": ")[2] for name in group)
        lines.append([program, *[files] * split, *cells])
    return "\n".join("| " + " | ".join(each.replace("|", "\\|") for each in line) + " |"
                     for line in lines)


def versions(result: dict) -> str:
    """What the run depended on, in a sentence."""
    packages = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return textwrap.fill(
        f"Seen on {result['date']} (commit {result['commit']}, Python {result['python']}) with "
        f"{packages}, torch {result['torch']}, numpy {result['numpy']}, Pillow {result['pillow']} "
        f"and tifffile {result['tifffile']}.", 120, break_on_hyphens=False)


def filled(text: str, result: dict) -> str:
    """The page with the tables of a result between its marks. ValueError if they do not match."""
    parts = {"versions": versions(result),
             **{name: table(rows, "a mask" if name == "choices" else "program")
                for name, rows in result["tables"].items()}}
    marks = re.findall(r"^<!-- (?!end)(\w+) -->$", text, re.M)
    if sorted(marks) != sorted(parts):
        raise ValueError(f"the page has marks for {sorted(marks)}, the run has {sorted(parts)}")
    for name, part in parts.items():
        text = re.sub(rf"^<!-- {name} -->\n.*?^<!-- end -->$",
                      lambda _: f"<!-- {name} -->\n{part}\n<!-- end -->", text, flags=re.M | re.S)
    return text


def write(tables: dict) -> list[Path]:
    """Writes the result of a run and the page. Returns their paths."""
    result = {**environment("cpu"),
              "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
              "tables": tables}
    new = {RESULT: json.dumps(result, indent=1, ensure_ascii=False) + "\n",
           PAGE: filled(PAGE.read_text("utf-8"), result)}
    for path, text in new.items():
        with atomic(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return list(new)
