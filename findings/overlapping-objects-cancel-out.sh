#!/usr/bin/env bash
# Expected: painting a list of outlines into a mask with one call of cv2.fillPoly gives the union of the objects, as
#   pycocotools gives for the same list of polygons, and rasterio and a loop over the outlines do.
# Really: fillPoly takes the list for one shape: what two outlines share is a hole, what three share is filled again. Of
#   two cells that overlap by a quarter, just that quarter is lost; an object that was annotated twice leaves nothing but
#   its outline, one pixel wide. drawContours with contourIdx=-1 ("all") does the same.
# Packages: opencv-python-headless 5.0.0.93, pycocotools 2.0.11, rasterio 1.4.4, shapely 2.2.0, numpy 2.4.6
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq opencv-python-headless==5.0.0.93 pycocotools==2.0.11 rasterio==1.4.4 \
    shapely==2.2.0 numpy==2.4.6
"$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import cv2
import numpy as np
import pycocotools.mask
import rasterio.features
from shapely.geometry import Polygon

SIZE = 100
first = np.array([[10, 10], [50, 10], [50, 50], [10, 50]], np.int32)
second, third = first + 20, first + 10


def fill_all(outlines):
    return cv2.fillPoly(np.zeros((SIZE, SIZE), np.uint8), outlines, 1)


def fill_each(outlines):
    mask = np.zeros((SIZE, SIZE), np.uint8)
    for outline in outlines:
        cv2.fillPoly(mask, [outline], 1)
    return mask


def draw_all(outlines):
    return cv2.drawContours(np.zeros((SIZE, SIZE), np.uint8), outlines, -1, 1, cv2.FILLED)


def coco(outlines):
    codes = pycocotools.mask.frPyObjects([outline.ravel().astype(float).tolist() for outline in outlines], SIZE, SIZE)
    return pycocotools.mask.decode(pycocotools.mask.merge(codes))


def gdal(outlines):
    return rasterio.features.rasterize([Polygon(outline) for outline in outlines], (SIZE, SIZE))


cases = {"two that overlap": [first, second], "three that overlap": [first, second, third],
         "the same one twice": [first, first]}
same = True
for case, outlines in cases.items():
    for paint in (fill_all, draw_all, fill_each, coco, gdal):
        mask = paint(outlines)
        shared = int(mask[40, 40])  # inside all outlines of the case
        print(f"{case:18}, {paint.__name__:9}: {mask.sum():4} pixels; one that all outlines contain: {shared}")
        xor = paint in (fill_all, draw_all)
        same &= shared == (len(outlines) % 2 if xor else 1)
        if case == "the same one twice":
            same &= bool(mask.sum() == (4 * 40 if xor else 41 * 41 if paint is fill_each else 40 * 40))
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
