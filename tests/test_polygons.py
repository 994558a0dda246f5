"""Polygons: windows against a point-in-polygon test of each pixel, and GeoJSON both ways."""

import json
import tracemalloc
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from minseg.files.objects import Object, Outlines
from minseg.files.polygons import (
    BACKGROUND,
    PLACES,
    Polygon,
    Polygons,
    covers,
    feature,
    is_object,
    read_note,
    read_polygons,
    write_features,
    write_objects,
)

SQUARE = [[1, 1], [4, 1], [4, 5], [1, 5], [1, 1]]
HOLE = [[2, 2], [2, 4], [3, 4], [3, 2], [2, 2]]


def ring(*points):
    return np.array([*points, points[0]], np.float64)


# Windows


def naive_mask(polygons, height, width):
    """For each pixel: how many edges lie to the left of its centre, in exact numbers?"""
    mask = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        edges = [[Fraction(float(number)) for number in (*p, *q)] for points in polygon.rings
                 for p, q in pairwise(points)]
        for y in range(height):
            centre = y + Fraction(1, 2)
            crossings = [x0 + (centre - y0) * (x1 - x0) / (y1 - y0) for x0, y0, x1, y1 in edges
                         if min(y0, y1) <= centre < max(y0, y1)]
            for x in range(width):
                mask[y, x] |= sum(each <= x + Fraction(1, 2) for each in crossings) % 2
    return mask


def some_polygons(seed, height, width):
    """Up to five polygons of up to three rings and a square. Rings may cross themselves and each
    other and leave the image, by less than half; some lie on pixel edges or centres."""
    rng = np.random.default_rng(seed)
    grid = rng.choice([1, 2, 1000])
    size = np.array([width, height])
    polygons, count = [], rng.integers(1, 6)
    while len(polygons) < count:
        middle = rng.uniform(0, size)
        rings = [ring(*np.round((middle + rng.normal(0, size / 3, (rng.integers(3, 8), 2))) * grid)
                      / grid) for _ in range(rng.integers(1, 4))]
        rings.append(ring(*(np.round(middle * grid) / grid + [[-2, -2], [2, -2], [2, 2], [-2, 2]])))
        with suppress(ValueError):  # mostly outside
            Polygons([Polygon("a", rings)], height, width)
            polygons.append(Polygon("a", rings))
    return polygons


