"""minseg reads the masks that other programs write, or refuses them with a line that says what to
do; then that is done."""

import re

import numpy as np
import pytest
import tifffile
from PIL import Image
from programs import need

from minseg.files.datasets import find_slides
from minseg.files.masks import Mask

pytestmark = pytest.mark.filterwarnings("ignore")
MASKS = {}  # "program: file": (suffix, module, function that writes the mask)
TRUTH = np.zeros((301, 389), np.uint8)
TRUTH[40:200, 100:250] = TRUTH[:20, :30] = TRUTH[290:, 380:] = 1
TRUTH[90:120, 130:180] = 0


def by(program, module, files):
    """Adds files that a function writes to `MASKS`: {name: (suffix, options)}."""
    def add(write):
        for name, (suffix, options) in files.items():
            MASKS[f"{program}: {name}"] = (suffix, module,
                                           lambda path, o=options: write(path, **o))
        return write
    return add


@by("libvips", "pyvips", {
    "0 and 255": (".tif", {"tile": True, "compression": "deflate"}),
    "0 and 1": (".tif", {"values": 1}), "one bit": (".tif", {"bitdepth": 1}),
    "CCITT": (".tif", {"bitdepth": 1, "compression": "ccittfax4"}),
    "pyramid": (".tif", {"tile": True, "pyramid": True, "tile_width": 64, "tile_height": 64}),
    "PNG": (".png", {}), "miniswhite": (".tif", {"miniswhite": True})})
def libvips(path, values=255, **options):
    import pyvips

    pyvips.Image.new_from_array(TRUTH * np.uint8(values)).write_to_file(path, **options)


@by("GDAL (rasterio)", "rasterio", {
    "0 and 1": (".tif", {}), "COG": (".tif", {"driver": "COG", "compress": "DEFLATE"}),
    "one bit": (".tif", {"nbits": 1}), "16 bits": (".tif", {"dtype": "uint16"}),
    "32 bits": (".tif", {"dtype": "int32"}), "floating point": (".tif", {"dtype": "float32"}),
    "miniswhite": (".tif", {"photometric": "MINISWHITE"})})
def gdal(path, driver="GTiff", dtype="uint8", **options):
    import rasterio

    with rasterio.open(path, "w", driver=driver, height=TRUTH.shape[0], width=TRUTH.shape[1],
                       count=1, dtype=dtype, **options) as file:
        file.write(TRUTH.astype(dtype), 1)


@by("SimpleITK", "SimpleITK", {
    "0 and 1": (".tif", {}), "16 bits": (".tif", {"dtype": "uint16"}),
    "signed": (".tif", {"dtype": "int16"}), "floating point": (".tif", {"dtype": "float32"}),
    "PNG": (".png", {})})
def simpleitk(path, dtype="uint8"):
    import SimpleITK

    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(TRUTH.astype(dtype)), path)


@by("OpenCV", "cv2", {
    "0 and 255": (".tif", {"values": 255}), "0 and 1": (".tif", {}),
    "floating point": (".tif", {"dtype": "float32"}), "PNG": (".png", {"values": 255})})
def opencv(path, values=1, dtype="uint8"):
    import cv2

    assert cv2.imwrite(path, TRUTH.astype(dtype) * np.asarray(values, dtype))


@by("Pillow", "PIL", {
    "0 and 255": (".tif", {"mode": "L"}), "one bit": (".tif", {"mode": "1"}),
    "CCITT": (".tif", {"mode": "1", "compression": "group4"}), "PNG": (".png", {"mode": "L"}),
    "one-bit PNG": (".png", {"mode": "1"}), "palette PNG": (".png", {"mode": "P"}),
    "palette": (".tif", {"mode": "P"})})
def pillow(path, mode, **options):
    image = Image.fromarray(TRUTH * np.uint8(1 if mode == "P" else 255))
    if mode == "P":
        image.putpalette([0, 0, 0, 200, 0, 0])
    (image.convert(mode) if mode == "1" else image).save(path, **options)


@by("scikit-image", "skimage", {"bool": (".tif", {}), "bool, PNG": (".png", {})})
def scikit_image(path):
    import skimage.io

    skimage.io.imsave(path, TRUTH > 0, check_contrast=False)


@by("tifffile", "tifffile", {
    "0 and 1": (".tif", {"dtype": "uint8"}), "bool": (".tif", {"dtype": "bool"})})
def by_tifffile(path, dtype):
    tifffile.imwrite(path, TRUTH.astype(dtype))


@by("dlup", "dlup", {
    "TifffileImageWriter": (".tif", {"writer": "TifffileImageWriter"}),
    "pyramid": (".tif", {"writer": "TifffileImageWriter", "pyramid": True}),
    "LibtiffImageWriter": (".tif", {"writer": "LibtiffImageWriter"}),
    "colormap": (".tif", {"writer": "TifffileImageWriter", "colormap": {1: "red"}})})
def dlup(path, writer, **options):
    from dlup import writers

    height, width = TRUTH.shape
    whole = np.pad(TRUTH, [(0, -height % 128), (0, -width % 128)])
    tiles = (np.ascontiguousarray(whole[y : y + 128, x : x + 128])
             for y in range(0, height, 128) for x in range(0, width, 128))
    getattr(writers, writer)(
        path, size=(width, height), mpp=0.25, tile_size=(128, 128), is_mask=True,
        compression=writers.TiffCompression.DEFLATE, **options).from_tiles_iterator(tiles)


def read(folder):
    [item] = find_slides(folder)
    return Mask(item, *TRUTH.shape).read(0, 0, *TRUTH.shape)


@pytest.fixture
def folder(tmp_path):
    """A data set of one slide, whose mask is missing."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    Image.new("RGB", TRUTH.shape[::-1]).save(tmp_path / "images" / "a.png")
    return tmp_path


REFUSED = {  # what the line must say, and what to do
    "MINISWHITE": (r"save a slide as RGB, a mask with tifffile.imwrite\(path, "
                   r"\(tifffile.imread\(path\) > 0\).astype\('uint8'\) \* 255\), or with == 0 for "
                   "> 0 if its objects are white in a viewer", "as the line says, with `{} 0`"),
    "PALETTE": ("save it as RGB or grey", "save it as grey, or as PNG")}


def remedied(path, message):
    """Does what the line of a refusal says. Returns its part of the record."""
    (colours, (line, remedy)), = [each for each in REFUSED.items() if each[0] in message]
    assert re.search(f"its colours are {colours}.*: {line}$", message) and "\n" not in message
    with Image.open(path) as image:  # in a viewer, the corner belongs to an object
        white = colours == "MINISWHITE" and np.asarray(image.convert("L"))[0, 0] == 255
    numbers = tifffile.imread(path)
    mask = numbers == 0 if white else numbers > 0
    tifffile.imwrite(path, mask.astype("uint8") * 255)
    return {"seen": f"refused: its colours are {colours}",
            "what to do": remedy.format("==" if white else ">")}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_read_or_its_remedy_works(name, folder, record):
    suffix, module, write = MASKS[name]
    need(module, "imagecodecs")
    path = folder / "masks" / f"a{suffix}"
    write(str(path))
    cells = {"seen": "equal", "what to do": "–"}
    if re.search(r"miniswhite|tifffile: bool|Pillow: palette$|colormap", name):
        with pytest.raises(ValueError) as error:
            read(folder)
        cells = remedied(path, str(error.value))
    assert np.array_equal(read(folder), TRUTH)
    record("masks", name, **cells)
