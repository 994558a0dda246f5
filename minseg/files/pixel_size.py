"""# The size of a pixel: what a TIFF says of it

By its texts or its resolution tags; the rules are in the table in `minseg.files.slides`. A text may
have been copied from another image: of a smaller or larger copy, it says nothing of this one.
"""

import math
import re
from xml.etree import ElementTree

import tifffile

MICROMETRES = {"pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "µm": 1.0, "um": 1.0, "micron": 1.0,
               "microns": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "inch": 25400.0, "in": 25400.0}
# A pixel of a slide measures at least a nanometre, in electron microscopy, and less than a dot of
# print. Editors write dots per inch or centimetre of paper, and programs some value where they know
# none: 25.4 per inch, 96, 28.34 per centimetre, 600.
SIZES = 0.001, 25400 / 600.1  # µm
NO_SIZE = "states a pixel of {:.4g} x {:.4g} µm, which no slide has: it is ignored"


def pixel_size(tiff: tifffile.TiffFile, page: tifffile.TiffPage, ome: ElementTree.Element | None,
               notes: list[str]) -> tuple[float, float] | None:
    """Width and height of a pixel in micrometres: of the table in `minseg.files.slides`, what the
    first row that applies says. None if the width is unknown. An unknown height is taken to equal
    it. Where a text states a size that no slide has, a note is added."""
    first = tiff.pages.first  # the newest tifffile's TiffFile.is_svs leaves out files in strips
    if ome is not None and ome.get("PhysicalSizeX"):
        x, y = (to_number(ome.get(f"PhysicalSize{axis}"))
                * micrometres(ome.get(f"PhysicalSize{axis}Unit") or "µm") for axis in "XY")
    elif first.is_svs and (match := re.search(r"\bMPP\s*=([^|\r\n]*)", first.description)):
        x = y = to_number(match[1].replace(",", "."))
    elif tiff.is_philips:
        x, y = philips_size(first.description)
    else:
        x, y = (tagged_size(tiff, page, axis) for axis in "XY")
        x, y = (size if SIZES[0] <= size <= SIZES[1] else 0.0 for size in (x, y))
    y = y if y > 0 else x
    if x > 0 and not (SIZES[0] <= min(x, y) and max(x, y) <= SIZES[1]):
        notes.append(NO_SIZE.format(x, y))
        return None
    return (x, y) if x > 0 else None


def philips_size(text: str) -> tuple[float, float]:
    """Width and height of a pixel in the XML of a Philips TIFF, in micrometres, or 0. It states the
    spacing of rows and of columns in millimetres for each level, and those of the first, finest
    level for the whole scan."""
    sizes = []
    try:
        for each in ElementTree.fromstring(text).iter("Attribute"):
            if each.get("Name") == "DICOM_PIXEL_SPACING":
                y, x = (1e3 * to_number(part.strip('"')) for part in (each.text or "").split())
                sizes += [(x, y)] if min(x, y) > 0 else []
    except (ElementTree.ParseError, ValueError):  # damaged XML is no reason to refuse the image
        return 0.0, 0.0
    return min(sizes, default=(0.0, 0.0))


def tagged_size(tiff: tifffile.TiffFile, page: tifffile.TiffPage, axis: str) -> float:
    """The size of a pixel along an axis by the resolution tags, whose unit ImageJ names in its
    text; 0 if unknown."""
    value = page.tags.valueof(f"{axis}Resolution", default=0)
    dots, units = (*(value if isinstance(value, tuple) else (value,)), 1)[:2]
    text = (tiff.imagej_metadata or {}) if tiff.is_imagej else {}
    of_text = micrometres(text.get(f"{axis.lower()}unit", text.get("unit")))
    # ImageJ's own unit counts only beside the unit "none": other programs copy its text, and write
    # the resolution anew.
    unit = {2: 25400.0, 3: 1e4}.get(page.tags.valueof("ResolutionUnit", default=0), of_text)
    if not unit and "ResolutionUnit" not in page.tags:
        unit = 25400.0  # TIFF's default
    return unit * units / dots if dots and units else 0.0


def micrometres(unit: object) -> float:
    """The length of a unit by name, or 0 if it is not a length. Fiji writes µ as \u00B5; Greek has
    a letter of its own that looks the same."""
    name = re.sub(r"\\u([\da-fA-F]{4})", lambda code: chr(int(code[1], 16)), str(unit)).strip()
    return MICROMETRES.get(name.replace("\u03bc", "µ"), 0.0)


def to_number(value: object) -> float:
    """The number in a tag or an attribute; 0 if there is none, or if there are several different
    ones."""
    values = set(value) if isinstance(value, tuple) else {value}
    try:
        parsed = float(str(values.pop())) if len(values) == 1 else 0.0
    except ValueError:
        return 0.0
    return parsed if math.isfinite(parsed) else 0.0


def described(tiff: tifffile.TiffFile, width: int, height: int,
              ) -> tuple[ElementTree.Element | None, tuple[int, int] | None]:
    """OME's Pixels element that describes an image of this width and height, or one that it was cut
    out of; else, of a text that describes a smaller or larger copy, the width and height there."""
    ome = ome_pixels(tiff)
    for each in ome:
        if size_of(each) == (width, height):
            return each, None
    for size in [*map(size_of, ome), *described_size(tiff)]:
        if is_resized(size, (width, height)):
            return None, size
    return ome[0] if len(ome) == 1 else None, None


def ome_pixels(tiff: tifffile.TiffFile) -> list[ElementTree.Element]:
    """The Pixels elements in OME's XML, one for each image."""
    try:
        elements = ElementTree.fromstring(tiff.ome_metadata or "").iter() if tiff.is_ome else ()
    except ElementTree.ParseError:  # damaged XML is no reason to refuse the image
        return []
    return [each for each in elements if each.tag.endswith("}Pixels")]


def size_of(pixels: ElementTree.Element) -> tuple[int, int]:
    """Width and height of an image in OME's XML."""
    return int(to_number(pixels.get("SizeX"))), int(to_number(pixels.get("SizeY")))


def described_size(tiff: tifffile.TiffFile) -> list[tuple[int, int]]:
    """Width and height of the image that a text describes; empty if there is none. Aperio's begins
    "46000x32914 [42673,5576 2220x2967] (240x240) ...", the size of the scan and of this part of it;
    tifffile's has the shape of an array; Philips' lists levels, of which the first is meant."""
    first = tiff.pages.first
    text, found = first.description, None
    if first.is_svs:
        found = re.search(r"(\d+)x(\d+)(?:\s*\[\s*\d+\s*,\s*\d+[\s,]+(\d+)x(\d+)\s*\])?", text)
    elif tiff.is_philips:
        found = re.search(r'N_COLUMNS"[^>]*>(\d+)<.*?N_ROWS"[^>]*>(\d+)<', text, re.S)
    elif found := re.match(r'\{"shape": \[(?:\d+, )??(\d+), (\d+)(?:, [234])?\]', text):
        return [(int(found[2]), int(found[1]))]
    numbers = [int(each) for each in found.groups() if each] if found else []
    return [(numbers[-2], numbers[-1])] if numbers else []


def is_resized(before: tuple[int, int], now: tuple[int, int]) -> bool:
    """Whether an image of one width and height may be a smaller or larger copy of another: both
    have changed by the same factor, by 1 % or more. Of a part that was cut out, that would be
    chance."""
    smallest = min(*before, *now)
    if not smallest or abs(now[0] / before[0] - 1) < 0.01:
        return False
    return abs(before[0] * now[1] / (before[1] * now[0]) - 1) <= 2 / smallest
