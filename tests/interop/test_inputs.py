"""minseg reads the slides that other programs write: the pixels that the program itself reads, and
the size of a pixel."""

import re
from pathlib import Path

import numpy as np
import pytest
from programs import need, pixels_in_words, read, size_in_words

from minseg.files.slides import open_slide
from minseg.synthetic import synthetic_slide

pytestmark = pytest.mark.filterwarnings("ignore")
SQUARE, OBLONG = (0.25, 0.25), (0.25, 0.5)
SLIDES = {}  # "program: file": (suffix, module, function that writes it, size)


@pytest.fixture(scope="module")
def image():
    return synthetic_slide(3, 301, 389)[0]


def by(program, module, files):
    """Adds files that a function writes to `SLIDES`: {name: (suffix, options, size)}."""
    def add(write):
        for name, (suffix, options, size) in files.items():
            SLIDES[f"{program}: {name}"] = (
                suffix, module, lambda *args, o=options: write(*args, **o), size)
        return write
    return add


def tiled(compression, **others):
    return ".tif", {"tile": True, "compression": compression, **others}, OBLONG


@by("libvips", "pyvips", {
    "TIFF, tiles": tiled("none"), "Deflate": tiled("deflate"), "LZW": tiled("lzw"),
    "PackBits": tiled("packbits"), "JPEG": tiled("jpeg"), "WebP": tiled("webp"),
    "strips with predictor": (".tif", {"compression": "lzw", "predictor": "horizontal"}, OBLONG),
    "pyramid of pages": tiled("deflate", pyramid=True, tile_width=64, tile_height=64),
    "pyramid of SubIFDs, BigTIFF": tiled("deflate", pyramid=True, subifd=True, bigtiff=True,
                                         tile_width=64, tile_height=64),
    "size unknown": (".tif", {"size": None}, None),
    "PNG": (".png", {}, None), "JPEG file": (".jpg", {}, None)})
def libvips(path, image, size=OBLONG, **options):
    import pyvips

    made = pyvips.Image.new_from_array(image).copy(interpretation="srgb")
    if size:
        made = made.copy(xres=1e3 / size[0], yres=1e3 / size[1])
    made.write_to_file(path, **options)


def cog(compression):
    return ".tif", {"driver": "COG", "compress": compression}, OBLONG


@by("GDAL (rasterio)", "rasterio", {
    "COG, Deflate": cog("DEFLATE"), "LZW": cog("LZW"), "Zstandard": cog("ZSTD"),
    "WebP": cog("WEBP"), "LERC": cog("LERC"), "LZMA": cog("LZMA"),
    "GeoTIFF in strips": (".tif", {"photometric": "RGB"}, OBLONG),
    "planes": (".tif", {"photometric": "RGB", "interleave": "band", "compress": "deflate"}, OBLONG),
    "sparse": (".tif", {"tiled": True, "photometric": "RGB", "sparse_ok": True, "nodata": 255},
               OBLONG),
    "COG, JPEG": cog("JPEG"), "PNG": (".png", {"driver": "PNG"}, None)})
def gdal(path, image, driver="GTiff", **options):
    import rasterio

    height, width, _ = image.shape
    with rasterio.open(path, "w", driver=driver, width=width, height=height, count=3,
                       dtype=image.dtype, **options) as file:
        file.write(np.moveaxis(image, 2, 0))
        if path.endswith(".tif"):
            file.update_tags(TIFFTAG_XRESOLUTION=1e4 / OBLONG[0], TIFFTAG_RESOLUTIONUNIT=3,
                             TIFFTAG_YRESOLUTION=1e4 / OBLONG[1])


@by("SimpleITK", "SimpleITK", {
    "TIFF": (".tif", {}, OBLONG), "LZW": (".tif", {"compressor": "LZW"}, OBLONG),
    "Deflate": (".tif", {"compressor": "Deflate"}, OBLONG),
    "PackBits": (".tif", {"compressor": "PackBits"}, OBLONG),
    "JPEG": (".tif", {"compressor": "JPEG"}, OBLONG),
    "size unknown": (".tif", {"size": None}, None), "PNG": (".png", {}, None)})
