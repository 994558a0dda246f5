"""What is refused becomes readable if one does what the message says: each row of `ROWS` makes a
file that is refused, does so to this very file, and reads it. docs/masks.md is run as it stands."""

import json
import os
import re
import shutil
import struct
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from minseg.files.datasets import find_slides
from minseg.files.masks import Mask
from minseg.files.rle import rle_encode

PAGE = (Path(__file__).parent.parent / "docs/masks.md").read_text("utf-8")
SNIPPETS = dict(re.findall(r"```python\n# (\w+)[^\n]*\n(.*?)```", PAGE, re.S))
HEIGHT, WIDTH = 20, 30
BOXES = [(3, 4, 10, 9), (15, 11, 26, 18)]  # left, top, right, bottom
NUMBERS = np.zeros((HEIGHT, WIDTH), np.uint8)
for number, (left, top, right, bottom) in enumerate(BOXES, 1):
    NUMBERS[top:bottom, left:right] = number
TRUTH = (NUMBERS > 0).astype(np.uint8)
SECOND = (NUMBERS == 2).astype(np.uint8)
VOID = np.where(SECOND, 255, NUMBERS)


def snippet(name, *changes):
    """Runs a piece of the page in the data set's folder, with changes as a user types them."""
    def run(folder):
        code = SNIPPETS[name]
        for old, new in changes:
            assert old in code
            code = code.replace(old, new)
        before = Path.cwd()
        os.chdir(folder)
        try:
            exec(compile(code, f"docs/masks.md: {name}", "exec"), {})
        finally:
            os.chdir(before)
    return run


def reading(folder, **options):
    """The mask of the image a, as train.py reads it."""
    item = next(each for each in find_slides(folder, **options) if each.id == "a")
    return Mask(item, HEIGHT, WIDTH).read(0, 0, HEIGHT, WIDTH)


# Masks that are images


def saved(pixels, name="a.png", **options):
    """A function that saves a mask in a folder's masks/."""
    def save(folder):
        path = folder / "masks" / name
        if name.endswith(".png"):
            picture = Image.fromarray(np.asarray(pixels))
            if palette := options.get("palette"):
                picture.putpalette([number for colour in palette for number in colour])
            picture.save(path)
        else:
            tifffile.imwrite(path, pixels, **{"metadata": None, **options})
    return save


def changed(change, name="a.png", to=None):
    """A function that changes the pixels of a folder's mask, and saves them as a grey PNG or TIFF;
    under another name, it deletes the old file."""
    def run(folder):
        path = folder / "masks" / name
        pixels = tifffile.imread(path) if name.endswith(".tif") else np.array(Image.open(path))
        new = change(pixels)
        path.unlink()
        saved(new, to or name)(folder)
    return run


def stored(comparison):
    """What the line about MINISWHITE says to run."""
    def run(folder):
        code = "tifffile.imwrite(path, (tifffile.imread(path) > 0).astype('uint8') * 255)"
        exec(code.replace(">", comparison), {"tifffile": tifffile, "path": folder / "masks/a.tif"})
    return run


def jpeg(folder):
    """What JPEG leaves of a mask, in a PNG."""
    Image.fromarray(TRUTH * 255).save(folder / "a.jpg", quality=30)
    pixels = np.array(Image.open(folder / "a.jpg"))
    pixels = np.where(pixels < 128, np.minimum(pixels, 6), np.maximum(pixels, 250))
    assert len(np.unique(pixels)) > 4
    saved(pixels)(folder)


def only_jpeg(folder):
    """All masks as JPEG."""
    (folder / "masks/b.png").rename(folder / "masks/b.jpg")
    Image.fromarray(TRUTH * 255).save(folder / "masks/a.jpg", quality=30)


COLOURS = np.array([[0, 0, 0], [250, 50, 83], [0, 128, 255]], np.uint8)[NUMBERS]
SHADES = np.array([0, 128, 255], np.uint8)
NODATA = {"extratags": [(42113, 2, None, "255", True)]}
HALVES = np.full((2 * HEIGHT, 2 * WIDTH), 0, np.uint8) + np.kron(TRUTH, np.ones((2, 2), np.uint8))
ALPHA = np.dstack([TRUTH * 0] * 3 + [TRUTH * 255])


def white(pixels):
    return np.where(pixels > 0, 255, 0).astype(np.uint8)


