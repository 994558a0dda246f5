"""Masks: each row of the tables in `minseg.files.datasets` is read, or refused, as it says."""

import json
import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import tifffile
from PIL import Image

from minseg.files import masks
from minseg.files.masks import Item, Mask, drawn_instead
from minseg.files.rle import rle_encode
from minseg.files.tiff import Mapped


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def error_of(call, *arguments):
    """The text of the ValueError, which is one line."""
    with pytest.raises(ValueError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


MASK = (noise(45, 60, seed=2) > 127).astype(np.uint8)
WINDOWS = [(0, 0, 45, 60), (0, 0, 1, 1), (44, 59, 1, 1), (7, 0, 11, 60), (0, 13, 45, 9),
           (15, 15, 17, 18), (31, 47, 14, 13)]


def file_mask(path, pixels, **options):
    if path.suffix == ".png":
        Image.fromarray(pixels).save(path)
    elif pixels.dtype == bool:
        Image.fromarray(pixels).save(path)  # tifffile would turn black and white round
    else:
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        if channels in (2, 4):
            options = {"extrasamples": ["unassalpha"], "planarconfig": "contig", **options}
        tifffile.imwrite(path, pixels, photometric="minisblack" if channels < 3 else "rgb",
                         **options)
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
    mask = Mask(Item("a", tmp_path, tmp_path / "a.png", "a"), *MASK.shape)
    assert (mask.kind, mask.colour) == ("1", "")
    equals(mask)


def test_items_can_be_sent_to_other_processes_but_not_changed(tmp_path):
    item = run_mask(tmp_path, "1 2")
    assert pickle.loads(pickle.dumps(item)) == item
    assert "1 2" not in repr(item)  # the code of a slide has millions of letters
    with pytest.raises(FrozenInstanceError):
        item.id = "b"


@pytest.mark.parametrize("size", [(46, 60), (45, 59), (60, 45), (1, 1)])
def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path, size):
    item = file_mask(tmp_path / "a.png", MASK)
    assert error_of(Mask, item, *size) == (
        f"{item.mask}: is 45 x 60 pixels, but its image is {size[0]} x {size[1]}: make them equal")


NUMBERS = ("if they number the objects, make every value above 0 into 255; if they are classes, "
           "make only the wanted one 255 and the others 0")
NO_BACKGROUND = "make the background 0 and the objects 255"


@pytest.mark.parametrize("values, shown, remedy", [
    ((1, 2), "values 1, 2:", NO_BACKGROUND), ((1, 255), "values 1, 255:", "objects 255"),
    ((0, 1, 2, 255), "values 0, 1, 2, 255", "are shades"),
    ((0, 128, 255), "values 0, 128, 255:", "if they are shades"), (range(3), "0, 1, 2:", NUMBERS),
    (range(6), "values 0, 1, 2, 3, 4, 5:", NUMBERS),
    (range(7), "values 0, 1, 2, 3, 4, 5, ...:", NUMBERS),
    (range(100), "values 0, 1, 2, 3, 4, 5, ...:", NUMBERS), ((0, 1, 254, 255), "0, 1, ", "JPEG"),
    ((0, 31, 224, 255), "values 0, 31, 224, 255:", "JPEG"),
    ((0, 32, 224, 255), "values 0, 32, 224, 255:", NUMBERS),
    ((0, 31, 223, 255), "values 0, 31, 223, 255:", NUMBERS),
    ((0, 210, 250, 255), "values 0, 210, 250, 255:", NUMBERS),
    ((0, 31, 224), "values 0, 31, 224:", NUMBERS), ((0, 224, 225), "224, 225:", "JPEG"),
    ((*range(7), *range(250, 256)), "values 0, 1, 2, 3, 4, 5, ...:", "JPEG has changed them: make "
     "those below 128 into 0 and the others into 255, and save it as PNG"),
])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_mask_of_other_values_is_refused_with_the_values(tmp_path, values, shown, remedy, suffix):
    pixels = np.array([[*values]] * 2, np.uint8)
    item = file_mask(tmp_path / f"a.{suffix}", pixels)
    text = error_of(Mask, item, *pixels.shape)
    assert text.startswith(f"{item.mask}: contains the ") and shown in text and remedy in text
    assert ("say --ignore 255" in text) == (len(values) == 3 and values[-1] == 255)