def simpleitk(path, image, size=OBLONG, **options):
    import SimpleITK

    made = SimpleITK.GetImageFromArray(image, isVector=True)
    if size:
        made.SetSpacing([side / 1e3 for side in size])
    SimpleITK.WriteImage(made, path, useCompression=bool(options), **options)


@by("slideio", "slideio", {
    "SVS, JPEG": (".svs", {"kind": "SVSJpegParameters"}, SQUARE),
    "SVS, JPEG 2000": (".svs", {"kind": "SVSJp2KParameters"}, SQUARE),
    "OME-TIFF, JPEG": (".ome.tiff", {"kind": "OMETIFFJpegParameters"}, SQUARE),
    "OME-TIFF, JPEG 2000": (".ome.tiff", {"kind": "OMETIFFJp2KParameters"}, SQUARE)})
def slideio(path, image, kind):
    import slideio
    import tifffile

    source = f"{path}.source.tif"
    tifffile.imwrite(source, image, photometric="rgb", metadata=None, tile=(256, 256),
                     resolution=(1e4 / SQUARE[0],) * 2, resolutionunit="CENTIMETER")
    scene = slideio.open_slide(source, "GDAL").get_scene(0)
    slideio.convert_scene(scene, getattr(slideio, kind)(), path)


def dlup_file(writer, compression, pyramid=False):
    return ".tif", {"writer": f"{writer}ImageWriter", "compression": compression,
                    "pyramid": pyramid}, SQUARE


@by("dlup", "dlup", {
    "TifffileImageWriter, Deflate": dlup_file("Tifffile", "DEFLATE"),
    "LZW": dlup_file("Tifffile", "LZW"), "Zstandard": dlup_file("Tifffile", "ZSTD"),
    "JPEG": dlup_file("Tifffile", "JPEG"),
    "pyramid": dlup_file("Tifffile", "DEFLATE", pyramid=True),
    "LibtiffImageWriter, Deflate": dlup_file("Libtiff", "DEFLATE"),
    "LibtiffImageWriter, JPEG": dlup_file("Libtiff", "JPEG"),
    "LibtiffImageWriter, pyramid": dlup_file("Libtiff", "DEFLATE", pyramid=True)})
def dlup(path, image, writer, compression, pyramid):
    from dlup import writers

    height, width, _ = image.shape
    whole = np.pad(image, [(0, -height % 128), (0, -width % 128), (0, 0)])  # as libtiff's need
    tiles = (np.ascontiguousarray(whole[y : y + 128, x : x + 128])
             for y in range(0, height, 128) for x in range(0, width, 128))
    getattr(writers, writer)(
        Path(path), size=(width, height, 3), mpp=SQUARE[0], tile_size=(128, 128), pyramid=pyramid,
        compression=writers.TiffCompression[compression]).from_tiles_iterator(tiles)


@by("OpenCV", "cv2", {
    "TIFF": (".tif", {}, None), "with resolution": (".tif", {"size": OBLONG}, OBLONG),
    "PNG": (".png", {}, None), "JPEG file": (".jpg", {}, None), "WebP file": (".webp", {}, None)})
def opencv(path, image, size=None):
    import cv2

    dots = [] if size is None else [
        cv2.IMWRITE_TIFF_RESUNIT, 3, cv2.IMWRITE_TIFF_XDPI, round(1e4 / size[0]),
        cv2.IMWRITE_TIFF_YDPI, round(1e4 / size[1])]
    assert cv2.imwrite(path, image[..., ::-1], dots)


@by("Pillow", "PIL", {
    "TIFF": (".tif", {}, OBLONG), "Deflate": (".tif", {"compression": "tiff_deflate"}, OBLONG),
    "LZW": (".tif", {"compression": "tiff_lzw"}, OBLONG),
    "PackBits": (".tif", {"compression": "packbits"}, OBLONG),
    "JPEG": (".tif", {"compression": "jpeg"}, OBLONG),
    "PNG": (".png", {}, None), "JPEG file": (".jpg", {}, None)})