IMAGES = {
    "numbered objects": (saved(NUMBERS), "if they number the objects, make every value above 0 "
                         "into 255", changed(white), TRUTH),
    "numbered objects and void": (
        saved(np.where(VOID == 255, 255, NUMBERS * 15)), "if 255 marks what nobody labelled, say "
        "--ignore 255", {"ignore": ["255"]}, VOID),
    "an array of bool that tifffile saved": (
        saved(TRUTH > 0, "a.tif"), "its colours are MINISWHITE, where 0 is white: save a slide as "
        "RGB, a mask with tifffile.imwrite(path, (tifffile.imread(path) > 0).astype('uint8') * "
        "255), or with == 0 for > 0 if its objects are white in a viewer", stored(">"), TRUTH),
    "a mask whose 0 is white": (
        saved(1 - TRUTH, "a.tif", photometric="miniswhite"), "with == 0 for > 0 if its objects are "
        "white in a viewer", stored("=="), TRUTH),
    "an array of bool, by the page": (saved(TRUTH > 0, "a.tif"), "MINISWHITE", snippet("values"),
                                      TRUTH),
    "numbers of 64 bits, by the page": (saved(NUMBERS.astype(np.int64), "a.tif"), "docs/masks.md",
                                        snippet("values"), TRUTH),
    "a TIFF that is turned, by the page": (
        saved(np.rot90(NUMBERS), "a.tif", extratags=[(274, 3, 1, 6, True)]), "docs/masks.md",
        snippet("values"), TRUTH),
    "numbered objects, by the page": (saved(NUMBERS), "docs/masks.md", snippet("values"), TRUTH),
    "classes": (saved(NUMBERS), "if they are classes, make only the wanted one 255 and the others "
                "0", changed(lambda pixels: white(pixels == 2)), SECOND),
    "classes, by the page": (saved(NUMBERS), "docs/masks.md",
                             snippet("values", ("wanted = None", "wanted = [2]")), SECOND),
    "classes and void, by the page": (
        saved(np.where(VOID == 255, 255, NUMBERS * 2)), "contains the values 0, 2, 255: ", snippet(
            "values", ("wanted = None", "wanted = [2]"), ("void = None", "void = 255")), VOID),
    "numbers of sixteen bits": (saved(NUMBERS.astype(np.uint16) * 300, "a.tif"), "make every value "
                                "above 0 into 255", changed(white, "a.tif"), TRUTH),
    "shades": (saved(SHADES[NUMBERS]), "if they are shades, make the lighter half 255",
               changed(lambda pixels: white(pixels > 127)), TRUTH),
    "JPEG's leftovers": (jpeg, "make those below 128 into 0 and the others into 255, and save it "
                         "as PNG", changed(lambda pixels: white(pixels > 127)), TRUTH),
    "JPEG's leftovers, by the page": (jpeg, "docs/masks.md", snippet("jpeg"), TRUTH),
    "JPEG masks": (only_jpeg, "JPEG has changed its values: save the original as PNG, or convert "
                   "it (docs/masks.md)", snippet("jpeg"), TRUTH),
    "several colours": (saved(COLOURS), "contains the colours #000000, #0080ff, #fa3253: make the "
                        "one to be found white and all others black",
                        changed(lambda pixels: white(pixels[..., 2] == 255)), SECOND),
    "several colours, by the page": (saved(COLOURS), "docs/masks.md", snippet(
        "colours", ("(250, 50, 83)", "(0, 128, 255)")), SECOND),
    "colours on white": (saved(np.where(COLOURS.any(2, keepdims=True), COLOURS, 255)), "docs/masks",
                         snippet("colours"), TRUTH - SECOND),
    "one colour": (saved(np.zeros_like(COLOURS) + COLOURS[5, 5]), "is #fa3253 everywhere: make it "
                   "white if all of it is object", changed(lambda pixels: white(pixels[..., 0])),
                   TRUTH * 0 + 1),
    "one value": (saved(TRUTH * 0 + 114), "is 114 everywhere: make it 255 if all of it is object, "
                  "0 if nothing is", changed(lambda pixels: pixels * 0), TRUTH * 0),
    "no background": (saved(NUMBERS + 1), "contains the values 1, 2, 3: make the background 0 and "
                      "the objects 255", changed(lambda pixels: white(pixels > 1)), TRUTH),
    "1 and 255": (saved(np.where(TRUTH, 255, 1).astype(np.uint8)), "make the background 0 and the "
                  "objects 255", changed(lambda pixels: white(pixels > 1)), TRUTH),
    "1 and 255, void": (saved(np.where(TRUTH, 255, 1).astype(np.uint8)), "use --ignore 255 if 255 "
                        "is void", {"ignore": ["255"]}, np.where(TRUTH, 255, 1)),
    "fractions": (saved((TRUTH * 0.75).astype(np.float32), "a.tif"), "make its objects 255 and "
                  "everything else 0, in whole numbers", changed(white, "a.tif"), TRUTH),
    "negative numbers": (saved(-TRUTH.astype(np.int16), "a.tif"), "make its objects 255 and",
                         changed(lambda pixels: white(pixels < 0), "a.tif"), TRUTH),
    "NODATA": (saved(TRUTH * 255, "a.tif", **NODATA), "save it as PNG, which has no such tag",
               changed(lambda pixels: pixels, "a.tif", "a.png"), TRUTH),
    "NODATA that is void": (saved(TRUTH * 255, "a.tif", **NODATA), "use --ignore 255 if that is "
                            "void", {"ignore": ["255"]}, TRUTH * 255),
    "a palette on white": (
        saved(TRUTH, palette=[(255, 255, 255), (0, 0, 0)]), "its palette does not show value 0 as "
        "the background: save it as a grey image with 0 for the background and 255 for objects",
        changed(white), TRUTH),
    "alpha": (saved(ALPHA), "save only the right one of them, as a grey image",
              changed(lambda pixels: pixels[..., 3]), TRUTH),
    "a fourth channel": (saved(np.dstack([TRUTH] * 4), "a.tif", photometric="rgb",
                               extrasamples=["unspecified"]), "save it with a single channel",
                         changed(lambda pixels: pixels[..., 0], "a.tif"), TRUTH),
    "another size": (saved(HALVES), "its image is 20 x 30: make them equal",
                     changed(lambda pixels: pixels[::2, ::2]), TRUTH),
}

