"""Reading slides and masks: every kind of file has one meaning, or is refused by name."""

import csv

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from minseg.data.slides import (
    Slide,
    find_slides,
    open_slide,
    read_array,
    read_groups,
    read_image,
    read_mask,
    shrink,
)


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def refused(path, read, *words):
    """The error's text, which names the file and holds the words in one line."""
    with pytest.raises(ValueError) as error:
        read(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    for word in words:
        assert word in text
    return text


RGB, GREY = noise(5, 7, 3), noise(5, 7)
REPEATED = np.stack([GREY] * 3, 2)


# Images


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff", "TIF", "PNG"])
@pytest.mark.parametrize("pixels, expected", [
    (GREY, REPEATED),
    (RGB, RGB),
    (np.dstack([RGB, noise(5, 7, seed=1)]), RGB),
    (np.dstack([GREY, noise(5, 7, seed=1)]), REPEATED),
], ids=["grey", "RGB", "RGBA", "grey and alpha"])
def test_colours_are_kept_grey_is_repeated_and_alpha_dropped(tmp_path, suffix, pixels, expected):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(pixels).save(path)
    image = read_image(path)
    assert image.dtype == np.uint8 and image.flags.c_contiguous
    assert np.array_equal(image, expected)


def test_a_palette_image_has_the_colours_of_its_palette(tmp_path):
    picture = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], np.uint8), "P")
    colours = [(10, 20, 30), (200, 100, 0), (1, 2, 3)]
    picture.putpalette([value for colour in colours for value in colour])
    picture.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "P"
    expected = np.array(colours)[[[0, 1, 2], [2, 1, 0]]]
    assert np.array_equal(read_image(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_one_bit_becomes_black_and_white(tmp_path, suffix):
    bits = noise(5, 11) > 127
    Image.fromarray(bits).save(tmp_path / f"a.{suffix}")
    assert read_array(tmp_path / f"a.{suffix}").dtype == bool
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), np.stack([bits * 255] * 3, 2))


def test_a_jpeg_is_close_to_what_was_saved(tmp_path):
    ramp = np.add.outer(np.arange(0, 96, 2), np.arange(0, 128, 2)).astype(np.uint8)
    image = np.stack([ramp, 255 - ramp, ramp // 2], 2)
    Image.fromarray(image).save(tmp_path / "a.jpeg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpeg").astype(int) - image).max() < 16
    Image.fromarray(ramp).save(tmp_path / "b.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "b.jpg")[:, :, 1].astype(int) - ramp).max() < 16


def test_sixteen_bits_are_divided_by_257(tmp_path):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    tifffile.imwrite(tmp_path / "rgb.tif", np.dstack([levels * 257] * 3), photometric="rgb")
    Image.fromarray(levels * 257).save(tmp_path / "grey.png")
    for name in ("rgb.tif", "grey.png"):
        assert read_array(tmp_path / name).dtype == np.uint16
        assert np.array_equal(read_image(tmp_path / name), np.dstack([levels] * 3))


def test_sixteen_bits_are_rounded_to_the_nearest_level(tmp_path):
    values = noise(50, 60, dtype=np.uint16)
    values[0, :3] = 65535, 128, 129
    tifffile.imwrite(tmp_path / "a.tif", values)
    image = read_image(tmp_path / "a.tif")[:, :, 0]
    assert image[0, :3].tolist() == [255, 0, 1]
    assert np.array_equal(image, np.round(values / 257))


def test_sixteen_bits_that_only_use_eight_are_refused(tmp_path):
    Image.fromarray(np.array([[0, 255]], np.uint16)).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", read_image, "no value above 255", "save it as 8 bits")
    Image.fromarray(np.array([[0, 256]], np.uint16)).save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png")[0, 1].tolist() == [1, 1, 1]


def test_a_black_image_of_sixteen_bits_is_black(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "a.png")
    assert not read_image(tmp_path / "a.png").any()


@pytest.mark.parametrize("pixels, kind", [
    (np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4), "float32"),
    (np.full((3, 4), 70_000, np.uint32), "uint32"),
    (np.full((3, 4), -1, np.int16), "int16"),
    (np.full((3, 4), -1, np.int32), "int32"),
])
def test_other_numbers_than_8_or_16_bits_are_refused(tmp_path, pixels, kind):
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    refused(tmp_path / "a.tif", read_image, kind, "save it as 8 or 16 bits")


# TIFF


@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 1, 5, 7, 3), (5, 7, 4)])
def test_a_tiff_may_hold_pixels_of_three_or_four_values(tmp_path, shape):
    array = noise(*shape)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb")
    assert np.array_equal(read_image(tmp_path / "a.tif"), array.reshape(shape[-3:])[:, :, :3])


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 3, 5, 7), (4, 5, 7), (3, 5, 3), (3, 3, 3),
                                   (3, 1, 7), (3, 5, 1), (3, 1, 1)])
