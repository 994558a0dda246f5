"""Data sets: both layouts are found completely, and any fault is named in one line."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minseg.files.datasets import (
    PATIENTS,
    Item,
    count_classes,
    find_slides,
    read_table,
    unused_files,
)
from minseg.files.masks import Mask, drawn_instead
from minseg.files.tables import refuse_alike


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def error_of(call, *arguments):
    """The text of the ValueError, which is one line."""
    with pytest.raises(ValueError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# images/, masks/, groups.csv


def data_set(folder, images=("b.png", "a.png"), masks=("a.png", "b.png"), groups=None):
    for part, names in (("images", images), ("masks", masks)):
        (folder / part).mkdir(parents=True)
        for name in names:
            (folder / part / name).touch()
    if groups is not None:
        (folder / "groups.csv").write_bytes(groups)
    return folder


def test_images_are_found_in_order_with_masks_and_groups(tmp_path):
    groups = b"group,id,age\np1,a,60\np2,b,70\np1,other,60\n"
    a, b = find_slides(data_set(tmp_path, groups=groups))
    assert (a.id, a.image, a.mask) == ("a", tmp_path / "images/a.png", tmp_path / "masks/a.png")
    assert (b.id, b.image, b.mask) == ("b", tmp_path / "images/b.png", tmp_path / "masks/b.png")
    assert (a.group, b.group) == ("p1", "p2")
    assert a.runs is None and b.runs is None


def test_without_groups_each_image_stands_alone(tmp_path):
    assert [item.group for item in find_slides(str(data_set(tmp_path)))] == ["a", "b"]


def test_items_are_in_the_order_of_their_names_not_of_their_files(tmp_path):
    names = ("a-1.png", "a.png", "B.png", "a.b.png")  # as files, a-1.png comes before a.png
    assert [item.id for item in find_slides(data_set(tmp_path, names, names))] == [
        "B", "a", "a-1", "a.b"]


def test_every_suffix_is_found_even_in_capitals_and_may_differ_from_that_of_the_mask(tmp_path):
    images = ("a.png", "b.jpg", "c.jpeg", "d.tif", "e.tiff", "f.PNG", "g.TIFF", "h.Jpg")
    masks = ("a.tif", "b.png", "c.tiff", "d.TIF", "e.PNG", "f.png", "g.png", "h.png")
    items = find_slides(data_set(tmp_path, images, masks))
    assert [item.image.name for item in items] == list(images)
    assert [item.mask.name for item in items] == list(masks)


def test_hidden_files_other_files_and_masks_without_an_image_are_ignored(tmp_path):
    images = ("a.png", ".a.png", "._b.tif", "notes.txt", "a.xml", "Thumbs.db")
    items = find_slides(data_set(tmp_path, images, ("a.png", ".a.png", "z.png", "a.jpg")))
    assert [item.id for item in items] == ["a"]


@pytest.mark.parametrize("missing", [".", "images", "masks"])
def test_a_missing_folder_is_refused(tmp_path, missing):
    folder = tmp_path / "data"
    if missing != ".":
        data_set(folder, (), ())
        (folder / missing).rmdir()
    assert error_of(find_slides, folder).startswith(
        f"{folder / missing}: no such folder: --data must contain images/ and masks/, or train/ "
        "and train.csv")


def test_a_folder_without_images_is_refused(tmp_path):
    data_set(tmp_path, ("notes.txt", ".a.png"))
    with pytest.raises(ValueError, match="images: contains no image .*png.*jpg.*tiff"):
        find_slides(tmp_path)


def test_an_image_without_a_mask_is_refused(tmp_path):
    data_set(tmp_path, ("a.png", "b.jpg"), ("a.png",))
    mask = tmp_path / "masks" / "b.png"
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / 'images' / 'b.jpg'}: has no mask: add {mask}")


@pytest.mark.parametrize("suffix", ["roi", "zip", "ndpa", "xml", "jpg", "gif"])
def test_an_annotation_that_is_not_read_does_no_harm_beside_a_mask(tmp_path, suffix):
    data_set(tmp_path, masks=("a.png", f"b.{suffix}"))
    assert error_of(find_slides, tmp_path).startswith(f"{tmp_path / 'masks' / 'b'}.{suffix}: ")
    (tmp_path / "masks" / "b.png").touch()
    items = find_slides(tmp_path)
    assert len(items) == 2
    assert unused_files(tmp_path, items) == [tmp_path / "masks" / f"b.{suffix}"]


@pytest.mark.parametrize("suffix, name", [("czi", "Zeiss CZI"), ("mrxs", "3DHISTECH MIRAX"),
                                          ("dcm", "DICOM"), ("bmp", ".bmp"), ("jp2", ".jp2")])
def test_images_in_other_formats_are_refused_with_an_export_that_works(tmp_path, suffix, name):
    data_set(tmp_path, (f"a.{suffix}", "b.png"))
    path = tmp_path / "images" / f"a.{suffix}"
    assert error_of(find_slides, tmp_path).startswith(
        f"{path}: {name} is not supported: save it as TIFF (docs/formats.md), and move it away: ")


def test_the_formats_of_slide_scanners_are_accepted(tmp_path):
    images = ("a.svs", "b.ndpi", "c.scn", "d.qptiff", "e.btf", "f.ome.tif", "g.tf8")
    items = find_slides(data_set(tmp_path, images, [f"{Path(name).stem}.png" for name in images]))
    assert [item.image.name for item in items] == list(images)


@pytest.mark.parametrize("part", ["images", "masks"])
def test_two_files_of_one_name_are_refused(tmp_path, part):
    data_set(tmp_path, **{part: ("a.png", "a.tif", "b.png")})
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / part / 'a.tif'}: a.png has the same name: keep only one")


@pytest.mark.parametrize("rows", [b"a,p1\n", b"a,p1\nb,\n", b"a,p1\nb\n"],
                         ids=["no line", "no group", "no comma"])
def test_an_image_without_a_group_is_refused(tmp_path, rows):
    data_set(tmp_path, groups=b"id,group\n" + rows)
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / 'groups.csv'}: has no group for b: add a line")


def test_a_broken_link_does_not_pass_for_missing_groups(tmp_path):
    data_set(tmp_path)
    (tmp_path / "groups.csv").symlink_to(tmp_path / "gone.csv")
    with pytest.raises(OSError, match="groups.csv"):
        find_slides(tmp_path)


# train/, train.csv: HuBMAP's own


def hubmap(folder, images=("b.tiff", "a.tiff"), lines=(("b", "3 2"), ("a", "1 1")), patients=None):
    (folder / "train").mkdir(parents=True)
    for name in images:
        (folder / "train" / name).touch()
    with open(folder / "train.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "encoding"), *lines])
    if patients is not None:
        (folder / PATIENTS).write_text(patients)
    return folder


def test_the_competitions_files_are_found_with_their_patients_as_groups(tmp_path):
    patients = ("image_file,width_pixels,patient_number,race\n"
                "a.tiff,100,67548,White\nb.tiff,90,63921,White\nd48.tiff,80,63921,White\n")
    a, b = find_slides(hubmap(tmp_path, patients=patients))
    table = tmp_path / "train.csv"
    assert a == Item("a", tmp_path / "train/a.tiff", table, "67548", "1 1")
    assert b == Item("b", tmp_path / "train/b.tiff", table, "63921", "3 2")


def test_images_of_one_patient_are_in_one_group(tmp_path):
    folder = hubmap(tmp_path, ("a.tiff", "b.TIFF", "c.tif"), [("c", ""), ("b", ""), ("a", "")],
                    "patient_number,image_file\n7,a.tiff\n8,b.tiff\n7,c.tiff\n")
    assert [(item.id, item.group) for item in find_slides(str(folder))] == [
        ("a", "7"), ("b", "8"), ("c", "7")]


@pytest.mark.parametrize("patients", [
    None, "image_file,patient_number\n", "image_file,patient_number\na.tiff,\nb.tiff\nz.tiff,1\n"],
    ids=["no file", "no lines", "no numbers"])
def test_images_without_a_patient_stand_alone(tmp_path, patients):
    assert [item.group for item in find_slides(hubmap(tmp_path, patients=patients))] == ["a", "b"]


def test_a_broken_link_does_not_pass_for_missing_patients(tmp_path):
    hubmap(tmp_path)
    (tmp_path / PATIENTS).symlink_to(tmp_path / "gone.csv")
    with pytest.raises(OSError, match=PATIENTS):
        find_slides(tmp_path)


def test_patients_in_other_columns_are_refused(tmp_path):
    hubmap(tmp_path, patients="image,patient\na.tiff,1\n")
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / PATIENTS}: the first line must name the columns image_file,patient_number "
        "once each, but names image, patient: rename them, or add such a line")


def test_an_image_of_two_patients_is_refused(tmp_path):
    hubmap(tmp_path, patients="image_file,patient_number\na.tiff,1\na.tiff,2\n")
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / PATIENTS}: has two lines for a.tiff: keep only one")


def test_the_code_of_a_large_slide_may_be_one_long_field(tmp_path):
    code = " ".join(f"{10 * i + 1} 3" for i in range(40_000))
    csv.field_size_limit(131_072)  # Python's own
    a, b = find_slides(hubmap(tmp_path, lines=[("a", code), ("b", "1 2")]))
    assert len(code) > 2 * 131_072 and (a.runs, b.runs) == (code, "1 2")
    assert code not in repr(a)  # which an error may show


def test_an_image_without_a_line_is_refused(tmp_path):
    hubmap(tmp_path, lines=[("a", "1 1")])
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / 'train' / 'b.tiff'}: has no line in {tmp_path / 'train.csv'}: add one, or "
        "remove the image")


def test_a_line_without_an_image_is_refused(tmp_path):
    hubmap(tmp_path, ("a.tiff",))
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / 'train.csv'}: names b, but {tmp_path / 'train'} holds no such image: add it, "
        "or remove the line")


def test_two_images_of_one_name_are_refused(tmp_path):
    hubmap(tmp_path, ("a.tiff", "a.tif", "b.tiff"))
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / 'train' / 'a.tiff'}: a.tif has the same name: keep only one")


def test_a_table_without_the_folder_of_its_images_is_refused(tmp_path):
    hubmap(tmp_path, ())
    assert "train: contains no image" in error_of(find_slides, tmp_path)
    (tmp_path / "train").rmdir()
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / 'train'}: no such folder: put the images of {tmp_path / 'train.csv'} there")


def test_a_repeated_line_does_no_harm_but_two_codes_for_one_image_are_refused(tmp_path):
    hubmap(tmp_path / "same", lines=[("a", "1 1"), ("b", "3 2"), ("a", "1 1")])
    assert [item.runs for item in find_slides(tmp_path / "same")] == ["1 1", "3 2"]
    hubmap(tmp_path / "other", lines=[("a", "1 1"), ("b", "3 2"), ("a", "1 2")])
    assert error_of(find_slides, tmp_path / "other") == (
        f"{tmp_path / 'other' / 'train.csv'}: has two lines for a: join their codes in one line, "
        "with a space between, if they are its objects, else keep only one")


@pytest.mark.parametrize("line", ["a,", "a , ", 'a,""'])
def test_an_image_without_runs_has_an_empty_mask(tmp_path, line):
    hubmap(tmp_path, ("a.tiff",))
    (tmp_path / "train.csv").write_text(f"id,encoding\n{line}\n")
    item, = find_slides(tmp_path)
    assert item.runs == ""
    window = Mask(item, 5, 7).read(1, 2, 3, 4)
    assert (window.shape, window.dtype, window.any()) == ((3, 4), np.uint8, False)


# Tables


def test_a_table_from_a_spreadsheet_is_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("id,group\r\na,Jürgen\r\n\r\n\"b, left\",p2\r\n".encode("utf-8-sig"))
    assert read_table(path, "id", "group") == {"a": "Jürgen", "b, left": "p2"}


def test_a_table_written_by_the_csv_module_is_read_back(tmp_path):
    groups = {"a": "p1", 'b "x"': "p,2", "c": "p1", "d": "two lines", "e": ""}
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "group"), *groups.items()])
    assert read_table(tmp_path / "a.csv", "id", "group") == groups


def test_columns_may_be_in_any_order_among_others(tmp_path):
    (tmp_path / "a.csv").write_text("x,value,y,key\n1,v,2,k\n3,w,4,l,,\n")
    assert read_table(tmp_path / "a.csv", "key", "value") == {"k": "v", "l": "w"}


@pytest.mark.parametrize("heading", ["ID,Group", " id , group ", "Id,\u00a0GROUP\u200b",
                                     "\n\nid,group"])
def test_headings_may_have_any_case_and_spaces(tmp_path, heading):
    (tmp_path / "a.csv").write_text(f"{heading}\na,p1\n", encoding="utf-8")
    assert read_table(tmp_path / "a.csv", "id", "group") == {"a": "p1"}


@pytest.mark.parametrize("cell", [
    "p1", " p1", "p1 ", "p1\u00a0", "\u2003p1", "p1\u200b", "p\u00ad1", "p1\u200e", '"p1"', ' "p1"',
    '" p1 "', "p1\t"], ids=ascii)
def test_spaces_and_quotes_around_a_value_mean_nothing(tmp_path, cell):
    (tmp_path / "a.csv").write_text(f"id,group\n\na , p1\n , \n b,{cell}\n", encoding="utf-8")
    assert read_table(tmp_path / "a.csv", "id", "group") == {"a": "p1", "b": "p1"}


def test_accents_may_be_stored_as_one_character_or_two(tmp_path):
    (tmp_path / "a.csv").write_text("id,group\na,J\u00fcrgen\nb,Ju\u0308rgen\n", encoding="utf-8")
    assert read_table(tmp_path / "a.csv", "id", "group") == {"a": "J\u00fcrgen", "b": "J\u00fcrgen"}


@pytest.mark.parametrize("rows, words", [
    ("a,p1,p2",
     "line 2 has more cells than there are headings: put quotes around text that contains a comma"),
    ('a,"p1\nb,p2', "line 3: unexpected end of data: fix the quotes"),
    ('a,"p1"x', "line 2: ',' expected after '\"': fix the quotes"),
    (" ,p1", "line 2 has no id: add it, or remove the line")])
def test_a_line_that_does_not_fit_the_headings_is_refused(tmp_path, rows, words):
    (tmp_path / "a.csv").write_text(f"id,group\n{rows}\n")
    path = tmp_path / "a.csv"
    assert error_of(read_table, path, "id", "group") == f"{path}: {words}"


@pytest.mark.parametrize("other", ["P1", "p 1", "\uff501", "p\u00a01", "p_1", "P-1", "p.1", "p/1",
                                   "#p1", "p01", "P. 001"], ids=ascii)
def test_groups_that_hardly_differ_are_refused(tmp_path, other):
    data_set(tmp_path, groups=f"id,group\na,p1\nb,{other}\n".encode())
    text = error_of(find_slides, tmp_path)
    assert text.startswith(f"{tmp_path / 'groups.csv'}: contains the groups ")
    assert "'p1'" in text and text.endswith(": write them alike if they are the same, else make "
                                            "them more different")


@pytest.mark.parametrize("first, second", [("67", "67.0"), ("1", "01"), ("1,0", "1"), ("#1", "1"),
                                           ("1.50", "1.5"), ("1.", "1")])
def test_numbers_written_in_two_ways_are_refused(tmp_path, first, second):
    data_set(tmp_path, groups=f'id,group\na,"{first}"\nb,"{second}"\n'.encode())
    assert "write them alike" in error_of(find_slides, tmp_path)


@pytest.mark.parametrize("names", [
    "1-11 11-1 1-1-1 111", "1.5 15 1-5 -15", "1 10 100 0", "CD3 CD3+", "p1-2 p12 p1.20 p-21",
    "12345678901234567890 12345678901234567891", "a1 1a ab1 b1", "\u0430 a", "0 a b"], ids=ascii)
def test_groups_that_differ_in_letters_or_numbers_are_read(names):
    refuse_alike(Path("groups.csv"), "groups", names.split())


@pytest.mark.parametrize("name", ["Groups.csv", "group.csv", "groups.tsv", "groups.xlsx"])
def test_a_table_of_groups_by_another_name_is_refused(tmp_path, name):
    (data_set(tmp_path) / name).touch()
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / name}: has the wrong name or format: save it as groups.csv")


def test_ids_may_be_file_names(tmp_path):
    data_set(tmp_path, groups=b"id,group\na.png,p1\nb,p2\n")
    assert [item.group for item in find_slides(tmp_path)] == ["p1", "p2"]


def test_images_in_subfolders_are_refused(tmp_path):
    (data_set(tmp_path) / "images" / "more").mkdir()
    assert len(find_slides(tmp_path)) == 2
    (tmp_path / "images" / "more" / "c.png").touch()
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / 'images' / 'more'}: is a subfolder: move its files into "
        f"{tmp_path / 'images'}, each with a name of its own")


def test_a_line_of_the_competitions_table_that_ends_early_does_not_mean_an_empty_mask(tmp_path):
    hubmap(tmp_path, ("a.tiff",))
    (tmp_path / "train.csv").write_text("id,encoding\na\n")
    assert "a.tiff: has no line in" in error_of(find_slides, tmp_path)


def test_patients_are_found_whatever_the_suffix_of_the_image(tmp_path):
    table = "image_file,patient_number\na.TIFF,7\nb.tif,7\n"
    assert [item.group for item in find_slides(hubmap(tmp_path / "1", patients=table))] == ["7"] * 2
    table = "image_file,patient_number\na.tiff,7\na.tif,8\nb.tif,7\n"
    assert "has two lines for a" in error_of(find_slides, hubmap(tmp_path / "2", patients=table))


@pytest.mark.parametrize("dash", "\u2010\u2011\u2012\u2013\u2014", ids=ascii)
def test_all_kinds_of_dashes_count_as_one(tmp_path, dash):
    data_set(tmp_path, groups=f"id,group\na,p-1\nb,p{dash}1\n".encode())
    assert "write them alike" in error_of(find_slides, tmp_path)


def test_patients_that_hardly_differ_are_refused(tmp_path):
    hubmap(tmp_path, patients="image_file,patient_number\na.tiff,A1\nb.tiff , a1\n")
    assert error_of(find_slides, tmp_path).startswith(
        f"{tmp_path / PATIENTS}: contains the patients 'A1' and 'a1'")


@pytest.mark.parametrize("content, found", [
    (b"", "nothing"), (b"name,patient\na,p1\n", "name, patient"), (b"id\na\n", "id"),
    (b"name;Patient_ID\na;p1\n", "name, patient_id"), (b"a,p1\nb,p2\n", "a, p1"),
    (b"id,group,Group\na,p1,p2\n", "id, group, group")])
def test_a_table_without_the_columns_is_refused_with_those_it_has(tmp_path, content, found):
    (tmp_path / "a.csv").write_bytes(content)
    assert error_of(read_table, tmp_path / "a.csv", "id", "group") == (
        f"{tmp_path / 'a.csv'}: the first line must name the columns id,group once each, but names "
        f"{found}: rename them, or add such a line")


def test_a_long_first_line_is_not_shown_as_a_whole(tmp_path):
    (tmp_path / "a.csv").write_text("a," + "1 2 " * 50_000)
    assert len(error_of(read_table, tmp_path / "a.csv", "id", "encoding")) < 300


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
def test_a_table_is_read_as_any_spreadsheet_program_saves_it(tmp_path, encoding, delimiter):
    lines = ["Group|ID|age", 'p1|"a"|3,5', "Jürgen|b, left|4"]
    quoted = [line.replace("b, left", '"b, left"').replace("3,5", '"3,5"') for line in lines]
    text = "\r\n".join(quoted).replace("|", delimiter)
    (tmp_path / "a.csv").write_bytes(text.encode(encoding))
    assert read_table(tmp_path / "a.csv", "id", "group") == {"a": "p1", "b, left": "Jürgen"}


def test_text_that_holds_the_separator_needs_quotes(tmp_path):
    (tmp_path / "a.csv").write_text("id;group\na;p1;left\n")
    assert error_of(read_table, tmp_path / "a.csv", "id", "group").endswith(
        "put quotes around text that contains a semicolon")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16-le", "utf-16-be"])
def test_a_table_that_is_not_utf_8_is_refused(tmp_path, encoding):
    (tmp_path / "a.csv").write_bytes("id,group\na,Jürgen\nb,p2\n".encode(encoding))
    assert error_of(read_table, tmp_path / "a.csv", "id", "group") == (
        f"{tmp_path / 'a.csv'}: is not UTF-8 text: open it in a spreadsheet program and save it as "
        "CSV UTF-8")


def test_a_key_with_two_values_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("id,group\na,1\nb,1\na,1\nb,2\n")
    assert error_of(read_table, tmp_path / "a.csv", "id", "group") == (
        f"{tmp_path / 'a.csv'}: has two lines for b: keep only one")


def test_paths_of_items_are_paths(tmp_path):
    for item in [*find_slides(data_set(tmp_path / "1")), *find_slides(hubmap(tmp_path / "2"))]:
        assert isinstance(item.image, Path) and isinstance(item.mask, Path)
        assert item.image.exists() and item.mask.exists()


# Polygons


def feature(name="glomerulus"):
    ring = [[1, 1], [5, 1], [5, 5], [1, 5], [1, 1]]
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"classification": {"name": name}}}


def test_polygons_may_be_the_mask_of_an_image(tmp_path):
    data_set(tmp_path, masks=("a.geojson", "b.png"))
    (tmp_path / "masks/a.geojson").write_text(json.dumps([feature(), feature("cortex"), feature()]))
    items = find_slides(tmp_path, labels=["glomerulus"], ignore=["cortex", "255"], white=4095)
    assert items[0] == Item("a", tmp_path / "images/a.png", tmp_path / "masks/a.geojson", "a",
                            labels=("glomerulus",), ignore=("cortex", "255"), white=4095)
    assert count_classes(items) == {"glomerulus": 2, "cortex": 1}


def test_polygons_lie_beside_the_competitions_slides(tmp_path):
    hubmap(tmp_path)
    (tmp_path / "train/a.json").write_text(json.dumps([feature()]))
    (tmp_path / "train/a-anatomical-structure.json").write_text(json.dumps([feature("cortex")]))
    a, b = find_slides(tmp_path)
    assert (a.runs, a.polygons, b.polygons) == ("1 1", tmp_path / "train/a.json", None)
    a, b = find_slides(tmp_path, labels=["glomerulus"])  # run-length code has no classes
    assert (a.runs, a.mask, a.polygons) == (None, tmp_path / "train/a.json", None)


def test_the_competitions_slides_need_no_table_if_there_are_polygons(tmp_path):
    hubmap(tmp_path, patients="image_file,patient_number\na.tiff,7\nb.tiff,7\n")
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train/a.json").write_text(json.dumps([feature()]))
    assert "b.json, or" in error_of(find_slides, tmp_path)
    (tmp_path / "train/b.json").write_text(json.dumps([feature()]))
    assert [(item.mask.name, item.group) for item in find_slides(tmp_path)] == [
        ("a.json", "7"), ("b.json", "7")]


def test_polygons_that_cannot_be_read_are_an_error_only_where_they_are_used(tmp_path):
    (tmp_path / "a.geojson").write_text("{")
    item = Item("a", tmp_path / "a.png", tmp_path / "train.csv", "a", "1 2", tmp_path / "a.geojson")
    assert not count_classes([item])
    for used in (replace(item, ignore=("fold",)), drawn_instead(item)):
        with pytest.raises(ValueError, match=r"a\.geojson: is not JSON"):
            count_classes([used])


def test_classes_are_named_as_people_type_them(tmp_path):
    data_set(tmp_path, masks=("a.geojson", "b.png"))
    (tmp_path / "masks/a.geojson").write_text(json.dumps([feature("Mu\u0308ller  2 ")]))
    item = find_slides(tmp_path, labels=[" M\u00fcller\u00a02"])[0]
    assert item.labels == ("M\u00fcller 2",) == tuple(count_classes([item]))


@pytest.mark.parametrize("options", [{"labels": ["Tumour"]}, {"ignore": ["Tumour"]}])
def test_the_error_for_an_unknown_class_lists_those_that_exist(tmp_path, options):
    data_set(tmp_path, masks=("a.geojson", "b.png"))
    (tmp_path / "masks/a.geojson").write_text(json.dumps([feature(), feature("cortex")]))
    def call():
        return find_slides(tmp_path, **options)

    assert error_of(call) == (
        f"{tmp_path}: no polygon has the class Tumour: there are cortex, glomerulus")
    (tmp_path / "masks/a.geojson").rename(tmp_path / "masks/a.png")
    assert "contains no polygons" in error_of(call)


def test_classes_that_differ_only_by_case_are_refused_if_one_of_them_is_named(tmp_path):
    data_set(tmp_path, masks=("a.geojson", "b.png"))
    (tmp_path / "masks/a.geojson").write_text(json.dumps([feature(), feature("Glomerulus")]))
    assert len(find_slides(tmp_path)) == 2
    assert "'Glomerulus' and 'glomerulus'" in error_of(
        lambda: find_slides(tmp_path, labels=["glomerulus"]))