@pytest.mark.parametrize("seed", range(60))
def test_pixels_are_inside_where_their_centre_is(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(4, 20, 2)
    polygons = some_polygons(seed, height, width)
    whole, drawn = naive_mask(polygons, height, width), Polygons(polygons, height, width)
    for _ in range(8):
        y, x = rng.integers(0, height), rng.integers(0, width)
        h, w = rng.integers(0, height - y + 1), rng.integers(0, width - x + 1)
        window = drawn.window(y, x, h, w)
        assert window.dtype == np.uint8 and np.array_equal(window, whole[y : y + h, x : x + w])
    assert np.array_equal(drawn.window(0, 0, height, width), whole)


def test_polygons_on_pixel_edges_are_exact():
    mask = Polygons([Polygon("a", [np.array(SQUARE), np.array(HOLE)])], 6, 6).window(0, 0, 6, 6)
    wanted = np.zeros((6, 6), np.uint8)
    wanted[1:5, 1:4], wanted[2:4, 2] = 1, 0
    assert np.array_equal(mask, wanted)


def test_adjacent_areas_share_no_pixel_and_leave_none_out():
    points = np.random.default_rng(0).integers(0, 41, (2, 2)) / 2  # pixel edges and centres
    corners = [(0, 0), (20, 0), (20, 20), (0, 20)]
    parts = [Polygon("a", [ring(a, b, points[0])]) for a, b in zip(corners, corners[1:] + corners)]
    drawn = [Polygons([part], 20, 20).window(0, 0, 20, 20) for part in parts]
    assert (sum(drawn) == 1).all()


@pytest.mark.parametrize("offset", [100, 3000, 49_000, 10**6])
@pytest.mark.parametrize("steps", [2, 3, 7, 10, 1000])
def test_neighbours_that_share_an_edge_neither_lose_nor_share_a_pixel(steps, offset):
    rng, side = np.random.default_rng(steps), 40
    for _ in range(20):  # sectors around a point; all their edges are shared, in both directions
        middle = np.round(rng.uniform(10, 30, 2) * steps) / steps + offset
        turns = np.arange(9) / 9 * 2 * np.pi + rng.uniform(0, 0.6, 9)
        far = middle + 99 * np.column_stack([np.cos(turns), np.sin(turns)])
        far = np.round((far - offset) * steps) / steps + offset
        corners = [*far, far[0]]
        sectors = [Polygon("a", [ring(middle, p, q)]) for p, q in pairwise(corners)]
        window = offset, offset, side, side
        size = offset + side + 100, offset + side + 100
        drawn = [Polygons([each], *size).window(*window) for each in sectors]
        whole = Polygons([Polygon("a", [ring(*far)])], *size)
        assert np.array_equal(sum(drawn), whole.window(*window))


def test_a_polygon_in_the_hole_of_another_is_not_cut_by_it():
    inner = [[2, 2], [3, 2], [3, 3], [2, 3], [2, 2]]
    polygons = [Polygon("a", [np.array(SQUARE), np.array(HOLE)]), Polygon("b", [np.array(inner)])]
    assert Polygons(polygons, 6, 6).window(0, 0, 6, 6).sum() == 11
    assert Polygons(polygons + polygons, 6, 6).window(0, 0, 6, 6).sum() == 11  # a union


def test_without_polygons_the_mask_is_empty():
    assert not Polygons([], 3, 4).window(0, 0, 3, 4).any()


def test_a_polygon_that_leaves_the_image_is_clipped():
    polygon = Polygon("a", [ring((-1, -1), (2, -1), (2, 3.5), (-1, 3.5))])  # 6 of 13.5 inside
    with pytest.raises(ValueError, match="mostly outside"):
        Polygons([polygon], 3, 4)
    polygon = Polygon("a", [ring((-1, -1), (2, -1), (2, 3), (-1, 3))])  # 6 of 12 inside
    assert Polygons([polygon], 3, 4).window(0, 0, 3, 4).tolist() == [[1, 1, 0, 0]] * 3
    line = Polygon("a", [ring((1, 0), (1, 3))])  # without area, but inside
    assert not Polygons([line], 3, 4).window(0, 0, 3, 4).any()


@pytest.mark.parametrize("start, end", [
    ((4, 0), (4, 3)), ((0, 3), (4, 3)), ((0, 0), (0, 3)), ((0, 0), (4, 0))])
def test_a_line_along_the_border_lies_outside(start, end):
    with pytest.raises(ValueError, match="mostly outside"):
        Polygons([Polygon("a", [ring(start, end)])], 3, 4)


@pytest.mark.parametrize("x, y", [(4, 0), (0, 3), (-2, 0), (0, -2), (90_000, 90_000), (3.1, 0),
                                  (0, -1.1), (3, 2)])
def test_a_polygon_outside_the_image_is_refused(x, y):
    far = Polygon("glomerulus", [ring((x, y), (x + 2, y), (x + 2, y + 2))], 3)
    inside = Polygon("a", [np.array(SQUARE) / 2])
    for count, words in ((1, "1 of 2 polygons mostly outside the image of 3 x 4 pixels: delete"),
                         (2, "2 of 3 polygons mostly outside the image of 3 x 4 pixels: its")):
        with pytest.raises(ValueError) as error:
            Polygons([inside, *[far] * count], 3, 4)
        assert words in str(error.value)


def test_stray_polygons_are_named_but_not_all_of_many():
    inside = [Polygon("a", [np.array(SQUARE)])] * 60
    far = [Polygon("b", [np.array(SQUARE) + 100], number) for number in range(61, 71)]
    with pytest.raises(ValueError) as error:
        Polygons(inside + far, 9, 9)
    assert str(error.value) == (
        "has 10 of 70 polygons mostly outside the image of 9 x 9 pixels: delete 61 (b), 62 (b), "
        "63 (b), 64 (b), 65 (b), 66 (b) and 4 more, or cut off what lies outside")


def test_a_window_of_a_large_slide_needs_memory_only_for_itself():
    rng, turn = np.random.default_rng(0), np.linspace(0, 2 * np.pi, 201)
    circle = np.stack([np.cos(turn), np.sin(turn)], 1)
    circle[-1] = circle[0]
    places = rng.uniform(500, 29_500, (600, 1, 2))
    drawn = Polygons([Polygon("a", [place + 200 * circle]) for place in places], 30_000, 30_000)
    tracemalloc.start()
    try:
        band = drawn.window(15_000, 0, 64, 30_000)
        assert tracemalloc.get_traced_memory()[1] < 12 * band.nbytes
    finally:
        tracemalloc.stop()
    y, x = np.mgrid[15_000:15_064, 0:30_000] + 0.5
    near = places[abs(places[:, 0, 1] - 15_032) < 240][:, 0]
    wanted = np.zeros(band.shape, bool)
    for place in near:
        wanted |= (x - place[0]) ** 2 + (y - place[1]) ** 2 < 200**2
    assert len(near) > 3 and np.count_nonzero(band != wanted) < 0.01 * wanted.sum()


# Reading


def drawn_feature(name="glomerulus", kind="Polygon", coordinates=(SQUARE, HOLE), **more):
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates},
            "properties": {"classification": {"name": name, "colorRGB": -3}}, **more}


