"""Data sets: both layouts are found whole, and whatever is wrong is named in one line."""

import csv
import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from minseg.data.datasets import PATIENTS, Item, Mask, find_slides, read_table
from minseg.data.rle import rle_encode


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


def test_order_is_that_of_the_names_not_of_the_files(tmp_path):
    names = ("a-1.png", "a.png", "B.png", "a.b.png")  # as files, a-1.png comes before a.png
    assert [item.id for item in find_slides(data_set(tmp_path, names, names))] == [
        "B", "a", "a-1", "a.b"]


def test_every_suffix_is_found_in_capitals_too_and_may_differ_from_the_masks(tmp_path):
    images = ("a.png", "b.jpg", "c.jpeg", "d.tif", "e.tiff", "f.PNG", "g.TIFF", "h.Jpg")
    masks = ("a.tif", "b.png", "c.tiff", "d.TIF", "e.PNG", "f.png", "g.png", "h.png")
    items = find_slides(data_set(tmp_path, images, masks))
    assert [item.image.name for item in items] == list(images)
    assert [item.mask.name for item in items] == list(masks)


def test_hidden_and_other_files_and_masks_too_many_are_ignored(tmp_path):
    images = ("a.png", ".a.png", "._b.tif", "notes.txt", "a.xml", "Thumbs.db")
    items = find_slides(data_set(tmp_path, images, ("a.png", ".a.png", "z.png", "a.jpg")))
    assert [item.id for item in items] == ["a"]


@pytest.mark.parametrize("missing", [".", "images", "masks"])
def test_a_missing_folder_is_refused(tmp_path, missing):
    folder = tmp_path / "data"
    if missing != ".":
        data_set(folder, (), ())
        (folder / missing).rmdir()
    assert error_of(find_slides, folder) == (
        f"{folder / missing}: no such folder: --data needs images/ and masks/ in it, or train/ and "
        "train.csv")


@pytest.mark.parametrize("part, formats", [("images", "png.*jpg.*tiff"), ("masks", "png.*tiff")])
def test_a_folder_without_images_is_refused(tmp_path, part, formats):
    data_set(tmp_path, **{part: ("notes.txt", ".a.png")})
    with pytest.raises(ValueError, match=f"{part}: holds no image .*{formats}"):
        find_slides(tmp_path)


def test_an_image_without_a_mask_is_refused(tmp_path):
    data_set(tmp_path, ("a.png", "b.jpg"), ("a.png", "b.jpg"))
    mask = tmp_path / "masks" / "b.png"
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / 'images' / 'b.jpg'}: has no mask: add {mask}")


@pytest.mark.parametrize("part", ["images", "masks"])
def test_two_files_of_one_name_are_refused(tmp_path, part):
    data_set(tmp_path, **{part: ("a.png", "a.tif", "b.png")})
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / part / 'a.tif'}: a.png has the same name: keep one")


@pytest.mark.parametrize("rows", [b"a,p1\n", b"a,p1\nb,\n", b"a,p1\nb\n"],
                         ids=["no line", "no group", "no comma"])
def test_an_image_without_a_group_is_refused(tmp_path, rows):
    data_set(tmp_path, groups=b"id,group\n" + rows)
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / 'groups.csv'}: has no group for b: add a line")


def test_a_link_to_groups_that_are_gone_is_no_data_set_without_groups(tmp_path):
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


def test_images_of_one_patient_are_of_one_group(tmp_path):
    folder = hubmap(tmp_path, ("a.tiff", "b.TIFF", "c.tif"), [("c", ""), ("b", ""), ("a", "")],
                    "patient_number,image_file\n7,a.tiff\n8,b.tiff\n7,c.tiff\n")
    assert [(item.id, item.group) for item in find_slides(str(folder))] == [
        ("a", "7"), ("b", "8"), ("c", "7")]


@pytest.mark.parametrize("patients", [
    None, "image_file,patient_number\n", "image_file,patient_number\na.tiff,\nb.tiff\nz.tiff,1\n",
    "patient_number,image_file\n7\n"], ids=["no file", "no lines", "no numbers", "no images"])
def test_images_without_a_patient_stand_alone(tmp_path, patients):
    assert [item.group for item in find_slides(hubmap(tmp_path, patients=patients))] == ["a", "b"]


def test_a_link_to_patients_that_are_gone_is_no_data_set_without_patients(tmp_path):
    hubmap(tmp_path)
    (tmp_path / PATIENTS).symlink_to(tmp_path / "gone.csv")
    with pytest.raises(OSError, match=PATIENTS):
        find_slides(tmp_path)


