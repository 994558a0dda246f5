#!/usr/bin/env bash
# Expected: a TIFF whose alpha is declared as associated (ExtraSamples 1) holds colours that were multiplied by alpha, as
#   libvips writes them with premultiply=True; saving RGBA and reading it again gives the same colours.
# Really: SimpleITK declares the fourth channel of an image as associated alpha, and multiplies nothing. Readers that
#   follow the declaration, Pillow and libvips, divide by alpha: a half transparent (200, 100, 50) comes back as
#   (255, 199, 99), and all that is brighter than its alpha as white. SimpleITK itself, OpenCV
#   and tifffile give back what was saved. A colour larger than its alpha gives such a file away.
# Packages: SimpleITK 2.5.7, pillow 13.0.0, pyvips 3.2.0 with pyvips-binary 8.18.7, opencv-python-headless 5.0.0.93,
#   tifffile 2026.3.3, numpy 2.4.6; Python 3.11, Linux
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq --disable-pip-version-check simpleitk==2.5.7 pillow==13.0.0 pyvips==3.2.0 \
    pyvips-binary==8.18.7 opencv-python-headless==5.0.0.93 tifffile==2026.3.3 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" - <<'PY' 2>/dev/null
import sys

import cv2
import numpy as np
import pyvips
import SimpleITK as sitk
import tifffile
from PIL import Image

image = np.zeros((32, 32, 4), np.uint8)
image[...] = 200, 100, 50, 128  # half transparent
sitk.WriteImage(sitk.GetImageFromArray(image, isVector=True), "SimpleITK.tif")
pyvips.Image.new_from_array(image).copy(interpretation="srgb").tiffsave("libvips.tif", premultiply=True)

readers = {
    "tifffile": lambda path: tifffile.imread(path),
    "SimpleITK": lambda path: sitk.GetArrayFromImage(sitk.ReadImage(path)),
    "OpenCV": lambda path: cv2.imread(path, cv2.IMREAD_UNCHANGED)[..., [2, 1, 0, 3]],
    "Pillow": lambda path: np.asarray(Image.open(path)),
    "libvips": lambda path: pyvips.Image.new_from_file(path).numpy(),
}
seen = {}
for writer in ("SimpleITK", "libvips"):
    kind = [int(each) for each in tifffile.TiffFile(f"{writer}.tif").pages[0].extrasamples]
    for name, read in readers.items():
        seen[writer, name] = read(f"{writer}.tif")[16, 16, :3].tolist()
    print(f"{writer}, ExtraSamples {kind}:", ", ".join(f"{name} {seen[writer, name]}" for name in readers))
    seen[writer] = kind


def near(found, wanted):
    return all(abs(a - b) <= 1 for a, b in zip(found, wanted))


same = (seen["SimpleITK"] == seen["libvips"] == [1]
        and all(seen["SimpleITK", name] == [200, 100, 50] for name in ("tifffile", "SimpleITK", "OpenCV"))
        and all(near(seen["SimpleITK", name], (255, 199, 99)) for name in ("Pillow", "libvips"))
        and all(near(seen["libvips", name], (100, 50, 25)) for name in ("tifffile", "OpenCV"))
        and all(near(seen["libvips", name], (199, 99, 49)) for name in ("Pillow", "libvips")))
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
