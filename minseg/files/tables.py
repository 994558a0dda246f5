"""# Names and tables that people typed

A space after a name, a heading in capitals, an accent stored as a character of its own: differences
that nobody sees are ignored here. Names that are written in two ways, P1 and p-01, are refused,
because such a patient would end up on both sides of the split.

>>> clean("  p1\\u00a0"), clean("J\\u0075\\u0308rgen")
('p1', 'Jürgen')
"""

import codecs
import csv
import re
import sys
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

# What separates the columns: Excel writes semicolons in much of Europe, and tabs as "Unicode Text".
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
NOT_TEXT = "is not UTF-8 text: open it in a spreadsheet program and save it as CSV UTF-8"
ONCE = "keep only one"  # what to do about two lines that contradict each other


def clean(text: str) -> str:
    """A name without invisible differences: control characters, marks of text direction and soft
    hyphens are removed, every run of white space becomes one space, none is left at the ends, and
    an accent is one character with its letter."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(c for c in unicodedata.normalize("NFC", text)
                       if c.isspace() or unicodedata.category(c) not in ("Cc", "Cf"))
    return " ".join(text.split())


def spelling(name: str) -> str:
    """A name without what people write in several ways: case, zeros before a number, and spaces
    and punctuation, which only count between two digits. A whole number may end in .0.

    >>> [spelling(name) for name in ("P1", "p-01", "Patient_1", "1", "01.0", "1.5", "1-11", "11-1")]
    ['p1', 'p1', 'patient1', '1', '1', '1.5', '1-11', '11-1']
    """
    key = unicodedata.normalize("NFKC", name).casefold()
    if number := re.fullmatch(r"(-?)0*(\d+)(?:[.,](\d*?)0*)?", key):
        sign, whole, fraction = number.groups("")
        return sign + whole + (fraction and f".{fraction}")
    # Of CD3+, CD3- and Region*, + is a symbol (S), and - and * are punctuation (P).
    key = "".join(c if c == "*" or unicodedata.category(c)[0] in "LMNS" else "-" for c in key)
    key = re.sub(r"(?<!\d)-|-(?!\d)", "", re.sub("-+", "-", key))
    return re.sub(r"(?<!\d)0+(?=\d)", "", key)


def refuse_alike(path: Path, what: str, names: Iterable[str]) -> None:
    """ValueError if two names have one `spelling`. `what` is the plural noun for the names in its
    message."""
    name_of: dict[str, str] = {}
    for name in sorted(set(names)):
        key = spelling(name)
        if name_of.setdefault(key, name) != name:
            raise ValueError(f"{path}: contains the {what} {name_of[key]!r} and {name!r}: write "
                             "them alike if they are the same, else make them more different")


def open_table(path: Path) -> TextIO:
    """Opens a table for the csv module. Spreadsheets save text as UTF-8 or, with a mark at its
    beginning, as UTF-16. ValueError if zero bytes show that it is neither."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a slide's run-length code is one field
    with open(path, "rb") as file:
        start = file.read(2**12)
    marked = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if b"\0" in start and not marked:
        raise ValueError(f"{path}: {NOT_TEXT}")
    return open(path, newline="", encoding="utf-16" if marked else "utf-8-sig")


def headings(path: Path, delimiter: str) -> list[str]:
    """The cells of a table's first line that is not empty, in lower case; none if this delimiter
    does not fit its quotes."""
    try:
        with open_table(path) as file:
            rows = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
            first_row = next((row for row in rows if any(map(clean, row))), [])
    except UnicodeDecodeError:
        raise ValueError(f"{path}: {NOT_TEXT}")
    except csv.Error:
        return []
    return [clean(heading).casefold() for heading in first_row]


def has_column(path: Path, name: str) -> bool:
    """Whether a table has a column of that name, whatever separates the columns."""
    return any(name in headings(path, delimiter) for delimiter in DELIMITERS)


def delimiter_of(path: Path, key: str, value: str) -> str:
    """What separates the columns of a table: that with which its first line names the columns `key`
    and `value`, once each. ValueError if there is none."""
    for delimiter in DELIMITERS:
        names = headings(path, delimiter)
        if names.count(key) == 1 == names.count(value):
            return delimiter
    found = max((headings(path, delimiter) for delimiter in DELIMITERS), key=len)
    listed = ", ".join(name[:30] for name in found[:8]) or "nothing"
    raise ValueError(f"{path}: the first line must name the columns {key},{value} once each, but "
                     f"names {listed}: rename them, or add such a line")


def read_table(path: Path, key: str, value: str, twice: str = ONCE) -> dict[str, str]:
    """Two columns of a CSV file as a dictionary of `clean` strings. ValueError where a column is
    missing, a key has two values (`twice` says what to do then), or a line does not fit the
    headings."""
    delimiter = delimiter_of(path, key, value)
    names = headings(path, delimiter)
    table: dict[str, str] = {}
    try:
        with open_table(path) as file:
            rows = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
            next(row for row in rows if any(map(clean, row)))  # the headings
            for row in rows:
                cells = dict(enumerate(map(clean, row)))
                if not any(cells.values()):
                    continue
                if any(cells[i] for i in range(len(names), len(row))):
                    raise ValueError(f"{path}: line {rows.line_num} has more cells than there are "
                                     "headings: put quotes around text that contains a "
                                     f"{DELIMITERS[delimiter]}")
                name, content = (cells.get(names.index(each)) for each in (key, value))
                if not name:
                    raise ValueError(f"{path}: line {rows.line_num} has no {key}: add it, or "
                                     "remove the line")
                if content is None:  # a line that ends before that column tells us nothing
                    continue
                if table.setdefault(name, content) != content:
                    raise ValueError(f"{path}: has two lines for {name}: {twice}")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: {NOT_TEXT}")
    except csv.Error as error:
        raise ValueError(f"{path}: line {rows.line_num}: {error}: fix the quotes")
    return table
