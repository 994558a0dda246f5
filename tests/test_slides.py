"""Windows of slides: every layout gives the pixels that tifffile gives, or is refused by name."""

import itertools
import pickle
import shlex
import struct
import subprocess
import threading
import uuid
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, PngImagePlugin
from torch.nn import functional as F

from minseg.files import slides, tiff
from minseg.files.slides import open_slide, shrink
from minseg.files.tiff import Mapped, Segments
from minseg.run.bands import enlarge

HEIGHT, WIDTH = 211, 173


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


def smooth(channels, dtype, seed=0):
    """A picture that JPEG can hold, (HEIGHT, WIDTH, channels)."""
    small = Image.fromarray(noise(9, 11, 3, seed=seed))
    array = np.asarray(small.resize((WIDTH, HEIGHT))) // 8 * 7 + noise(HEIGHT, WIDTH, 3) // 16
    array = np.dstack([array, 255 - array[:, :, :1]])[:, :, :channels]
    return array.astype(dtype) * 257 + 3 if dtype == np.uint16 else array


def block_mean(image, scale):
    """The definition of a scaled image: rounded means of blocks, cut by the border."""
    height, width = image.shape[:2]
    edges = (0, -height % scale), (0, -width % scale), (0, 0)
    blocks = np.pad(image.astype(float), edges, constant_values=np.nan)
    blocks = blocks.reshape(-(-height // scale), scale, -(-width // scale), scale, -1)
    return np.floor(np.nanmean(blocks, (1, 3)) + 0.5).astype(np.uint8)


def whole(path):
    """What tifffile reads, as uint8 (H, W, 3)."""
    array = np.squeeze(tifffile.imread(path))
    array = array[:, :, None] if array.ndim == 2 else array
    array = np.moveaxis(array, 0, 2) if array.shape[0] in (3, 4) else array
    array = array[:, :, : 1 if array.shape[2] <= 2 else 3]
    if array.dtype == np.uint16:
        array = np.round(array / 257).astype(np.uint8)
    return np.broadcast_to(array, (*array.shape[:2], 3))


def check_windows(path, image, scales=(1, 2, 3, 4), count=4):
    """Windows, among them the corners and the whole, are those of `image` scaled as a whole."""
    rng = np.random.default_rng(len(str(path)))
    for scale in scales:
        scaled = image if scale == 1 else block_mean(image, scale)
        slide = open_slide(path, scale)
        height, width = scaled.shape[:2]
        assert (slide.height, slide.width) == (height, width)
        assert (slide.full_height, slide.full_width) == image.shape[:2]
        windows = [(0, 0, height, width), (height - 1, width - 1, 1, 1), (0, 0, 0, 3)]
        for _ in range(count):
            y, x = rng.integers(height), rng.integers(width)
            windows.append((y, x, rng.integers(1, height - y + 1), rng.integers(1, width - x + 1)))
        for y, x, h, w in windows:
            window = slide.read(int(y), int(x), int(h), int(w))
            assert window.dtype == np.uint8 and window.shape == (h, w, 3)
            assert np.array_equal(window, scaled[y : y + h, x : x + w])


def refused(path, *words, read=open_slide):
    """The error is one line that names the file and holds the words."""
    with pytest.raises(ValueError) as error:
        read(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    assert all(word in text for word in words), text


# Layouts

SEGMENTS = {"tiles": {"tile": (64, 48)}, "rows": {"rowsperstrip": 1}, "strips": {"rowsperstrip": 7},
            "one piece": {"rowsperstrip": HEIGHT}}
CODECS = [None, "zlib", "lzw", "jpeg"]
LAYOUTS = ["HWC", "CHW", "11CHW", "pages", "grey", "RGBA"]


def write(path, layout, segments, compression, predictor, bigtiff, byteorder, dtype):
    array = smooth({"grey": 1, "RGBA": 4}.get(layout, 3), dtype)
    options = dict(SEGMENTS[segments], compression=compression, bigtiff=bigtiff,
                   byteorder=byteorder, photometric="rgb")
    if predictor:
        options["predictor"] = True
    if layout in ("CHW", "11CHW", "pages"):
        array, options["planarconfig"] = np.moveaxis(array, 2, 0), "separate"
    if layout == "11CHW":
        array = array[None, None]
    if layout == "pages":
        array = array[None, None]
        options.update(planarconfig=None, photometric="minisblack", metadata={"axes": "TZCYX"})
    if layout == "grey":
        array, options["photometric"] = array[:, :, 0], "minisblack"
    if layout == "RGBA":
        options["extrasamples"] = "unassalpha"
    tifffile.imwrite(path, array, **options)


def possible(layout, segments, compression, predictor, bigtiff, byteorder, dtype):
    if compression == "jpeg":
        return not predictor and dtype == np.uint8 and layout in ("HWC", "grey")
    return compression or not predictor


def needs_imagecodecs(layout, segments, compression, predictor, *rest):
    return compression in ("lzw", "jpeg") or predictor


def pairs(case):
    return set(itertools.combinations(enumerate(case), 2))


def covering(*groups):
    """A few cases that hold every pair of properties which any case holds. The groups are covered
    one after the other: what the first can cover needs none of the second."""
    chosen, covered = [], set()
    for cases in groups:
        missing = set().union(*map(pairs, cases)) - covered
        covered |= missing
        while missing:
            chosen.append(max(cases, key=lambda case: len(missing & pairs(case))))
            missing -= pairs(chosen[-1])
    return chosen


ALL = [case for case in itertools.product(LAYOUTS, SEGMENTS, CODECS, [False, True], [False, True],
                                          "<>", [np.uint8, np.uint16]) if possible(*case)]
PLAIN = [case for case in ALL if not needs_imagecodecs(*case)]
CASES = covering(PLAIN, ALL)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(
    getattr(part, "__name__", str(part)) for part in case))
def test_windows_of_every_layout(tmp_path, case, monkeypatch):
    if needs_imagecodecs(*case):
        pytest.importorskip("imagecodecs", reason="python -m pip install -e '.[codecs]'")
    path = tmp_path / "a.tif"
    write(path, *case)
    image = whole(path)
    check_windows(path, image, scales=(1, 2, 4))
    monkeypatch.setattr(tiff, "HELD", 2**10)  # nothing fits: the ways of large files
    check_windows(path, image, scales=(1, 3), count=2)


def test_the_cases_above_hold_every_pair_of_properties():
    def held(cases):
        return {(i, j, case[i], case[j]) for case in cases
                for i, j in itertools.combinations(range(7), 2)}

    assert held(CASES) == held(ALL) and len(CASES) < len(ALL) / 10
    assert held(case for case in CASES if not needs_imagecodecs(*case)) == held(PLAIN)


def test_deflate_with_a_predictor_needs_no_codec_where_tifffile_has_its_own(tmp_path, monkeypatch):
    """The strip that is too big to hold is inflated and summed here."""
    monkeypatch.setattr(tiff, "HELD", 2**10)
    for dtype, order in itertools.product([np.uint8, np.uint16], "<>"):
        write(tmp_path / "a.tif", "HWC", "one piece", "zlib", True, False, order, dtype)
        assert isinstance(slides.open_source(tmp_path / "a.tif").pixels, Mapped)
        check_windows(tmp_path / "a.tif", whole(tmp_path / "a.tif"), scales=(1, 2))


def test_an_empty_tile_is_black(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        tiles = iter([noise(16, 16, 3), None, None, noise(16, 16, 3)])
        file.write(tiles, shape=(32, 32, 3), dtype=np.uint8, tile=(16, 16), compression="zlib",
                   photometric="rgb")
    image = open_slide(tmp_path / "a.tif").read_all()
    assert not image[:16, 16:].any() and image[:16, :16].any() and image[16:, 16:].any()


# Pyramids


def pyramid(path, image, levels, **options):
    """`image` with smaller copies of the sizes `levels`, of a value each, as SubIFDs."""
    with tifffile.TiffWriter(path) as file:
        file.write(image, subifds=len(levels), photometric="rgb", tile=(32, 32), **options)
        for k, size in enumerate(levels):
            file.write(np.full((*size, 3), 10 * (k + 1), np.uint8), subfiletype=1,
                       photometric="rgb", tile=(32, 32), **options)


@pytest.mark.parametrize("scale, value", [(2, 10), (4, 20), (6, 10), (8, 20), (12, 20), (16, 20)])
def test_a_pyramid_is_read_from_the_coarsest_level_that_divides_the_scale(tmp_path, scale, value):
    pyramid(tmp_path / "a.tif", noise(128, 96, 3), [(64, 48), (32, 24)], compression="zlib")
    slide = open_slide(tmp_path / "a.tif", scale)
    assert (slide.full_height, slide.full_width) == (128, 96)
    assert (slide.height, slide.width) == (-(-128 // scale), 96 // scale)
    assert (slide.read_all() == value).all()


@pytest.mark.parametrize("scale", [1, 3, 5])
def test_a_pyramid_without_a_fitting_level_is_read_from_its_full_size(tmp_path, scale):
    image = noise(130, 97, 3)
    pyramid(tmp_path / "a.tif", image, [(65, 49), (33, 25)])
    check_windows(tmp_path / "a.tif", image, scales=[scale])


@pytest.mark.parametrize("rounding", [np.floor, np.ceil])
def test_levels_may_be_rounded_either_way(tmp_path, rounding):
    sizes = [tuple(int(rounding(n / factor)) for n in (131, 99)) for factor in (2, 4)]
    pyramid(tmp_path / "a.tif", noise(131, 99, 3), sizes)
    for scale, value in (2, 10), (4, 20), (8, 20):
        slide = open_slide(tmp_path / "a.tif", scale)
        assert (slide.height, slide.width) == (-(-131 // scale), -(-99 // scale))
        image = slide.read_all()  # the last ones are repeated where it is smaller
        assert image.shape == (slide.height, slide.width, 3) and (image == value).all()
        last = slide.read(slide.height - 1, slide.width - 1, 1, 1)
        assert last.tolist() == [[[value] * 3]]


def test_a_smaller_page_that_is_not_a_level_is_not_used(tmp_path):
    image = noise(128, 96, 3)
    pyramid(tmp_path / "a.tif", image, [(60, 48)])  # not the same picture: another shape
    check_windows(tmp_path / "a.tif", image, scales=[2])


# Other formats, kinds of pixels

GREY, RGB = noise(5, 7), noise(5, 7, 3)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.tiff", "a.TIF", "a.PNG"])
@pytest.mark.parametrize("pixels, expected", [
    (GREY, np.dstack([GREY] * 3)), (RGB, RGB), (np.dstack([RGB, GREY]), RGB),
    (np.dstack([GREY, 255 - GREY]), np.dstack([GREY] * 3)),
], ids=["grey", "RGB", "RGBA", "grey and alpha"])
def test_grey_is_repeated_and_alpha_dropped(tmp_path, name, pixels, expected):
    Image.fromarray(pixels).save(tmp_path / name)
    check_windows(tmp_path / name, expected, scales=(1, 2))


@pytest.mark.parametrize("held", [2**26, 2**10])
def test_a_png_is_decoded_once(tmp_path, held, monkeypatch):
    monkeypatch.setattr(tiff, "HELD", held)
    Image.fromarray(noise(HEIGHT, WIDTH, 3)).save(tmp_path / "a.png")
    slide = open_slide(tmp_path / "a.png")
    assert isinstance(slide._source.pixels, Mapped) == (held < 2**26)  # in a scratch file
    (tmp_path / "a.png").write_bytes(b"")
    assert np.array_equal(slide.read_all(), noise(HEIGHT, WIDTH, 3))


def test_a_jpeg_is_what_pillow_makes_of_it(tmp_path):
    Image.fromarray(smooth(3, np.uint8)).save(tmp_path / "a.jpeg", quality=95)
    Image.fromarray(smooth(1, np.uint8)[:, :, 0]).save(tmp_path / "b.jpg")
    for name in ("a.jpeg", "b.jpg"):
        with Image.open(tmp_path / name) as image:
            check_windows(tmp_path / name, np.asarray(image.convert("RGB")), scales=(1, 2))


def test_a_palette_image_has_the_colours_of_its_palette(tmp_path):
    picture = Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], np.uint8), "P")
    colours = [(10, 20, 30), (200, 100, 0), (1, 2, 3)]
    picture.putpalette([value for colour in colours for value in colour])
    picture.save(tmp_path / "a.png")
    check_windows(tmp_path / "a.png", np.array(colours, np.uint8)[[[0, 1, 2], [2, 1, 0]]], [1])


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_one_bit_becomes_black_and_white(tmp_path, name):
    Image.fromarray(noise(5, 11) > 127).save(tmp_path / name)
    check_windows(tmp_path / name, np.dstack([(noise(5, 11) > 127) * np.uint8(255)] * 3), [1, 2])


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_photograph_is_applied(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    picture = Image.fromarray(smooth(3, np.uint8))
    picture.save(tmp_path / name, exif=exif)
    with Image.open(tmp_path / name) as image:
        stored = np.asarray(image)
    turned = {1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1],
              5: stored.swapaxes(0, 1), 6: np.rot90(stored, -1),
              7: stored[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(stored)}[orientation]
    check_windows(tmp_path / name, turned, [1, 2])
    assert bool(open_slide(tmp_path / name).notes) == (orientation > 1)


@pytest.mark.filterwarnings("error")
def test_broken_exif_is_ignored_without_a_word(tmp_path):
    Image.fromarray(noise(9, 11, 3)).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\x08\0\0\0\x05")
    assert open_slide(tmp_path / "a.png").notes == []


def test_text_and_profiles_of_many_megabytes_do_no_harm(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("XML:com.adobe.xmp", "x" * 30 * 2**20, zip=True)
    info.add_itxt("note", "y" * 30 * 2**20)
    image = Image.fromarray(noise(HEIGHT, WIDTH, 3))
    image.save(tmp_path / "a.png", pnginfo=info, icc_profile=bytes(30 * 2**20))
    image.save(tmp_path / "a.tif", icc_profile=bytes(2 * 2**20))
    for name in ("a.png", "a.tif"):
        check_windows(tmp_path / name, noise(HEIGHT, WIDTH, 3), [1], 1)


def png_16(path, values):
    """A PNG of 16 bits in colour (or grey and alpha), which Pillow cannot write."""
    height, width, channels = values.shape
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    rows = np.concatenate([np.zeros((height, 1), np.uint8), rows], 1)
    kind = {2: 4, 3: 2, 4: 6}[channels]
    data = b"\x89PNG\r\n\x1a\n"
    for name, part in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
                       (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b"")):
        data += struct.pack(">I", len(part)) + name + part
        data += struct.pack(">I", zlib.crc32(name + part))
    path.write_bytes(data)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_16_bits_in_png_are_read_unless_they_are_too_dark_for_it(tmp_path, channels):
    values = noise(9, 11, channels, dtype=np.uint16)
    png_16(tmp_path / "a.png", values)
    colours = (values >> 8)[..., : 1 if channels == 2 else 3]
    assert np.array_equal(open_slide(tmp_path / "a.png").read_all(),
                          np.broadcast_to(colours, (9, 11, 3)))
    values[..., : channels - (channels != 3)] >>= 4
    png_16(tmp_path / "b.png", values)
    refused(tmp_path / "b.png", "16-bit colours", "save it as TIFF")


@pytest.mark.parametrize("highest", [31 * 256 + 255, 32 * 256])
def test_an_eighth_of_the_range_is_enough(tmp_path, highest):
    values = np.zeros((9, 11, 3), np.uint16)
    values[4, 5, 1] = highest
    png_16(tmp_path / "a.png", values)
    if highest == 32 * 256:
        assert open_slide(tmp_path / "a.png").read_all().max() == 32
    else:
        refused(tmp_path / "a.png", "use less than an eighth of their range")


def test_dark_colours_of_a_format_that_may_have_16_bits_are_refused(tmp_path):
    """Of which Pillow keeps the upper 8."""
    values = noise(9, 11, 3, dtype=np.uint16)
    for name, shown, bits in (("a.ppm", values >> 8, values), ("b.ppm", None, values >> 4)):
        (tmp_path / name).write_bytes(b"P6 11 9 65535\n" + bits.astype(">u2").tobytes())
        if shown is None:
            refused(tmp_path / name, "16-bit colours", "from a PPM: save it as TIFF")
        else:
            assert abs(open_slide(tmp_path / name).read_all().astype(int) - shown).max() <= 1


def test_grey_pngs_of_16_bits_may_be_given_a_lower_white(tmp_path):
    values = noise(99, 111, dtype=np.uint16) >> 4
    Image.fromarray(values).save(tmp_path / "a.png")
    assert "--white 4095" in open_slide(tmp_path / "a.png").notes[0]
    bright = pickle.loads(pickle.dumps(open_slide(tmp_path / "a.png", white=4095)))
    assert np.array_equal(bright.read_all()[..., 0], np.floor(values * 255.0 / 4095 + 0.5))


def test_an_animation_is_refused(tmp_path):
    pictures = [Image.fromarray(noise(9, 11, 3, seed=i)) for i in range(2)]
    pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:])
    refused(tmp_path / "a.png", "is an animation: save only the frame you need")


def test_sixteen_bits_are_rounded_to_eight(tmp_path):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    tifffile.imwrite(tmp_path / "a.tif", values)
    Image.fromarray(values).save(tmp_path / "b.png")
    (tmp_path / "c.pgm").write_bytes(b"P5 256 256 65535\n" + values.astype(">u2").tobytes())
    for name in ("a.tif", "b.png", "c.pgm"):
        image = open_slide(tmp_path / name).read_all()
        assert np.array_equal(image, np.dstack([np.round(values / 257)] * 3))


@pytest.mark.parametrize("scale", [1, 2, 3, 7, 16, 300])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(48, 48, 3), (47, 51), (1, 5, 1)])
def test_shrink_is_the_rounded_mean_of_blocks(scale, dtype, shape):
    for image in (noise(*shape, dtype=dtype), np.full(shape, np.iinfo(dtype).max, dtype)):
        height, width = shape[:2]
        naive = [[np.floor(image[y : y + scale, x : x + scale].mean((0, 1)) + 0.5)
                  for x in range(0, width, scale)] for y in range(0, height, scale)]
        assert shrink(image, scale).dtype == dtype
        assert np.array_equal(shrink(image, scale), np.array(naive))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16])