def read(folder, content):
    path = folder / "a.geojson"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_polygons(path)


@pytest.mark.parametrize("wrap", [
    lambda features: {"type": "FeatureCollection", "features": features, "crs": None},
    lambda features: features,
], ids=["collection", "list"])
def test_collections_and_lists_of_features_are_read(tmp_path, wrap):
    a, b = read(tmp_path, wrap([drawn_feature(), drawn_feature("cortex", coordinates=[HOLE])]))
    assert (a.name, a.number, a.kind, b.name, b.number) == (
        "glomerulus", 1, "Polygon", "cortex", 2)
    assert [each.tolist() for each in a.rings] == [SQUARE, HOLE]
    assert a.rings[0].dtype == np.float64 and a.bounds == (1, 1, 4, 5)


def test_a_single_feature_is_read(tmp_path):
    [polygon] = read(tmp_path, drawn_feature())
    assert polygon.bounds == (1, 1, 4, 5)


@pytest.mark.parametrize("geometry", [
    {"type": "Polygon", "coordinates": [SQUARE]},
    {"type": "MultiPolygon", "coordinates": [[SQUARE]]},
    {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [SQUARE]}]}])
def test_a_bare_geometry_is_read(tmp_path, geometry):
    [polygon] = read(tmp_path, geometry)
    assert (polygon.name, polygon.bounds) == ("unclassified", (1, 1, 4, 5))


def test_a_list_of_rings_is_read_as_polygons_without_a_class(tmp_path):
    inside = [[2, 2], [3, 2], [3, 3]]  # not a hole
    found = read(tmp_path, [SQUARE, inside])  # as HuBMAP's of 2022
    assert [(each.name, each.number, len(each.rings)) for each in found] == [
        ("unclassified", 1, 1), ("unclassified", 2, 1)]
    assert found[1].bounds == (2, 2, 3, 3) and read(tmp_path, []) == []
    with pytest.raises(ValueError, match="feature 2 .* not rings of x, y points"):
        read(tmp_path, [SQUARE, [[1, 2], [3, "4"], [5, 6]]])
    with pytest.raises(ValueError, match="its entry 1 is not a GeoJSON feature"):
        read(tmp_path, [SQUARE, drawn_feature()])


@pytest.mark.parametrize("scale", [1e-4, 0.1, 0.25, 1, 100])
@pytest.mark.parametrize("crs", ["urn:ogc:def:crs:OGC:1.3:CRS84", "EPSG:3857"])
def test_geopandas_crs_is_ignored_unless_no_polygon_is_as_large_as_a_pixel(tmp_path, scale, crs):
    """GeoJSON's default, degrees, which geopandas writes whatever the coordinates are."""
    shape = [[[x * scale, y * scale] for x, y in SQUARE]]
    small = [[[0, 9], [0.5, 9], [0, 9.5]]]
    content = {"type": "FeatureCollection", "crs": {"type": "name", "properties": {"name": crs}},
               "features": [drawn_feature(coordinates=shape), drawn_feature(coordinates=small),
                            drawn_feature(kind="Point", coordinates=[1, 1])]}
    if scale < 0.25 or crs == "EPSG:3857":
        with pytest.raises(ValueError, match='a.geojson: has map coordinates .* delete "crs"'):
            read(tmp_path, content)
    else:
        assert read(tmp_path, content)[0].bounds == (scale, scale, 4 * scale, 5 * scale)


