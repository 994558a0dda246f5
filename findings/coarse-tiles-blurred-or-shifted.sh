#!/usr/bin/env bash
# Expected: read_region at a coarser level copies pixels of that level, and tiffslide, made to replace OpenSlide, copies
#   the same ones; so a mask of two values, read in that way, has two values.
# Really: the place is given in pixels of the full slide, and if it is no multiple of the level's factor, OpenSlide mixes
#   neighbouring pixels to get there: a mask of 0 and 200 comes out with 50, 100 or 112 along its borders, and tissue
#   blurred. tiffslide rounds down to a whole pixel of the level: sharp, but up to (factor - 1) pixels of the full slide
#   off. At multiples of the factor, and on the full slide, the two agree, but tiles cut around objects
#   seldom start there.
# Packages: openslide-python 1.4.7 with openslide-bin 4.0.1.2, tiffslide 3.0.1, tifffile 2026.3.3, zarr 3.1.6, numpy 2.4.6
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq openslide-python==1.4.7 openslide-bin==4.0.1.2 tiffslide==3.0.1 \
    tifffile==2026.3.3 zarr==3.1.6 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import numpy as np
import openslide
import tifffile
import tiffslide

FACTOR = 4
mask = np.zeros((1024, 1024, 3), np.uint8)
mask[300:700, 300:700] = 200
with tifffile.TiffWriter("mask.tif") as file:
    file.write(mask, tile=(256, 256), photometric="rgb")
    file.write(mask[::FACTOR, ::FACTOR], tile=(256, 256), photometric="rgb", subfiletype=1)

slides = {"OpenSlide": openslide.OpenSlide("mask.tif"), "tiffslide": tiffslide.TiffSlide("mask.tif")}
same = True
for start in (0, 1, 2, 3, 4):
    values = {}
    for name, slide in slides.items():
        tile = np.array(slide.read_region((start, start), 1, (128, 128)))[..., 0]
        values[name] = np.unique(tile).tolist()
        begins = start + FACTOR * int(np.argmax(tile[100] > 0))
        print(f"tile at ({start}, {start}), {name}: values {values[name]}, the object begins at column {begins}")
        whole = start % FACTOR == 0
        if name == "tiffslide":
            same &= values[name] == [0, 200] and begins == 300 + start % FACTOR
        else:
            same &= (values[name] == [0, 200]) == whole and len(values[name]) == (2 if whole else 4)
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
