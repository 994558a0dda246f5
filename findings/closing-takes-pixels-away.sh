#!/usr/bin/env bash
# Expected: a closing (dilation, then erosion) only ever adds pixels; run on a tile, it leaves alone what is there.
# Really: scipy's binary_closing takes what lies outside the array for background in both halves, so its erosion eats
#   back in from the border: an 8 x 8 object in the corner of a tile loses 28 of its 64 pixels to a 5 x 5 closing, and
#   a tile that is all object gets an empty frame, two pixels wide; each further iteration takes more. scipy's own
#   grey_closing of the same mask, scikit-image, OpenCV, SimpleITK and Kornia change nothing.
# Packages: scipy 1.17.1, scikit-image 0.26.0, opencv-python-headless 5.0.0.93, SimpleITK 2.5.7, kornia 0.9.0,
#   torch 2.13.0, numpy 2.4.6
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq scipy==1.17.1 scikit-image==0.26.0 opencv-python-headless==5.0.0.93 \
    simpleitk==2.5.7 kornia==0.9.0 torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import cv2
import kornia
import numpy as np
import SimpleITK as sitk
import skimage.morphology
import torch
from scipy import ndimage

square = np.ones((5, 5), np.uint8)
corner, full = np.zeros((24, 24), bool), np.ones((24, 24), bool)
corner[:8, :8] = True
middle = np.roll(corner, (8, 8), (0, 1))


def with_sitk(mask):
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    return sitk.GetArrayFromImage(sitk.BinaryMorphologicalClosing(image, (2, 2), sitk.sitkBox))


closings = {
    "scipy binary_closing": lambda mask: ndimage.binary_closing(mask, square),
    "scipy binary_closing, twice": lambda mask: ndimage.binary_closing(mask, square, iterations=2),
    "scipy grey_closing": lambda mask: ndimage.grey_closing(mask.astype(np.uint8), (5, 5)),
    "scikit-image": lambda mask: skimage.morphology.closing(mask, square),
    "OpenCV": lambda mask: cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, square),
    "SimpleITK": with_sitk,
    "Kornia": lambda mask: kornia.morphology.closing(torch.tensor(mask)[None, None].float(),
                                                     torch.ones(5, 5))[0, 0].numpy(),
}
same = True
for name, close in closings.items():
    lost = [int((mask & ~(close(mask) > 0)).sum()) for mask in (corner, middle, full)]
    print(f"{name:27}: pixels lost: object in the corner {lost[0]} of 64, in the middle {lost[1]} of 64, "
          f"tile full of object {lost[2]} of 576")
    eaten = {"scipy binary_closing": [28, 0, 576 - 20**2], "scipy binary_closing, twice": [48, 0, 576 - 16**2]}
    same &= lost == eaten.get(name, [0, 0, 0])
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
