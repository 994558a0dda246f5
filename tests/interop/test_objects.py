"""Other programs read the polygons and the run-length code that infer.py writes: equal areas, and
the same mask when they paint."""

import csv
import json
from uuid import UUID

import numpy as np
import pytest
from programs import need, percent

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def features(slide, segmented):
    return json.loads((segmented / f"{slide[0]}.geojson").read_text("utf-8"))["features"]


def rings_of(feature):
    """The rings of an object, the outer one first: float arrays (points, 2)."""
    return [np.array(ring, float) for ring in feature["geometry"]["coordinates"]]


def areas_of(features):
    return np.array([each["properties"]["measurements"]["Area µm^2"] for each in features])


def painted(features, shape, paint):
    """The union of all objects. `paint(ring, shape)` makes the mask of one ring; those of holes are
    taken away from their object, whose pixels may lie in the hole of another."""
    mask = np.zeros(shape, bool)
    for feature in features:
        corners = np.concatenate(rings_of(feature))
        left, top = corners.min(0).astype(int) - 1
        right, bottom = corners.max(0).astype(int) + 1
        part = np.zeros((bottom - top, right - left), bool)
        for ring in rings_of(feature):
            part ^= paint(ring - [left, top], part.shape)
        y, x = np.nonzero(part)
        inside = (y + top >= 0) & (x + left >= 0) & (y + top < shape[0]) & (x + left < shape[1])
        mask[y[inside] + top, x[inside] + left] = True
    return mask


def test_shapely_measures_the_areas(slide, features, record):
    need("shapely")
    from shapely.geometry import shape

    _, (x, y), mask = slide
    outlines = [shape(each["geometry"]) for each in features]
    assert all(each.is_valid and each.geom_type == "Polygon" for each in outlines)
    areas = np.array([each.area for each in outlines])
    assert areas * x * y == pytest.approx(areas_of(features), rel=1e-9)
    assert areas.sum() == np.count_nonzero(mask)
    record("objects", "shapely: GeoJSON", **{
        "seen": "each area in pixels, times the size of a pixel, is that in the file",
        "what to do": "–"})


def test_geopandas_takes_pixels_for_degrees(slide, segmented, features, record):
    need("geopandas")
    import geopandas

    name, (x, y), _ = slide
    table = geopandas.read_file(segmented / f"{name}.geojson")
    assert len(table) == len(features) and table.crs == "EPSG:4326"
    assert table["classification"][0]["name"] == "object" and set(table["objectType"]) == {
        "annotation"}
    with pytest.warns(UserWarning, match="Results from 'area' are likely incorrect"):
        assert len(table.area) == len(features)
    table = table.set_crs(None, allow_override=True)
    assert table.area.to_numpy() * x * y == pytest.approx(areas_of(features), rel=1e-9)
    record("objects", "geopandas: GeoJSON", **{
        "seen": "equal numbers, taken for degrees (EPSG:4326): it warns that areas are wrong",
        "what to do": "`table.set_crs(None, allow_override=True)`: then each area is right"})


def test_rasterio_paints_the_mask(slide, features, record):
    need("rasterio")
    from rasterio.features import rasterize

    _, _, mask = slide
    assert np.array_equal(rasterize([each["geometry"] for each in features],
                                    out_shape=mask.shape, default_value=255), mask)
    record("objects", "rasterio: GeoJSON", **{
        "seen": "`rasterio.features.rasterize` gives the mask", "what to do": "–"})


def scikit_image(ring, shape):
    from skimage.draw import polygon2mask

    return polygon2mask(shape, ring[:, ::-1])


def pillow(ring, shape):
    from PIL import Image, ImageDraw

    image = Image.new("1", shape[::-1])
    ImageDraw.Draw(image).polygon([tuple(point) for point in ring], fill=1)
    return np.asarray(image)


def opencv(ring, shape):
    import cv2

    return cv2.fillPoly(np.zeros(shape, np.uint8), [ring.round().astype(np.int32)], 1) > 0


def moved(paint):
    return lambda ring, shape: paint(ring - 0.5, shape)


def doubled(paint):
    return lambda ring, shape: paint(2 * ring, (2 * shape[0], 2 * shape[1]))[1::2, 1::2]


TWICE = "paint `2 * ring` at twice the size and take `[1::2, 1::2]`: the mask; minus 0.5: {}"


@pytest.mark.parametrize("program, module, paint, remedy, text", [
    ("scikit-image: GeoJSON", "skimage", scikit_image, moved,
     "subtract 0.5 from each coordinate: `polygon2mask` gives the mask"),
    ("Pillow: GeoJSON", "PIL", pillow, doubled, TWICE),
    ("OpenCV: GeoJSON", "cv2", opencv, doubled, TWICE)])
