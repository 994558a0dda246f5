#!/usr/bin/env bash
# Expected: dlup's SlideImage.read_region at scaling 1.0 returns the pixels of the slide, as its backend does.
# Really: with the default interpolator (Lanczos) they come half a pixel too far right and down, and blurred; in the last
#   rows and columns of a large region (512 x 512 or more) four and a half pixels too far. A square of 9 x 9 at 300 comes
#   back at 304.5, with MAGIC2021 at 306.5. interpolator="NEAREST" and the backend itself are exact. Masks, and training
#   images beside masks that another program cuts, no longer fit.
# Packages: dlup 0.9.4, fimage-python 0.1.2, openslide-python 1.4.7 with openslide-bin 4.0.1.2, tifffile 2026.3.3,
#   numpy 2.4.6; Python 3.11, Linux
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq --disable-pip-version-check dlup==0.9.4 fimage-python==0.1.2 \
    openslide-python==1.4.7 openslide-bin==4.0.1.2 tifffile==2026.3.3 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY' 2>/dev/null
import sys

import numpy as np
import tifffile
from dlup import SlideImage


def centre(square):
    y, x = np.indices(square.shape)
    return float((x * square).sum() / square.sum()), float((y * square).sum() / square.sum())


seen = {}
for interpolator in ("LANCZOS", "MAGIC2021", "NEAREST"):
    for place in (64, 200, 300, 450):
        image = np.zeros((512, 512), np.uint8)
        image[place - 4 : place + 5, place - 4 : place + 5] = 255
        tifffile.imwrite("a.tif", image, tile=(256, 256), metadata=None, resolution=(4e4, 4e4), resolutionunit=3)
        slide = SlideImage.from_file_path("a.tif", interpolator=interpolator)
        whole = np.asarray(slide.read_region((0, 0), 1.0, (512, 512)))[..., 0].astype(float)
        window = np.asarray(slide.read_region((place - 10, place - 10), 1.0, (20, 20)))[..., 0].astype(float)
        moved = centre(whole)[0] - place, centre(window)[0] - 10
        seen[interpolator, place] = tuple(round(each, 1) for each in moved)
        print(f"{interpolator:9} square at {place}: moved by {moved[0]:.2f} in the whole image, {moved[1]:.2f} in a window")
as_described = all(seen["NEAREST", place] == (0, 0) and seen[name, place] == ((0.5 if place < 256 else far), 0.5)
                   for name, far in (("LANCZOS", 4.5), ("MAGIC2021", 6.5)) for place in (64, 200, 300, 450))
print("as described" if as_described else "CHANGED")
sys.exit(not as_described)
PY
