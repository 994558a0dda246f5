#!/usr/bin/env bash
# Expected: connected components do not depend on the size of the objects: one object, one label, at any scale.
# Really: Kornia's connected_components hands labels on from pixel to pixel, 100 times and no more; its documentation says
#   so, the call does not. A disc of radius 40 is one object, a disc of radius 100 is 5709, and a strip of 10 x 590
#   pixels 490. With num_iterations=1000 each is one, as in scipy, scikit-image, OpenCV and Kornia's newer
#   connected_components_union_find, which need no such number.
# Packages: kornia 0.9.0, torch 2.13.0, scipy 1.17.1, scikit-image 0.26.0, opencv-python-headless 5.0.0.93, numpy 2.4.6
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq kornia==0.9.0 torch==2.13.0 scipy==1.17.1 scikit-image==0.26.0 \
    opencv-python-headless==5.0.0.93 numpy==2.4.6
"$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import cv2
import numpy as np
import torch
from kornia.contrib import connected_components, connected_components_union_find
from scipy import ndimage
from skimage.measure import label

y, x = np.indices((640, 640))


def with_kornia(find, *numbers):
    return lambda mask: len(find(torch.tensor(mask)[None, None].float(), *numbers).unique()) - 1


counters = {
    "Kornia": with_kornia(connected_components),
    "Kornia, num_iterations=1000": with_kornia(connected_components, 1000),
    "Kornia, union_find": with_kornia(connected_components_union_find),
    "scipy": lambda mask: ndimage.label(mask)[1],
    "scikit-image": lambda mask: int(label(mask).max()),
    "OpenCV": lambda mask: cv2.connectedComponents(mask.astype(np.uint8))[0] - 1,
}
objects = {"disc of radius 40": np.hypot(y - 320, x - 320) <= 40,
           "disc of radius 100": np.hypot(y - 320, x - 320) <= 100,
           "strip of 10 x 590": (y >= 315) & (y < 325) & (x >= 25) & (x < 615)}
found = {name: [count(mask) for mask in objects.values()] for name, count in counters.items()}
for name, counts in found.items():
    print(f"{name:27}: " + ", ".join(f"{shape} {count}" for shape, count in zip(objects, counts)))
same = all(counts == [1, 1, 1] for name, counts in found.items() if name != "Kornia")
same &= found["Kornia"] == [1, 5709, 490]
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
