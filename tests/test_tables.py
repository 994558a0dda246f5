"""Tables that people typed: how they are opened. (What is in them: tests/test_layouts.py.)"""

import csv

import pytest

from minseg.files.tables import delimiter_of, has_column, headings, open_table, read_table


@pytest.mark.parametrize("place", [0, 24, 4095])
def test_zero_bytes_near_the_beginning_show_that_it_is_no_text(tmp_path, place):
    data = bytearray(b"id,group\n" + b"a,b\n" * 2000)
    data[place] = 0
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(ValueError, match="a.csv: is not UTF-8 text"):
        open_table(tmp_path / "a.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_cell_may_be_as_long_as_a_slides_run_length_code(tmp_path, encoding, delimiter):
    path, code = tmp_path / "a.csv", "1 2 " * 40_000
    path.write_text(f"\n ID {delimiter}Code\na{delimiter}{code}\n\nb{delimiter}\nc\n", encoding)
    assert delimiter_of(path, "id", "code") == delimiter and has_column(path, "code")
    assert headings(path, delimiter) == ["id", "code"] and not has_column(path, "group")
    assert read_table(path, "id", "code") == {"a": code.strip(), "b": ""}
    assert csv.field_size_limit() == 2**31 - 1  # the most that Windows takes


@pytest.mark.parametrize("text, names", [
    ('id, "group"', ["id", "group"]), ('"id"x,group', []), ('"id,group', [])])
def test_headings_may_be_in_quotes_that_fit(tmp_path, text, names):
    (tmp_path / "a.csv").write_text(text)
    assert headings(tmp_path / "a.csv", ",") == names


def test_of_a_long_first_line_eight_names_are_shown_with_thirty_letters(tmp_path):
    (tmp_path / "a.csv").write_text(",".join(["x" * 31, *"abcdefgh"]))
    with pytest.raises(ValueError, match=f"but names {'x' * 30}, a, b, c, d, e, f, g: rename"):
        delimiter_of(tmp_path / "a.csv", "id", "group")
