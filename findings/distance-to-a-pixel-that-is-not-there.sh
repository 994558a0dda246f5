#!/usr/bin/env bash
# Expected: in a tile that is all object no pixel has a distance to the background; a distance transform says infinity,
#   or a value that cannot be a distance, as scipy's two slower ones (-1 and 1e154), OpenCV and SimpleITK do.
# Really: scipy's distance_transform_edt, and with it MONAI's on the CPU, measures the distance to a pixel just above the
#   upper left corner: 1 there and 1413 at the other end of a 1000 x 1000 tile, plausible numbers, such as weights and
#   boundary losses are made from. The nearest background pixel is said to be in row -1, and a mirrored tile gives
#   another map. One pixel of background, and all is right.
# Packages: scipy 1.17.1, monai 1.6.1, torch 2.13.0, opencv-python-headless 5.0.0.93, SimpleITK 2.5.7, numpy 2.4.6
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq scipy==1.17.1 monai==1.6.1 torch==2.13.0 opencv-python-headless==5.0.0.93 \
    simpleitk==2.5.7 numpy==2.4.6
"$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import cv2
import numpy as np
import SimpleITK as sitk
import torch
from monai.transforms import distance_transform_edt
from scipy import ndimage

full, small = np.ones((1000, 1000), np.uint8), np.ones((40, 60), np.uint8)
y, x = np.indices(full.shape)
found = {
    "scipy distance_transform_edt": ndimage.distance_transform_edt(full),
    "MONAI distance_transform_edt": distance_transform_edt(torch.from_numpy(full)[None])[0].numpy(),
    "scipy distance_transform_cdt": ndimage.distance_transform_cdt(full),
    "scipy distance_transform_bf": ndimage.distance_transform_bf(small),
    "OpenCV": cv2.distanceTransform(full, cv2.DIST_L2, cv2.DIST_MASK_PRECISE),
    "SimpleITK": sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(sitk.GetImageFromArray(full),
                                                                     squaredDistance=False)),
}
same = True
for name, distance in found.items():
    print(f"{name:28}: {distance[0, 0]:.4g} upper left, {distance[-1, -1]:.6g} lower right")
    if "edt" in name:
        same &= np.allclose(distance, np.hypot(y + 1, x))  # to row -1, column 0
    else:
        same &= bool((distance == distance[0, 0]).all()) and not 0 <= distance[0, 0] < 1500
nearest = ndimage.distance_transform_edt(full, return_distances=False, return_indices=True)[:, -1, -1]
print("nearest background pixel of the lower right one:", nearest.tolist())
same &= nearest.tolist() == [-1, 0]
full[500, 500] = 0
right = np.allclose(ndimage.distance_transform_edt(full), np.hypot(y - 500, x - 500))
print("with one pixel of background it is right:", right)
print("as described" if same and right else "CHANGED")
sys.exit(not (same and right))
PY
