#!/usr/bin/env bash
# Expected: MONAI's LoadImage gives a slide and its mask the same orientation, whichever of MONAI's readers reads which.
# Really: PILReader, which LoadImage takes for a PNG, puts the width first: (channel, x, y). So does ITKReader for a
#   TIFF. WSIReader, which one has to name for a slide, puts the height first: (channel, y, x). With a square slide
#   nothing fails; the mask lies mirrored along the diagonal, and that is what a network would learn from.
#   PILReader(reverse_indexing=False) brings the two together.
# Packages: monai 1.6.1, torch 2.13.0, itk-io 5.4.7, pillow 13.0.0, tifffile 2026.3.3, openslide-python 1.4.7 with
#   openslide-bin 4.0.1.2, numpy 2.4.6
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq monai==1.6.1 torch==2.13.0 itk-io==5.4.7 pillow==13.0.0 tifffile==2026.3.3 \
    openslide-python==1.4.7 openslide-bin==4.0.1.2 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import numpy as np
import tifffile
from monai.data import PILReader, WSIReader
from monai.transforms import LoadImage
from PIL import Image

mask = np.zeros((128, 128), np.uint8)
mask[10:30, 20:100] = 255  # 20 rows, 80 columns
Image.fromarray(mask).save("mask.png")
tifffile.imwrite("mask.tif", mask)
tifffile.imwrite("slide.tif", np.dstack([mask] * 3), photometric="rgb", tile=(64, 64))  # the object is white

loaders = {
    "slide.tif, WSIReader": LoadImage(reader=WSIReader, backend="openslide"),
    "mask.png": LoadImage(ensure_channel_first=True),
    "mask.tif, ITKReader": LoadImage(reader="ITKReader", ensure_channel_first=True),
    "mask.png, PILReader(reverse_indexing=False)": LoadImage(reader=PILReader(reverse_indexing=False),
                                                             ensure_channel_first=True),
}
sizes = {}
for name, load in loaders.items():
    image = np.asarray(load(name.split(",")[0]))
    place = np.argwhere(image[0] > 0)
    sizes[name] = (np.ptp(place, axis=0) + 1).tolist()
    print(f"{name:43}: shape {image.shape}, the object is {sizes[name][0]} x {sizes[name][1]}")
same = list(sizes.values()) == [[20, 80], [80, 20], [80, 20], [20, 80]]
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
