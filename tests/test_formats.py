"""A slide in another format is refused with the command that makes a TIFF of it, told by its name
or by its content. tests/interop/test_formats.py runs these commands."""

import io
import re
import shlex
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minseg import open_slide
from minseg.files.datasets import find_slides
from minseg.files.formats import FORMATS, OTHER_SLIDES, PICTURES, conversion

PAGE = (Path(__file__).parent.parent / "docs/formats.md").read_text("utf-8")
LARGE_IMAGE = "large_image_converter FILE STEM.tiff --compression deflate"
BIO_FORMATS = ("bfconvert -series 0 -tilex 512 -tiley 512 -compression zlib -bigtiff FILE "
               "STEM.ome.tiff")
VIPS = "vips tiffsave FILE STEM.tiff --tile --compression deflate --bigtiff"
DICOM = bytes(128) + b"DICM" + bytes(100)
DEEP_ZOOM = (b'<?xml version="1.0"?>\n<Image Format="png"\n'
             b' xmlns="http://schemas.microsoft.com/deepzoom/2008"/>')
VMS = b"[Virtual Microscope Specimen]\nNoLayers=1\n"
VMU = b"[Uncompressed Virtual Microscope Specimen]\nNoLayers=1\n"


def refusal(path):
    with pytest.raises(ValueError) as error:
        open_slide(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def line(name, command, path):
    """The line about a file whose path needs no quotes."""
    file = Path(str(path))
    stem = str(file.with_suffix("")).removesuffix(".ome")
    command = command.replace("FILE", str(file)).replace("STEM", stem)
    return f"{name} is not supported: save it as TIFF (docs/formats.md): {command}"


@pytest.mark.parametrize("file, name, command", [
    ("a.dcm", "DICOM", LARGE_IMAGE), ("a.DICOM", "DICOM", LARGE_IMAGE),
    ("a.mrxs", "3DHISTECH MIRAX", LARGE_IMAGE), ("a.vms", "Hamamatsu VMS", LARGE_IMAGE),
    ("a.vmu", "Hamamatsu VMU", LARGE_IMAGE), ("a.svslide", "Sakura svslide", LARGE_IMAGE),
    ("a.dzi", "Deep Zoom", LARGE_IMAGE), ("a.czi", "Zeiss CZI", BIO_FORMATS),
    ("a.zvi", "Zeiss ZVI", BIO_FORMATS), ("a.vsi", "Olympus VSI", BIO_FORMATS),
    ("a.oir", "Olympus OIR", BIO_FORMATS), ("a.lif", "Leica LIF", BIO_FORMATS),
    ("a.nd2", "Nikon ND2", BIO_FORMATS), ("a.ims", "Imaris IMS", BIO_FORMATS),
    ("a.jp2", ".jp2", VIPS), ("a.heic", ".heic", VIPS)])
def test_a_name_tells_the_format(tmp_path, file, name, command):
    path = tmp_path / file
    path.write_bytes(bytes(600))
    assert refusal(path) == f"{path}: {line(name, command, path)}"


@pytest.mark.parametrize("content, name, command", [
    (DICOM, "DICOM", LARGE_IMAGE), (b"ZISRAWFILE" + bytes(600), "Zeiss CZI", BIO_FORMATS),
    (DEEP_ZOOM, "Deep Zoom", LARGE_IMAGE), (b"\xef\xbb\xbf" + DEEP_ZOOM, "Deep Zoom", LARGE_IMAGE),
    (VMS, "Hamamatsu VMS", LARGE_IMAGE), (VMU, "Hamamatsu VMU", LARGE_IMAGE),
    (b"OLYMPUSRAWFORMAT" + bytes(99), "Olympus OIR", BIO_FORMATS),
    (b"\xda\xce\xbe\x0a" + bytes(99), "Nikon ND2", BIO_FORMATS)])
@pytest.mark.parametrize("file", ["1.2.826.0.1", "a.tif", "slide"])
def test_so_does_the_content_under_any_name(tmp_path, file, content, name, command):
    path = tmp_path / file
    path.write_bytes(content)
    command = command.replace("STEM", "FILE")  # for .826 is no suffix
    assert refusal(path) == f"{path}: {line(name, command, path)}"


@pytest.mark.parametrize("folder", ["a.ome.zarr", "a.zarr", "a"])
@pytest.mark.parametrize("file", ["zarr.json", ".zattrs", ".zgroup"])
def test_a_zarr_is_a_folder(tmp_path, folder, file):
    path = tmp_path / folder
    path.mkdir()
    (path / file).write_text("{}")
    assert refusal(path) == f"{path}: " + line("OME-Zarr", "ngff-zarr -i FILE -o STEM.tiff", path)


@pytest.mark.parametrize("file, folder, name, command", [
    ("a.mrxs", "a", "3DHISTECH MIRAX", LARGE_IMAGE), ("a.vsi", "_a_", "Olympus VSI", BIO_FORMATS),
    ("a.dzi", "a_files", "Deep Zoom", LARGE_IMAGE)])
def test_the_folder_beside_a_slide_leads_to_the_slide(tmp_path, file, folder, name, command):
    path = tmp_path / file
    path.touch()
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "0_0.jpeg").touch()  # a tile, which is not to be segmented
    assert refusal(tmp_path / folder) == (
        f"{tmp_path / folder}: is a folder: it belongs to {path}, and {line(name, command, path)}")


