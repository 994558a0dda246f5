"""What is said about a data set: the lines, and when each of them is printed."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minseg.files.masks import Item
from minseg.run.describe import (
    pixel_size,
    report_copies,
    report_corner,
    report_data,
    report_folds,
    report_objects,
    report_unused,
    report_values,
)
from minseg.run.tiles import CutSlide

SLIDE = CutSlide(file="a.tiles", source=[], made_from={}, height=40, width=50, microns=None,
                 notes=[], kind="255", colour="", positive=100, void=0, objects=[100],
                 agreement=[0, 0], blank=0, places=[[0, 0], [0, 9]], area=[6, 0])


def items(count, **options):
    return [Item(f"a{i}", Path(f"i/a{i}.png"), Path(f"m/a{i}.png"), f"g{i}", **options)
            for i in range(count)]


def slides(*changes):
    return [replace(SLIDE, **{"made_from": {"image": {"sha256": str(i)}}, **change})
            for i, change in enumerate(changes)]


def seen(scale, tile, microns=None):
    """The options that say what the network sees."""
    return SimpleNamespace(scale=scale, tile=tile, microns=microns)


@pytest.fixture
def said(capsys):
    """Calls a function and returns the lines that it prints."""
    def call(function, *arguments):
        function(*arguments)
        return capsys.readouterr().out.splitlines()

    return call


def test_of_masks_that_leave_nothing_open_nothing_is_said(said):
    assert said(report_data, items(1), slides({})) == []
    assert said(report_objects, items(1), slides({}), seen(1, 40)) == [
        "5.0% of pixels positive, 1 objects, median diameter 11 pixels"]
    assert said(report_copies, items(2), slides({}, {}), [0, 1]) == []
    assert said(report_values, items(3), slides({}, {"kind": "void"}, {"kind": ""})[::2]) == []


def test_files_that_have_no_effect_are_named_and_groups_recommended_beside_a_table(
        said, tmp_path):
    names = [tmp_path / "b.txt", tmp_path / "more.CSV", *[tmp_path / f"x/{i}" for i in range(10)]]
    lines = said(report_unused, tmp_path, names)
    assert lines == [
        f"{tmp_path}: not used (2): b.txt, more.CSV; groups.csv (id,group) would keep images of "
        "one patient together",
        f"{tmp_path / 'x'}: not used (10): 0, 1, 2, 3, 4, 5, 6, 7, ..."]
    assert said(report_unused, tmp_path, names[:1]) == [f"{tmp_path}: not used (1): b.txt"]
    (tmp_path / "x").mkdir()
    assert "groups" not in said(report_unused, tmp_path, [tmp_path / "x/other.csv"])[0]
    (tmp_path / "groups.csv").touch()
    assert "together" not in said(report_unused, tmp_path, names)[0]


def geojson(path, *shapes):
    """Writes triangles as wide and high as given, each of a class, and returns the item."""
    path.write_text(json.dumps([{
        "type": "Feature", "properties": {"classification": name},
        "geometry": {"type": "Polygon",
                     "coordinates": [[[0, 0], [side, 0], [side, min(5, side)], [0, 0]]]}}
        for side, name in shapes]))
    return Item(path.stem, path, path, "g")


def test_of_each_class_of_polygons_it_is_told_how_it_is_used(said, tmp_path):
    classes = [(30, "cell")] * 3 + [(30, "fold")] * 2 + [(30, "Region*")]
    item = geojson(tmp_path / "a.geojson", *classes)
    for options, uses in (({}, ("to be found", "to be found", "not used")),
                          ({"ignore": ("fold",)}, ("to be found", "void", "not used")),
                          ({"labels": ("fold",)}, ("not used", "to be found", "not used")),
                          ({"labels": ("cell",), "ignore": ("Region*",)},
                           ("to be found", "not used", "void"))):
        assert said(report_data, [replace(item, **options)], slides({})) == [
            "polygons: 3 cell ({}), 2 fold ({}), 1 Region* ({})".format(*uses)]
    beside = replace(item, runs="", mask=tmp_path / "train.csv", polygons=item.mask)
    assert said(report_data, [beside], slides({})) == [
        "polygons: 3 cell (not used), 2 fold (not used), 1 Region* (not used)"]
    many = geojson(tmp_path / "b.geojson", *[(30, f"c{i:02d}") for i in range(21)])
    line, = said(report_data, [many], slides({}))
    assert line.endswith("1 c19 (to be found), ...") and line.count("found") == 20
    corner = geojson(tmp_path / "c.geojson", *[(9, "cell")] * 3)
    assert len(said(report_data, [corner, corner], slides({}, {}))) == 2
    assert len(said(report_data, [corner, corner, *items(1)], slides({}, {}, {}))) == 2


def test_void_is_told_as_a_share_and_a_note_once_for_all_its_files(said):
    lines = said(report_data, items(3), slides(
        {"void": 500, "notes": ["is dark"]}, {"notes": ["is dark", "is odd"]}, {}))
    assert lines == ["8.3% of all pixels are void: neither trained on nor scored",
                     "i/a0.png: is dark (and 1 others like it)", "i/a1.png: is odd"]


def test_the_agreement_of_polygons_is_that_of_all_pixels_and_of_the_worst_image(said):
    lines = said(report_data, items(4, runs=""), slides(
        {"agreement": (300, 1000)}, {"agreement": (100, 400)}, {"agreement": (5, 10)}, {}))
    assert lines == ["run-length code is used; the polygons beside it agree to a Dice of 0.5745, "
                     "in a1 0.5000"]


def test_colours_and_values_that_contradict_each_other_are_refused(said):
    for changes, words in (
            (({"colour": "#ff0000"}, {"colour": "#00ff00"}), "objects are #00ff00, but #ff0000 in"),
            (({"colour": "#ff0000"}, {"colour": "#00ff00"}, {"colour": "#0000ff"}), "#ff0000 in"),
            (({"kind": "7"}, {"kind": "255"}), "a0.png: objects are 7, but 255 in m/a1.png"),
            (({"kind": "void"}, {"kind": "7"}), "a1.png: objects are 7, but 1 in m/a0.png"),
            (({"kind": "void"}, {"kind": "255"}), "a1.png: holds 0 and 255, m/a0.png also 1")):
        with pytest.raises(ValueError, match=words):
            report_values(items(len(changes)), slides(*changes))
        with pytest.raises(ValueError, match=words):
            report_data(items(len(changes)), slides(*changes))
    assert said(report_values, items(2), slides({"kind": "1"}, {"kind": "void"})) == []
    one_colour = slides({"kind": "1", "colour": "#ff0000"}, {"kind": "1", "colour": "#ff0000"})
    assert said(report_values, items(2), one_colour) == []
    assert said(report_values, items(2), slides({"kind": "1"}, {})) == [
        "m/a0.png holds 0 and 1, m/a1.png 0 and 255: both are taken for objects; if 255 is void, "
        "say --ignore 255"]
    for ignore, beside in (((), "0"), (("255",), "0 and 255")):
        line, = said(report_values, items(1, ignore=ignore), slides({"kind": "7"}))
        assert line == f"objects are 7 in the masks, the only value beside {beside}"


@pytest.mark.parametrize("corners, images, share", [
    ((9, 19, 9), 2, "38%"), ((24, 9, 9), 2, "48%"), ((25, 9, 9), 2, None), ((0, 0, 0), 2, None),
    ((9, 9, 9), 1, None), ((9, 9), 2, None)])
def test_three_polygons_of_two_images_in_the_upper_left_quarter_get_a_line(
        said, tmp_path, corners, images, share):
    found = []
    for i in range(images):
        shapes = [(side, "a") for side in corners[i::images]]
        found.append(geojson(tmp_path / f"a{i}.geojson", *shapes))
    lines = said(report_corner, found, slides(*[{"height": 50}] * images))
    assert [f"within {share} of their size" in line for line in lines] == [True] * bool(share)
    if share == "38%":
        assert "Up to 2.63 times as large they would still fit" in lines[0]


def test_folds_groups_and_tiles_are_counted(said, tmp_path):
    tiles = SimpleNamespace(mask_area=torch.tensor([0, 3, 1]), blank=7)
    tiles = type("Tiles", (), {**vars(tiles), "__len__": lambda self: 3})()
    alone = [Item(f"a{i}", Path("i"), Path("m"), f"a{i}") for i in range(3)]
    first = f"{tmp_path}: 3 images in 3 groups, 2 folds of 1, 2"
    last = ("3 tiles of 64 x 64 pixels, 2 of them with something to find; 7 blank tiles are left "
            "out of training")
    assert said(report_folds, tmp_path, items(3), [1, 0, 1], tiles, 64) == [first, last]
    assert said(report_folds, tmp_path, alone, [1, 0, 1], tiles, 64) == [
        first, "no groups: each image is a group of its own, so images of one patient may be both "
        "trained on and scored", last]
    some = [*items(2), alone[2]]
    assert said(report_folds, tmp_path, some, [1, 0, 1], tiles, 64) == [first, last]
    (tmp_path / "HuBMAP-20-dataset_information.csv").touch()
    assert said(report_folds, tmp_path, some, [1, 0, 1], tiles, 64)[1] == (
        "HuBMAP-20-dataset_information.csv has no patient for a2: each of these images is a group "
        "of its own")
    (tmp_path / "groups.csv").touch()
    assert said(report_folds, tmp_path, some, [1, 0, 1], tiles, 64) == [first, last]


def test_what_there_is_to_find_is_a_share_of_the_labelled_pixels(said):
    lines = said(report_objects, items(2), slides(
        {"void": 1000, "positive": 500, "objects": [100, 400]}, {"positive": 0, "objects": []}),
        seen(2, 20))
    # of 3,000 labelled pixels; the median area is 250: a disc 17.8 pixels wide
    assert lines == ["16.7% of pixels positive, 2 objects, median diameter 18 pixels (9 at --scale "
                     "2)", "no object in: a1"]
    assert said(report_objects, items(1), slides({"positive": 0, "objects": [], "void": 2000}),
                seen(1, 40)) == ["no object in: a0"]


def test_masks_that_are_mostly_positive_may_be_inverted(said):
    half, more = {"positive": 1000, "objects": []}, {"positive": 1001, "objects": []}
    for changes, told in (((more, more, half), True), ((more, half), False), ((half,), False),
                          ((more,), True)):
        lines = said(report_objects, items(len(changes)), slides(*changes), seen(1, 40))
        count = changes.count(more)
        assert [line.split("?")[0] for line in lines] == [
            f"in {count} of {len(changes)} images more than half of the pixels are positive: are "
            "the masks inverted"] * told


@pytest.mark.parametrize("scale, tile, small", [
    (1, 40, False), (1, 41, True), (2, 20, False), (2, 21, True)])
def test_images_smaller_than_a_tile_are_named(said, scale, tile, small):
    lines = said(report_objects, items(2), slides({}, {"height": 99, "width": 99}),
                 seen(scale, tile))
    at = " at --scale 2" if scale == 2 else ""
    assert lines[1:] == [f"1 of 2 images are smaller than a tile of {tile} x {tile} pixels{at}, "
                         "and filled up with mirror images: a0"] * small


def test_objects_of_less_than_half_a_block_are_too_small_for_a_scale(said):
    change = {"objects": [8, 7, 400]}
    assert said(report_objects, items(1), slides(change), seen(4, 9))[1:] == [
        "1 of 3 objects are smaller than half a pixel at --scale 4, too small to be seen there: "
        "use a smaller --scale"]
    assert len(said(report_objects, items(1), slides({"objects": [8, 400]}), seen(4, 9))) == 1
    lines = said(report_objects, items(1), slides({"objects": [1, 2]}), seen(2, 9))
    assert "1 of 2 objects" in lines[1]
    gone = {"objects": [8], "area": [0, 0]}
    lines = said(report_objects, items(2), slides(gone, {"positive": 0, "area": [0]}), seen(4, 9))
    assert lines[1] == (
        "0 of 2 objects are smaller than half a pixel at --scale 4, too small to be seen there; "
        "nothing is left in 1 images with objects: a0: use a smaller --scale")


def test_copies_in_different_folds_are_named(said):
    same = {"made_from": {"image": {"sha256": "same"}}}
    lines = said(report_copies, items(4), slides(same, {}, same, same), [0, 0, 1, 1])
    assert lines == ["the same image under different names, in different folds: a0 = a2 = a3: it "
                     "is trained on and scored: keep one, or give them one group"]
    assert said(report_copies, items(4), slides(same, {}, same, same), [1, 0, 1, 1]) == []


@pytest.mark.parametrize("sizes, median, lines", [
    ((0.5, 0.5), 0.5, []), ((1.0, 1.1), 1.05, []), ((None, None), None, []),
    ((0.5, 0.56), None, ["images of different pixel size: 0.5 µm (a0); 0.56 µm (a1): --microns "
                         "brings them to one size, --exclude leaves some out; model.pt will state "
                         "no pixel size"]),
    ((2.0, 2.1), 2.05, []), ((0.5, None, 0.52), 0.51,
     ["a1: no pixel size in the file, unlike the others: is it the same?"]),
    ((1.0, 1.11, 1.05), None, [
        "images of different pixel size: 1.02 µm (a0, a2); 1.11 µm (a1): --microns brings them "
        "to one size, --exclude leaves some out; model.pt will state no pixel size"])])
def test_pixel_sizes_that_differ_by_more_than_a_tenth_have_no_median(
        capsys, sizes, median, lines):
    found = pixel_size(items(len(sizes)), slides(*({"microns": size} for size in sizes)))
    assert found == (median and pytest.approx(median))
    assert capsys.readouterr().out.splitlines() == lines