def test_a_tiff_may_hold_a_plane_for_each_colour(tmp_path, shape):
    array = noise(*shape)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", planarconfig="separate")
    expected = np.moveaxis(array.reshape(shape[-3:]), 0, 2)[:, :, :3]
    assert np.array_equal(read_image(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 3, 5, 7), (1, 1, 3, 5, 3)])
def test_a_tiff_may_hold_a_page_for_each_colour(tmp_path, shape):
    array = noise(*shape)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack")
    expected = np.moveaxis(array.reshape(shape[-3:]), 0, 2)
    assert np.array_equal(read_image(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("size", [(1, 7), (5, 1), (1, 1), (1, 3), (3, 1), (1, 4)])
def test_an_image_one_pixel_high_or_wide_keeps_its_shape(tmp_path, size):
    colour, grey = noise(*size, 3), noise(*size)
    tifffile.imwrite(tmp_path / "rgb.tif", colour, photometric="rgb")
    tifffile.imwrite(tmp_path / "grey.tif", grey, photometric="minisblack")
    Image.fromarray(colour).save(tmp_path / "rgb.png")
    for name in ("rgb.tif", "rgb.png"):
        assert np.array_equal(read_image(tmp_path / name), colour)
    assert np.array_equal(read_image(tmp_path / "grey.tif"), np.stack([grey] * 3, 2))
    tifffile.imwrite(tmp_path / "mask.tif", (grey > 127) * np.uint8(255))
    assert np.array_equal(read_mask(tmp_path / "mask.tif"), grey > 127)


@pytest.mark.parametrize("options", [
    {"tile": (16, 32)}, {"rowsperstrip": 4}, {"compression": "zlib"},
    {"compression": "zlib", "predictor": True}, {"compression": "zlib", "tile": (32, 16)},
], ids=str)
def test_tiles_strips_and_deflate_give_the_same_pixels(tmp_path, options):
    image = noise(45, 70, 3)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", **options)
    assert np.array_equal(read_image(tmp_path / "a.tif"), image)


def test_lzw_and_jpeg_tiffs_are_read_with_imagecodecs(tmp_path):
    pytest.importorskip("imagecodecs")
    image = np.full((32, 48, 3), (40, 160, 90), np.uint8)
    for name in ("tiff_lzw", "jpeg"):
        Image.fromarray(image).save(tmp_path / "a.tif", compression=name)
        assert np.abs(read_image(tmp_path / "a.tif").astype(int) - image).max() < 4


@pytest.mark.parametrize("option, name", [("tiff_lzw", "LZW"), ("jpeg", "JPEG")])
def test_without_imagecodecs_the_error_names_it(tmp_path, monkeypatch, option, name):
    def asarray(self, **options):
        raise ValueError(f"<COMPRESSION.{name}: 5> requires the 'imagecodecs' package")

    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        pass
    else:
        monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", asarray)
    Image.fromarray(noise(16, 16, 3)).save(tmp_path / "a.tif", compression=option)
    refused(tmp_path / "a.tif", read_image, f"{name} compression needs imagecodecs",
            "python -m pip install imagecodecs")


@pytest.mark.parametrize("mode, name", [("P", "PALETTE"), ("CMYK", "SEPARATED")])
def test_a_tiff_in_other_colours_is_refused(tmp_path, mode, name):
    Image.new(mode, (7, 5)).save(tmp_path / "a.tif")
    refused(tmp_path / "a.tif", read_image, name, "save it as RGB or grey")


def test_a_stack_of_pictures_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(6, 5, 7), photometric="minisblack")
    refused(tmp_path / "a.tif", read_image, "(6, 5, 7)", "expected grey, RGB or RGBA")


def test_the_full_size_of_a_pyramid_is_read(tmp_path):
    image = noise(64, 48, 3)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(image, photometric="rgb", tile=(16, 16), subifds=1)
        tiff.write(image[::2, ::2], photometric="rgb", tile=(16, 16), subfiletype=1)
    assert np.array_equal(read_image(tmp_path / "a.tif"), image)


# Files that are none


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize("content", [b"", b"this is no image\n" * 20], ids=["empty", "text"])
def test_a_file_that_is_no_image_is_refused(tmp_path, read, name, content):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, read, "cannot be read, replace it or take it out: ")