def test_value_0_of_a_mask_turned_into_polygons_is_background(tmp_path):
    names = [each.name for each in read(tmp_path, [
        drawn_feature(properties=each) for each in (
            {"DN": 0}, {"value": "0"}, {"gridcode": 0.0}, {"pixel_value": "0.0"}, {"class": 0},
            {"label": "0"}, {"val": 0, "raster_val": 0}, {"VALUE": 0}, {"Gridcode": 0},
            {"dn": "0"}, {"Class": 0.0}, {"value": False}, {"DN": 0, "value": 2},
            {"DN": 0, "class": "tumour"})])]
    assert names == [BACKGROUND] * 11 + ["unclassified", "value 2", "tumour"]


def boxed(left, top, right, bottom):
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]])


@pytest.mark.parametrize("more, name, found", [
    ({"properties": {"objectType": "tmaCore", "classification": {"name": "x"}}}, PLACES, False),
    ({"properties": {"objectType": "root"}}, PLACES, False),
    ({"properties": {"objectType": "tile"}}, PLACES, False),
    ({"properties": {"objectType": "tile", "classification": {"name": "x"}}}, "x", True),
    ({"properties": {"objectType": "cell"}}, "unclassified", True),
    ({"id": "TMACoreObject", "properties": {"isMissing": True}}, PLACES, False),
    ({"id": "PathRootObject", "properties": {}}, PLACES, False),
    ({"id": "PathTileObject", "properties": {}}, PLACES, False),
    ({"id": "PathDetectionObject", "properties": {}}, "unclassified", True),
    ({"properties": {"classification": {"name": "0"}}}, BACKGROUND, False),
    ({"properties": {"classification": {"name": 0}}}, BACKGROUND, False),
    ({"properties": {"classification": {"name": 2}}}, "value 2", True),
    ({"properties": {"classification": {"name": "2"}}}, "2", True),
    ({"properties": {"class": "Background"}}, "Background", False),
    ({"properties": {"classification": {"name": "BG"}}}, "BG", False),
    ({"properties": {"classification": {"name": "Ignore*"}}}, "Ignore*", False),
    ({"properties": {"classification": '{ "name": "x", "color": [1, 2, 3] }'}}, "x", True),
    ({"properties": {"classification": '{ "name": "x'}}, '{ "name": "x', True),
    ({"properties": {"classifica": '{"names": ["x", "y"]}', "objecttype": "cell"}}, "x: y", True),
    ({"properties": {"OBJECTTYPE": "tile"}}, PLACES, False)])
def test_places_to_look_and_what_is_not_counted_are_no_objects(tmp_path, more, name, found):
    [polygon] = read(tmp_path, [{**drawn_feature(), **more}])
    assert polygon.name == name and is_object(polygon.name) is found


@pytest.mark.parametrize("inset", [0, 0.5, 1, 3])
def test_a_mask_that_became_polygons_with_its_background_fills_the_image(inset):
    """Also where outlines were simplified, up to a pixel off."""
    outer = Polygon("a", [boxed(inset, inset, 400 - inset, 300 - inset)])
    hole = boxed(20, 30, 90, 40)
    rest = Polygon("a", [*outer.rings, hole])
    assert covers([rest, Polygon("a", [hole])], 300, 400) is (inset <= 1)
    assert not covers([rest], 300, 400)
    assert not covers([outer], 300, 400)  # one annotation of a whole image
    assert not covers([outer, outer], 300, 400)  # what they share counts twice
    halves = [Polygon("a", [boxed(0, 0, 200, 300)]), Polygon("a", [boxed(200, 0, 400, 300)])]
    assert not covers(halves, 300, 400)  # neither is a background


@pytest.mark.parametrize("box", [
    (2, 0, 400, 300), (0, 2, 400, 300), (0, 0, 398, 300), (0, 0, 400, 298)])
def test_what_does_not_reach_every_side_is_no_background(box):
    hole = boxed(20, 30, 90, 40)
    rest = Polygon("a", [boxed(*box), hole])
    assert not covers([rest, Polygon("a", [hole])], 300, 400)


def test_each_member_of_a_multipolygon_is_a_polygon(tmp_path):
    parts = [[SQUARE, HOLE], [HOLE]]
    found = read(tmp_path, [drawn_feature(), drawn_feature("b", "MultiPolygon", parts)])
    assert [(each.name, each.number, len(each.rings)) for each in found] == [
        ("glomerulus", 1, 2), ("b", 2, 2), ("b", 2, 1)]