@pytest.mark.parametrize("scale", [15, 16, 17, 255, 256, 257, 4100, 4101, 4104, 4105, 10**30])
def test_sums_of_large_blocks_do_not_overflow(dtype, scale):
    highest = 1 if dtype is bool else np.iinfo(dtype).max
    side = min(scale, 4105)
    image = np.full((side, side), highest, dtype)
    assert shrink(image, scale).tolist() == [[highest]]
    assert shrink(image[:, :-1], scale).tolist() == [[highest]]  # not a whole block
    half = side * side // 2
    image.ravel()[:half] = 0
    total = int(highest) * (side * side - half)
    assert int(shrink(image, scale)[0, 0]) == (total + side * side // 2) // (side * side)


def test_a_slide_may_be_scaled_down_to_one_pixel(tmp_path):
    image = noise(HEIGHT, WIDTH, 3)
    Image.fromarray(image).save(tmp_path / "a.png")
    wanted = np.floor(image.mean((0, 1)) + 0.5)
    for scale in (HEIGHT, 5000, 10**30):
        assert open_slide(tmp_path / "a.png", scale).read_all().tolist() == [[wanted.tolist()]]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16])
def test_a_grey_slide_is_shrunk_in_one_channel_and_then_repeated(tmp_path, dtype, monkeypatch):
    image = noise(HEIGHT, WIDTH) > 127 if dtype is bool else noise(HEIGHT, WIDTH, dtype=dtype)
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="minisblack")
    seen, original = [], slides.shrink
    monkeypatch.setattr(slides, "shrink", lambda array, scale: (
        seen.append(array.shape[2]), original(array, scale))[1])
    whole = open_slide(tmp_path / "a.tif").read_all()
    check_windows(tmp_path / "a.tif", whole)
    assert set(seen) == {1}
    assert (open_slide(tmp_path / "a.tif").read_grey(3, 5, 20, 30) == whole[3:23, 5:35, 0]).all()


