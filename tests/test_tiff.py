"""TIFF: each row of the table in `minseg.files.slides` is read, or refused, as it says."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from minseg.files.pixel_size import is_resized, micrometres
from minseg.files.slides import open_slide, open_source
from minseg.files.tiff import Mapped, Segments


def noise(*shape, dtype=np.uint8, highest=None, seed=0):
    highest = np.iinfo(dtype).max if highest is None else highest
    return np.random.default_rng(seed).integers(0, highest + 1, shape).astype(dtype)


RGB, SMALL, GREY = noise(48, 64, 3), noise(24, 32, 3, seed=1), noise(48, 64)


def read(path, **options):
    return open_slide(path, **options).read_all()


def refusal(path, **options):
    """The one line that says why a file is not read."""
    with pytest.raises(ValueError) as error:
        open_slide(path, **options).read_all()
    text = str(error.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    return text.removeprefix(f"{path}: ")


# Which image is meant


def write_pages(path, *pages, ome=False, **options):
    with tifffile.TiffWriter(path, ome=ome) as file:
        for i, page in enumerate(pages):
            metadata = {"axes": "YXS", "Name": f"image {i}"} if ome else None
            file.write(page, photometric="rgb", metadata=metadata, **options)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("ome", [False, True])
def test_of_several_images_the_largest_is_read(tmp_path, order, ome):
    pages = [SMALL, RGB]
    write_pages(tmp_path / "a.tif", *(pages[i] for i in order), ome=ome)
    assert np.array_equal(read(tmp_path / "a.tif"), RGB)


def test_the_scan_of_a_leica_file_is_read_and_not_its_macro_image(tmp_path):
    def image(name, *sizes):  # (width, height, page) of each level
        levels = "".join(f'<dimension sizeX="{w}" sizeY="{h}" r="{r}" ifd="{page}"/>'
                         for r, (w, h, page) in enumerate(sizes))
        w, h, _ = sizes[0]
        return (f'<image name="{name}"><pixels sizeX="{w}" sizeY="{h}">{levels}</pixels></image>')

    xml = ('<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
           '<collection name="c" sizeX="1" sizeY="1">' + image("macro", (32, 24, 0))
           + image("scan", (64, 48, 1), (32, 24, 2)) + "</collection></scn>")
    with tifffile.TiffWriter(tmp_path / "a.scn", bigtiff=True) as file:
        options = {"photometric": "rgb", "metadata": None, "tile": (16, 16)}
        file.write(SMALL, description=xml, **options)
        file.write(RGB, **options)
        file.write(np.full((24, 32, 3), 7, np.uint8), **options)
    assert np.array_equal(read(tmp_path / "a.scn"), RGB)
    assert (read(tmp_path / "a.scn", scale=2) == 7).all()  # its own second level


def test_label_and_macro_image_of_an_aperio_file_are_not_the_scan(tmp_path):
    text = ("Aperio Image Library v11.2.1 \r\n64x48 [0,0 64x48] (16x16) JPEG|AppMag = 20|"
            "MPP = 0.4990")
    with tifffile.TiffWriter(tmp_path / "a.svs") as file:
        options = {"photometric": "rgb", "metadata": None}
        file.write(RGB, tile=(16, 16), description=text, **options)
        file.write(SMALL, description="Aperio thumbnail", **options)
        file.write(SMALL[:9], subfiletype=1, description="Aperio\nlabel 1x1", **options)
        file.write(SMALL[:7], subfiletype=9, description="Aperio\nmacro 1x1", **options)
    assert np.array_equal(read(tmp_path / "a.svs"), RGB)
    assert open_slide(tmp_path / "a.svs").microns == 0.499


@pytest.mark.parametrize("size", [(63, 48), (65, 48), (64, 47), (64, 49), (64, 48)])
def test_a_level_may_be_off_by_less_than_a_pixel(tmp_path, size):
    image = np.zeros((128, 96, 3), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.svs") as file:
        options = {"photometric": "rgb", "metadata": None,
                   "description": "Aperio Image Library v11\r\n96x128"}
        file.write(image, tile=(32, 32), **options)
        file.write(image[:12, :9], **options)  # the thumbnail
        file.write(np.full((*size, 3), 10, np.uint8), tile=(32, 32), **options)
    used = open_slide(tmp_path / "a.svs", 2).read_all()
    assert (used == (10 if size == (64, 48) else 0)).all() and used.shape == (64, 48, 3)


def test_a_transparency_mask_is_not_the_image(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GREY > 9, subfiletype=4, photometric="minisblack", metadata=None)
        file.write(RGB, photometric="rgb", metadata=None)
    assert np.array_equal(read(tmp_path / "a.tif"), RGB)


def test_two_images_of_one_size_are_refused(tmp_path):
    write_pages(tmp_path / "a.ome.tif", RGB, 255 - RGB, ome=True)
    assert "save only the one you need" in refusal(tmp_path / "a.ome.tif")
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:  # grey and colour are two kinds of page
        file.write(GREY, photometric="minisblack", metadata=None)
        file.write(RGB, photometric="rgb", metadata=None)
    assert "contains 2 images of 48 x 64 pixels" in refusal(tmp_path / "b.tif")


@pytest.mark.parametrize("count", [2, 3, 4])
def test_pages_of_one_size_are_images_and_not_channels(tmp_path, count):
    pages = [Image.fromarray(noise(48, 64, seed=i)) for i in range(count)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert f"contains {count} images of 48 x 64 pixels" in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("maker, tags", [
    ("Trestle", {"software": "MedScan", "description": "OverlapsXY=8 8 4 4"}),
    ("Ventana", {"software": "ScanOutputManager", "extratags": [(700, 1, 7, b"<iScan/>", True)]}),
])
def test_files_whose_tiles_overlap_are_refused(tmp_path, maker, tags):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", tile=(16, 16), metadata=None,
                     **tags)
    assert f"{maker}'s tiles overlap" in refusal(tmp_path / "a.tif")


# What its channels are


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind, extra", [("minisblack", [0]), ("minisblack", [0, 0, 0]),
                                         ("minisblack", [1, 0]), ("minisblack", [0, 2])])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_channels_that_are_not_declared_as_alpha_are_refused(tmp_path, dtype, kind, extra, planar):
    pixels = noise(48, 64, 1 + len(extra), dtype=dtype)
    pixels = np.moveaxis(pixels, 2, 0) if planar == "separate" else pixels
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=kind, planarconfig=planar,
                     extrasamples=extra, metadata=None)
    assert "ExtraSamples" in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("alpha", ["assocalpha", "unassalpha"])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_alpha_is_dropped(tmp_path, alpha, colours, planar):
    pixels = noise(48, 64, colours + 1)
    stored = np.moveaxis(pixels, 2, 0) if planar == "separate" else pixels
    tifffile.imwrite(tmp_path / "a.tif", stored, planarconfig=planar, extrasamples=[alpha],
                     photometric="rgb" if colours == 3 else "minisblack", metadata=None)
    assert np.array_equal(read(tmp_path / "a.tif"), np.broadcast_to(pixels[..., :colours],
                                                                    (48, 64, 3)))
    assert not open_slide(tmp_path / "a.tif").notes


@pytest.mark.parametrize("dtype, white", [(np.uint8, 255), (np.uint16, 65535)])
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_that_are_multiplied_by_alpha_are_divided_by_it(tmp_path, dtype, white, channels):
    """Porter and Duff, Compositing Digital Images (1984), section 3: stored = colour * alpha."""
    colours = noise(48, 64, channels).astype(dtype) * (white // 255)
    alpha = np.full((48, 64, 1), white, dtype)
    alpha[:16], alpha[16:32] = white // 3, 0
    stored = (colours.astype(np.uint64) * alpha + white // 2) // white
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([stored.astype(dtype), alpha]), metadata=None,
                     photometric="rgb" if channels == 3 else "minisblack",
                     extrasamples=["assocalpha"], tile=(16, 16))
    got, wanted = read(tmp_path / "a.tif").astype(int), noise(48, 64, channels).astype(int)
    assert abs(got[:16] - wanted[:16]).max() <= (1 if dtype == np.uint8 else 0)
    assert (got[16:32] == 0).all()  # lost
    assert np.array_equal(got[32:], np.broadcast_to(wanted[32:], (16, 64, 3)))
    assert open_slide(tmp_path / "a.tif").notes == [
        "its colours are multiplied by alpha: this is undone"]


def test_what_a_lossy_compression_changes_does_not_hide_that_colours_are_multiplied(tmp_path):
    alpha = np.linspace(0, 255, 48 * 64).reshape(48, 64, 1).astype(np.uint8)
    stored = (np.full((48, 64, 3), 250) * (alpha / 255)).round().astype(np.uint8)
    stored[::12, ::12] = np.minimum(stored[::12, ::12] + 40.0, 255)  # a few are far too large
    tifffile.imwrite(tmp_path / "a.tif", np.dstack([stored, alpha]), photometric="rgb",
                     extrasamples=["assocalpha"], metadata=None)
    got = read(tmp_path / "a.tif")[24:].astype(int)
    assert abs(got - 250).max() <= 5
    assert open_slide(tmp_path / "a.tif").notes == [
        "its colours are multiplied by alpha: this is undone"]


def test_opaque_colours_need_no_note_about_alpha(tmp_path):
    pixels = np.dstack([RGB, np.full((48, 64), 255, np.uint8)])
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["assocalpha"])
    assert np.array_equal(read(tmp_path / "a.tif"), RGB)
    assert not open_slide(tmp_path / "a.tif").notes


def test_colours_larger_than_alpha_were_not_multiplied_by_it(tmp_path):
    """SimpleITK 2.5.7 writes RGBA as it is, and declares it as multiplied."""
    pixels = np.dstack([RGB, np.full((48, 64), 128, np.uint8)])
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["assocalpha"])
    assert np.array_equal(read(tmp_path / "a.tif"), RGB)


def test_a_fourth_channel_beside_red_green_and_blue_is_ignored_with_a_note(tmp_path):
    pixels = noise(48, 64, 4)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(read(tmp_path / "a.tif"), pixels[..., :3])
    assert open_slide(tmp_path / "a.tif").notes == [
        "its fourth channel is ignored: it is not declared as alpha"]


@pytest.mark.parametrize("names, colours", [
    (["DAPI", "FITC", "TRITC"], False), (["Red", "Green", "Blue"], True), (["r", "g", "b"], True),
    (["Blue", "Green", "Red"], False), (["CD3", "CD8", "CD20"], False), (["Red"] * 3, False),
    (["405", "488", "561"], False), (["Cy3", "Cy5", "Cy7"], False),
    (["Channel 0", "Channel 1", "Channel 2"], None), (["C:0", "C:1", "C:2"], None), (None, None),
    (["c:1/3 - a", "c:2/3 - a", "c:3/3 - a"], None), (["0:Red", "1:Green", "2:Blue"], True)])
def test_three_channels_are_colours_unless_their_names_are_stains(tmp_path, names, colours):
    pixels = np.moveaxis(RGB, 2, 0)
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, photometric="minisblack",
                     metadata={"axes": "CYX", **({"Channel": {"Name": names}} if names else {})})
    if colours is False:
        assert f"its channels are {', '.join(names)}: " in refusal(tmp_path / "a.ome.tif")
    else:
        assert np.array_equal(read(tmp_path / "a.ome.tif"), RGB)
        assert bool(open_slide(tmp_path / "a.ome.tif").notes) == (colours is None)


def test_stains_are_recognised_by_the_name_of_the_dye_and_by_imagejs_labels(tmp_path):
    pixels = np.moveaxis(RGB, 2, 0)
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, photometric="minisblack", metadata={
        "axes": "CYX", "Channel": {"Fluor": ["DAPI", "GFP", "mCherry"]}})
    tifffile.imwrite(tmp_path / "b.tif", pixels, imagej=True, metadata={
        "axes": "CYX", "Labels": ["DAPI", "GFP", "mCherry"]})
    for name in ("a.ome.tif", "b.tif"):
        assert "its channels are DAPI, GFP, mCherry" in refusal(tmp_path / name)


def test_broken_ome_xml_is_ignored(tmp_path):
    text = '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/"><Image></OME>'
    tifffile.imwrite(tmp_path / "a.ome.tif", RGB, photometric="rgb", metadata=None,
                     description=text)
    assert np.array_equal(read(tmp_path / "a.ome.tif"), RGB)


def test_a_note_tells_of_another_image_that_is_nearly_as_large(tmp_path):
    write_pages(tmp_path / "a.tif", RGB, RGB[:47])
    assert np.array_equal(read(tmp_path / "a.tif"), RGB)
    assert open_slide(tmp_path / "a.tif").notes == [
        "also contains an image of 47 x 64 pixels: the larger one is read"]


@pytest.mark.parametrize("layout", ["pages", "planes", "samples"])
def test_three_grey_channels_are_read_as_colours_with_a_note(tmp_path, layout):
    pixels = RGB if layout == "samples" else np.moveaxis(RGB, 2, 0)
    options = {"pages": {}, "planes": {"planarconfig": "separate"},
               "samples": {"planarconfig": "contig"}}[layout]
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", **options)
    assert np.array_equal(read(tmp_path / "a.tif"), RGB)
    assert open_slide(tmp_path / "a.tif").notes == [
        "does not say what its three channels are: they are read as red, green and blue"]


@pytest.mark.parametrize("count", [2, 4, 5])
def test_other_numbers_of_stains_are_refused(tmp_path, count):
    tifffile.imwrite(tmp_path / "a.ome.tif", noise(count, 48, 64), photometric="minisblack",
                     metadata={"axes": "CYX"})
    assert f"contains {count} channels of 48 x 64" in refusal(tmp_path / "a.ome.tif")


# What its numbers are


def packed(values, bits):
    """The bytes of values (H, W) of a few bits each; every row begins at a new byte."""
    ones = (values[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8)
    return np.packbits(ones.reshape(len(values), -1), axis=1).tobytes()


def write_packed(path, values, bits, data=None, compression=1, order=1):
    """Writes a grey TIFF of `bits` bits per value, byte by byte."""
    data = packed(values, bits) if data is None else data
    height, width = values.shape
    entries = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, compression),
               (262, 3, 1), (266, 3, order), (273, 4, 8), (277, 3, 1), (278, 3, height),
               (279, 4, len(data))]
    file = b"II*\0" + (8 + len(data)).to_bytes(4, "little") + data
    file += len(entries).to_bytes(2, "little")
    for code, kind, value in sorted(entries):
        file += b"".join(n.to_bytes(k, "little") for n, k in ((code, 2), (kind, 2), (1, 4),
                                                              (value, 4)))
    path.write_bytes(file + bytes(4))


@pytest.mark.parametrize("bits", [1, 2, 4, 10, 12, 14])
def test_few_bits_are_scaled_to_eight(tmp_path, bits):
    if bits > 1:
        pytest.importorskip("imagecodecs", reason="python -m pip install -e '.[codecs]'")
    values = noise(20, 33, dtype=np.uint16, highest=2**bits - 1)
    write_packed(tmp_path / "a.tif", values, bits)
    wanted = np.floor(values * 255.0 / (2**bits - 1) + 0.5)
    assert np.array_equal(read(tmp_path / "a.tif"), np.dstack([wanted] * 3))
    assert not open_slide(tmp_path / "a.tif").notes


def test_few_bits_without_a_decoder_are_refused_with_the_remedy(tmp_path):
    try:
        import imagecodecs  # noqa: F401
        pytest.skip("imagecodecs is installed")
    except ImportError:
        write_packed(tmp_path / "a.tif", noise(20, 33, highest=3), 2)
        assert "2 bits needs the codecs extra" in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("white", [1023, 4095, 4000])
def test_sixteen_bits_are_scaled_by_the_largest_value_that_the_file_names(tmp_path, white):
    values = noise(48, 64, 3, dtype=np.uint16, highest=white)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", metadata=None,
                     extratags=[(341, 3, 3, (white,) * 3, True)])
    wanted = np.floor(values * 255.0 / white + 0.5)
    assert np.array_equal(read(tmp_path / "a.tif"), wanted)
    assert open_slide(tmp_path / "a.tif").notes == (
        ["its SMaxSampleValue, 4000, is taken as white"] if white == 4000 else [])
    assert np.array_equal(read(tmp_path / "a.tif", white=60_000), wanted)  # the file knows better


def test_maxima_that_differ_between_channels_are_only_statistics(tmp_path):
    values = noise(48, 64, 3, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", metadata=None,
                     extratags=[(341, 3, 3, (2999, 2899, 2699), True)])
    assert np.array_equal(read(tmp_path / "a.tif"), np.round(values / 257))


@pytest.mark.parametrize("says", [True, False])
def test_a_note_tells_of_values_above_white(tmp_path, says):
    values = noise(48, 64, dtype=np.uint16, highest=4095)
    tifffile.imwrite(tmp_path / "a.tif", values, metadata=None,
                     extratags=[(341, 3, 1, 1023, True)] * says)
    slide = open_slide(tmp_path / "a.tif", white=None if says else 1023)
    remedy = "" if says else " (--white 4095 would keep them)"  # the file's word is taken
    assert slide.notes == [
        f"contains values above 1023, which is taken as white: they are clipped{remedy}"]
    assert np.array_equal(slide.read_all()[..., 0],
                          np.floor(np.minimum(values, 1023) * 255.0 / 1023 + 0.5))


def test_a_note_tells_of_sixteen_bit_values_above_a_white_of_255(tmp_path):
    values = noise(48, 64, dtype=np.uint16, highest=600)
    tifffile.imwrite(tmp_path / "a.tif", values, metadata=None,
                     extratags=[(341, 3, 1, 255, True)])
    assert "above 255" in open_slide(tmp_path / "a.tif").notes[0]
    assert np.array_equal(read(tmp_path / "a.tif")[..., 0], np.minimum(values, 255))


@pytest.mark.parametrize("metadata", [{"PhysicalSizeX": "0,5"}, {"SignificantBits": "eight"},
                                      {"SignificantBits": 0}])
def test_metadata_that_are_not_numbers_are_ignored(tmp_path, metadata):
    tifffile.imwrite(tmp_path / "a.ome.tif", GREY, metadata={"axes": "YX", **metadata})
    assert np.array_equal(read(tmp_path / "a.ome.tif")[..., 0], GREY)
    assert open_slide(tmp_path / "a.ome.tif").microns is None


@pytest.mark.parametrize("layout", [{"tile": (16, 16)}, {"rowsperstrip": 16}])
def test_the_pixel_size_is_aperios_in_tiles_and_in_strips(tmp_path, layout):
    tifffile.imwrite(tmp_path / "a.svs", RGB, photometric="rgb", metadata=None, **layout,
                     description="Aperio Image Library v11\r\n64x48 |AppMag = 20|MPP = 0.499")
    assert open_slide(tmp_path / "a.svs").microns == 0.499


def test_a_pixel_size_from_aperio_that_is_not_a_number_is_ignored(tmp_path):
    tifffile.imwrite(tmp_path / "a.svs", RGB, photometric="rgb", tile=(16, 16), metadata=None,
                     description="Aperio Image Library v11\r\n64x48 |MPP = 0.2.5")
    assert np.array_equal(read(tmp_path / "a.svs"), RGB)
    assert open_slide(tmp_path / "a.svs").microns is None


def test_eight_bits_are_scaled_where_the_file_names_fewer_but_not_by_its_statistics(tmp_path):
    for largest, scaled in ((15, True), (243, False)):
        values = noise(48, 64, highest=largest)
        tifffile.imwrite(tmp_path / "a.tif", values, metadata=None,
                         extratags=[(341, 3, 1, largest, True)])
        wanted = values * 17 if scaled else values
        assert np.array_equal(read(tmp_path / "a.tif")[..., 0], wanted)


def test_omes_significant_bits_are_used(tmp_path):
    values = noise(48, 64, dtype=np.uint16, highest=4095)
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata={"axes": "YX", "SignificantBits": 12})
    wanted = np.floor(values * 255.0 / 4095 + 0.5)
    assert np.array_equal(read(tmp_path / "a.ome.tif")[..., 0], wanted)


def test_a_largest_value_below_that_of_omes_bits_is_white(tmp_path):
    values = noise(48, 64, dtype=np.uint16, highest=255)
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata={"axes": "YX", "SignificantBits": 9},
                     extratags=[(341, 3, 1, 255, True)])
    assert np.array_equal(read(tmp_path / "a.ome.tif")[..., 0], values)
    assert open_slide(tmp_path / "a.ome.tif").notes == []


def test_a_note_tells_of_dark_sixteen_bit_values_and_white_remedies_them(tmp_path):
    values = noise(480, 640, 3, dtype=np.uint16, highest=4000)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    slide = open_slide(tmp_path / "a.tif")
    assert slide.read_all().max() == 16
    note, = slide.notes
    assert "less than a quarter" in note and note.endswith("pass --white 4095")
    bright = open_slide(tmp_path / "a.tif", white=4095)
    assert not bright.notes
    assert np.array_equal(bright.read_all(), np.floor(values * 255.0 / 4095 + 0.5))
    assert (open_slide(tmp_path / "a.tif", white=100).read_all()[values >= 100] == 255).all()


def test_sixteen_bit_values_that_use_their_range_need_no_note(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(48, 64, dtype=np.uint16))
    assert not open_slide(tmp_path / "a.tif").notes


@pytest.mark.parametrize("white", [0, -1, 65536])
def test_white_must_be_a_sixteen_bit_value(tmp_path, white):
    tifffile.imwrite(tmp_path / "a.tif", GREY)
    with pytest.raises(ValueError, match=f"not {white}"):
        open_slide(tmp_path / "a.tif", white=white)


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("held", [2**26, 2**6])
def test_bits_may_be_stored_the_other_way_round(tmp_path, compression, bits, held, monkeypatch):
    monkeypatch.setattr("minseg.files.tiff.HELD", held)
    values = noise(48, 64, highest=2**bits - 1)
    data = packed(values, bits)
    data = np.frombuffer(zlib.compress(data) if compression == 8 else data, np.uint8)
    data = np.packbits(np.unpackbits(data, bitorder="little")).tobytes()
    write_packed(tmp_path / "a.tif", values, bits, data, compression, order=2)
    wanted = values if bits == 8 else values * 255
    assert np.array_equal(read(tmp_path / "a.tif")[..., 0], wanted)


def test_jpeg_2000_in_ycbcr_is_refused(tmp_path):
    pytest.importorskip("imagecodecs", reason="python -m pip install -e '.[codecs]'")
    tifffile.imwrite(tmp_path / "a.svs", RGB, photometric="rgb", compression=33003, tile=(16, 16))
    assert "YCbCr in JPEG 2000: save it as RGB" in refusal(tmp_path / "a.svs")


@pytest.mark.parametrize("software", ["tifffile.py", False])
@pytest.mark.parametrize("image", [RGB, GREY], ids=["RGB", "grey"])
def test_jpeg_2000_that_may_be_ycbcr_of_libvips_8_14_is_refused(tmp_path, image, software):
    """libvips names no software in a TIFF, unlike whoever means what "RGB" says."""
    pytest.importorskip("imagecodecs", reason="python -m pip install -e '.[codecs]'")
    tifffile.imwrite(tmp_path / "a.tif", image, compression=33004, tile=(16, 16),
                     compressionargs={"level": 0}, software=software,
                     photometric="rgb" if image.ndim == 3 else "minisblack")
    if image.ndim == 3 and not software:
        assert "holds YCbCr if libvips 8.14 wrote it" in refusal(tmp_path / "a.tif")
    else:
        assert np.array_equal(read(tmp_path / "a.tif"),
                              np.broadcast_to(image.reshape(48, 64, -1), (48, 64, 3)))


# Tiles that are left out


def write_sparse(path, image, nodata=None, tile=16, **options):
    tags = [] if nodata is None else [(42113, 2, None, nodata, True)]
    cells = [image[y : y + tile, x : x + tile] for y in range(0, image.shape[0], tile)
             for x in range(0, image.shape[1], tile)]
    with tifffile.TiffWriter(path) as file:
        file.write(iter([None if (cell == image[0, -1]).all() else cell for cell in cells]),
                   shape=image.shape, dtype=image.dtype, tile=(tile, tile), compression="zlib",
                   metadata=None, extratags=tags, **options)


@pytest.mark.parametrize("dtype, nodata, value", [
    (np.uint8, "255", 255), (np.uint8, "7", 7), (np.uint8, "200.0", 200), (np.uint8, None, 0),
    (np.uint16, "65535", 65535), (np.uint8, "0", 0)])
def test_a_missing_tile_has_the_nodata_value(tmp_path, dtype, nodata, value):
    image = np.full((48, 64, 3), value, dtype)
    image[:16, :16] = noise(16, 16, 3, dtype=dtype)
    write_sparse(tmp_path / "a.tif", image, nodata, photometric="rgb")
    assert isinstance(open_slide(tmp_path / "a.tif")._source.pixels, Segments)
    wanted = image if dtype == np.uint8 else np.round(image / 257)
    assert np.array_equal(read(tmp_path / "a.tif"), wanted)


def test_a_tile_that_is_too_short_is_an_error_of_the_file_and_needs_no_codec(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, tile=(16, 16), metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        counts = file.pages[0].databytecounts
        file.pages[0].tags["TileByteCounts"].overwrite((100, *counts[1:]))
    text = refusal(tmp_path / "a.tif")
    assert text.startswith("cannot be read (") and "codecs" not in text


@pytest.mark.parametrize("photometric, words", [
    ("miniswhite", "its colours are MINISWHITE, where 0 is white: save a slide as RGB, a mask"),
    ("cielab", "its colours are CIELAB: save it as RGB or grey")])
def test_other_colours_are_refused_with_a_remedy_of_their_own(tmp_path, photometric, words):
    image = GREY if photometric == "miniswhite" else RGB
    tifffile.imwrite(tmp_path / "a.tif", image, photometric=photometric, metadata=None)
    assert refusal(tmp_path / "a.tif").startswith(words)


def test_a_missing_tile_of_philips_is_white(tmp_path):
    image = np.full((48, 64, 3), 255, np.uint8)
    image[:16, :16] = noise(16, 16, 3)
    write_sparse(tmp_path / "a.tiff", image, "0", photometric="rgb", software="Philips DP v1.0",
                 description="<?xml version='1.0' ?><DataObject></DataObject>")
    assert np.array_equal(read(tmp_path / "a.tiff"), image)


@pytest.mark.parametrize("options", [
    {"tile": (16, 16)}, {"rowsperstrip": 8}, {"rowsperstrip": 8, "compression": "zlib"}])
def test_a_file_without_any_pixels_is_refused(tmp_path, options):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(64, 48, 3), photometric="rgb", metadata=None, **options)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        tags = [page.tags[code] for code in ((324, 325) if page.is_tiled else (273, 279))]
    with open(path, "r+b") as file:  # as OpenCV 5.0 leaves it where writing fails
        for tag in tags:
            file.seek(tag.valueoffset)
            file.write(bytes(tag.valuebytecount))
    assert "holds no pixels, only a header" in refusal(path)


@pytest.mark.parametrize("nodata", ["-9999", "nan", "256", "inf", "0.5", "none"])
def test_a_nodata_value_that_no_pixel_can_have_is_refused_if_tiles_are_missing(tmp_path, nodata):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:16, :16] = noise(16, 16, 3)
    write_sparse(tmp_path / "a.tif", image, nodata, photometric="rgb")
    assert f"value should be {nodata}" in refusal(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", image, photometric="rgb", tile=(16, 16), metadata=None,
                     extratags=[(42113, 2, None, nodata, True)])
    assert np.array_equal(read(tmp_path / "b.tif"), image)


# Which side is up


@pytest.mark.parametrize("layout", ["mapped", "strips", "tiles", "planes"])
@pytest.mark.parametrize("orientation, turn", [
    (1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]),
    (4, lambda a: a[::-1]), (5, lambda a: a.swapaxes(0, 1)), (6, lambda a: np.rot90(a, -1)),
    (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)), (8, np.rot90), (9, lambda a: a)])
def test_orientation_is_applied(tmp_path, layout, orientation, turn):
    options = {"mapped": {}, "strips": {"rowsperstrip": 5, "compression": "zlib"},
               "tiles": {"tile": (16, 32), "compression": "zlib"},
               "planes": {"planarconfig": "separate"}}[layout]
    image = np.moveaxis(RGB, 2, 0) if layout == "planes" else RGB
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", metadata=None, **options,
                     extratags=[(274, 3, 1, orientation, True)])
    wanted = turn(RGB)
    slide = open_slide(tmp_path / "a.tif")
    assert (slide.full_height, slide.full_width) == wanted.shape[:2]
    assert np.array_equal(slide.read_all(), wanted)
    for y, x, h, w in ((0, 0, 1, 1), (3, 5, 17, 20), (40, 30, 8, 18)):
        assert np.array_equal(slide.read(y, x, h, w), wanted[y : y + h, x : x + w])
    told = [f"is rotated or mirrored as its orientation tag ({orientation}) says"]
    assert slide.notes == (told if 1 < orientation < 9 else [])
    half = open_slide(tmp_path / "a.tif", 2).read_all()
    assert np.array_equal(half, np.floor(wanted.reshape(wanted.shape[0] // 2, 2, -1, 2, 3).mean(
        (1, 3)) + 0.5))


# The size of a pixel


@pytest.mark.parametrize("dots, unit", [
    (72, 2), (96, 2), (150, 2), (300, 2), (600, 2), (25.4, 2), (96.012, 2), (71.98, 2), (333.3, 2),
    (72 / 2.54, 3), (10, 3), (28.34, 3), (37.8, 3), (236, 3), (1, 3)])
def test_a_resolution_of_paper_is_not_a_pixel_size(tmp_path, dots, unit):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", resolution=(dots, dots),
                     resolutionunit=unit, metadata=None)
    assert open_slide(tmp_path / "a.tif").microns is None


@pytest.mark.parametrize("dots, unit, microns", [
    (20_000, 3, 0.5), (101_600, 2, 0.25), (1270, 2, 20), (500, 3, 20), (10_000_000, 3, 0.001),
    (20_000, 1, None)])
def test_a_finer_resolution_is_the_pixel_size(tmp_path, dots, unit, microns):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", resolution=(dots, dots),
                     resolutionunit=unit, metadata=None)
    assert open_slide(tmp_path / "a.tif").microns == microns


def write_sizes(path, source, x, y):
    """A file whose pixels are x times y micrometres; y may be None."""
    if source == "ome":
        sizes = {"PhysicalSizeX": x, "PhysicalSizeXUnit": "µm"}
        if y:  # in a unit of its own
            sizes.update(PhysicalSizeY=1000 * y, PhysicalSizeYUnit="nm")
        tifffile.imwrite(path, RGB, photometric="rgb", metadata={"axes": "YXS", **sizes}, ome=True)
    else:
        scale = 1 if source == "imagej" else 1e4
        tifffile.imwrite(path, RGB, photometric="rgb", metadata=None,
                         resolution=(scale / x, scale / (y or 1)),
                         description="ImageJ=1.53t\nunit=um\n" if source == "imagej" else None,
                         resolutionunit=1 if source == "imagej" else 3)
        if not y:
            with tifffile.TiffFile(path, mode="r+") as file:
                file.pages[0].tags["YResolution"].overwrite((0, 1))


@pytest.mark.parametrize("source", ["ome", "imagej", "tags"])
def test_the_square_of_the_pixel_size_is_the_area_of_a_pixel(tmp_path, source):
    for name, x, y, shown in (("a", 0.25, 0.5, "0.25 x 0.5"), ("b", 0.5, 0.5, None),
                              ("c", 0.5, None, None), ("d", 0.5, 0.504, None),
                              ("e", 0.5, 0.506, "0.5 x 0.506")):
        write_sizes(tmp_path / f"{name}.tif", source, x, y)
        slide = open_slide(tmp_path / f"{name}.tif")
        assert slide.microns**2 == pytest.approx(x * (y or x), rel=1e-5)
        assert slide.microns == x or x != (y or x)  # without a rounding error
        assert slide.notes == ([f"its pixels are {shown} µm (x, y): areas in µm² are right, but "
                                "objects look stretched beside those of slides whose pixels are "
                                "square"] if shown else [])


@pytest.mark.parametrize("orientation", range(1, 10))
def test_of_a_slide_on_its_side_width_and_height_are_those_that_are_shown(tmp_path, orientation):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", metadata=None,
                     resolution=(20_000, 40_000), resolutionunit=3,
                     extratags=[(274, 3, 1, orientation, True)])
    shown = "0.25 x 0.5 µm (x, y)" if 4 < orientation < 9 else "0.5 x 0.25 µm (x, y)"
    assert any(shown in note for note in open_slide(tmp_path / "a.tif").notes)


@pytest.mark.parametrize("unit, size, microns", [
    ("µm", 0.25, 0.25), ("nm", 250, 0.25), ("mm", 0.00025, 0.25), ("cm", 0.000025, 0.25),
    ("Å", 40, 0.004), ("pm", 4000, 0.004), (None, 0.25, 0.25), ("pixel", 0.25, None),
    ("reference frame", 0.25, None)])
def test_ome_states_the_pixel_size(tmp_path, unit, size, microns):
    metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size}
    if unit:
        metadata.update(PhysicalSizeXUnit=unit, PhysicalSizeYUnit=unit)
    tifffile.imwrite(tmp_path / "a.ome.tif", RGB, photometric="rgb", metadata=metadata,
                     resolution=(5000, 5000), resolutionunit="CENTIMETER")
    assert open_slide(tmp_path / "a.ome.tif").microns == (microns and pytest.approx(microns))


def write_philips(path, spacings, end="</DataObject>"):
    """A TIFF with the XML of Philips, in which each of `spacings` is the text of an attribute."""
    attributes = "".join(f'<Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" Element="0x0030" '
                         f'PMSVR="IDoubleArray">{text}</Attribute>' for text in spacings)
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(16, 16), metadata=None,
                     software="Philips DP v1.0", resolution=(5000, 5000), resolutionunit=3,
                     description=f'<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType='
                                 f'"DPUfsImport">{attributes}{end}')


@pytest.mark.parametrize("spacings, size", [
    (['"0.0005" "0.00025"'], (0.25, 0.5)),  # of rows, then of columns, in millimetres
    (['"0.0005" "0.00025"'] * 2 + ['"0.001" "0.0005"'], (0.25, 0.5)),  # scan, then levels
    (["&quot;0.000226891&quot; &quot;0.000226907&quot;"], (0.226907, 0.226891)),
    (['"0.0005" "0"', '"0.0005" "0.00025"'], (0.25, 0.5)),
    (['"0.0005"'], None), (['"a" "b"'], None),
    ([""], None), ([], None)])
def test_philips_states_the_pixel_size_in_its_xml(tmp_path, spacings, size):
    write_philips(tmp_path / "a.tiff", spacings)
    slide = open_slide(tmp_path / "a.tiff")
    assert slide.pixel_size == (size and pytest.approx(size))
    assert np.array_equal(slide.read_all(), RGB)


def test_damaged_xml_of_philips_states_no_pixel_size(tmp_path):
    write_philips(tmp_path / "a.tiff", ['"0.0005" "0.0005"'], end="<</DataObject>")
    assert open_slide(tmp_path / "a.tiff").pixel_size is None


@pytest.mark.parametrize("text, microns", [
    ("0.2527", 0.2527), ("2.527e-1", 0.2527), ("0,2527", 0.2527), ("0.2527 um", None),
    ("", None), ("0", None), ("-0.25", None), ("nan", None)])
def test_aperios_text_states_the_pixel_size_or_none(tmp_path, text, microns):
    tifffile.imwrite(tmp_path / "a.svs", RGB, photometric="rgb", metadata=None, tile=(16, 16),
                     description=f"Aperio Image Library v11\r\n64x48 |MPP = {text}|AppMag = 20")
    assert open_slide(tmp_path / "a.svs").microns == microns


@pytest.mark.parametrize("source, size", [
    ("OME", 264.6), ("OME", 0.0001), ("Aperio", 1000), ("Philips", 353)])
def test_a_stated_size_that_no_slide_has_is_ignored_with_a_note(tmp_path, source, size):
    """Other programs turn a resolution that means nothing into such a text."""
    path = tmp_path / "a.tif"
    if source == "OME":
        tifffile.imwrite(path, RGB, photometric="rgb", ome=True, metadata={
            "axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeY": size})
    elif source == "Philips":
        write_philips(path, [f'"{size / 1000}" "{size / 1000}"'])
    else:
        tifffile.imwrite(path, RGB, photometric="rgb", metadata=None,
                         description=f"Aperio Image Library v11\r\n64x48 |MPP = {size}")
    slide = open_slide(path)
    assert slide.microns is None and slide.pixel_size is None
    [note] = slide.notes
    assert f"states a pixel of {size:.4g} x {size:.4g} µm, which no slide has" in note


@pytest.mark.parametrize("x, y", [(0.5, 0.0001), (0.0001, 0.5), (0.5, 50), (50, 0.5)])
def test_a_stated_size_is_ignored_if_one_side_is_that_of_no_slide(tmp_path, x, y):
    write_sizes(tmp_path / "a.tif", "ome", x, y)
    slide = open_slide(tmp_path / "a.tif")
    assert slide.pixel_size is None and "which no slide has" in slide.notes[0]


def remove_tag(path, code, kind):
    """Gives a number that nobody reads to a tag with one value of this type."""
    content, tag = path.read_bytes(), struct.pack("<HHI", code, kind, 1)
    assert content.count(tag) == 1
    path.write_bytes(content.replace(tag, struct.pack("<HHI", 281, kind, 1)))


def test_without_a_unit_the_resolution_is_per_inch(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", resolution=(101_600, 101_600),
                     resolutionunit=2, metadata=None)
    remove_tag(tmp_path / "a.tif", 296, 3)
    assert open_slide(tmp_path / "a.tif").microns == 0.25


def test_a_unit_without_a_resolution_is_no_size(tmp_path):
    write_sizes(tmp_path / "a.tif", "imagej", 0.5, 0.5)
    remove_tag(tmp_path / "a.tif", 282, 5)
    assert open_slide(tmp_path / "a.tif").microns is None


@pytest.mark.parametrize("before, now, resized", [
    ((400, 300), (200, 150), True), ((400, 300), (800, 600), True), ((400, 300), (403, 302), False),
    ((400, 300), (404, 303), True), ((400, 300), (200, 151), True), ((400, 300), (600, 454), False),
    ((4, 4), (8, 12), True), ((0, 4), (8, 12), False)])
def test_a_copy_has_the_proportions_of_the_image_to_a_rounding_error(before, now, resized):
    assert is_resized(before, now) is resized


@pytest.mark.parametrize("unit, metres", [
    ("pm", 1e-12), ("Å", 1e-10), ("nm", 1e-9), ("µm", 1e-6), ("um", 1e-6), ("micron", 1e-6),
    ("microns", 1e-6), ("mm", 1e-3), ("cm", 1e-2), ("m", 1), ("inch", 0.0254), ("in", 0.0254),
    ("pixel", 0), (None, 0)])
def test_a_unit_has_its_length(unit, metres):
    assert micrometres(unit) == pytest.approx(1e6 * metres, rel=1e-9)


def test_a_resolution_finer_than_a_nanometre_is_not_a_pixel_size(tmp_path):
    """Metres, written where millimetres were meant."""
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", metadata=None, resolutionunit=2,
                     resolution=(25.4 / 0.25e-6, 25.4 / 0.25e-6))
    assert open_slide(tmp_path / "a.tif").microns is None
    write_sizes(tmp_path / "b.tif", "ome", 0.001, None)
    assert open_slide(tmp_path / "b.tif").microns == 0.001


@pytest.mark.parametrize("unit, dots, microns", [(3, 20_000, 0.5), (2, 50_800, 0.5), (3, 20, None),
                                                 (1, 2, 0.5)])
def test_imagejs_unit_counts_only_beside_no_other(tmp_path, unit, dots, microns):
    """libvips copies the text, and writes the resolution anew, per centimetre or inch."""
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", metadata=None, resolutionunit=unit,
                     resolution=(dots, dots), description="ImageJ=1.53t\nunit=um\n")
    assert open_slide(tmp_path / "a.tif").microns == microns


@pytest.mark.parametrize("kind, text, kept", [
    ("Aperio", "64x48 [0,0 64x48] (16x16)", True), ("Aperio", "90x80 [9,8 64x48] (16x16)", True),
    ("Aperio", "90x80 [9,8,64x48] (16x16)", True), ("Aperio", "64x48 (16x16)", True),
    ("Aperio", "64x48 [0,0 64x49]", True), ("Aperio", "J2K", True),
    ("Aperio", "128x96 [0,0 128x96] (16x16) -> 64x48", False),
    ("Aperio", "256x192 [0,100 128x96] (16x16)", False), ("Aperio", "32x24 (16x16)", False),
    ("Aperio", "640x481 [0,0 640x481]", False), ("Aperio", "640x640 [0,0 640x640]", True),
    ("OME", (64, 48), True), ("OME", (128, 96), False), ("OME", (200, 96), True),
    ("OME", (48, 64), True), ("shape", "[48, 64, 3]", True), ("shape", "[96, 128, 3]", False),
    ("shape", "[3, 96, 128]", False), ("shape", "[1, 48, 64, 3]", True),
    ("shape", "[90, 64, 3]", True), ("Philips", (128, 96), False), ("Philips", (64, 48), True),
    ("Philips", (90, 50), True)])
def test_what_a_text_says_of_an_image_of_another_size_is_not_its_pixel_size(
        tmp_path, kind, text, kept):
    """A copy that was made smaller keeps the text and the tags. A part that was cut out of an image
    has pixels of the same size."""
    dots = 20_000 if kind == "shape" else 40_000  # a text that states a size precedes the tags
    options = {"photometric": "rgb", "metadata": None, "resolution": (dots, dots),
               "resolutionunit": 3, "tile": (16, 16)}
    if kind == "OME":
        text = ('<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/'
                'Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder='
                '"XYCZT" Type="uint8" SizeX="{}" SizeY="{}" SizeC="3" SizeZ="1" SizeT="1" '
                'PhysicalSizeX="0.5" PhysicalSizeY="0.5"><Channel SamplesPerPixel="3"/>'
                '<TiffData/></Pixels></Image></OME>').format(*text)
    elif kind == "shape":
        text = f'{{"shape": {text}}}'
    elif kind == "Philips":
        options["software"] = "Philips DP v1.0"
        levels = "".join(
            f'<Attribute Name="DICOM_PIXEL_SPACING">"{0.0005 * k}" "{0.0005 * k}"</Attribute>'
            f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_COLUMNS">{text[0] // k}</Attribute>'
            f'<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_ROWS">{text[1] // k}</Attribute>'
            for k in (1, 2))
        text = ('<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
                '<Attribute Name="DICOM_PIXEL_SPACING">"0.0005" "0.0005"</Attribute>'
                f"{levels}</DataObject>")
    else:
        text = f"Aperio Image Library v11.2.1\r\n{text} JPEG/RGB Q=30|AppMag = 20|MPP = 0.5"
    tifffile.imwrite(tmp_path / "a.tif", RGB, description=text, **options)
    slide = open_slide(tmp_path / "a.tif")
    assert slide.microns == (0.5 if kept else None)
    assert [("it was made smaller or larger since" in note) for note in slide.notes] == (
        [] if kept else [True])
    assert np.array_equal(slide.read_all(), RGB)


@pytest.mark.parametrize("text", [
    "ImageJ=1.11a\nimages=1\nhyperstack=true\nmode=grayscale\nunit=um\n",
    '{"image_description": "{\\"shape\\": [48, 64, 3]}"}'], ids=["ImageJ", "large-image"])
def test_a_description_that_does_not_fit_the_pages_is_left_unread(tmp_path, text):
    """libvips and GDAL make a pyramid of an ImageJ TIFF and keep its text."""
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for k, image in enumerate((RGB, RGB[::2, ::2])):
            file.write(image, photometric="rgb", metadata=None, tile=(16, 16), description=text,
                       subfiletype=k, resolution=(20_000 >> k,) * 2, resolutionunit=3)
    slide = open_slide(tmp_path / "a.tif")
    assert np.array_equal(slide.read_all(), RGB) and slide.microns == 0.5
    assert np.array_equal(read(tmp_path / "a.tif", scale=2), RGB[::2, ::2])


@pytest.mark.parametrize("options", [{"tile": (16, 16)}, {"rowsperstrip": 16}], ids=str)
def test_each_plane_of_a_jpeg_is_grey(tmp_path, options):
    pytest.importorskip("imagecodecs", reason="python -m pip install -e '.[codecs]'")
    smooth = np.stack(np.meshgrid(np.arange(64), np.arange(48)), 2) * 2
    smooth = np.dstack([smooth, smooth.sum(2) // 2]).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(smooth, 2, 0), photometric="rgb",
                     planarconfig="separate", compression="jpeg", metadata=None, **options)
    assert abs(read(tmp_path / "a.tif").astype(int) - smooth).max() < 9


def test_of_several_images_in_ome_the_one_that_is_read_states_the_pixel_size(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        for image, size in ((SMALL, 8.0), (RGB, 0.5)):
            file.write(image, photometric="rgb", metadata={"axes": "YXS", "PhysicalSizeX": size})
    assert open_slide(tmp_path / "a.ome.tif").microns == 0.5


def test_imagej_states_the_pixel_size(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, imagej=True, resolution=(4, 4),
                     metadata={"unit": "um"})
    assert open_slide(tmp_path / "a.tif").microns == 0.25


@pytest.mark.parametrize("unit, microns", [
    ("micron", 0.25), ("microns", 0.25), ("um", 0.25), ("µm", 0.25), ("\\u00B5m", 0.25),
    ("\\u03BCm", 0.25), ("\\u03bcm", 0.25), ("nm", None), ("mm", None), ("cm", None),
    ("inch", None), ("pixel", None), ("sec", None)])
def test_imagejs_units_are_taken_where_they_are_lengths(tmp_path, unit, microns):
    """Four per millimetre, centimetre or inch is a resolution of paper, and four per nanometre is
    that of no slide."""
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", metadata=None, resolutionunit=1,
                     resolution=(4, 4),
                     description=f"ImageJ=1.53t\nunit={unit}\nloop=false\n".encode("latin-1"))
    assert open_slide(tmp_path / "a.tif").microns == microns


@pytest.mark.parametrize("unit, dots, microns", [
    ("cm", 20_000, 0.5), ("inch", 50_800, 0.5), ("mm", 2000, 0.5), ("nm", 0.25, 0.004)])
def test_imagejs_other_units_may_give_the_size_of_a_slides_pixel(tmp_path, unit, dots, microns):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", metadata=None, resolutionunit=1,
                     resolution=(dots, dots), description=f"ImageJ=1.53t\nunit={unit}\n")
    assert open_slide(tmp_path / "a.tif").microns == microns


def test_a_file_with_fewer_lengths_than_places_of_its_strips_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", metadata=None, rowsperstrip=16,
                     compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages[0].tags["StripByteCounts"].overwrite((9, 9))
    assert "some of its tiles or strips are missing" in refusal(tmp_path / "a.tif")


def test_an_opaque_alpha_does_not_hide_that_16_bit_colours_are_dark(tmp_path):
    values = noise(48, 64, 4, dtype=np.uint16) >> 4
    values[..., 3] = 65535
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    assert any("pass --white 4095" in note for note in open_slide(tmp_path / "a.tif").notes)


@pytest.mark.parametrize("code", [7, 33007, 34892])
def test_each_kind_of_jpeg_is_decoded_with_the_tables_that_its_tiles_share(tmp_path, code):
    pytest.importorskip("imagecodecs", reason="python -m pip install -e '.[codecs]'")
    Image.fromarray(GREY // 8 + 99).save(tmp_path / "a.tif", compression="jpeg")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        assert file.pages[0].jpegtables and file.pages[0].compression == 7
        wanted = file.pages[0].asarray()
        file.pages[0].tags["Compression"].overwrite(code)
    assert np.array_equal(read(tmp_path / "a.tif")[..., 0], wanted)


@pytest.mark.parametrize("held, kind", [(1536, Segments), (1535, Mapped)])
def test_a_strip_larger_than_twice_what_is_held_is_unpacked_into_a_file(
        tmp_path, held, kind, monkeypatch):
    monkeypatch.setattr("minseg.files.tiff.HELD", held)
    tifffile.imwrite(tmp_path / "a.tif", GREY, compression="zlib", rowsperstrip=48)
    assert isinstance(open_source(tmp_path / "a.tif").pixels, kind)
    assert np.array_equal(read(tmp_path / "a.tif")[..., 0], GREY)


def test_a_strip_that_is_read_in_pieces_may_be_cut_in_the_middle_of_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr("minseg.files.tiff.HELD", 1000)
    image = noise(300, 301, 3)  # does not compress, and is read 2**18 bytes at a time
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", compression="zlib",
                     rowsperstrip=300)
    assert (tmp_path / "a.tif").stat().st_size > 2**18
    assert isinstance(open_source(tmp_path / "a.tif").pixels, Mapped)
    assert np.array_equal(read(tmp_path / "a.tif"), image)


def test_a_missing_decoder_is_told_when_the_file_is_opened(tmp_path, monkeypatch):
    def window(*_):
        raise ImportError("LZW needs the 'imagecodecs' package")

    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", compression="zlib", tile=(16, 16))
    monkeypatch.setattr(Segments, "window", window)
    with pytest.raises(ValueError, match="needs the codecs extra"):
        open_slide(tmp_path / "a.tif")


def test_a_note_tells_that_eight_bits_are_scaled_by_a_smaller_value(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(48, 64, highest=127), metadata=None,
                     extratags=[(341, 3, 1, 127, True)])
    assert open_slide(tmp_path / "a.tif").notes == ["its SMaxSampleValue, 127, is taken as white"]
