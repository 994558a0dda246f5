"""Other programs read what infer.py writes: equal pixels, sizes and areas."""

import json

import numpy as np
import pytest
import tifffile
from programs import READERS, Seen, need, pixels_in_words, read, size_in_words

pytestmark = pytest.mark.filterwarnings("ignore")
NO_SIZE = {"OpenCV", "scikit-image"}
COLOURS = {"OpenSlide": ", as red, green, blue and alpha",
           "SimpleITK": ", as red, green, blue and alpha"}


def area_of_polygons(folder, name):
    """The sum of the areas in a slide's GeoJSON."""
    features = json.loads((folder / f"{name}.geojson").read_text())["features"]
    assert len(features) > 10
    return sum(each["properties"]["measurements"]["Area µm^2"] for each in features)


def in_words(seen: Seen, truth, size):
    return f"{pixels_in_words(seen.pixels, truth)}; {size_in_words(seen.size, size)}"


@pytest.mark.parametrize("program", [name for name in READERS if name != "dlup"])
def test_masks_and_probabilities(program, slide, segmented, record):
    name, size, _ = slide
    expected = f"equal{COLOURS.get(program, '')}; "
    expected += "no size" if program in NO_SIZE else size_in_words(size, None)
    for file in (f"{name}.tiff", f"{name}.probabilities.tiff"):
        seen = read(program, segmented / file)
        assert in_words(seen, tifffile.imread(segmented / file), size) == expected
        if seen.size and file == f"{name}.tiff":
            first = seen.pixels if seen.pixels.ndim == 2 else seen.pixels[..., 0]
            area = np.count_nonzero(first) * seen.size[0] * seen.size[1]
            assert area == pytest.approx(area_of_polygons(segmented, name), rel=1e-5)
    record("images", program, **{
        f"pixels of {size_in_words(size, None)}": expected,
        "areas": "–" if program in NO_SIZE else "equal", "what to do": TO_DO.get(program, "–")})


# What to do

TO_DO = {
    "OpenSlide": "take the first channel: `[..., 0]`",
    "SimpleITK": "`SimpleITK.VectorIndexSelectionCast(image, 0)`; the spacing stays",
    "dlup": '`SlideImage.from_file_path(path, interpolator="NEAREST")`, then `[..., 0]`; pixels '
            "that are not square: with OpenSlide",
    "OpenCV": "take the size from another program",
    "scikit-image": "take the size from another program",
}


def test_dlup_moves_pixels_unless_it_is_told_not_to_and_refuses_those_that_are_not_square(
        slide, segmented, record):
    need("dlup", "openslide")
    from dlup._exceptions import UnsupportedSlideError

    name, size, _ = slide
    column = f"pixels of {size_in_words(size, None)}"
    for file in (f"{name}.tiff", f"{name}.probabilities.tiff"):
        truth = tifffile.imread(segmented / file)
        if name == "oblong":
            with pytest.raises(UnsupportedSlideError) as error:
                read("dlup", segmented / file)
            assert "anisotropic" in str(error.value.__cause__)
            record("images", "dlup", **{column: "refused: pixels are not square"})
            continue
        assert in_words(read("dlup", segmented / file, interpolator="NEAREST"), truth, size) == (
            "equal, as red, green, blue; 0.2527 µm")
        moved = read("dlup", segmented / file)
        if file == f"{name}.tiff":
            objects = moved.pixels[..., 0] >= 128
            differ, area = np.mean(objects != (truth > 0)), objects.sum() / (truth > 0).sum()
            assert differ > 0.001 and area != 1
            record("images", "dlup", **{
                column: "moved right and down by half a pixel or more: "
                        f"{100 * differ:.1f} % of the mask's pixels change sides; "
                        + size_in_words(moved.size, size),
                "areas": f"{100 * area:.1f} %", "what to do": TO_DO["dlup"]})


def test_how_far_dlup_moves_a_square(tmp_path):
    image = np.zeros((512, 512), np.uint8)
    image[60:69, 60:69] = image[300:309, 300:309] = 255
    tifffile.imwrite(tmp_path / "a.tiff", image, tile=(256, 256), metadata=None,
                     resolution=(40_000, 40_000), resolutionunit="CENTIMETER")
    seen = read("dlup", tmp_path / "a.tiff").pixels[..., 0].astype(float)
    for window, move in ((slice(0, 256), 0.5), (slice(256, 512), 4.5)):
        for axis in (0, 1):
            before, after = (each[window, window].sum(axis) for each in (image / 1.0, seen))
            there, here = (np.average(np.arange(256), weights=each) for each in (after, before))
            assert there - here == pytest.approx(move, abs=0.02)


def test_the_mask_itself_from_simpleitk(slide, segmented):
    need("SimpleITK")
    import SimpleITK

    name, size, mask = slide
    image = SimpleITK.ReadImage(str(segmented / f"{name}.tiff"))
    image = SimpleITK.VectorIndexSelectionCast(image, 0)
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), mask)
    assert 1e3 * np.array(image.GetSpacing()) == pytest.approx(size, rel=1e-5)
    found = SimpleITK.LabelShapeStatisticsImageFilter()
    found.Execute(image)
    assert found.GetPhysicalSize(255) * 1e6 == pytest.approx(
        area_of_polygons(segmented, name), rel=1e-5)
