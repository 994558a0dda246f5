"""# Names and tables that people typed

A space after a name, a heading in capitals, an accent stored as a character of its own: differences
that nobody sees are ignored here. Names that differ only in case, spaces or dashes are refused,
because a patient whose name is written in two ways would end up on both sides of the split.

>>> clean("  p1\\u00a0"), clean("J\\u0075\\u0308rgen")
('p1', 'Jürgen')
"""

import csv
import re
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path


def clean(text: str) -> str:
    """A name without invisible differences: control characters, marks of text direction and soft
    hyphens are removed, every run of white space becomes one space, none is left at the ends, and
    an accent is one character with its letter."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(c for c in unicodedata.normalize("NFC", text)
                       if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf"))
    return " ".join(text.split())


def refuse_alike(path: Path, what: str, names: Iterable[str]) -> None:
    """ValueError if two names differ only in case, spaces, the kind of dash or, as numbers, in how
    they are written (1, 01, 1.0). `what` is the plural noun for the names in its message."""
    name_of: dict[str, str] = {}
    for name in sorted(set(names)):
        key = unicodedata.normalize("NFKC", name).casefold()
        key = "".join("-" if unicodedata.category(c) == "Pd" else c for c in key if not c.isspace())
        key = str(float(key)) if re.fullmatch(r"\d+(\.\d*)?", key) else key
        if name_of.setdefault(key, name) != name:
            raise ValueError(f"{path}: contains the {what} {name_of[key]!r} and {name!r}: write "
                             "them alike if they are the same, else make them more different")


def read_table(path: Path, key: str, value: str) -> dict[str, str]:
    """Two columns of a CSV file as a dictionary of `clean` strings. ValueError where a column is
    missing, a key has two values, or a line does not fit the headings."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a slide's run-length code is one field
    table: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, skipinitialspace=True, strict=True)
            first_row = next((row for row in rows if any(map(clean, row))), [])
            headings = [clean(heading).casefold() for heading in first_row]
            if headings.count(key) != 1 or headings.count(value) != 1:
                raise ValueError(f"{path}: the first line must name the columns {key},{value} once "
                                 "each, separated by commas")
            for row in rows:
                cells = dict(enumerate(map(clean, row)))
                if not any(cells.values()):
                    continue
                if any(cells[i] for i in range(len(headings), len(row))):
                    raise ValueError(f"{path}: line {rows.line_num} has more cells than there are "
                                     "headings: put quotes around text that contains a comma")
                name, content = (cells.get(headings.index(each)) for each in (key, value))
                if not name:
                    raise ValueError(f"{path}: line {rows.line_num} has no {key}: add it, or "
                                     "remove the line")
                if content is None:  # a line that ends before that column tells us nothing
                    continue
                if table.setdefault(name, content) != content:
                    raise ValueError(f"{path}: has two lines for {name}: keep only one")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8 text: save it as CSV UTF-8")
    except csv.Error as error:
        raise ValueError(f"{path}: line {rows.line_num}: {error}: fix the quotes")
    return table
