"""How other programs read an image, each by the calls that its manual shows: `READERS` gives for
each program its module and a function that returns the pixels and the size of a pixel,
x and y in micrometres (None where the program states none)."""

import contextlib
import warnings
from typing import NamedTuple

import numpy as np
import pytest

INSTALL = "python -m pip install -e '.[interop]'"


class Seen(NamedTuple):
    """What a program makes of a file."""

    pixels: np.ndarray
    size: tuple[float, float] | None


def need(*modules: str) -> None:
    """Skips the test if a module is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what else could be installed
        for module in modules:
            pytest.importorskip(module, reason=f"needs {module}: {INSTALL}")


def openslide(path):
    from openslide import OpenSlide

    with OpenSlide(path) as slide:
        size = [slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
        pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions))
    return Seen(pixels, tuple(map(float, size)) if all(size) else None)


def tiffslide(path):
    from tiffslide import TiffSlide

    with TiffSlide(path) as slide:
        size = slide.properties["tiffslide.mpp-x"], slide.properties["tiffslide.mpp-y"]
        pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions, as_array=True))
    return Seen(pixels, size if all(size) else None)


def libvips(path):
    import pyvips

    image = pyvips.Image.new_from_file(path)  # pixels per millimetre; 1 also means unknown
    return Seen(image.numpy(), (1e3 / image.xres, 1e3 / image.yres))


def gdal(path):
    import rasterio

    with rasterio.open(path) as image:
        tags, pixels = image.tags(), np.moveaxis(image.read(), 0, 2)
    unit = {"2": 25400, "3": 1e4}.get(tags.get("TIFFTAG_RESOLUTIONUNIT", "1")[0])
    size = [tags.get(f"TIFFTAG_{axis}RESOLUTION") for axis in "XY"]
    return Seen(pixels, tuple(unit / float(each) for each in size) if unit and all(size) else None)


def slideio(path, driver="AUTO"):
    import slideio

    scene = slideio.open_slide(path, driver).get_scene(0)  # metres; 0 means unknown
    return Seen(scene.read_block(), tuple(1e6 * side for side in scene.resolution))


def large_image(path):
    import large_image_source_tiff

    source = large_image_source_tiff.open(path)
    found = source.getMetadata()
    size = found["mm_x"] and (1e3 * found["mm_x"], 1e3 * found["mm_y"])
    return Seen(source.getRegion(format="numpy")[0], size or None)


def simpleitk(path):
    import SimpleITK

    image = SimpleITK.ReadImage(path)  # millimetres; 1 also means unknown
    return Seen(SimpleITK.GetArrayFromImage(image), tuple(1e3 * x for x in image.GetSpacing()))


def dlup(path, backend="OPENSLIDE", **options):
    from dlup import SlideImage

    with contextlib.closing(SlideImage.from_file_path(path, backend=backend, **options)) as slide:
        pixels = np.asarray(slide.read_region((0, 0), 1.0, slide.size))
        return Seen(pixels, (slide.mpp, slide.mpp))


def pillow(path):
    from PIL import Image

    with Image.open(path) as image:
        dots = image.info.get("dpi")
        return Seen(np.asarray(image), dots and tuple(25400 / float(each) for each in dots))


def opencv(path):
    import cv2

    pixels = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    return Seen(pixels if pixels.ndim == 2 else pixels[..., 2::-1], None)


def scikit_image(path):
    import skimage.io

    return Seen(skimage.io.imread(path), None)


READERS = {
    "OpenSlide": ("openslide", openslide),
    "tiffslide": ("tiffslide", tiffslide),
    "libvips": ("pyvips", libvips),
    "GDAL (rasterio)": ("rasterio", gdal),
    "slideio": ("slideio", slideio),
    "large-image": ("large_image_source_tiff", large_image),
    "SimpleITK": ("SimpleITK", simpleitk),
    "dlup": ("dlup", dlup),
    "Pillow": ("PIL", pillow),
    "OpenCV": ("cv2", opencv),
    "scikit-image": ("skimage", scikit_image),
}


def read(program: str, path, **options) -> Seen:
    """What a program makes of a file. Skips the test if it is not installed."""
    module, reader = READERS[program]
    need(module)
    return reader(str(path), **options)


def pixels_in_words(pixels: np.ndarray, truth: np.ndarray) -> str:
    """Whether pixels are those of the truth, (H, W) or (H, W, 3), or what they are instead."""
    pixels = pixels[..., 0] if pixels.ndim > truth.ndim and pixels.shape[2] == 1 else pixels
    if pixels.ndim == truth.ndim and pixels.shape == truth.shape:
        wrong = (pixels != truth).mean()
        return "equal" if wrong == 0 else f"{100 * wrong:.1f} % differ"
    if pixels.shape[:2] != truth.shape[:2]:
        return "another size: " + " × ".join(map(str, pixels.shape))
    if pixels.shape[2] == 4 and (pixels[..., 3] != 255).any():
        return "with an alpha that is not 255"
    colours = truth if truth.ndim == 3 else np.repeat(truth[..., None], 3, 2)
    if pixels.shape[2] not in (3, 4):
        return f"{pixels.shape[2]} channels"
    if (wrong := (pixels[..., :3] != colours).mean()) > 0:
        return f"{100 * wrong:.1f} % differ"
    return "equal" + (", with alpha" if truth.ndim == 3 else
                      ", as red, green, blue" + (" and alpha" if pixels.shape[2] == 4 else ""))


def size_in_words(size: tuple[float, float] | None, truth: tuple[float, float] | None) -> str:
    """The size of a pixel as a program states it, rounded to the truth if it is within 1e-5."""
    if size is None:
        return "no size"
    if truth and np.allclose(size, truth, rtol=1e-5, atol=0):
        size = truth
    x, y = (f"{side:.6g}" for side in size)
    return f"{x} µm" if x == y else f"{x} × {y} µm"


def percent(mask: np.ndarray, truth: np.ndarray) -> str:
    """How many pixels of a mask are wrong, in per cent of the true area."""
    return f"{100 * (mask != truth).sum() / truth.sum():.3g} %"