def pillow(path, image, **options):
    from PIL import Image

    if path.endswith(".tif"):
        options.update(x_resolution=1e4 / OBLONG[0], y_resolution=1e4 / OBLONG[1],
                       resolution_unit="cm")
    Image.fromarray(image).save(path, **options)


@by("scikit-image", "skimage", {"TIFF": (".tif", {}, None), "PNG": (".png", {}, None)})
def scikit_image(path, image):
    import skimage.io

    skimage.io.imsave(path, image, check_contrast=False)


def own(program, path):
    """What the program that wrote a file reads from it."""
    options = {"interpolator": "NEAREST"} if program == "dlup" else {}
    return read(program, path, **options).pixels


@pytest.mark.parametrize("name", SLIDES)
def test_a_slide_is_read_as_its_writer_reads_it(name, image, tmp_path, record):
    program, _, file = name.partition(": ")
    suffix, module, write, size = SLIDES[name]
    need(module, "imagecodecs")
    path = tmp_path / f"a{suffix}"
    write(str(path), image)
    slide = open_slide(path)
    pixels = slide.read_all()
    assert size_in_words(slide.pixel_size, size) == size_in_words(size, None)
    seen = pixels_in_words(own(program, path), pixels).removesuffix(", with alpha")
    if name == "GDAL (rasterio): COG, JPEG":  # the one reader that differs from all others
        assert re.fullmatch(r"\d+\.\d % differ", seen)
        seen = f"{seen} from GDAL's; equal to libvips'"
        assert pixels_in_words(read("libvips", path).pixels, pixels) == "equal"
    else:
        assert seen == "equal"
        if not re.search("JPEG|WebP", file):
            assert np.array_equal(pixels, image)
    record("slides", name, pixels=seen, size=size_in_words(slide.pixel_size, size))


# What is refused

def cmyk(path, image):
    import pyvips

    pyvips.Image.new_from_array(image).copy(interpretation="srgb").colourspace("cmyk").write_to_file(
        path)


def lab(path, image):
    import pyvips

    pyvips.Image.new_from_array(image).copy(interpretation="srgb").colourspace("lab").write_to_file(
        path)


def five_bands(path, image):
    import rasterio

    with rasterio.open(path, "w", width=9, height=9, count=5, dtype="uint8") as file:
        file.write(np.zeros((5, 9, 9), np.uint8))


def stack(path, image):
    import SimpleITK

    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.stack([image[..., 0]] * 4)), path)


def floating(path, image):
    import cv2

    cv2.imwrite(path, image.astype(np.float32))


def palette(path, image):
    from PIL import Image

    Image.fromarray(image).quantize().save(path)


def animation(path, image):
    from PIL import Image

    frames = [Image.fromarray(image), Image.fromarray(255 - image)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


REFUSED = {
    "libvips: CMYK": ("pyvips", cmyk, ".tif",
                      "its colours are SEPARATED: save it as RGB or grey"),
    "libvips: CIELab": ("pyvips", lab, ".tif", "its colours are CIELAB: save it as RGB or grey"),
    "GDAL (rasterio): five bands": (
        "rasterio", five_bands, ".tif", "has the shape (9, 9, 5): save it as grey, RGB or RGBA"),
    "SimpleITK: a stack": ("SimpleITK", stack, ".tif",
                           "contains 4 images of 301 x 389 pixels: save only the one you need"),
    "OpenCV: floating point": ("cv2", floating, ".tif",
                               "contains float32 values: save it with 8 or 16 bits"),
    "Pillow: palette": ("PIL", palette, ".tif", "its colours are PALETTE: save it as RGB or grey"),
    "Pillow: animated GIF": ("PIL", animation, ".gif",
                             "is an animation: save only the frame you need")}


@pytest.mark.parametrize("name", REFUSED)
def test_a_slide_without_one_meaning_is_refused_in_one_line(name, image, tmp_path, record):
    module, write, suffix, line = REFUSED[name]
    need(module)
    path = tmp_path / f"a{suffix}"
    write(str(path), image)
    with pytest.raises(ValueError) as error:
        open_slide(path)
    assert str(error.value).startswith(f"{path}: {line}") and "\n" not in str(error.value)
    record("refused", name, **{"the line": str(error.value).removeprefix(f"{path}: ")})
