"""minseg paints the polygons that other programs make. A pixel covers [x, x + 1] here; programs for
which it is a point at x, or whose outlines run through pixels' centres, need a half pixel."""

import json

import numpy as np
import pytest
import tifffile
from programs import need, percent

from minseg.files.polygons import Polygons, read_polygons

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def mask(segmented):
    return tifffile.imread(segmented / "oblong.tiff") > 0


def paint(path, shape):
    return Polygons(read_polygons(path), *shape).window(0, 0, *shape) > 0


def write_rings(path, objects):
    """Objects, each a list of rings with the outer one first, as GeoJSON."""
    features = [{"type": "Feature", "properties": {}, "geometry": {
        "type": "Polygon", "coordinates": [np.asarray(ring).tolist() for ring in rings]}}
        for rings in objects]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def wrong(path, mask):
    painted = paint(path, mask.shape)
    return "the mask" if np.array_equal(painted, mask) else (
        f"{percent(painted, mask)} of the mask's area wrong")


def test_rasterio_shapes(mask, tmp_path, record):
    need("rasterio")
    from rasterio.features import shapes

    features = [{"type": "Feature", "properties": {"value": value}, "geometry": geometry}
                for geometry, value in shapes(mask.astype(np.uint8), mask=mask)]
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    assert wrong(path, mask) == "the mask"
    record("polygons", "rasterio: features.shapes", **{"seen": "the mask", "what to do": "–"})


def test_geopandas_to_file(segmented, mask, tmp_path, record):
    need("geopandas")
    import geopandas

    table = geopandas.read_file(segmented / "oblong.geojson")
    table.to_file(tmp_path / "a.geojson", driver="GeoJSON")
    assert '"crs"' in (tmp_path / "a.geojson").read_text()
    assert wrong(tmp_path / "a.geojson", mask) == "the mask"
    (tmp_path / "b.geojson").write_text(table.to_json())
    assert wrong(tmp_path / "b.geojson", mask) == "the mask"
    record("polygons", "geopandas: to_file, to_json", **{"seen": "the mask", "what to do": "–"})


def test_geopandas_with_coordinates_of_a_map_is_refused(segmented, tmp_path, record):
    need("geopandas")
    import geopandas

    table = geopandas.read_file(segmented / "oblong.geojson").set_crs(32633, allow_override=True)
    table.to_file(tmp_path / "a.geojson", driver="GeoJSON")
    with pytest.raises(ValueError, match='has map coordinates .* delete "crs" from the file'):
        read_polygons(tmp_path / "a.geojson")
    content = json.loads((tmp_path / "a.geojson").read_text())
    del content["crs"]
    (tmp_path / "a.geojson").write_text(json.dumps(content))
    assert len(read_polygons(tmp_path / "a.geojson")) == len(table)
    record("polygons", "geopandas: to_file with another crs", **{
        "seen": "refused: has map coordinates", "what to do": 'delete "crs", as the line says'})


def test_shapely(segmented, mask, tmp_path, record):
    need("shapely")
    import shapely

    drawn = shapely.from_geojson((segmented / "oblong.geojson").read_text())
    union = shapely.union_all(drawn.geoms)
    (tmp_path / "a.geojson").write_text(shapely.to_geojson(union))
    assert union.geom_type == "MultiPolygon" and wrong(tmp_path / "a.geojson", mask) == "the mask"
    record("polygons", "shapely: to_geojson of a MultiPolygon", **{
        "seen": "the mask", "what to do": "–"})


def test_dlup_as_geojson(segmented, mask, tmp_path, record):
    need("dlup")
    from dlup.annotations import SlideAnnotations

    drawn = SlideAnnotations.from_geojson(segmented / "oblong.geojson").as_geojson()
    (tmp_path / "a.geojson").write_text(json.dumps(drawn))
    assert read_polygons(tmp_path / "a.geojson")[0].name == "object"
    assert wrong(tmp_path / "a.geojson", mask) == "the mask"
    record("polygons", "dlup: as_geojson", **{"seen": "the mask", "what to do": "–"})


def test_find_contours(mask, tmp_path, record):
    """Its outlines at 0.5 cut corners off, but no pixel's centre. All rings in one polygon: what
    lies in an even number of them is a hole."""
    need("skimage")
    from skimage.measure import find_contours

    rings = [ring[:, ::-1] - 1 for ring in find_contours(np.pad(mask, 1).astype(float), 0.5)]
    as_it_is = wrong(write_rings(tmp_path / "a.geojson", [rings]), mask)
    moved = write_rings(tmp_path / "b.geojson", [[ring + 0.5 for ring in rings]])
    assert as_it_is.endswith("wrong") and wrong(moved, mask) == "the mask"
    record("polygons", "scikit-image: measure.find_contours", **{
        "seen": as_it_is,
        "what to do": "swap to x, y and add 0.5; all rings of an image in one polygon: the mask"})


def test_opencv_contours(mask, tmp_path, record):
    """They run through the centres of the outermost pixels, so half a pixel is lost all around.
    (Of single pixels and lines they make no polygon: these are left out.)"""
    need("cv2", "shapely")
    import cv2
    from shapely import Polygon

    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    found, _ = cv2.findContours(opened, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros(mask.shape, np.uint8), found, -1, 1, cv2.FILLED) > 0
    rings = [ring[:, 0].astype(float) for ring in found]
    texts = [wrong(write_rings(tmp_path / "a.geojson", [[ring + shift] for ring in rings]), filled)
             for shift in (0, 0.5)]
    assert all(text.endswith("wrong") for text in texts)
    whole = [Polygon(ring + 0.5).buffer(0.5, join_style="mitre").exterior.coords for ring in rings]
    assert wrong(write_rings(tmp_path / "a.geojson", [[ring] for ring in whole]), filled) == (
        "the mask")
    record("polygons", "OpenCV: findContours", **{
        "seen": f"{texts[0]}; with 0.5 added {texts[1].split(' of')[0]}",
        "what to do": '`Polygon(points + 0.5).buffer(0.5, join_style="mitre")` of shapely: the '
                      "mask"})


@pytest.mark.parametrize("radius, dice", [(10, 0.93), (30, 0.98)])
def test_discs_of_docs_masks_lose_half_a_pixel_and_regain_it(tmp_path, radius, dice):
    need("cv2", "shapely")
    import cv2
    from shapely import Polygon

    y, x = np.indices((2 * radius + 20,) * 2) - radius - 10
    disc = y**2 + x**2 <= radius**2
    [ring], _ = cv2.findContours(disc.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    points = ring[:, 0].astype(float)
    painted = paint(write_rings(tmp_path / "a.geojson", [[points]]), disc.shape)
    assert round(2 * (painted & disc).sum() / (painted.sum() + disc.sum()), 2) == dice
    whole = Polygon(points + 0.5).buffer(0.5, join_style="mitre").exterior.coords
    assert np.array_equal(paint(write_rings(tmp_path / "b.geojson", [[whole]]), disc.shape), disc)