@pytest.mark.parametrize("name, options", [
    ("a.png", {}), ("a.jpg", {}), ("a.tif", {}), ("a.tif", {"compression": "tiff_deflate"}),
])
def test_a_truncated_file_is_refused(tmp_path, name, options):
    path = tmp_path / name
    Image.fromarray(noise(60, 50, 3)).save(path, **options)
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        refused(path, read_image, "cannot be read, replace it or take it out: ")


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_a_missing_file_is_refused(tmp_path, name):
    assert refused(tmp_path / name, read_image).endswith("no such file")


# Masks


MASK = (noise(6, 9, seed=2) > 127).astype(np.uint8)


@pytest.mark.parametrize("pixels", [
    MASK, MASK * 255, MASK > 0, np.stack([MASK * 255] * 3, 2),
    np.dstack([MASK * 255, np.full_like(MASK, 77)]),
    np.dstack([MASK] * 3 + [np.full_like(MASK, 77)]),
], ids=["0 and 1", "0 and 255", "bool", "RGB", "grey and alpha", "RGBA"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_mask_becomes_zeros_and_ones(tmp_path, pixels, suffix):
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    mask = read_mask(tmp_path / f"a.{suffix}")
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, MASK)


def test_a_mask_with_a_black_and_white_palette_is_read(tmp_path):
    picture = Image.fromarray(MASK, "P")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "P"
    assert np.array_equal(read_mask(tmp_path / "a.png"), MASK)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_mask_of_one_value_is_read(tmp_path, value):
    Image.new("L", (4, 3), value).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").tolist() == [[min(value, 1)] * 4] * 3


@pytest.mark.parametrize("values, shown", [
    ((0, 2), "values 0, 2:"), ((0, 1, 255), "values 0, 1, 255:"), ((1, 255), "values 1, 255:"),
    ((0, 128, 255), "values 0, 128, 255:"), (range(6), "values 0, 1, 2, 3, 4, 5:"),
    (range(7), "values 0, 1, 2, 3, 4, 5, ...:"),
])
def test_a_mask_of_other_values_is_refused_with_the_values(tmp_path, values, shown):
    Image.fromarray(np.array([[*values]] * 2, np.uint8)).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", read_mask, shown, "a mask holds 0 and 1, or 0 and 255")


def test_a_mask_in_colour_is_refused(tmp_path):
    pixels = np.stack([MASK * 255] * 3, 2)
    pixels[2, 3, 1] ^= 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", read_mask, "mask in colour", "one value a pixel")


# Folders


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


def test_without_groups_each_image_stands_alone(tmp_path):
    assert [item.group for item in find_slides(str(data_set(tmp_path)))] == ["a", "b"]


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
    with pytest.raises(ValueError) as error:
        find_slides(folder)
    assert str(error.value) == (
        f"{folder / missing}: no such folder: --data needs images/ and masks/ in it"
    )


def test_a_folder_without_images_is_refused(tmp_path):
    data_set(tmp_path, ("notes.txt",), ("a.png",))
    with pytest.raises(ValueError, match="images: holds no image .*png.*tiff"):
        find_slides(tmp_path)


def test_an_image_without_a_mask_is_refused(tmp_path):
    data_set(tmp_path, ("a.png", "b.jpg"), ("a.png", "b.jpg"))
    with pytest.raises(ValueError) as error:
        find_slides(tmp_path)
    mask = tmp_path / "masks" / "b.png"
    assert str(error.value) == f"{tmp_path / 'images' / 'b.jpg'}: has no mask: add {mask}"


@pytest.mark.parametrize("part", ["images", "masks"])
def test_two_files_of_one_name_are_refused(tmp_path, part):
    data_set(tmp_path, **{part: ("a.png", "a.tif", "b.png")})
    with pytest.raises(ValueError) as error:
        find_slides(tmp_path)
    assert str(error.value) == f"{tmp_path / part / 'a.tif'}: a.png has the same name: keep one"


@pytest.mark.parametrize("rows", [b"a,p1\n", b"a,p1\nb,\n", b"a,p1\nb\n"],
                         ids=["no line", "no group", "no comma"])
def test_an_image_without_a_group_is_refused(tmp_path, rows):
    data_set(tmp_path, groups=b"id,group\n" + rows)
    with pytest.raises(ValueError) as error:
        find_slides(tmp_path)
    assert str(error.value) == f"{tmp_path / 'groups.csv'}: has no group for b: add a line"


@pytest.mark.parametrize("header", [b"", b"id;group\n", b"name,patient\n", b"id\n"])
def test_groups_with_another_header_are_refused(tmp_path, header):
    data_set(tmp_path, groups=header + b"a,p1\nb,p2\n" * bool(header))
    with pytest.raises(ValueError) as error:
        find_slides(tmp_path)
    assert str(error.value) == f"{tmp_path / 'groups.csv'}: the first line must be: id,group"


def test_groups_that_are_no_utf_8_are_refused(tmp_path):
    data_set(tmp_path, groups="id,group\na,Jürgen\nb,p2\n".encode("latin-1"))
    refused(tmp_path / "groups.csv", read_groups, "save it as CSV UTF-8")


def test_groups_from_a_spreadsheet_are_read(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_bytes("id,group\r\na,Jürgen\r\n\"b, left\",p2\r\n".encode("utf-8-sig"))
    assert read_groups(path) == {"a": "Jürgen", "b, left": "p2"}


def test_groups_written_by_csv_come_back(tmp_path):
    groups = {"a": "p1", 'b "x"': "p,2", "c": "p1"}
    with open(tmp_path / "groups.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "group"), *groups.items()])
    assert read_groups(tmp_path / "groups.csv") == groups


# Windows at a coarser scale


def naive_shrink(array, scale):
    height, width = array.shape[:2]
    rows = []
    for y in range(0, height, scale):
        row = []
        for x in range(0, width, scale):
            row.append(array[y : y + scale, x : x + scale].mean((0, 1), dtype=np.float64))
        rows.append(row)
    return np.floor(np.array(rows) + 0.5)


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 7, 30])
@pytest.mark.parametrize("shape", [(12, 20, 3), (13, 21, 3), (13, 21), (1, 9, 3), (9, 1)])
def test_shrinking_gives_the_mean_of_each_block_also_of_cut_ones(shape, scale):
    array = noise(*shape)
    small = shrink(array, scale)
    assert small.dtype == np.uint8
    assert np.array_equal(small, naive_shrink(array, scale))


def test_shrinking_white_stays_white():
    assert (shrink(np.full((50, 70, 3), 255, np.uint8), 8) == 255).all()


@pytest.mark.parametrize("scale", [1, 2, 5])
def test_a_window_is_that_part_of_the_scaled_image(scale):
    image = noise(23, 37, 3)
    slide, small = Slide(image, scale), naive_shrink(image, scale)
    assert (slide.height, slide.width) == small.shape[:2]
    for y, x, h, w in [(0, 0, slide.height, slide.width), (1, 2, 3, 4), (2, 0, 1, slide.width),
                       (slide.height, slide.width, 0, 0), (slide.height - 1, 3, 1, 2)]:
        assert np.array_equal(slide.read(y, x, h, w), small[y : y + h, x : x + w])


@pytest.mark.parametrize("window", [(-1, 0, 2, 2), (0, -1, 2, 2), (5, 0, 8, 2), (0, 15, 2, 5),
                                    (3, 3, -1, 2), (3, 3, 2, -1), (13, 0, 0, 1)])
def test_a_window_that_leaves_the_image_is_refused(window):
    slide = Slide(noise(24, 38, 3), 2)
    with pytest.raises(ValueError, match=", ".join(map(str, window)) + " leaves 12 x 19"):
        slide.read(*window)


def naive_enlarge(values, scale, size):
    """Bilinear: pixel i lies at (i + 1/2) / scale - 1/2, and beyond the border nothing changes."""
    for axis in (0, 1):
        last = values.shape[axis] - 1
        place = np.clip((np.arange(size[axis]) + 0.5) / scale - 0.5, 0, last)
        low = np.floor(place).astype(int)
        share = np.expand_dims(place - low, 1 - axis)
        high = np.minimum(low + 1, last)
        values = values.take(low, axis) * (1 - share) + values.take(high, axis) * share
    return values


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 10])
@pytest.mark.parametrize("size", [(24, 36), (23, 35), (25, 37), (1, 1), (7, 40)])
def test_enlarged_bands_together_are_the_whole_map_enlarged_to_the_files_own_size(size, scale):
    slide = Slide(noise(*size, 3), scale)
    small = torch.rand(2, slide.height, slide.width, generator=torch.Generator().manual_seed(0))
    expected = np.stack([naive_enlarge(channel.double().numpy(), scale, size) for channel in small])
    for rows in (1, 2, 5, slide.height):
        bands = [(y, small[:, y : y + rows]) for y in range(0, slide.height, rows)]
        tops, large = zip(*slide.enlarge(bands))
        assert [len(large), *tops] == [len(bands), *[y * scale for y, _ in bands]]
        assert np.allclose(torch.cat(large, 1), expected, atol=1e-6)