def test_patients_in_other_columns_are_refused(tmp_path):
    hubmap(tmp_path, patients="image,patient\na.tiff,1\n")
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / PATIENTS}: the first line must have the columns image_file,patient_number")


def test_an_image_of_two_patients_is_refused(tmp_path):
    hubmap(tmp_path, patients="image_file,patient_number\na.tiff,1\na.tiff,2\n")
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / PATIENTS}: has two lines for a.tiff: keep one")


def test_the_code_of_a_large_slide_is_one_long_field(tmp_path):
    code = " ".join(f"{10 * i + 1} 3" for i in range(40_000))
    csv.field_size_limit(131_072)  # Python's own
    a, b = find_slides(hubmap(tmp_path, lines=[("a", code), ("b", "1 2")]))
    assert len(code) > 2 * 131_072 and (a.runs, b.runs) == (code, "1 2")
    assert code not in repr(a)  # which an error may show


def test_an_image_without_a_line_is_refused(tmp_path):
    hubmap(tmp_path, lines=[("a", "1 1")])
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / 'train' / 'b.tiff'}: has no line in {tmp_path / 'train.csv'}: add one, or "
        "take it out")


def test_a_line_without_an_image_is_refused(tmp_path):
    hubmap(tmp_path, ("a.tiff", "b.png"))
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / 'train.csv'}: names b, but there is no {tmp_path / 'train' / 'b'}.tiff: add "
        "it, or take out the line")


def test_two_images_of_one_name_are_refused(tmp_path):
    hubmap(tmp_path, ("a.tiff", "a.tif", "b.tiff"))
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / 'train' / 'a.tiff'}: a.tif has the same name: keep one")


def test_a_table_without_the_folder_of_its_images_is_refused(tmp_path):
    hubmap(tmp_path, ())
    assert "train: holds no image" in error_of(find_slides, tmp_path)
    (tmp_path / "train").rmdir()
    assert error_of(find_slides, tmp_path) == (
        f"{tmp_path / 'train'}: no such folder: {tmp_path / 'train.csv'} needs train/ID.tiff there")


def test_a_repeated_line_does_no_harm_but_two_codes_for_one_image_are_refused(tmp_path):
    hubmap(tmp_path / "same", lines=[("a", "1 1"), ("b", "3 2"), ("a", "1 1")])
    assert [item.runs for item in find_slides(tmp_path / "same")] == ["1 1", "3 2"]
    hubmap(tmp_path / "other", lines=[("a", "1 1"), ("b", "3 2"), ("a", "1 2")])
    assert error_of(find_slides, tmp_path / "other") == (
        f"{tmp_path / 'other' / 'train.csv'}: has two lines for a: keep one")


@pytest.mark.parametrize("line", ["a,", "a", 'a,""'])
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


def test_a_table_written_by_csv_comes_back(tmp_path):
    groups = {"a": "p1", 'b "x"': "p,2", "c": "p1", "d": "two\nlines", "e": ""}
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "group"), *groups.items()])
    assert read_table(tmp_path / "a.csv", "id", "group") == groups


def test_columns_may_stand_in_any_order_among_others(tmp_path):
    (tmp_path / "a.csv").write_text("x,value,y,key\n1,v,2,k\n3,w,4,l,5\n")
    assert read_table(tmp_path / "a.csv", "key", "value") == {"k": "v", "l": "w"}


@pytest.mark.parametrize("content", [
    b"", b"id;group\na;p1\n", b"name,patient\na,p1\n", b"id\na\n", b"ID,group\na,p1\n",
    b"a,p1\nb,p2\n"])
