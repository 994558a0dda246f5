"""Why masks are written as they are: the table of minseg/run/outputs.py. The same mask, written in
another way, in each of the programs that read slides."""

import subprocess
import sys

import numpy as np
import pytest
import tifffile
from programs import need, pixels_in_words, read, size_in_words

pytestmark = pytest.mark.filterwarnings("ignore")
SIZE = (0.2527, 0.2527)
MICRONS = {"PhysicalSizeX": SIZE[0], "PhysicalSizeXUnit": "µm", "PhysicalSizeY": SIZE[1],
           "PhysicalSizeYUnit": "µm", "axes": "YX"}
OURS = {"tile": (256, 256), "compression": "zlib", "photometric": "minisblack", "metadata": None,
        "resolution": [1e4 / side for side in SIZE], "resolutionunit": "CENTIMETER"}
NO_SIZE = {"resolution": (1, 1), "resolutionunit": "NONE"}
PROGRAMS = ["OpenSlide", "tiffslide", "libvips", "GDAL (rasterio)", "slideio", "large-image",
            "SimpleITK", "dlup", "Pillow"]
OME = {"metadata": MICRONS, "ome": True}
WAYS = {  # how the mask is written instead: (the end of its name, options)
    "as infer.py writes it": (".tiff", {}),
    "in strips": (".tiff", {"tile": None, "rowsperstrip": 64}),
    "one bit": (".tiff", {}),
    "pyramid of two pages": (".tiff", {}),
    "pyramid in SubIFDs": (".tiff", {}),
    "with predictor": (".tiff", {"predictor": 2}),
    "without size": (".tiff", NO_SIZE),
    "OME description, no tags": (".ome.tiff", {**OME, **NO_SIZE}),
    "OME description and tags": (".ome.tiff", OME),
}


@pytest.fixture(scope="module")
def mask(segmented):
    return tifffile.imread(segmented / "square.tiff")


def write(way, path, mask):
    options = {**OURS, **WAYS[way][1]}
    if way == "one bit":
        need("rasterio")
        import rasterio

        with rasterio.open(path, "w", driver="GTiff", height=len(mask), width=mask.shape[1],
                           count=1, dtype="uint8", nbits=1, tiled=True, blockxsize=256,
                           blockysize=256, compress="deflate") as file:
            file.write(mask // 255, 1)
            file.update_tags(TIFFTAG_XRESOLUTION=1e4 / SIZE[0], TIFFTAG_YRESOLUTION=1e4 / SIZE[1],
                             TIFFTAG_RESOLUTIONUNIT=3)
        return
    with tifffile.TiffWriter(path, ome=options.pop("ome", False)) as file:
        pages = 1 if "pyramid" in way else 0
        file.write(mask, subifds=pages if "SubIFD" in way else None, **options)
        if pages:
            options["resolution"] = [each / 2 for each in OURS["resolution"]]
            file.write(mask[::2, ::2], subfiletype=1, **options)


def seen(program, path, mask):
    """A cell of the table."""
    options = {"interpolator": "NEAREST"} if program == "dlup" else {}
    try:
        pixels, size = read(program, path, **options)
    except Exception as error:  # each program has its own kinds of errors
        assert error
        return "refused"
    words = pixels_in_words(pixels, mask).partition(",")[0]
    if words != "equal" and pixels_in_words(pixels, mask // 255) == "equal":
        words = "0 and 1"
    if size and max(size) >= 1000:
        size = None  # the default of a program that knows none: one pixel per millimetre or metre
    stated = size_in_words(size, SIZE)
    if program == "slideio" and (scenes := number_of_scenes(path)) > 1:
        words += f", {scenes} scenes"
    return words if stated == "0.2527 µm" else f"{words}, {stated}"


def number_of_scenes(path):
    import slideio

    return slideio.open_slide(str(path), "AUTO").num_scenes


EXPECTED = {  # what is not "equal"
    "in strips": {"OpenSlide": "refused", "dlup": "refused"},
    "one bit": {"tiffslide": "0 and 1", "GDAL (rasterio)": "0 and 1", "Pillow": "0 and 1",
                "slideio": "refused", "large-image": "refused"},
    "pyramid of two pages": {"slideio": "equal, 2 scenes"},
    "without size": {**dict.fromkeys(PROGRAMS, "equal, no size"), "dlup": "refused"},
    "OME description, no tags": {
        **dict.fromkeys(PROGRAMS, "equal, no size"), "slideio": "equal", "dlup": "refused"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_who_reads_a_mask_that_is_written_in_another_way(program, way, mask, tmp_path, record):
    path = tmp_path / f"{way.replace(' ', '-')}{WAYS[way][0]}"
    write(way, path, mask)
    cell = seen(program, path, mask)
    record("choices", way, **{program: cell})
    assert cell == EXPECTED.get(way, {}).get(program, "equal")


def test_of_0_and_1_a_viewer_shows_black(mask, tmp_path):
    need("openslide", "large_image_source_tiff")
    import large_image_source_tiff
    from openslide import OpenSlide

    tifffile.imwrite(tmp_path / "a.tiff", mask // 255, **OURS)
    with OpenSlide(tmp_path / "a.tiff") as slide:
        assert np.asarray(slide.get_thumbnail((200, 200)))[..., :3].max() == 1
    shown, _ = large_image_source_tiff.open(str(tmp_path / "a.tiff")).getThumbnail(
        width=200, height=200, format="numpy")
    assert shown.max() == 1


def test_a_predictor_makes_a_mask_larger(mask, tmp_path):
    for name, options in (("with", {"predictor": 2}), ("without", {})):
        tifffile.imwrite(tmp_path / name, mask, compressionargs={"level": 3}, **OURS, **options)
    assert (tmp_path / "with").stat().st_size > (tmp_path / "without").stat().st_size


@pytest.mark.parametrize("compression, code", [("zlib", 0), ("lzw", 1)])
def test_python_reads_deflate_without_another_package_and_lzw_with_one(
        mask, tmp_path, compression, code):
    need("imagecodecs")  # to write LZW
    tifffile.imwrite(tmp_path / "a.tiff", mask, **{**OURS, "compression": compression})
    program = ("import sys; sys.modules['imagecodecs'] = None; "
               f"import tifffile; tifffile.imread({str(tmp_path / 'a.tiff')!r})")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == code and ("requires the 'imagecodecs'" in done.stderr) == bool(code)


def test_an_ome_description_takes_the_place_of_ours(mask, tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tiff", mask, description="ours", **{**OURS, **OME})
    with tifffile.TiffFile(tmp_path / "a.ome.tiff") as file:
        assert "ours" not in file.pages[0].description


def test_a_backend_of_dlup_takes_columns_for_channels_where_there_is_an_ome_description(
        mask, tmp_path):
    need("dlup")
    for name, options in (("a.tiff", {}), ("a.ome.tiff", OME)):
        tifffile.imwrite(tmp_path / name, mask, **{**OURS, **options})
    shapes = [read("dlup", tmp_path / name, backend="FASTSLIDE").pixels.shape
              for name in ("a.tiff", "a.ome.tiff")]
    assert shapes == [(612, 789, 1), (612, 789, 789)]
