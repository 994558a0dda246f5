#!/usr/bin/env bash
# Expected: an RGBA picture whose alpha is declared as separate from the colours (ExtraSamples 2) has the same colours
#   whether Pillow saves it as PNG or as TIFF; whoever does not care for alpha may ignore it.
# Really: from 8-bit TIFFs OpenCV gives the colours times alpha, even with IMREAD_UNCHANGED and with IMREAD_COLOR, which
#   has no alpha to undo it: half-transparent tissue is half as bright, transparent tissue black. From a PNG of the same
#   pixels, or a 16-bit TIFF with IMREAD_UNCHANGED, it gives the colours themselves. SimpleITK does either, by how the
#   file is cut: strips keep the colours, tiles darken them. Pillow, tifffile, rasterio and libvips always keep them.
# Packages: opencv-python-headless 5.0.0.93, SimpleITK 2.5.7, pillow 13.0.0, tifffile 2026.3.3, rasterio 1.4.4,
#   pyvips 3.2.0 with pyvips-binary 8.18.7, numpy 2.4.6
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq opencv-python-headless==5.0.0.93 simpleitk==2.5.7 pillow==13.0.0 \
    tifffile==2026.3.3 rasterio==1.4.4 pyvips==3.2.0 pyvips-binary==8.18.7 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PY' 2>/dev/null
import sys

import cv2
import numpy as np
import pyvips
import rasterio
import SimpleITK as sitk
import tifffile
from PIL import Image

slide = np.full((256, 256, 4), (200, 100, 50, 255), np.uint8)
slide[:128, 128:, 3], slide[128:, :, 3] = 128, 0
Image.fromarray(slide).save("8 bits.png")
Image.fromarray(slide).save("8 bits, strips.tif")
tifffile.imwrite("8 bits, tiles.tif", slide, photometric="rgb", extrasamples=["unassalpha"], tile=(64, 64))
tifffile.imwrite("16 bits, strips.tif", slide.astype(np.uint16) * 257, photometric="rgb", extrasamples=["unassalpha"])


def with_opencv(flag):
    return lambda path: cv2.imread(path, flag)[..., 2::-1]  # RGB


readers = {
    "OpenCV, UNCHANGED": with_opencv(cv2.IMREAD_UNCHANGED),
    "OpenCV, COLOR": with_opencv(cv2.IMREAD_COLOR),
    "SimpleITK": lambda path: sitk.GetArrayFromImage(sitk.ReadImage(path)),
    "Pillow": lambda path: np.array(Image.open(path)),
    "tifffile": tifffile.imread,
    "rasterio": lambda path: np.moveaxis(rasterio.open(path).read(), 0, -1),
    "libvips": lambda path: pyvips.Image.new_from_file(path).numpy(),
}
darkened = {("OpenCV, UNCHANGED", "8 bits, strips.tif"), ("OpenCV, UNCHANGED", "8 bits, tiles.tif"),
            ("OpenCV, COLOR", "8 bits, strips.tif"), ("OpenCV, COLOR", "8 bits, tiles.tif"),
            ("OpenCV, COLOR", "16 bits, strips.tif"), ("SimpleITK", "8 bits, tiles.tif")}
same = True
for path in ("8 bits.png", "8 bits, strips.tif", "8 bits, tiles.tif", "16 bits, strips.tif"):
    for name, read in readers.items():
        if name == "tifffile" and path.endswith("png") or name == "Pillow" and path.startswith("16"):
            continue  # they do not read these
        found = read(path)[..., :3]
        if found.dtype == np.uint16:
            found = found // 257
        half, none = (found[y, 200].tolist() for y in (60, 200))
        print(f"{path:19} {name:17}: opaque {found[60, 60].tolist()}, alpha one half {half}, alpha 0 {none}")
        dark = (name, path) in darkened
        same &= found[60, 60].tolist() == [200, 100, 50]
        same &= [half, none] == ([[100, 50, 25], [0, 0, 0]] if dark else [[200, 100, 50]] * 2)
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