@pytest.mark.parametrize("value", [2, 114, 254])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("held", [2**26, 2**4])
def test_a_mask_of_0_and_one_other_value_is_read(tmp_path, value, dtype, held, monkeypatch):
    monkeypatch.setattr("minseg.files.tiff.HELD", held)
    item = file_mask(tmp_path / "a.tif", (MASK * value).astype(dtype))
    mask = Mask(item, *MASK.shape)
    assert mask.kind == str(value) and not mask.has_void
    equals(mask)
    equals(Mask(replace(item, ignore=("255",)), *MASK.shape))


@pytest.mark.parametrize("colour, kind", [
    ((250, 50, 83), "#fa3253"), ((0, 0, 1), "#000001"), ((0, 255, 255), "#00ffff"),
    ((114, 114, 114), "114")])
@pytest.mark.parametrize("alpha", [None, 255, "agrees"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_mask_of_black_and_one_colour_is_read(tmp_path, colour, kind, alpha, suffix):
    pixels = MASK[..., None] * np.array(colour, np.uint8)
    if alpha:
        pixels = np.dstack([pixels, MASK * 255 if alpha == "agrees" else MASK * 0 + 255])
    mask = Mask(file_mask(tmp_path / f"a.{suffix}", pixels), *MASK.shape)
    assert mask.kind == kind
    equals(mask)


def test_a_colour_of_sixteen_bits_is_read(tmp_path):
    pixels = MASK[..., None] * np.array([0, 65535, 256], np.uint16)
    mask = Mask(file_mask(tmp_path / "a.tif", pixels), *MASK.shape)
    assert mask.kind == "#0000ffff0100"
    equals(mask)


@pytest.mark.parametrize("number, shown", [(np.nan, "nan"), (-1, "-1")])
def test_a_colour_that_is_none_is_refused(tmp_path, number, shown):
    pixels = MASK[..., None] * np.array([0, number, 1], np.float32)
    pixels[MASK == 0] = 0
    item = file_mask(tmp_path / "a.tif", pixels)
    assert f"contains the colours (0, {shown}, 1)" in error_of(Mask, item, *MASK.shape)


@pytest.mark.parametrize("indices", [(0, 3), (0, 255)])
def test_a_palette_of_one_class_is_read(tmp_path, indices):
    colours = [(0, 0, 0), (9, 9, 9), (9, 9, 9), (250, 50, 83), *[(1, 2, 3)] * 252]
    item = palette_mask(tmp_path / "a.png", MASK * indices[1], colours)
    mask = Mask(item, *MASK.shape)
    assert mask.kind == ("#fa3253" if indices[1] == 3 else "255")
    equals(mask)


@pytest.mark.parametrize("value", [7, (250, 50, 83)])
def test_one_value_everywhere_is_refused_for_it_may_be_background(tmp_path, value):
    item = file_mask(tmp_path / "a.png", np.full((3, 4, 3), value, np.uint8))
    name = value if value == 7 else "#fa3253"
    assert f"is {name} everywhere: make it " in error_of(Mask, item, 3, 4)


@pytest.mark.parametrize("pixels", [
    np.array([[0, 0.5, 1]], np.float32), np.array([[0, 0.5, 255]], np.float32),
    np.array([[0, np.nan, 1]], np.float32), np.array([[0, -1, 1]], np.int16),
    np.array([[0, -1, 0]], np.int16), np.array([[0, 0.5, 0]], np.float32)], ids=str)
def test_fractions_and_negative_numbers_are_not_a_mask(tmp_path, pixels):
    item = file_mask(tmp_path / "a.tif", pixels)
    text = error_of(Mask, item, 1, 3)
    assert text.startswith(f"{item.mask}: contains the values ")
    assert text.endswith("make its objects 255 and everything else 0, in whole numbers")


@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_mask_of_one_value_is_read(tmp_path, value):
    mask = Mask(file_mask(tmp_path / "a.png", np.full((3, 4), value, np.uint8)), 3, 4)
    assert mask.read(0, 0, 3, 4).tolist() == [[min(value, 1)] * 4] * 3


# Regions that nobody labelled


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("held", [2**26, 2**4])
def test_in_a_mask_of_0_1_and_255_255_is_void(tmp_path, suffix, held, monkeypatch):
    monkeypatch.setattr("minseg.files.tiff.HELD", held)
    pixels = MASK.copy()
    pixels[:9], pixels[-1, -1] = 0, 255  # which the first windows do not show
    mask = Mask(file_mask(tmp_path / f"a.{suffix}", pixels), *MASK.shape)
    assert mask.has_void and mask.kind == "void"
    equals(mask, pixels)


def test_255_is_void_if_the_user_says_so(tmp_path):
    item = replace(file_mask(tmp_path / "a.png", MASK * 255), ignore=("255",))
    mask = Mask(item, *MASK.shape)
    assert mask.has_void
    equals(mask, MASK * 255)
    equals(Mask(replace(item, ignore=()), *MASK.shape))  # for the same file


@pytest.mark.parametrize("pixels, kind", [
    (MASK, "1"), (MASK * 255, "255"), (MASK * 0, ""), (MASK > 0, "")],
    ids=["0 and 1", "0 and 255", "0", "one bit"])
def test_a_mask_knows_which_value_marks_its_objects(tmp_path, pixels, kind):
    mask = Mask(file_mask(tmp_path / "a.png", pixels), *MASK.shape)
    assert mask.kind == kind and not mask.has_void


# Bits, alpha, palettes, classes side by side


@pytest.mark.parametrize("white, dtype", [(65535, np.uint16), (4095, np.uint16), (15, np.uint8)])
def test_white_is_an_object_whatever_the_number_of_bits(tmp_path, white, dtype):
    tags = [] if white == 65535 else [(341, 3, 1, white, True)]
    tifffile.imwrite(tmp_path / "a.tif", MASK.astype(dtype) * white, metadata=None, extratags=tags)
    equals(Mask(Item("a", tmp_path, tmp_path / "a.tif", "a"), *MASK.shape))


@pytest.mark.parametrize("values, near", [
    ((0, 500, 3500, 4000), True), ((0, 501, 3500, 4000), False), ((0, 500, 3499, 4000), False),
    ((0, 500, 3500, 4001), False)])
def test_what_jpeg_changes_is_an_eighth_of_white_or_less(tmp_path, values, near):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[*values]], np.uint16), metadata=None,
                     extratags=[(341, 3, 1, 4000, True)])
    text = error_of(Mask, Item("a", tmp_path, tmp_path / "a.tif", "a"), 1, 4)
    assert ("JPEG has changed them: make those below 2001 into 0" in text) == near