@pytest.mark.parametrize("properties, name", [
    ({"classification": {"name": " Tumor "}}, "Tumor"),
    ({"classification": {"names": ["Tumor", "Positive"], "color": [1, 2, 3]}}, "Tumor: Positive"),
    ({"classification": "Tumor"}, "Tumor"),
    ({"classification": "two\nlines"}, "two lines"),
    ({"classification": {"name": None}}, "unclassified"),
    ({"classification": {"name": " "}}, "unclassified"),
    ({"classification": {}}, "unclassified"),
    ({"classification": None}, "unclassified"),
    ({"objectType": "annotation", "name": "3"}, "unclassified"),
    ({"class": "gland"}, "gland"),
    ({"label": " Tumor "}, "Tumor"),
    ({"category": "a", "DN": 3}, "a"),
    ({"class": 2, "label": "a"}, "a"),
    ({"classification": {"name": "a"}, "class": "b"}, "a"),
    ({"classification": None, "class": "b"}, "b"),
    ({"DN": 3}, "value 3"),
    ({"gridcode": "3"}, "value 3"),
    ({"class": 3.0}, "value 3"),
    ({"label": "03"}, "value 3"),
    ({"value": -9999}, "value -9999"),
    ({"value": 2.5}, "value 2.5"),
    ({"pixel_value": 12345678}, "value 12345678"),
    ({"value": "some text", "class": ["a"], "label": "", "DN": None}, "unclassified"),
    ({"DN": float("nan")}, "unclassified"),
    (None, "unclassified"),
])
def test_the_class_is_that_of_the_classification(tmp_path, properties, name):
    [polygon] = read(tmp_path, drawn_feature(properties=properties))
    assert polygon.name == name


def test_open_rings_are_closed_and_heights_are_ignored(tmp_path):
    [polygon] = read(tmp_path, drawn_feature(coordinates=[[[0, 0, 7], [2.5, 0], [2, 3, 7]]]))
    assert polygon.rings[0].tolist() == [[0, 0], [2.5, 0], [2, 3], [0, 0]]
    [polygon] = read(tmp_path, drawn_feature(coordinates=[SQUARE[:-1]]))
    assert polygon.rings[0].tolist() == SQUARE


def test_polygons_without_rings_are_ignored(tmp_path):
    found = read(tmp_path, [drawn_feature(coordinates=[]), drawn_feature("b", "MultiPolygon", []),
                            drawn_feature("c", "MultiPolygon", [[], [SQUARE]])])
    assert [each.name for each in found] == ["c"]


def test_a_nucleus_and_a_byte_order_mark_are_ignored(tmp_path):
    cell = drawn_feature(nucleusGeometry={"type": "Polygon", "coordinates": [HOLE]})
    [polygon] = read(tmp_path, "\ufeff" + json.dumps([cell]))
    assert len(polygon.rings) == 2


@pytest.mark.parametrize("kind", ["Point", "MultiPoint", "LineString", "GeometryCollection", None])
def test_a_geometry_that_is_not_an_area_has_no_rings(tmp_path, kind):
    found = read(tmp_path, [drawn_feature(), drawn_feature("b", kind, [1, 2])])
    assert (found[1].name, found[1].rings, found[1].number, found[1].kind) == (
        "b", None, 2, str(kind))


BAD = drawn_feature("b\nc", coordinates=[[[1, 1], [2, 1]], [[1, 1], [1, 2], [1, "2"]]])