def test_who_paints_half_a_pixel_beside(slide, features, record, program, module, paint, remedy,
                                        text):
    need(module)
    mask = slide[2] > 0
    as_it_is, shifted = (painted(features, mask.shape, way) for way in (paint, moved(paint)))
    assert (as_it_is != mask).sum() > 0.05 * mask.sum()
    assert np.array_equal(painted(features, mask.shape, remedy(paint)), mask)
    assert np.array_equal(shifted, mask) == (remedy is moved)
    record("objects", program, **{
        "seen": f"painted as it is: {percent(as_it_is, mask)} of the mask's area wrong",
        "what to do": text.format(f"still {percent(shifted, mask)}")})


def test_dlup_reads_the_polygons_and_paints_too_much(slide, segmented, features, record):
    need("dlup")
    from dlup.annotations import SlideAnnotations

    name, (x, y), mask = slide
    drawn = SlideAnnotations.from_geojson(segmented / f"{name}.geojson")
    assert drawn.available_classes == {"object"} and len(drawn) == len(features)
    areas = sorted(each.area * x * y for each in drawn.polygons)
    assert areas == pytest.approx(sorted(areas_of(features)), rel=1e-9)
    drawn.index_map = {"object": 1}
    region = drawn.read_region((0, 0), 1.0, mask.shape[::-1])
    painted = np.array(region.polygons.to_mask().numpy()) > 0
    assert painted.shape == mask.shape and (painted != (mask > 0)).any()
    record("objects", "dlup: GeoJSON", **{
        "seen": f"areas and classes equal; its `to_mask`: {percent(painted, mask > 0)} of the "
                "mask's area wrong",
        "what to do": "paint with rasterio"})


def test_coco_fills_holes(slide, features, record):
    need("pycocotools")
    from pycocotools import mask as coco

    mask = slide[2] > 0
    rings = [rings_of(each)[0].ravel().tolist() for each in features]
    filled = coco.decode(coco.merge(coco.frPyObjects(rings, *mask.shape))) > 0
    without_holes = painted(features, mask.shape, coco_paint)
    assert (filled >= mask).all() and (filled != mask).any()
    assert np.array_equal(without_holes, mask)
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert coco.area(encoded) == mask.sum() and np.array_equal(coco.decode(encoded), mask)
    record("objects", "pycocotools: GeoJSON", **{
        "seen": f"objects without holes equal; its polygons have no holes: {percent(filled, mask)} "
                "of the mask's area wrong",
        "what to do": "encode the mask: `mask.encode(np.asfortranarray(mask))`"})


def coco_paint(ring, shape):
    from pycocotools import mask as coco

    return coco.decode(coco.frPyObjects([ring.ravel().tolist()], *shape)[0]) > 0


def test_what_qupath_asks_for(features):
    """QuPath itself is not run: each feature has an id of its own, which is a UUID, and a class
    with a colour, and is a closed polygon."""
    assert len({UUID(each["id"]) for each in features}) == len(features)
    for each in features:
        assert each["properties"]["objectType"] == "annotation"
        kind = each["properties"]["classification"]
        assert kind["name"] == "object" and len(kind["color"]) == 3
        assert all(np.array_equal(ring[0], ring[-1]) for ring in rings_of(each))


# Run-length code

def runs_of(folder, name):
    csv.field_size_limit(2**31 - 1)
    with open(folder / "submission.csv", newline="") as file:
        return {row["id"]: row["predicted"] for row in csv.DictReader(file)}[name]


def test_kaggles_decoder_gives_the_mask(slide, segmented, record):
    """The function that most notebooks of the competition share."""
    name, _, mask = slide
    numbers = np.array(runs_of(segmented, name).split(), int)
    pixels = np.zeros(mask.size, np.uint8)
    for start, length in zip(numbers[::2] - 1, numbers[1::2]):
        pixels[start : start + length] = 255
    assert np.array_equal(pixels.reshape(mask.shape[::-1]).T, mask)
    record("objects", "Kaggle's decoder in numpy: CSV", **{"seen": "the mask", "what to do": "–"})


def test_the_runs_are_cocos_counts(slide, segmented, record):
    need("pycocotools")
    from pycocotools import mask as coco

    name, _, mask = slide
    starts, lengths = np.array(runs_of(segmented, name).split(), int).reshape(-1, 2).T
    ends = np.concatenate([[1], starts + lengths])
    counts = np.column_stack([starts - ends[:-1], lengths]).ravel().tolist()
    counts.append(int(mask.size + 1 - ends[-1]))
    encoded = coco.frPyObjects({"counts": counts, "size": list(mask.shape)}, *mask.shape)
    assert np.array_equal(coco.decode(encoded) * 255, mask)
    record("objects", "pycocotools: CSV", **{
        "seen": "the mask, once starts are replaced by the lengths of the gaps between runs",
        "what to do": "encode the mask instead"})