@pytest.mark.parametrize("name", ["a.svs", "a.btf", "a.scn", "a"])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_tiff_is_known_by_its_first_bytes_whatever_its_name(tmp_path, name, bigtiff, byteorder):
    image = noise(90, 70, 3, dtype=np.uint16)
    tifffile.imwrite(tmp_path / name, image, photometric="rgb", bigtiff=bigtiff, tile=(32, 32),
                     byteorder=byteorder, resolution=(20_000,) * 2, resolutionunit="CENTIMETER")
    check_windows(tmp_path / name, whole(tmp_path / name), scales=(1, 2))
    assert isinstance(open_slide(tmp_path / name)._source.pixels, Segments)
    assert open_slide(tmp_path / name).microns == 0.5


def test_a_thumbnail_in_the_first_page_is_not_the_slide(tmp_path):
    image = noise(HEIGHT, WIDTH, 3)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(noise(20, 16, 3), photometric="rgb", subfiletype=1, metadata=None)
        tiff.write(image, photometric="rgb", tile=(32, 32), metadata=None)
    check_windows(tmp_path / "a.tif", image)


@pytest.mark.parametrize("kind, value", [(3, 700), (11, 700.0), (12, 700.0)],
                         ids=["short", "float", "double"])
def test_a_resolution_of_another_number_type_is_read(tmp_path, kind, value):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", metadata=None,
                     resolution=(300, 300), resolutionunit="INCH")
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        at = tiff.pages[0].tags["XResolution"].offset
    data = bytearray((tmp_path / "a.tif").read_bytes())
    packed = struct.pack("<H2x" if kind == 3 else "<f" if kind == 11 else "<d", value)
    place = struct.pack("<I", len(data)) if kind == 12 else packed
    data[at : at + 12] = struct.pack("<HHI", 282, kind, 1) + place
    (tmp_path / "a.tif").write_bytes(bytes(data) + packed)
    assert open_slide(tmp_path / "a.tif").microns == pytest.approx(25400 / 700)
    check_windows(tmp_path / "a.tif", RGB, scales=[1], count=1)