def test_a_table_without_the_columns_is_refused(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    assert error_of(read_table, tmp_path / "a.csv", "id", "group") == (
        f"{tmp_path / 'a.csv'}: the first line must have the columns id,group")


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_table_that_is_no_utf_8_is_refused(tmp_path, encoding):
    (tmp_path / "a.csv").write_bytes("id,group\na,Jürgen\nb,p2\n".encode(encoding))
    assert error_of(read_table, tmp_path / "a.csv", "id", "group") == (
        f"{tmp_path / 'a.csv'}: is no UTF-8 text: save it as CSV UTF-8")


def test_a_key_with_two_values_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("id,group\na,1\nb,1\na,1\nb,2\n")
    assert error_of(read_table, tmp_path / "a.csv", "id", "group") == (
        f"{tmp_path / 'a.csv'}: has two lines for b: keep one")


# Masks


MASK = (noise(45, 60, seed=2) > 127).astype(np.uint8)
WINDOWS = [(0, 0, 45, 60), (0, 0, 1, 1), (44, 59, 1, 1), (7, 0, 11, 60), (0, 13, 45, 9),
           (15, 15, 17, 18), (31, 47, 14, 13)]


def file_mask(path, pixels, **options):
    if path.suffix == ".png":
        Image.fromarray(pixels).save(path)
    elif pixels.dtype == bool:
        Image.fromarray(pixels).save(path)  # tifffile would turn black and white round
    else:
        grey = pixels.ndim == 2 or pixels.shape[2] == 2
        tifffile.imwrite(path, pixels, photometric="minisblack" if grey else "rgb", **options)
    return Item("a", path.with_name("image.png"), path, "a")


def run_mask(folder, code):
    return Item("a1", folder / "train/a1.tiff", folder / "train.csv", "a1", code)


def equals(mask, wanted=MASK):
    for y, x, h, w in WINDOWS:
        window = mask.read(y, x, h, w)
        assert window.dtype == np.uint8
        np.testing.assert_array_equal(window, wanted[y : y + h, x : x + w])


@pytest.mark.parametrize("pixels", [
    MASK, MASK * 255, MASK > 0, np.stack([MASK * 255] * 3, 2),
    np.dstack([MASK * 255, np.full_like(MASK, 77)]),
    np.dstack([MASK] * 3 + [np.full_like(MASK, 77)]),
], ids=["0 and 1", "0 and 255", "one bit", "RGB", "grey and alpha", "RGBA"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_windows_of_a_mask_are_windows_of_the_whole(tmp_path, pixels, suffix):
    equals(Mask(file_mask(tmp_path / f"a.{suffix}", pixels), *MASK.shape))


@pytest.mark.parametrize("value", [1, 255])
@pytest.mark.parametrize("options", [
    {"rowsperstrip": 7, "compression": "zlib"}, {"tile": (16, 32)},
    {"tile": (16, 16), "compression": "zlib", "bigtiff": True}], ids=str)
def test_masks_in_strips_and_tiles_are_read(tmp_path, value, options):
    equals(Mask(file_mask(tmp_path / "a.tiff", MASK * np.uint8(value), **options), *MASK.shape))


def test_masks_of_sixteen_bits_are_read(tmp_path):
    equals(Mask(file_mask(tmp_path / "a.tif", MASK.astype(np.uint16) * 255), *MASK.shape))


@pytest.mark.parametrize("ones", [MASK, np.zeros_like(MASK), np.ones_like(MASK)])
def test_run_length_code_gives_the_same_windows_as_a_file(tmp_path, ones):
    equals(Mask(run_mask(tmp_path, rle_encode(ones)), *ones.shape), ones)
    equals(Mask(file_mask(tmp_path / "a.png", ones * 255), *ones.shape), ones)


def test_a_mask_with_a_black_and_white_palette_is_read(tmp_path):
    picture = Image.fromarray(MASK, "P")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "P"
    equals(Mask(Item("a", tmp_path, tmp_path / "a.png", "a"), *MASK.shape))


def test_items_can_be_sent_to_other_processes(tmp_path):
    item = run_mask(tmp_path, "1 2")
    assert pickle.loads(pickle.dumps(item)) == item


@pytest.mark.parametrize("size", [(46, 60), (45, 59), (60, 45), (1, 1)])
def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path, size):
    item = file_mask(tmp_path / "a.png", MASK)
    assert error_of(Mask, item, *size) == (
        f"{item.mask}: is 45 x 60 pixels, its image {size[0]} x {size[1]}: make them equal")


@pytest.mark.parametrize("values, shown", [
    ((0, 2), "values 0, 2:"), ((0, 1, 255), "values 0, 1, 255:"), ((1, 255), "values 1, 255:"),
    ((0, 128, 255), "values 0, 128, 255:"), (range(6), "values 0, 1, 2, 3, 4, 5:"),
    (range(7), "values 0, 1, 2, 3, 4, 5, ...:"),
])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_mask_of_other_values_is_refused_with_the_values(tmp_path, values, shown, suffix):
    pixels = np.array([[*values]] * 2, np.uint8)
    item = file_mask(tmp_path / f"a.{suffix}", pixels)
    text = error_of(Mask(item, *pixels.shape).read, 0, 0, *pixels.shape)
    assert text.startswith(f"{item.mask}: holds the {shown}")
    assert text.endswith(": a mask holds 0 and 1, or 0 and 255")


@pytest.mark.parametrize("pixels", [
    np.array([[0, 0.5, 1]], np.float32), np.array([[0, 0.5, 255]], np.float32),
    np.array([[0, np.nan, 1]], np.float32), np.array([[0, -1, 1]], np.int16),
    np.array([[0, -1, 0]], np.int16)], ids=str)
def test_halves_and_negative_numbers_are_no_mask(tmp_path, pixels):
    item = file_mask(tmp_path / "a.tif", pixels)
    text = error_of(Mask(item, 1, 3).read, 0, 0, 1, 3)
    assert text.startswith(f"{item.mask}: ") and text.endswith("0 and 1, or 0 and 255")


@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_mask_of_one_value_is_read(tmp_path, value):
    mask = Mask(file_mask(tmp_path / "a.png", np.full((3, 4), value, np.uint8)), 3, 4)
    assert mask.read(0, 0, 3, 4).tolist() == [[min(value, 1)] * 4] * 3


@pytest.mark.parametrize("first, second", [(1, 255), (255, 1)])
def test_ones_in_one_window_and_255_in_another_are_refused(tmp_path, first, second):
    pixels = np.zeros((30, 8), np.uint8)
    pixels[2, 3], pixels[25, 4] = first, second
    mask = Mask(file_mask(tmp_path / "a.png", pixels), 30, 8)
    assert mask.read(0, 0, 10, 8).sum() == 1
    assert not mask.read(10, 0, 10, 8).any()
    assert error_of(mask.read, 20, 0, 10, 8) == (
        f"{tmp_path / 'a.png'}: holds the values 0, 1, 255: a mask holds 0 and 1, or 0 and 255")


def test_a_mask_in_colour_is_refused(tmp_path):
    pixels = np.stack([MASK * 255] * 3, 2)
    pixels[2, 3, 1] ^= 255
    mask = Mask(file_mask(tmp_path / "a.png", pixels), *MASK.shape)
    assert error_of(mask.read, 0, 0, *MASK.shape) == (
        f"{tmp_path / 'a.png'}: is a mask in colour: expected one value a pixel")


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_mask_that_is_missing_or_no_image_is_refused(tmp_path, name):
    item = Item("a", tmp_path / "b.png", tmp_path / name, "a")
    assert error_of(Mask, item, 5, 7) == f"{tmp_path / name}: no such file"
    item.mask.write_bytes(b"")
    assert error_of(Mask, item, 5, 7).startswith(
        f"{tmp_path / name}: cannot be read, replace it or take it out: ")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("code, words", [
    ("1 b", "else than whole numbers: '1 b'"),
    ("1.0 2", "else than whole numbers: '1.0 2'"),
    ("nan", "else than whole numbers"),
    ("1 2 3", "has 3 numbers: they come in pairs"),
    ("0 1", "run 0 1 leaves the image of 5 x 7 pixels"),
    ("1 2 35 2", "run 35 2 leaves the image of 5 x 7 pixels"),
    ("36 1", "run 36 1 leaves the image of 5 x 7 pixels"),
    ("1 0", "run 1 0 leaves the image of 5 x 7 pixels"),
    ("1 9223372036854775807", "run 1 9223372036854775807 leaves the image of 5 x 7 pixels"),
    ("35 9223372036854775807", "run 35 9223372036854775807 leaves the image"),
    ("9223372036854775807 9223372036854775807", "leaves the image of 5 x 7 pixels"),
    ("-9223372036854775808 1", "run -9223372036854775808 1 leaves the image of 5 x 7 pixels"),
    ("1 9223372036854775808", "else than whole numbers"),
    ("1 " + "9" * 40, "else than whole numbers"),
])
def test_bad_run_length_code_is_refused_with_the_table_and_the_image(tmp_path, code, words):
    text = error_of(Mask, run_mask(tmp_path, code), 5, 7)
    assert text.startswith(f"{tmp_path / 'train.csv'}: a1: ") and words in text


def test_paths_of_items_are_paths(tmp_path):
    for item in [*find_slides(data_set(tmp_path / "1")), *find_slides(hubmap(tmp_path / "2"))]:
        assert isinstance(item.image, Path) and isinstance(item.mask, Path)
        assert item.image.exists() and item.mask.exists()