def test_a_folder_of_dicom_files_without_suffixes(tmp_path):
    (tmp_path / "000001").write_bytes(DICOM)
    (tmp_path / "000002").write_bytes(DICOM)
    command = LARGE_IMAGE.replace("STEM", "FILE")
    assert refusal(tmp_path) == (f"{tmp_path}: is a folder: it holds 000001, and "
                                 f"{line('DICOM', command, tmp_path / '000001')}")


@pytest.mark.parametrize("file, format", [("a.mrxs", "JPEG"), ("a.vsi", "TIFF")])
def test_the_overview_in_a_file_is_not_taken_for_the_slide(tmp_path, file, format):
    Image.fromarray(np.zeros((100, 120, 3), np.uint8)).save(tmp_path / file, format)
    assert " is not supported: save it as TIFF " in refusal(tmp_path / file)


def test_a_tiff_and_a_picture_are_read_as_before_whatever_they_are_called(tmp_path):
    picture = Image.fromarray(np.full((100, 120, 3), 7, np.uint8))
    picture.save(tmp_path / "a.dcm", "TIFF")  # DICOM's own preamble may be a TIFF's
    picture.save(tmp_path / "a.bmp")
    for file in ("a.dcm", "a.bmp"):
        assert (open_slide(tmp_path / file).read_all() == 7).all()


def test_the_command_can_be_copied_whatever_the_path_is(tmp_path):
    path = tmp_path / "it's {0}; slide 1.ome.czi"
    path.write_bytes(b"ZISRAWFILE")
    command = shlex.split(refusal(path).split(" (docs/formats.md): ")[1])
    assert command[-2:] == [str(path), str(tmp_path / "it's {0}; slide 1.ome.tiff")]


def test_an_archive_is_to_be_unpacked_and_nothing_else(tmp_path):
    assert conversion(tmp_path / "a.zip") == ".zip is not supported: unpack it"
    assert "unpack" not in conversion(tmp_path / "a.xyz")


def test_a_missing_file_is_not_another_format(tmp_path):
    assert refusal(tmp_path / "a.czi") == f"{tmp_path / 'a.czi'}: no such file"


def test_a_data_set_is_told_to_move_the_slide_away(tmp_path):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    path = tmp_path / "images" / "a.mrxs"
    path.touch()
    with pytest.raises(ValueError) as error:
        find_slides(tmp_path)
    assert str(error.value) == f"{path}: " + line("3DHISTECH MIRAX", LARGE_IMAGE, path).replace(
        "):", "), and move it away:")


def test_the_page_says_of_each_format_whether_its_command_was_tried():
    rows = "\n".join(re.findall(r"^\|.*", PAGE, re.M))
    for each in FORMATS:
        maker, _, kind = each.name.rpartition(" ")
        assert maker in rows and kind in rows, each.name
    assert set(PICTURES) < set(OTHER_SLIDES) and len(set(OTHER_SLIDES)) == len(OTHER_SLIDES)