def test_one_bit_in_one_large_compressed_strip(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff, "HELD", 2**10)
    bits = noise(HEIGHT, WIDTH) > 127
    Image.fromarray(bits).save(tmp_path / "a.tif", compression="tiff_adobe_deflate",
                               tiffinfo={278: HEIGHT})
    check_windows(tmp_path / "a.tif", np.dstack([bits * np.uint8(255)] * 3), [1, 2])


def test_channels_in_several_files_are_refused(tmp_path):
    names = [f"c{i}.ome.tif" for i in range(3)]
    uid = [str(uuid.uuid4()) for _ in names]
    data = "".join(f'<TiffData IFD="0" FirstC="{i}" FirstZ="0" FirstT="0"><UUID FileName="{name}">'
                   f"urn:uuid:{uid[i]}</UUID></TiffData>" for i, name in enumerate(names))
    for i, name in enumerate(names):
        xml = ('<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/'
               f'Schemas/OME/2016-06" UUID="urn:uuid:{uid[i]}"><Image ID="Image:0"><Pixels '
               'ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="48" SizeY="40" SizeC="3" '
               f'SizeZ="1" SizeT="1">{data}</Pixels></Image></OME>')
        tifffile.imwrite(tmp_path / name, noise(40, 48, seed=i), photometric="minisblack",
                         description=xml, metadata=None)
    refused(tmp_path / names[0], "several files", "save them in one file")