def rgba(colour, alpha):
    return np.dstack([np.asarray(colour, np.uint8)] * 3 + [np.asarray(alpha, np.uint8)])


def test_an_opaque_object_on_a_transparent_background_is_read(tmp_path):
    equals(Mask(file_mask(tmp_path / "a.png", rgba(MASK * 255, MASK * 255)), *MASK.shape))


@pytest.mark.parametrize("pixels", [
    rgba(MASK * 0 + 255, MASK * 255), rgba(MASK * 0, MASK * 255),
    rgba(MASK * 255, 255 - MASK * 255),
    rgba(MASK * 255, noise(*MASK.shape)), np.dstack([MASK * 255, 255 - MASK * 255])],
    ids=["white", "black", "the reverse", "noise", "grey"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("held", [2**26, 2**4])
def test_alpha_that_shows_a_different_mask_than_the_colour_is_refused(tmp_path, pixels, suffix,
                                                                      held, monkeypatch):
    monkeypatch.setattr("minseg.files.tiff.HELD", held)
    item = file_mask(tmp_path / f"a.{suffix}", pixels)
    assert error_of(Mask, item, *MASK.shape) == (
        f"{item.mask}: its alpha and its colours show two different masks: save only the right one "
        "of them, as a grey image")


@pytest.mark.parametrize("alpha, words", [
    ([0, 200, 100], "contains the colours"), ([150, 200, 100], "two different masks"),
    ([150, 100, 200], "two different masks")])
def test_alpha_shows_the_same_mask_if_the_background_has_the_least_of_it(tmp_path, alpha, words):
    pixels = np.array([[(0, 0, 0), (0, 0, 255), (0, 255, 0)]], np.uint8)
    item = file_mask(tmp_path / "a.png", np.dstack([pixels, np.array([alpha], np.uint8)]))
    assert words in error_of(Mask, item, 1, 3)


def palette_mask(path, indices, colours):
    picture = Image.fromarray(indices.astype(np.uint8))
    picture.putpalette([value for colour in colours for value in colour])
    picture.save(path)
    return Item("a", path, path, "a")


def test_the_indices_of_a_colourful_palette_are_classes(tmp_path):
    colours = [(0, 0, 0), (128, 0, 0), *[(0, 128, 0)] * 253, (224, 224, 192)]  # Pascal VOC's
    indices = np.where(noise(*MASK.shape) > 200, 255, MASK)
    mask = Mask(palette_mask(tmp_path / "a.png", indices, colours), *MASK.shape)
    assert mask.kind == "void"
    equals(mask, indices)
    mask = Mask(palette_mask(tmp_path / "b.png", MASK, colours), *MASK.shape)
    assert (mask.kind, mask.colour) == ("1", "#800000")
    equals(mask)


def test_in_a_grey_palette_the_grey_levels_are_the_values(tmp_path):
    grey = [(0, 0, 0), (9, 9, 9), (9, 9, 9), (255, 255, 255)]
    equals(Mask(palette_mask(tmp_path / "a.png", MASK * 3, grey), *MASK.shape))


@pytest.mark.parametrize("colours", [
    [(255,) * 3, (0,) * 3], [(255,) * 3, (128,) * 3], [(255, 0, 0), (0,) * 3],
    [(255, 0, 0), (255,) * 3], [(0,) * 3, (0,) * 3], [(9, 9, 9), (255, 0, 0)],
    [(255, 0, 0), (0, 128, 0)], [(9, 9, 9), (0, 0, 0), (255, 0, 0)]])
def test_a_palette_that_does_not_show_0_as_the_background_is_refused(tmp_path, colours):
    item = palette_mask(tmp_path / "a.png", MASK * (len(colours) - 1), colours)
    assert error_of(Mask, item, *MASK.shape) == (
        f"{item.mask}: its palette does not show value 0 as the background: save it as a "
        "grey image with 0 for the background and 255 for objects")


def test_a_mask_of_two_colours_is_not_inverted(tmp_path):
    red = Image.fromarray(np.dstack([MASK * 255, MASK * 0, MASK * 0]))
    red.quantize(2).save(tmp_path / "a.png")  # its palette begins with what there is most of
    item = Item("a", tmp_path, tmp_path / "a.png", "a")
    try:
        equals(Mask(item, *MASK.shape))
    except ValueError as error:
        assert "as the background" in str(error)


def test_colours_on_white_are_classes(tmp_path):
    equals(Mask(palette_mask(tmp_path / "a.png", MASK, [(255,) * 3, (0, 128, 0)]), *MASK.shape))


@pytest.mark.parametrize("values", [(0, 255, 65535), (0, 1, 255, 65535)])
def test_two_values_that_both_mean_white_are_refused(tmp_path, values):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[*values]], np.uint16), metadata=None)
    item = Item("a", tmp_path, tmp_path / "a.tif", "a")
    assert "contains the values 0, " in error_of(Mask, item, 1, len(values))