def test_enlarging_reads_one_band_ahead_and_no_further():
    slide, taken = Slide(noise(24, 8, 3), 2), []

    def bands():
        for y in range(0, 12, 3):
            taken.append(y)
            yield y, torch.zeros(1, 3, 4)

    assert [(y, taken[-1]) for y, _ in slide.enlarge(bands())] == [(0, 3), (6, 6), (12, 9), (18, 9)]


@pytest.mark.parametrize("scale", [1, 3, 2.0])
def test_an_opened_slide_is_the_file_at_that_scale(tmp_path, scale):
    image = noise(20, 31, 3)
    Image.fromarray(image).save(tmp_path / "a.png")
    slide = open_slide(tmp_path / "a.png", scale)
    assert (slide.full_height, slide.full_width, slide.scale) == (20, 31, scale)
    assert np.array_equal(slide.read(0, 0, slide.height, slide.width), shrink(image, int(scale)))


@pytest.mark.parametrize("scale", [0, -1, 1.5])
def test_a_scale_that_is_no_whole_number_from_one_up_is_refused(tmp_path, scale):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"whole number from 1 up, not {scale}"):
        open_slide(tmp_path / "a.png", scale)


def test_an_image_with_two_groups_is_refused(tmp_path):
    (tmp_path / "groups.csv").write_text("id,group\na,1\nb,1\na,1\nb,2\n")
    with pytest.raises(ValueError, match="groups.csv: has two groups for b"):
        read_groups(tmp_path / "groups.csv")


def test_a_tiff_whose_white_is_zero_is_refused_for_its_two_readings(tmp_path):
    tifffile.imwrite(tmp_path / "mask.tif", noise(9, 7) > 128)  # numpy's True becomes "black"
    with pytest.raises(ValueError, match="mask.tif: its colours are MINISWHITE: save it as"):
        read_mask(tmp_path / "mask.tif")
