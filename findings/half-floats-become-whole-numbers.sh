#!/usr/bin/env bash
# Expected: probabilities stored as 16-bit floating-point numbers (SampleFormat 3, as in TIFFs of half the size) come back
#   as such, as in tifffile, rasterio and libvips, or are refused, as by Pillow, OpenCV and slideio.
# Really: SimpleITK looks at the 16 bits alone and gives their pattern as whole numbers, without a warning: 0.5 becomes
#   14336, 1.0 becomes 15360. Order is kept, so a picture of it looks right, but every threshold below 1 marks all that is
#   not exactly 0, and the mean of 0 and 1, 7680, stands for 0.006 instead of 0.5. Numbers of 32 bits come out right.
# Packages: SimpleITK 2.5.7, tifffile 2026.3.3, rasterio 1.4.4, pyvips 3.2.0 with pyvips-binary 8.18.7, pillow 13.0.0,
#   opencv-python-headless 5.0.0.93, slideio 2.10.0, numpy 2.4.6
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq simpleitk==2.5.7 tifffile==2026.3.3 rasterio==1.4.4 pyvips==3.2.0 \
    pyvips-binary==8.18.7 pillow==13.0.0 opencv-python-headless==5.0.0.93 slideio==2.10.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PY' 2>/dev/null
import sys

import cv2
import numpy as np
import pyvips
import rasterio
import SimpleITK as sitk
import slideio
import tifffile
from PIL import Image

row = np.array([0, 0.01, 0.25, 0.5, 0.75, 1], np.float32)
readers = {
    "tifffile": tifffile.imread,
    "rasterio": lambda path: rasterio.open(path).read(1),
    "libvips": lambda path: pyvips.Image.new_from_file(path).numpy(),
    "SimpleITK": lambda path: sitk.GetArrayFromImage(sitk.ReadImage(path)),
    "Pillow": lambda path: np.array(Image.open(path)),
    "OpenCV": lambda path: np.array(cv2.imread(path, cv2.IMREAD_UNCHANGED).tolist()),
    "slideio": lambda path: slideio.open_slide(path, "GDAL").get_scene(0).read_block(),
}
same = True
for bits in (32, 16):
    stored = np.tile(row, (64, 1)).astype(f"float{bits}")
    tifffile.imwrite(f"float{bits}.tif", stored)
    for name, read in readers.items():
        try:
            found = read(f"float{bits}.tif").squeeze()[0].tolist()
        except Exception as error:  # each reader has its own kinds of errors
            found = type(error).__name__
        print(f"{bits} bits, {name:9}: {found if isinstance(found, str) else [round(each, 3) for each in found]}")
        if bits == 32:
            same &= found == row.tolist()
        elif name == "SimpleITK":
            same &= found == stored[0].view(np.uint16).tolist()
        elif name in ("Pillow", "OpenCV", "slideio"):
            same &= isinstance(found, str)
        else:
            same &= found == stored[0].tolist()
print("the number 7680 stands for", np.array([7680], np.uint16).view(np.float16)[0])
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