@pytest.mark.parametrize("value, nodata, kind", [
    (255, 255, None), (1, 1, None), (255, 0, "255"), (1, 0, "1"), (1, 255, "1"), (255, 7, "255")])
def test_a_mask_whose_objects_are_nodata_is_refused(tmp_path, value, nodata, kind):
    tifffile.imwrite(tmp_path / "a.tif", MASK * np.uint8(value), metadata=None,
                     extratags=[(42113, 2, None, str(nodata), True)])
    item = Item("a", tmp_path, tmp_path / "a.tif", "a")
    if kind:
        assert Mask(item, *MASK.shape).kind == kind
    else:
        remedy = "use --ignore 255 if that is void, else " if value == 255 else ""
        assert error_of(Mask, item, *MASK.shape) == (
            f"{item.mask}: marks objects with {value}, which its NODATA tag declares empty: "
            f"{remedy}save it as PNG, which has no such tag")
    if value == nodata == 255:
        equals(Mask(replace(item, ignore=("255",)), *MASK.shape), MASK * 255)


def test_void_may_be_nodata(tmp_path):
    pixels = MASK.copy()
    pixels[:9] = 255
    tifffile.imwrite(tmp_path / "a.tif", pixels, metadata=None,
                     extratags=[(42113, 2, None, "255", True)])
    equals(Mask(Item("a", tmp_path, tmp_path / "a.tif", "a"), *MASK.shape), pixels)