@pytest.mark.parametrize("content, words", [
    ("", "is not JSON, or is cut off, at line 1: export it again"),
    ('[\n{"type": "Feature", "geom', "is not JSON, or is cut off, at line 2: export it again"),
    ("[" * 100_000, "JSON"),
    ("3", "is JSON, but not GeoJSON: save its polygons as GeoJSON"),
    ({"shapes": [], "version": "5"}, "is labelme JSON, not GeoJSON: convert it (docs/masks.md)"),
    ({"images": [], "annotations": []}, "is COCO JSON, not GeoJSON"),
    ({"type": "FeatureCollection"}, "is JSON, but not GeoJSON"),
    ({"type": "Point", "coordinates": [1, 1]}, "is JSON, but not GeoJSON"),
    ([[1, 2]], "its entry 1 is not a GeoJSON feature"),
    ([[[1, 2], 3]], "its entry 1 is not a GeoJSON feature"),
    ([drawn_feature(), {"type": "Polygon"}], "its entry 2 is not a GeoJSON feature"),
    ({"images": []}, "is JSON, but not GeoJSON: save its polygons as GeoJSON"),
    ({"annotations": []}, "is JSON, but not GeoJSON: save its polygons as GeoJSON"),
    ({"type": "FeatureCollection", "features": [], "crs": {"type": "name"}},
     'has map coordinates ("crs"): if they are pixels of the full image, delete "crs"'),
    ([drawn_feature(geometry=None)], "feature 1 (glomerulus) has no geometry: delete it"),
    ([drawn_feature(), BAD], "feature 2 (b c) has coordinates that are not rings of x, y points"),
    *[([drawn_feature(coordinates=coordinates)], "feature 1 (glomerulus) has coordinates that are")
      for coordinates in (
          [[[1, 1], [2, float("nan")], [3, 3]]], [[[1, 1], [2, float("inf")], [3, 3]]],
          [[[1, 1], [2, True], [3, 3]]], [[[1, 1], [2, None], [3, 3]]], [[[1, 1], [2], [3, 3]]],
          [[[1], [2], [3]]], [[1, 2], [3, 4]], [["12", "34"]], [{"x": 1}], [[{"x": 1}]], [[]],
          [[[1, 1], [2, 10**400], [3, 3]]], [[[1, 1], [2, 1e300], [3, 3]]],
          [[[1, 1], [2, 1e9], [3, 3]]], [[[1, 1], [-1e9, 2], [3, 3]]], 7, None, [None])],
    ([drawn_feature(kind="MultiPolygon", coordinates=[SQUARE])], "that are not rings of x, y"),
])
def test_a_bad_file_is_refused_in_one_line(tmp_path, content, words):
    with pytest.raises(ValueError) as error:
        read(tmp_path, content)
    assert str(error.value).startswith(f"{tmp_path / 'a.geojson'}: ")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "a.json").write_bytes('["glom\xe9rule"]'.encode("latin1"))
    with pytest.raises(ValueError, match="a.json: is not UTF-8 text: save it as UTF-8"):
        read_polygons(tmp_path / "a.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError) as error:
        read_polygons(tmp_path / "a.json")
    assert str(error.value) == f"{tmp_path / 'a.json'}: no such file"


# Writing


def found(x=3):
    return Object(10, 0.123456789, [np.add(SQUARE, [x, 0]), np.add(HOLE, [x, 0])])


def write(path, *features, note="a note"):
    with write_features(path, note) as add:
        for each in features:
            add(each)
    return json.loads(path.read_text())


def test_a_feature_is_what_qupath_reads_as_an_annotation(tmp_path):
    [written] = write(tmp_path / "a.geojson", feature(found(), "glomerulus"))["features"]
    assert len(written.pop("id")) == 36
    assert written == {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[[x + 3, y] for x, y in SQUARE],
                                                        [[x + 3, y] for x, y in HOLE]]},
        "properties": {"objectType": "annotation",
                       "classification": {"name": "glomerulus", "color": [200, 0, 0]},
                       "measurements": {"Area px^2": 10, "Mean probability": 0.123457}}}


def test_areas_are_in_square_micrometres_if_the_pixel_size_is_known():
    assert feature(found(), "a", 0.5)["properties"]["measurements"]["Area µm^2"] == 2.5


def test_each_feature_has_a_line_of_its_own(tmp_path):
    path = tmp_path / "a.geojson"
    for count in range(3):
        content = write(path, *[feature(found(x), "a") for x in range(count)])
        assert content["type"] == "FeatureCollection" and len(content["features"]) == count
        _, *lines, last = path.read_text().splitlines()
        assert [json.loads(line.rstrip(",")) for line in lines] == content["features"]
        assert last == "]}" and path.read_bytes().isascii()


def test_ids_differ_between_objects_and_notes_but_not_between_runs(tmp_path):
    def ids(note):
        features = [feature(found(x), "a") for x in range(3)]
        return [each["id"] for each in write(tmp_path / "a", *features, note=note)["features"]]

    assert ids("a") == ids("a") and len({*ids("a"), *ids("b")}) == 6


@pytest.mark.parametrize("note", ["", "a note", 'quotes " and\nlines', "µ", "x" * 10_000])
def test_the_note_is_read_back(tmp_path, note):
    write(tmp_path / "a.geojson", feature(found(), "a"), note=note)
    assert read_note(tmp_path / "a.geojson") == note