# Polygons


def ring(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def features(change=lambda point: point, names=("a", "b")):
    return [{"type": "Feature", "properties": {"classification": {"name": name}},
             "geometry": {"type": "Polygon", "coordinates": [[change(p) for p in ring(*box)]]}}
            for name, box in zip(names, BOXES)]


def written(content, name="a.geojson", encoding="utf-8"):
    """A function that writes text, or JSON, to a folder's masks/."""
    def write(folder):
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        (folder / "masks" / name).write_bytes(text.encode(encoding))
    return write


def edited(change):
    """A function that changes the JSON of a folder's polygons."""
    def run(folder):
        path = folder / "masks/a.geojson"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    return run


def collection(**more):
    return {"type": "FeatureCollection", "features": features(), **more}


def crs(name):
    return {"crs": {"type": "name", "properties": {"name": name}}}


def geotiff_with_map(folder):
    """The image as a GeoTIFF of pixels of 0.5 x 0.5 metres, and polygons in metres."""
    (folder / "images/a.png").unlink()
    tags = [(33550, 12, 3, (0.5, 0.5, 0.0), True),
            (33922, 12, 6, (0.0, 0.0, 0.0, 4e5, 5e6, 0.0), True)]
    tifffile.imwrite(folder / "images/a.tif", np.zeros((HEIGHT, WIDTH, 3), np.uint8),
                     photometric="rgb", extratags=tags, metadata=None)
    on_map = features(lambda p: [4e5 + 0.5 * p[0], 5e6 - 0.5 * p[1]])
    written({**collection(), "features": on_map, **crs("urn:ogc:def:crs:EPSG::25832")})(folder)


LINE = {"type": "Feature", "properties": {"classification": {"name": "scale"}},
        "geometry": {"type": "LineString", "coordinates": [[0, 0], [9, 9]]}}
STRAY = {"type": "Feature", "properties": {"classification": {"name": "a"}},
         "geometry": {"type": "Polygon", "coordinates": [ring(300, 300, 310, 310)]}}
EMPTY = {**STRAY, "geometry": None}
BROKEN = {**STRAY, "geometry": {"type": "Polygon", "coordinates": [[[1, 1], [None, 2]]]}}
SHAPES = {"version": "5.4.1", "flags": {}, "imagePath": "../images/a.png", "imageData": None,
          "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": [
              {"label": "a", "group_id": None, "flags": {}, "points": ring(*BOXES[0])[:-1]},
              {"label": "b", "shape_type": "rectangle", "group_id": None, "flags": {},
               "points": [[26, 18], [15, 11]]}]}
COCO = {"images": [{"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
                   {"id": 8, "file_name": "c.png", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 1, "name": "a"}], "annotations": [
            {"id": i, "image_id": 7, "category_id": 1, "iscrowd": 0, "segmentation": [
                [number for point in ring(*box)[:-1] for number in point]]}
            for i, box in enumerate(BOXES)]}


def turned_photo(folder):
    """An image that is stored on its side, and shares of its size as it is shown."""
    (folder / "images/a.png").unlink()
    turned = Image.Exif()
    turned[274] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(folder / "images/a.jpg", exif=turned)
    written(SHARES)(folder)


BOX = {**COCO, "annotations": [{"id": 5, "image_id": 7, "category_id": 1, "iscrowd": 0,
                                "bbox": [3, 4, 7, 5], "segmentation": []}]}


def coco(folder):
    (folder / "masks/a.geojson").rename(folder / "annotations.json")
    snippet("coco")(folder)
    (folder / "masks/c.geojson").unlink()


def delete_last(content):
    content["features"].pop()


def labelme(folder):
    (folder / "masks/a.geojson").rename(folder / "masks/a.json")
    snippet("labelme")(folder)


REST = {"type": "Feature", "properties": {}, "geometry": {
    "type": "Polygon", "coordinates": [ring(0, 0, WIDTH, HEIGHT), *(ring(*box) for box in BOXES)]}}
SHARES = features(lambda p: [p[0] / WIDTH, p[1] / HEIGHT])
NEARBY = ("return [point[0] * width, point[1] * height]", "return [point[0] / 50, point[1] / 50]")

POLYGONS = {
    "another encoding": (written(features(names="éb"), encoding="latin1"), "is not UTF-8 text: "
                         "save it as UTF-8", written(features(names="éb")), TRUTH),
    "a file that is cut off": (written(json.dumps(features())[:-9]), "is not JSON, or is cut off, "
                               "at line 1: export it again, complete", written(features()), TRUTH),
    "too many brackets": (written("[" * 100_000), "export it again", written(features()), TRUTH),
    "labelme": (written(SHAPES), "is labelme JSON, not GeoJSON: convert it (docs/masks.md)",
                labelme, TRUTH),
    "COCO": (written(COCO), "is COCO JSON, not GeoJSON: convert it (docs/masks.md)", coco, TRUTH),
    "other JSON": (written({"a.png": {"regions": []}}), "save its polygons as GeoJSON",
                   written(features()), TRUTH),
    "an entry that is not a feature": (written({**collection(), "features": [*features(), [1]]}),
                                       "its entry 3 is not a GeoJSON feature: delete it",
                                       edited(delete_last), TRUTH),
    "a feature without a geometry": (written({**collection(), "features": [*features(), EMPTY]}),
                                     "feature 3 (a) has no geometry: delete it",
                                     edited(delete_last), TRUTH),
    "coordinates without numbers": (written({**collection(), "features": [*features(), BROKEN]}),
                                    "feature 3 (a) has coordinates that are not rings of x, y "
                                    "points: correct or delete it", edited(delete_last), TRUTH),
    "a line": (written({**collection(), "features": [*features(), LINE]}), "feature 3 (scale) is a "
               "LineString, not an area: delete it", edited(delete_last), TRUTH),
    "a line, with --label": (written({**collection(), "features": [*features(), LINE]}),
                             "or choose classes of areas with --label", {"labels": ["b"]}, SECOND),
    "a stray polygon": (written({**collection(), "features": [*features(), STRAY]}), "has 1 of 3 "
                        "polygons mostly outside the image of 20 x 30 pixels: delete 3 (a)",
                        edited(delete_last), TRUTH),
    "a larger copy's pixels": (written(features(lambda p: [50 * p[0], 50 * p[1]])), "has 2 of 2 "
                               "polygons mostly outside the image of 20 x 30 pixels: its "
                               "coordinates must be pixels of the full image",
                               snippet("factor", NEARBY), TRUTH),
    "shares of the size": (written(SHARES), "all its coordinates lie between 0 and 1: they must be "
                           "pixels of the full image: multiply them by its size (docs/masks.md)",
                           snippet("factor"), TRUTH),
    "shares of a photo that is turned": (turned_photo, "multiply them by its size",
                                         snippet("factor"), TRUTH),
    "shares, a feature": (written(SHARES[1]), "multiply them by", snippet("factor"), SECOND),
    "shares, a geometry": (written(SHARES[1]["geometry"], "a.json"), "multiply them by",
                           snippet("factor"), SECOND),
    "shares, a collection of geometries": (
        written({"type": "GeometryCollection",
                 "geometries": [each["geometry"] for each in SHARES]}),
        "multiply them by", snippet("factor"), TRUTH),
    "shares, lists of points": (written([each["geometry"]["coordinates"][0] for each in SHARES]),
                                "multiply them by", snippet("factor"), TRUTH),
    "pixels declared as a map": (written(collection(**crs("EPSG:25832"))), "if they are pixels of "
                                 'the full image, delete "crs"',
                                 edited(lambda content: content.pop("crs")), TRUTH),
    "a mask and its background": (written({**collection(), "features": [*features(), REST]}),
                                  "cover the whole image, as if made of a mask together with its "
                                  "background: delete those of the background",
                                  edited(delete_last), TRUTH),
    "a background without a value": (
        written({**collection(), "features": [*features(), REST]}), 'give them the property "value"'
        ": 0", edited(lambda content: content["features"][-1].update(properties={"value": 0})),
        TRUTH),
    "a map": (geotiff_with_map, "else convert them (docs/masks.md)", snippet("map"), TRUTH),
}

# Formats of other programs


def xml(root, *annotations):
    return f'<?xml version="1.0"?>\n<{root}>{"".join(annotations)}</{root}>'


ASAP = xml("ASAP_Annotations", "<Annotations>", *(
    f'<Annotation Name="Annotation {i}" Type="Polygon" PartOfGroup="Tumor" Color="#F4FA58">'
    "<Coordinates>" + "".join(f'<Coordinate Order="{k}" X="{x}" Y="{y}" />' for k, (x, y) in
                              reversed([*enumerate(ring(*box)[:-1])]))
    + "</Coordinates></Annotation>" for i, box in enumerate(BOXES)), "</Annotations>",
    '<AnnotationGroups><Group Name="Tumor" PartOfGroup="None" Color="#64FE2E"><Attributes />'
    "</Group></AnnotationGroups>")
APERIO = xml("Annotations", '<Annotation Id="1" Name="" Visible="1"><Regions>', *(
    f'<Region Id="{i}" Type="{i}" NegativeROA="0"><Vertices>' + "".join(
        f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in ring(*box)[:-1]) + "</Vertices></Region>"
    for i, box in enumerate(BOXES)), "</Regions></Annotation>")


def ndpa(folder):
    """A slide of 250 nm a pixel whose centre lies 1 mm right of that of the glass, 2 mm above."""
    (folder / "images/a.png").unlink()
    tags = {256: (4, WIDTH), 257: (4, HEIGHT), 258: (3, 8), 259: (3, 1), 262: (3, 1), 273: (4, 0),
            277: (3, 1), 279: (4, 0), 282: (5, 12), 283: (5, 12), 296: (3, 3), 65420: (4, 1),
            65422: (9, 1_000_000), 65423: (9, -2_000_000)}
    # In this TIFF, offsets have 64 bits, whose upper halves follow the tags.
    entries = b"".join(struct.pack("<HHIi", tag, kind, 1, value)
                       for tag, (kind, value) in tags.items())
    (folder / "images/a.ndpi").write_bytes(
        b"II*\0" + struct.pack("<Q", 20) + struct.pack("<II", 40_000, 1)  # pixels per cm, at 12
        + struct.pack("<H", len(tags)) + entries + bytes(8 + 4 * len(tags)))
    views = [f'<ndpviewstate id="{i}"><title>a</title><coordformat>nanometers</coordformat>'
             '<annotation type="freehand" displayname="AnnotateFreehand"><pointlist>'
             + "".join(f"<point><x>{1_000_000 + (x - WIDTH / 2) * 250:.0f}</x>"
                       f"<y>{-2_000_000 + (y - HEIGHT / 2) * 250:.0f}</y></point>"
                       for x, y in ring(*box)[:-1])
             + "</pointlist><closed>1</closed></annotation></ndpviewstate>"
             for i, box in enumerate(BOXES, 1)]
    written(xml("annotations", *views), "a.ndpa")(folder)


def roi(folder):
    """A rectangle as ImageJ stores it: magic, version, type, top, left, bottom, right."""
    left, top, right, bottom = BOXES[1]
    head = b"Iout" + struct.pack(">hBB4h", 227, 1, 0, top, left, bottom, right)
    (folder / "masks/a.roi").write_bytes(head.ljust(64, b"\0"))


def imagej(folder):
    pytest.importorskip("roifile", reason="python -m pip install roifile")
    snippet("imagej")(folder)


PROGRAMS = {
    "ASAP": (written(ASAP, "a.xml"), "a.xml: .xml is ASAP's or Aperio's: convert it "
             "(docs/masks.md)", snippet("asap"), TRUTH),
    "Aperio": (written(APERIO, "a.xml"), "convert it (docs/masks.md)", snippet("aperio"), TRUTH),
    "Hamamatsu": (ndpa, "a.ndpa: .ndpa is Hamamatsu's: convert it (docs/masks.md)",
                  snippet("ndpa"), TRUTH),
    "ImageJ": (roi, "a.roi: .roi is ImageJ's: convert it (docs/masks.md)", imagej, SECOND),
    "labelme by its own name": (written(SHAPES, "a.json"), "a.json: ", snippet("labelme"), TRUTH),
}

# Run-length code


def code(text):
    """A function that writes the competition's layout with this code as the mask of a."""
    def write(folder):
        for part in ("images", "masks"):
            shutil.rmtree(folder / part, ignore_errors=True)
        (folder / "train").mkdir(exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "train/a.tiff")
        (folder / "train.csv").write_text(f"id,encoding\na,{text}\n")
    return write


RIGHT = rle_encode(TRUTH)
FROM_0 = " ".join(str(int(number) - (k % 2 == 0)) for k, number in enumerate(
    rle_encode(TRUTH[:, 3:]).split()))
COUNTS = [len(list(run)) for _, run in groupby([0, *TRUTH.T.ravel().tolist()])]
COUNTS[0] -= 1  # the 0 with which they always begin
CUT = ("1 1 " * 8192)[:32_767]

def joined(folder):
    """Joins the codes of all lines, which are those of an image's objects."""
    lines = (folder / "train.csv").read_text().splitlines()[1:]
    code(" ".join(line.split(",")[1] for line in lines))(folder)


CODES = {
    "fractions": (code(RIGHT.replace(" 5 ", " 5.0 ")), "must be whole numbers, not ", code(RIGHT)),
    "commas": (code(f'"{RIGHT.replace(" ", ",")}"'), "write start length start length ..., with "
               "spaces between", code(RIGHT)),
    "half a pair": (code(RIGHT.rpartition(" ")[0]), "take the original table if it was cut off",
                    code(RIGHT)),
    "counted from 0": (code("0 2 45 3"), "run 0 2 begins at pixel 0, but the first pixel is 1: add "
                       "1 to every start", code("1 2 46 3")),
    "a run without pixels": (code(f"{RIGHT} 600 0"), "run 600 0 has no pixel: delete it",
                             code(RIGHT)),
    "COCO's counts": (code(f'"{COUNTS}"'), "write start length start length", snippet("counts")),
    "COCO's counts, an odd number of them": (
        code(" ".join(map(str, COUNTS))), "numbers, but must be pairs of start and length: take "
        "the original table if it was cut off; if they are lengths alone, as COCO's counts, "
        "convert them (docs/masks.md)", snippet("counts")),
    "COCO's counts, an even number of them": (
        code(" ".join(map(str, COUNTS[:-1]))), "overlap: if the numbers are lengths alone, as "
        "COCO's counts, convert them (docs/masks.md)", snippet("counts")),
    "codes of objects that overlap": (
        code(f"{RIGHT} {rle_encode(SECOND)}"), "if objects overlap, encode all of them as one mask",
        code(RIGHT)),
    "a line for each object": (
        code(rle_encode(SECOND) + f"\na,{rle_encode(TRUTH - SECOND)}"), "train.csv: has two lines "
        "for a: join their codes in one line, with a space between, if they are its objects, else "
        "keep only one", joined),
    "another image's code": (code("598 30"), "run 598 30 leaves the image of 20 x 30 pixels: "
                             "check that the code belongs to this image", code(RIGHT)),
    "a spreadsheet's cut": (code(CUT), "ends after 32,767 characters, where spreadsheets cut a "
                            "cell off: take the original table", code(RIGHT)),
    "a spreadsheet's cut at a space": (code(CUT[:-2] + "1 "), "where spreadsheets cut",
                                       code(RIGHT)),
}

ROWS = {**IMAGES, **POLYGONS, **PROGRAMS, **{name: (*row, None) for name, row in CODES.items()}}


@pytest.mark.parametrize("make, words, remedy, wanted", ROWS.values(), ids=ROWS)
def test_what_is_refused_is_read_after_its_remedy(tmp_path, make, words, remedy, wanted):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / part / "b.png")
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images/a.png")
    make(tmp_path)
    with pytest.raises(ValueError) as error:
        reading(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{tmp_path}{os.sep}") and words in message and "\n" not in message
    options = remedy if isinstance(remedy, dict) else {}
    if not options:
        remedy(tmp_path)
    found = reading(tmp_path, **options)
    if wanted is None:  # of code, whatever its remedy wrote
        assert found.any()
        runs = (tmp_path / "train.csv").read_text().split(",")[-1].split()
        starts = dict(zip(map(int, runs[::2]), runs[1::2]))  # of joined codes in any order
        assert rle_encode(found) == " ".join(f"{a} {starts[a]}" for a in sorted(starts))
    else:
        np.testing.assert_array_equal(found, wanted)


def test_a_folder_for_each_image_is_collected(tmp_path):
    for name, ones in {"a": [1, 2], "b": [2], "c": []}.items():
        for part in ("images", "masks"):
            (tmp_path / name / part).mkdir(parents=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / name / f"images/{name}.png")
        for one in ones:
            Image.fromarray(white(one == NUMBERS)).save(tmp_path / name / f"masks/{one}.png")
    with pytest.raises(ValueError, match=r"a folder for each image.* \(docs/masks.md\)$"):
        find_slides(tmp_path)
    snippet("collect")(tmp_path)
    np.testing.assert_array_equal(reading(tmp_path), TRUTH)
    b, c = (Mask(item, HEIGHT, WIDTH).read(0, 0, HEIGHT, WIDTH)
            for item in find_slides(tmp_path)[1:])
    assert np.array_equal(b, SECOND) and not c.any()
    assert {path.name for path in tmp_path.glob("images/*")} == {"a.png", "b.png", "c.png"}


@pytest.mark.parametrize("name", ["values", "colours", "jpeg", "collect", "factor"])
def test_pieces_of_the_page_open_images_of_any_size_the_right_way_up(name):
    assert "Image.MAX_IMAGE_PIXELS = None" in SNIPPETS[name]
    assert "exif_transpose(Image.open(" in SNIPPETS[name] or "getexif().get(274" in SNIPPETS[name]
    assert all("MAX_IMAGE_PIXELS" in code for code in SNIPPETS.values() if "Image.open" in code)


def test_every_piece_of_the_page_is_run_by_a_row():
    used = re.findall(r'snippet\(\s*"(\w+)"', Path(__file__).read_text("utf-8"))
    assert set(used) == SNIPPETS.keys()


def test_pieces_of_the_page_stop_at_what_they_cannot_convert(tmp_path):
    (tmp_path / "masks").mkdir()
    for name, file, content in (
            ("labelme", "a.json", json.dumps({"shapes": [{"label": "b", "shape_type": "line",
                                                          "points": [[0, 0], [1, 1]]}]})),
            ("coco", "../annotations.json", json.dumps(BOX)),
            ("asap", "a.xml", ASAP.replace('"Polygon"', '"Dot"')),
            ("aperio", "a.xml", APERIO.replace('Type="0"', 'Type="2"')),
            ("aperio", "a.xml", APERIO.replace('NegativeROA="0"', 'NegativeROA="1"')),
            ("ndpa", "a.ndpa", None)):
        if content is None:
            (tmp_path / "images").mkdir()
            (tmp_path / "images/a.png").touch()
            ndpa(tmp_path)
            content = (tmp_path / "masks/a.ndpa").read_text().replace("freehand", "circle")
        written(content, file)(tmp_path)
        with pytest.raises(SystemExit, match=r"a\.\w+: .* is "):
            snippet(name)(tmp_path)
        assert not [*tmp_path.glob("masks/*.geojson")]