def test_a_palette_of_more_classes_is_refused(tmp_path):
    colours = [(0, 0, 0), (1, 2, 3), (4, 5, 6)]
    item = palette_mask(tmp_path / "a.png", noise(*MASK.shape) % 3, colours)
    assert "contains the values 0, 1, 2" in error_of(Mask, item, *MASK.shape)


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
@pytest.mark.parametrize("value", [1, 255])
@pytest.mark.parametrize("layout", ["plain", "contig", "separate", "png"])
def test_one_channel_per_class_is_refused(tmp_path, classes, value, layout):
    labels = noise(*MASK.shape) % classes
    channels = np.eye(classes, dtype=np.uint8)[labels] * np.uint8(value)
    path = tmp_path / ("a.png" if layout == "png" else "a.tif")
    if layout == "png":
        if classes > 4:
            return
        Image.fromarray(channels).save(path)
    elif layout == "plain":
        tifffile.imwrite(path, channels, photometric="minisblack")
    else:
        tifffile.imwrite(path, np.moveaxis(channels, 2, 0) if layout == "separate" else channels,
                         photometric="minisblack", planarconfig=layout)
    assert error_of(Mask, Item("a", path, path, "a"), *MASK.shape).startswith(f"{path}: ")


def test_a_fourth_channel_of_a_mask_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([MASK] * 4), photometric="rgb",
                     extrasamples=["unspecified"])
    item = Item("a", tmp_path, tmp_path / "a.tif", "a")
    assert "neither colour nor alpha" in error_of(Mask, item, *MASK.shape)


def test_the_orientation_of_a_mask_is_applied(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.rot90(MASK) * 255).save(tmp_path / "a.png", exif=exif)
    equals(Mask(Item("a", tmp_path, tmp_path / "a.png", "a"), *MASK.shape))


def test_a_mask_of_several_colours_is_refused(tmp_path):
    pixels = np.stack([MASK * 255] * 3, 2)
    pixels[2, 3, 1] ^= 255
    item = file_mask(tmp_path / "a.png", pixels)
    odd = "#00ff00" if pixels[2, 3, 1] else "#ff00ff"
    names = ", ".join(sorted(["#000000", odd, "#ffffff"]))
    assert error_of(Mask, item, *MASK.shape) == (
        f"{tmp_path / 'a.png'}: contains the colours {names}: make the one to be found white and "
        "all others black (docs/masks.md)")


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_mask_that_is_missing_or_not_an_image_is_refused(tmp_path, name):
    item = Item("a", tmp_path / "b.png", tmp_path / name, "a")
    assert error_of(Mask, item, 5, 7) == f"{tmp_path / name}: no such file"
    item.mask.write_bytes(b"")
    assert error_of(Mask, item, 5, 7).startswith(
        f"{tmp_path / name}: cannot be read (")