@pytest.mark.parametrize("axes", ["ZYX", "TYX"])
def test_three_pictures_in_a_stack_are_not_three_colours(tmp_path, axes):
    tifffile.imwrite(tmp_path / "a.ome.tif", noise(3, 40, 50), photometric="minisblack",
                     metadata={"axes": axes}, ome=True)
    refused(tmp_path / "a.ome.tif", "contains 3 images of 40 x 50 pixels")


@pytest.mark.parametrize("unit, resolution, microns", [
    ("CENTIMETER", 20_000, 0.5), ("INCH", 25_400, 1.0), ("NONE", 20_000, None), (None, None, None)])
def test_the_size_of_a_pixel_comes_from_the_resolution_tags(tmp_path, unit, resolution, microns):
    options = {"resolution": (resolution,) * 2, "resolutionunit": unit} if unit else {}
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", **options)
    for scale in (1, 2):  # of a whole pixel, at any scale
        assert open_slide(tmp_path / "a.tif", scale).microns == microns


# Many readers


@pytest.fixture
def tiled(tmp_path):
    image = noise(HEIGHT, WIDTH, 3)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(32, 32), compression="zlib",
                     photometric="rgb")
    return tmp_path / "a.tif", image


def test_from_top_to_bottom_each_tile_is_decoded_once(tiled, monkeypatch):
    path, image = tiled
    decoded, decode = [], Segments._segment
    monkeypatch.setattr(Segments, "_segment", lambda self, index: (
        decoded.append(index), decode(self, index))[1])
    slide = open_slide(path)
    rows = [slide.read(y, 0, min(5, HEIGHT - y), WIDTH) for y in range(0, HEIGHT, 5)]
    assert np.array_equal(np.concatenate(rows), image)
    assert sorted(decoded) == list(range(7 * 6))