# NDPI, which is read as it is


def jpeg(image, blocks):
    """A JPEG whose header says 0 x 0 pixels, as Hamamatsu's does where the width exceeds what a
    JPEG can say, with a restart marker after so many blocks; and where the pieces begin. PIL cannot
    write such a wide one, so it is put together from JPEGs of 1280 columns."""
    columns = []
    for left in range(0, image.shape[1], 1280):
        file = io.BytesIO()
        Image.fromarray(image[:, left : left + 1280]).save(
            file, "JPEG", quality=95, subsampling="4:2:2", restart_marker_blocks=blocks)
        data = file.getvalue()
        begin = data.index(b"\xff\xda")
        begin += 2 + struct.unpack(">H", data[begin + 2 : begin + 4])[0]
        columns.append(re.split(rb"\xff[\xd0-\xd7]", data[begin:-2]))
    size = data.index(b"\xff\xc0") + 5
    whole = data[:size] + bytes(4) + data[size + 4 : begin]
    rows, starts = image.shape[0] // 8, []  # of blocks
    each = len(columns[0]) // rows
    pieces = [piece for row in range(rows)
              for column in columns for piece in column[row * each : (row + 1) * each]]
    for number, piece in enumerate(pieces):
        starts.append(len(whole))
        whole += piece + (bytes([0xFF, 0xD0 + number % 8]) if number + 1 < len(pieces) else b"")
    return whole + b"\xff\xd9", starts


def write_ndpi(path, image, microns):
    """One level, as Hamamatsu's scanners write it: one strip, which is one JPEG, and a tag that
    says where its restart markers are."""
    data, starts = jpeg(np.ascontiguousarray(image), 4)
    parts = {"strip": data, "starts": struct.pack(f"<{len(starts)}I", *starts),
             "resolution": struct.pack("<2I", round(1e7 / microns), 1000),
             "make": b"Hamamatsu\0", "bits": struct.pack("<3H", 8, 8, 8)}
    offsets, content = {}, struct.pack("<4sQ4x", b"II*\0", 0)
    for name, part in parts.items():
        offsets[name] = len(content)
        content += part + bytes(len(part) % 2)
    height, width = image.shape[:2]
    lens = struct.unpack("<I", struct.pack("<f", 20))[0]
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, offsets["bits"]), (259, 3, 1, 7),
            (262, 3, 1, 6), (271, 2, 10, offsets["make"]), (273, 4, 1, offsets["strip"]),
            (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(data)),
            (282, 5, 1, offsets["resolution"]), (283, 5, 1, offsets["resolution"]), (284, 3, 1, 1),
            (296, 3, 1, 3), (65420, 4, 1, 1), (65421, 11, 1, lens), (65422, 9, 1, 0),
            (65423, 9, 1, 0), (65424, 9, 1, 0), (65426, 4, len(starts), offsets["starts"])]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<2H2I", *tag) for tag in tags)
    directory += bytes(8 + 4 * len(tags))  # no other page; the upper halves of the values
    content = content[:4] + struct.pack("<Q", len(content)) + content[12:] + directory
    path.write_bytes(content)


def test_a_strip_of_ndpi_wider_than_a_jpeg_may_be_is_read_by_its_restart_markers(tmp_path):
    pytest.importorskip("imagecodecs", reason="python -m pip install -e '.[codecs]'")
    y, x = np.mgrid[:16, : 55 * 1280]
    image = np.stack([x // 300, 255 - x // 300, y * 10 + 50], 2).astype(np.uint8)
    write_ndpi(tmp_path / "a.ndpi", image, 0.25)
    slide = open_slide(tmp_path / "a.ndpi")
    assert (slide.height, slide.width) == (16, 70400)
    assert slide.microns == pytest.approx(0.25)
    assert abs(slide.read_all().astype(int) - image).max() <= 12
    assert abs(slide.read(3, 69000, 9, 700).astype(int) - image[3:12, 69000:69700]).max() <= 12


def test_what_is_known_about_a_format_cannot_be_changed():
    with pytest.raises(AttributeError):
        FORMATS[0].name = "another"