@pytest.mark.parametrize("code", ["", "-1", "1 0", "nan", "NaN", "none", "None"])
def test_run_length_code_of_an_empty_mask_is_read_as_submissions_have_it(tmp_path, code):
    equals(Mask(run_mask(tmp_path, code), *MASK.shape), MASK * 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("code, words", [
    ("1 b", "must be whole numbers, not '1 b'"),
    ("1.0 2", "must be whole numbers, not '1.0 2'"),
    ("1 2 3", "has 3 numbers, but must be pairs"),
    ("0 1", "run 0 1 begins at pixel 0"),
    ("1 2 35 2", "run 35 2 leaves the image of 5 x 7 pixels"),
    ("36 1", "run 36 1 leaves the image of 5 x 7 pixels"),
    ("2 0", "run 2 0 has no pixel: delete it"),
    ("1 9223372036854775807", "run 1 9223372036854775807 leaves the image of 5 x 7 pixels"),
    ("35 9223372036854775807", "run 35 9223372036854775807 leaves the image"),
    ("9223372036854775807 9223372036854775807", "leaves the image of 5 x 7 pixels"),
    ("-9223372036854775808 1", "run -9223372036854775808 1 leaves the image of 5 x 7 pixels"),
    ("1 9223372036854775808", "run 1 9223372036854775808 leaves the image of 5 x 7 pixels"),
    ("1 " + "9" * 40, f"run 1 {'9' * 40} leaves the image of 5 x 7 pixels"),
])
def test_the_error_for_bad_run_length_code_names_the_table_and_the_image(tmp_path, code, words):
    text = error_of(Mask, run_mask(tmp_path, code), 5, 7)
    assert text.startswith(f"{tmp_path / 'train.csv'}: a1: ") and words in text


# Polygons


def square(y, x, side, name="glomerulus", kind="Polygon"):
    """A feature as QuPath writes it."""
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    properties = {"objectType": "annotation"}
    if name:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": [ring]},
            "properties": properties}


def polygon_item(folder, *features, **options):
    path = folder / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return Item("a", folder / "a.tif", path, "a", **options)


def drawn(*squares, value=1):
    mask = np.zeros((45, 60), np.uint8)
    for y, x, side in squares:
        mask[y : y + side, x : x + side] = value
    return mask


def test_polygons_are_a_mask(tmp_path):
    item = polygon_item(tmp_path, square(3, 5, 20), square(20, 30, 9), square(1, 50, 4, None))
    equals(Mask(item, 45, 60), drawn((3, 5, 20), (20, 30, 9), (1, 50, 4)))
    assert not Mask(item, 45, 60).has_void


def test_only_the_named_classes_are_objects(tmp_path):
    item = polygon_item(tmp_path, square(3, 5, 20), square(10, 10, 30, "cortex"))
    equals(Mask(replace(item, labels=("glomerulus",)), 45, 60), drawn((3, 5, 20)))
    equals(Mask(replace(item, labels=("glomerulus", "cortex")), 45, 60),
           drawn((3, 5, 20), (10, 10, 30)))


def test_a_class_to_ignore_is_void_even_on_top_of_objects(tmp_path):
    item = polygon_item(tmp_path, square(3, 5, 20), square(10, 10, 30, "fold"), ignore=("fold",))
    mask, wanted = Mask(item, 45, 60), drawn((3, 5, 20))
    wanted[10:40, 10:40] = 255
    assert mask.has_void
    equals(mask, wanted)


def test_polygons_to_ignore_are_void_beside_run_length_code_too(tmp_path):
    ones = drawn((3, 5, 20))
    item = polygon_item(tmp_path, square(3, 5, 20), square(10, 10, 30, "fold"), ignore=("fold",))
    item = replace(item, mask=tmp_path / "train.csv", polygons=item.mask, runs=rle_encode(ones))
    ones[10:40, 10:40] = 255
    equals(Mask(item, 45, 60), ones)
    equals(Mask(drawn_instead(item), 45, 60), ones)


