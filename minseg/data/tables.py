"""# Names and tables that people typed

A space after a name, a heading in capitals, an accent in two pieces: invisible differences
are ignored here. Names that differ only in case, spaces or dashes are refused, because a patient
who is written in two ways ends up on both sides of the split.

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
    """A name without what is not seen: spaces around it, of any kind, controls, marks of direction
    and soft hyphens; accents are one character with their letter."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(c for c in unicodedata.normalize("NFC", text)
                       if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf"))
    return " ".join(text.split())


def refuse_alike(path: Path, what: str, names: Iterable[str]) -> None:
    """ValueError where two names differ only by case, spaces, kinds of dashes or, as numbers, by
    how they are written (1, 01, 1.0)."""
    seen: dict[str, str] = {}
    for name in sorted(set(names)):
        key = unicodedata.normalize("NFKC", name).casefold()
        key = "".join("-" if unicodedata.category(c) == "Pd" else c for c in key if not c.isspace())
        key = str(float(key)) if re.fullmatch(r"\d+(\.\d*)?", key) else key
        if seen.setdefault(key, name) != name:
            raise ValueError(f"{path}: has the {what} {seen[key]!r} and {name!r}: write them alike "
                             "if they are one, else give one another name")


def read_table(path: Path, key: str, value: str) -> dict[str, str]:
    """Two columns of a CSV file as a dictionary, `clean`. ValueError where they are missing, for a
    key with two values, and for lines that do not fit the headings."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a slide's run-length code is one field
    table: dict[str, str] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, skipinitialspace=True, strict=True)
            first = next((row for row in rows if any(map(clean, row))), [])
            heads = [clean(head).casefold() for head in first]
            if heads.count(key) != 1 or heads.count(value) != 1:
                raise ValueError(f"{path}: the first line must have the columns {key},{value}, "
                                 "with a comma between")
            for row in rows:
                cells = dict(zip(range(len(row)), map(clean, row)))
                if not any(cells.values()):
                    continue
                if any(cells[i] for i in range(len(heads), len(row))):
                    raise ValueError(f"{path}: line {rows.line_num} has more cells than there are "
                                     "headings: put quotes around what holds a comma")
                name, content = (cells.get(heads.index(each)) for each in (key, value))
                if not name:
                    raise ValueError(f"{path}: line {rows.line_num} has no {key}: add it, or take "
                                     "out the line")
                if content is None:  # a line that ends before that column says nothing
                    continue
                if table.setdefault(name, content) != content:
                    raise ValueError(f"{path}: has two lines for {name}: keep one")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no UTF-8 text: save it as CSV UTF-8")
    except csv.Error as error:
        raise ValueError(f"{path}: line {rows.line_num}: {error}: fix the quotes")
    return table