def test_threads_may_share_a_slide(tiled):
    path, image = tiled
    slide, start = open_slide(path), threading.Barrier(8)

    def read(seed):
        start.wait()
        rng = np.random.default_rng(seed)
        for y, x in rng.integers(0, (HEIGHT - 40, WIDTH - 40), (20, 2)).tolist():
            assert np.array_equal(slide.read(y, x, 40, 40), image[y : y + 40, x : x + 40])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))


class Windows(torch.utils.data.Dataset):
    def __init__(self, slide):
        self.slide = slide

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return self.slide.read(i, 2 * i, 30, 40)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_worker_processes_may_read_a_slide(tiled, method):
    path, image = tiled
    if method not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    loader = torch.utils.data.DataLoader(Windows(open_slide(path)), batch_size=None,
                                         num_workers=2, multiprocessing_context=method)
    for i, window in enumerate(loader):
        assert np.array_equal(window, image[i : i + 30, 2 * i : 2 * i + 40])


def test_a_slide_can_be_pickled(tiled):
    path, image = tiled
    slide = pickle.loads(pickle.dumps(open_slide(path, 2)))
    assert slide.scale == 2 and np.array_equal(slide.read_all(), block_mean(image, 2))


def test_no_file_stays_open(tiled):
    path, image = tiled
    slide = open_slide(path)
    path.rename(path.with_name("b.tif"))
    refused(path, "no such file", read=lambda path: slide.read(99, 99, 9, 9))
    path.with_name("b.tif").rename(path)
    assert np.array_equal(slide.read(99, 99, 9, 9), image[99:108, 99:108])


@pytest.mark.parametrize("held", [2**12, 2**15, 2**26])
@pytest.mark.parametrize("planes", ["contig", "separate", "pages"])
@pytest.mark.parametrize("rows", [20, 32, pytest.param(1, marks=pytest.mark.slow)])
def test_each_tile_of_each_plane_is_decoded_once(tmp_path, held, planes, rows, monkeypatch):
    monkeypatch.setattr(tiff, "HELD", held)
    image = noise(HEIGHT, WIDTH, 3)
    if planes == "pages":
        tifffile.imwrite(tmp_path / "a.ome.tif", np.moveaxis(image, 2, 0), tile=(32, 32),
                         compression="zlib", photometric="minisblack", metadata={"axes": "CYX"})
    else:
        tifffile.imwrite(tmp_path / "a.ome.tif", image if planes == "contig" else
                         np.moveaxis(image, 2, 0), tile=(32, 32), compression="zlib",
                         photometric="rgb", planarconfig=planes, metadata=None)
    decoded, original = [], Segments._segment
    monkeypatch.setattr(Segments, "_segment", lambda self, index: (
        decoded.append(index), original(self, index))[1])
    slide = open_slide(tmp_path / "a.ome.tif")
    bands = [slide.read(y, 0, min(rows, HEIGHT - y), WIDTH) for y in range(0, HEIGHT, rows)]
    assert np.array_equal(np.concatenate(bands), image)
    assert sorted(decoded) == list(range(7 * 6 * (1 if planes == "contig" else 3)))


# What is refused


@pytest.mark.parametrize("window", [(-1, 0, 3, 3), (0, -1, 3, 3), (0, 0, 212, 3), (0, 171, 3, 3),
                                    (5, 5, -1, 3)])
def test_windows_that_leave_the_slide_are_refused(tiled, window):
    with pytest.raises(ValueError, match="leaves the slide of 211 x 173"):
        open_slide(tiled[0]).read(*window)


@pytest.mark.parametrize("scale", [0, -2, 1.5])
def test_scales_are_whole_numbers(tiled, scale):
    with pytest.raises(ValueError, match=f"not {scale}"):
        open_slide(tiled[0], scale)


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg"])
@pytest.mark.parametrize("content", [b"", b"once upon a time\n" * 9, b"II*\0", bytes(400)],
                         ids=["nothing", "text", "beginning", "zeros"])