@pytest.mark.parametrize("content", [
    "", "[", "\x00\xff", '{"type":"FeatureCollection","features":[', '{"minseg":3,"features":[',
    json.dumps([drawn_feature()]), "[{"], ids=range(7))
def test_other_files_have_no_note(tmp_path, content):
    (tmp_path / "a").write_text(content)
    assert read_note(tmp_path / "a") is None
    assert read_note(tmp_path / "b") is None


def test_an_incomplete_file_never_appears(tmp_path):
    with pytest.raises(RuntimeError), write_features(tmp_path / "a.geojson", "") as add:
        add(feature(found(), "a"))
        raise RuntimeError
    assert not [*tmp_path.iterdir()]


def test_a_written_mask_is_read_back_unchanged(tmp_path):
    mask = np.random.default_rng(0).random((30, 40)) < 0.6
    outlines = Outlines(30, 40)
    objects = outlines.add(mask, mask) + outlines.finish()
    write(tmp_path / "a.geojson", *[feature(each, "a") for each in objects])
    polygons = read_polygons(tmp_path / "a.geojson")
    assert np.array_equal(Polygons(polygons, 30, 40).window(0, 0, 30, 40), mask)


@pytest.mark.parametrize("seed", range(5))
def test_polygons_become_a_mask_and_polygons_again_band_by_band_without_a_pixel_of_difference(
        tmp_path, seed):
    drawn, bands = Polygons(some_polygons(seed, 40, 60), 40, 60), [(0, 13), (13, 1), (14, 26)]
    with write_objects(tmp_path / "a.geojson", 40, 60) as add:
        for y, rows in bands:
            mask = drawn.window(y, 0, rows, 60)
            add(mask, mask)
    again = Polygons(read_polygons(tmp_path / "a.geojson"), 40, 60)
    before = drawn.window(0, 0, 40, 60)
    assert before.any() and np.array_equal(before, again.window(0, 0, 40, 60))


def test_shares_of_the_size_among_which_are_0_and_1_are_refused():
    ring = np.array([[0, 0], [1, 0], [1, 0.5], [0, 0.5], [0, 0]])
    with pytest.raises(ValueError, match="lie between 0 and 1"):
        Polygons([Polygon("a", [ring])], 80, 100)


def test_areas_are_those_of_each_ring_wherever_it_begins():
    def begun(ring, k):
        return np.concatenate([ring[k:-1], ring[: k + 1]])

    cells = [boxed(40 * i + 5, 30 * j + 5, 40 * i + 35, 30 * j + 25)
             for i in range(10) for j in range(10)]
    rest = Polygon("a", [begun(boxed(0, 0, 400, 300), 2), *(begun(cell, 3) for cell in cells)])
    assert covers([rest, *(Polygon("a", [begun(cell, 1)]) for cell in cells)], 300, 400)
    assert not covers([rest, *(Polygon("a", [begun(cell, 1)]) for cell in cells[:90])], 300, 400)


def test_a_polygon_that_was_read_cannot_be_changed():
    with pytest.raises(AttributeError):
        Polygon("a", None).name = "b"


def test_polygons_that_fill_a_small_image_to_the_pixel_cover_it():
    shell = np.array([[0, 0], [5, 0], [5, 5], [0, 5], [0, 0.0]])
    hole = np.array([[1, 1], [1, 3], [3, 3], [3, 1], [1, 1.0]])
    assert covers([Polygon("a", [shell, hole]), Polygon("b", [hole[::-1]])], 5, 5)
    assert not covers([Polygon("a", [shell, hole]), Polygon("b", [hole[:3][[0, 1, 2, 0]]])], 5, 5)


def test_only_polygons_all_within_the_first_pixel_are_taken_for_shares_of_the_size():
    ring = np.array([[0.2, 0.2], [1.0, 0.4], [0.5, 1.0], [0.2, 0.2]])
    with pytest.raises(ValueError, match="all its coordinates lie between 0 and 1"):
        Polygons([Polygon("a", [ring])], 9, 9)
    assert Polygons([Polygon("a", [ring * 1.5])], 9, 9).window(0, 0, 9, 9).sum() == 1
    both = [Polygon("a", [ring]), Polygon("a", [ring * 6])]  # one is larger than a pixel
    assert Polygons(both, 9, 9).window(0, 0, 9, 9).any()
    whole = Polygon("a", [np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0.0]])])
    assert Polygons([whole], 9, 9).window(0, 0, 9, 9).sum() == 1  # a single pixel