def test_a_line_is_refused_unless_its_class_is_not_an_object(tmp_path):
    line = {"type": "Feature", "geometry": {"type": "LineString", "coordinates": [[0, 0], [9, 9]]},
            "properties": {"classification": {"name": "scale"}}}
    item = polygon_item(tmp_path, square(3, 5, 20), line)
    text = error_of(Mask, item, 45, 60)
    assert text.startswith(f"{item.mask}: feature 2 (scale) is a LineString")
    assert "--label" in text
    equals(Mask(replace(item, labels=("glomerulus",)), 45, 60), drawn((3, 5, 20)))


def test_a_polygon_outside_the_image_is_refused(tmp_path):
    item = polygon_item(tmp_path, square(3, 5, 20), square(300, 500, 20))
    text = error_of(Mask, item, 45, 60)
    assert text.startswith(f"{item.mask}: ") and "mostly outside the image of 45 x 60" in text


def test_polygons_are_read_again_after_a_change(tmp_path):
    equals(Mask(polygon_item(tmp_path, square(3, 5, 20)), 45, 60), drawn((3, 5, 20)))
    equals(Mask(polygon_item(tmp_path, square(3, 5, 20), square(20, 30, 9)), 45, 60),
           drawn((3, 5, 20), (20, 30, 9)))


@pytest.mark.parametrize("key", ["DN", "value", "val", "raster_val", "gridcode", "pixel_value",
                                 "class", "label", "category"])
@pytest.mark.parametrize("zero", [0, 0.0, "0"])
def test_polygons_of_value_0_are_background(tmp_path, key, zero):
    whole, inside = square(0, 0, 60, None), square(3, 5, 20, None)
    whole["properties"], inside["properties"] = {key: zero}, {key: 2}
    equals(Mask(polygon_item(tmp_path, inside, whole), 45, 60), drawn((3, 5, 20)))
    whole["properties"]["classification"] = {"name": "tissue"}  # then 0 is a measurement
    equals(Mask(polygon_item(tmp_path, inside, whole), 45, 60), drawn((0, 0, 60)))


def test_a_file_of_polygons_is_parsed_once(tmp_path, monkeypatch):
    def square(name, x):
        ring = [[x, 1], [x + 5, 1], [x + 5, 6], [x, 6], [x, 1]]
        return {"type": "Feature", "properties": {"classification": name},
                "geometry": {"type": "Polygon", "coordinates": [ring]}}

    parsed, original = [], masks.read_polygons
    monkeypatch.setattr(masks, "read_polygons", lambda path: (
        parsed.append(path.name), original(path))[1])
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps([square("a", 1), square("b", 9), square("b", 20)]))
    item = Item("a", path, path, "a")
    assert masks.classes_of(path) == {"a": 1, "b": 2}
    for labels, ignore, count in (((), (), 75), (("a",), (), 25), ((), ("a",), 50)):
        for _ in range(2):
            mask = Mask(replace(item, labels=labels, ignore=ignore), *MASK.shape)
            assert (mask.read(0, 0, *MASK.shape) == 1).sum() == count
            assert (mask.read(0, 0, *MASK.shape) == 255).sum() == (25 if ignore else 0)
    assert Mask(item, 10, 50).read(0, 0, 10, 50).sum() == 75  # an image of another size
    assert masks.classes_of(path) == {"a": 1, "b": 2} and parsed == ["a.geojson"]
    path.write_text(json.dumps([square("c", 1)]))
    assert masks.classes_of(path) == {"c": 1}
    assert Mask(item, *MASK.shape).read(0, 0, *MASK.shape).sum() == 25
    assert parsed == ["a.geojson"] * 2


@pytest.mark.parametrize("held, rows", [(4 * MASK.shape[1], 4), (1, 1)])
def test_a_mask_is_looked_at_in_pieces_that_may_be_held(tmp_path, held, rows, monkeypatch):
    monkeypatch.setattr("minseg.files.tiff.HELD", held)
    seen, window = [], Mapped.window
    monkeypatch.setattr(Mapped, "window", lambda self, y, x, h, w: (
        seen.append((y, x, h, w)), window(self, y, x, h, w))[1])
    Mask(file_mask(tmp_path / "a.png", MASK * 255), *MASK.shape)
    height, width = MASK.shape
    assert seen == [(y, 0, min(rows, height - y), width) for y in range(0, height, rows)]