def test_files_that_are_not_images_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, "replace it or remove it")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    refused(tmp_path / "a.tif", "no such file")
    (tmp_path / "b.tif").mkdir()
    refused(tmp_path / "b.tif")


@pytest.mark.parametrize("options", [
    {}, {"tile": (32, 32)}, {"compression": "zlib", "rowsperstrip": 8},
    {"compression": "zlib", "tile": (32, 32)}, {"compression": "zlib", "rowsperstrip": HEIGHT}])
@pytest.mark.parametrize("held", [2**26, 2**10])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.999])
def test_cut_off_files_are_refused_when_they_are_opened(tmp_path, options, held, share,
                                                        monkeypatch):
    monkeypatch.setattr(tiff, "HELD", held)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(HEIGHT, WIDTH, 3), photometric="rgb", **options)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(path, "replace it or remove it")


def test_a_damaged_tile_is_refused_when_it_is_read(tiled):
    path, image = tiled
    slide = open_slide(path)
    offset = slide._source.pixels.offsets[20]
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(bytes(200))
    refused(path, "replace it", read=lambda path: slide.read_all())
    assert np.array_equal(slide.read(0, 0, 32, 32), image[:32, :32])


@pytest.mark.parametrize("shape, words", [
    ((40, 50, 5), ["contains 40 images of 50 x 5"]),
    ((2, 40, 50, 3), ["(2, 40, 50, 3)", "grey, RGB or RGBA"]),
    ((6, 40, 50), ["contains 6 images of 40 x 50"])])
def test_other_shapes_are_refused(tmp_path, shape, words):
    tifffile.imwrite(tmp_path / "a.tif", noise(*shape), photometric="minisblack")
    refused(tmp_path / "a.tif", *words)


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint32])
def test_other_numbers_than_8_or_16_bits_are_refused(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((20, 30), dtype))
    refused(tmp_path / "a.tif", np.dtype(dtype).name, "save it with 8 or 16 bits")


@pytest.mark.parametrize("photometric", ["miniswhite", "palette", "cielab"])
def test_other_colours_are_refused(tmp_path, photometric):
    colours = {"colormap": noise(3, 256, dtype=np.uint16)} if photometric == "palette" else {}
    array = noise(20, 30, 3) if photometric == "cielab" else noise(20, 30)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric=photometric, **colours)
    refused(tmp_path / "a.tif", photometric.upper(), "as RGB")


def test_a_missing_decoder_is_named_with_its_remedy(tmp_path):
    try:
        import imagecodecs  # noqa: F401
        pytest.skip("imagecodecs is installed")
    except ImportError:
        pass
    Image.fromarray(noise(20, 30, 3)).save(tmp_path / "a.tif", compression="tiff_lzw")
    refused(tmp_path / "a.tif", "LZW", "python -m pip install 'minseg[codecs]'")


# Back to the file's own pixels


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 300])
def test_bands_are_enlarged_as_the_whole_map_would_be(tmp_path, scale):
    Image.fromarray(noise(HEIGHT, WIDTH, 3)).save(tmp_path / "a.png")
    slide = open_slide(tmp_path / "a.png", scale)
    map = torch.rand(2, slide.height, slide.width)
    for rows in (1, 3, slide.height):
        pieces = map.split(rows, 1)
        bands = list(enlarge(slide, ((i * rows, piece) for i, piece in enumerate(pieces))))
        assert [y for y, _ in bands] == list(np.cumsum([0] + [b.shape[1] for _, b in bands])[:-1])
        expected = map if scale == 1 else F.interpolate(
            map[None], scale_factor=scale, mode="bilinear")[0][:, :HEIGHT, :WIDTH]
        torch.testing.assert_close(torch.cat([band for _, band in bands], 1), expected,
                                   atol=1e-5, rtol=0)


@pytest.mark.parametrize("names, words", [
    (["a.png", "b.PNG"], "name its files, as in DIR/*.PNG DIR/*.png"),
    (["notes.txt", "a.svs"], "name its files, as in DIR/*.svs"),
    (["p1/a.tif", "p2/b.tif"], "name its files, as in DIR/*/*.tif"),
    (["a.tif", "more/deep/b.jpg"], "name its files, as in DIR/*.tif DIR/*/*/*.jpg")])
def test_the_patterns_named_for_a_folder_find_all_its_images(tmp_path, names, words):
    folder = tmp_path / "my slides"
    for name in [*names, ".hidden.png"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    with pytest.raises(ValueError) as error:
        open_slide(folder)
    message = str(error.value)
    quoted = shlex.quote(str(folder))
    assert message == f"{folder}: is a folder: {words.replace('DIR', quoted)}"
    patterns = message.split(" as in ")[1]
    said = subprocess.run(["sh", "-c", f"printf '%s\n' {patterns}"], capture_output=True, text=True)
    assert sorted(said.stdout.splitlines()) == sorted(
        str(folder / name) for name in names if name != "notes.txt")


@pytest.mark.parametrize("names, words", [
    ([], "it holds no image: name image files, such as TIFF or PNG"),
    (["notes.txt", "more/"], "it holds no image: name image files, such as TIFF or PNG"),
    (["more/a.dcm", "more/b.dcm"], "it holds more/a.dcm, and DICOM is not supported: save it as "
     "TIFF (docs/formats.md): large_image_converter DIR/more/a.dcm DIR/more/a.tiff --compression "
     "deflate")])
def test_a_folder_without_an_image_that_is_read_is_refused_as_such(tmp_path, names, words):
    (tmp_path / "more").mkdir()
    for name in names:
        if not name.endswith("/"):
            (tmp_path / name).touch()
    with pytest.raises(ValueError) as error:
        open_slide(tmp_path)
    assert str(error.value) == f"{tmp_path}: is a folder: {words.replace('DIR', str(tmp_path))}"


@pytest.mark.parametrize("name", ["a.npy", "a"])
def test_a_sound_slide_in_an_unknown_format_is_to_be_exported_not_replaced(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(bytes(600))
    with pytest.raises(ValueError) as error:
        open_slide(path)
    assert str(error.value) == (
        f"{path}: {path.suffix or 'its format'} is not supported: save it as TIFF or PNG, with the "
        "program that made it, or in QuPath, if that opens it: File > Export images > OME TIFF")


@pytest.mark.parametrize("name", ["a.tif.gz", "a.zip"])
def test_an_archive_is_to_be_unpacked(tmp_path, name):
    (tmp_path / name).write_bytes(bytes(600))
    with pytest.raises(ValueError, match=f"{name}: .* is not supported: unpack it$"):
        open_slide(tmp_path / name)


@pytest.mark.parametrize("highest, likely", [
    (100, 255), (255, 255), (256, 511), (4095, 4095), (16383, 16383), (16384, None)])
def test_values_below_a_quarter_of_16_bits_look_dark_and_the_next_power_of_two_may_be_white(
        tmp_path, highest, likely):
    values = np.full((40, 50), 7, np.uint16)
    values[20, 30] = highest
    tifffile.imwrite(tmp_path / "a.tif", values)
    notes = open_slide(tmp_path / "a.tif").notes
    assert [f"pass --white {likely}" in note for note in notes] == [True] * bool(likely)


@pytest.mark.parametrize("place", [(0, 0), (0, -1), (-1, 0), (-1, -1), (15, 15), (-16, -16)])
def test_what_is_bright_is_found_in_each_corner(tmp_path, place):
    values = np.full((500, 411), 7, np.uint16)
    values[place] = 65535
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert open_slide(tmp_path / "a.tif").notes == []


@pytest.mark.parametrize("larger, colour, alpha, undone", [
    (100, 255, 200, True), (101, 255, 200, False), (101, 215, 200, True), (101, 216, 200, False),
    (2000, 255, 15, True), (2000, 255, 16, False), (0, 0, 254, True)])
def test_of_colours_that_were_multiplied_a_twentieth_may_be_larger_than_alpha(
        tmp_path, larger, colour, alpha, undone):
    image = np.full((128, 128, 4), 255, np.uint8)  # in which each pixel is looked at once
    pixels = image.reshape(-1, 4)
    pixels[::8, :] = 0, 0, 0, alpha
    pixels[: 8 * 48 : 8, 3] = 255  # 2,000 are left that are transparent
    pixels[8 * 48 : 8 * (48 + larger) : 8, 1] = colour
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", extrasamples=["assocalpha"])
    notes = open_slide(tmp_path / "a.tif").notes
    assert notes == ["its colours are multiplied by alpha: this is undone"] * undone


def test_multiplied_colours_are_divided_by_alpha_and_rounded():
    colours, alpha = (each[..., None].astype(np.uint8) for each in np.indices((256, 256)))
    wanted = np.floor(colours * 255.0 / np.maximum(alpha, 1) + 0.5).clip(max=255)
    wanted = np.where(alpha > 0, wanted, colours)
    for part in (slice(None), slice(0, 255), slice(255, 256)):  # mixed, none opaque, all opaque
        found = slides.undo_alpha(colours[:, part], alpha[:, part], 255)
        assert found.dtype == np.uint8 and np.array_equal(found, wanted[:, part])


def test_only_formats_that_may_have_16_bits_are_asked_for_more_than_dark_colours(tmp_path):
    dark = np.full((9, 11, 3), 20, np.uint8)
    for name, image in (("a.bmp", dark), ("b.pgm", dark[..., 0])):
        Image.fromarray(image).save(tmp_path / name)
    assert (open_slide(tmp_path / "a.bmp").read_all() == 20).all()
    assert (open_slide(tmp_path / "b.pgm").read_all() == 20).all()
