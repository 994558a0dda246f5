#!/usr/bin/env bash
# Expected: pycocotools.mask.encode takes every value but 0 for object, as it does for a mask of 0 and 255 or one whose
#   objects are numbered 1, 2, 3, ...; or it refuses what is not binary.
# Really: it begins a run wherever the value changes, and takes the runs for background and object in turn. Where object 2
#   lies directly below object 1, or void (255) below object (1), the lower one becomes a hole, and the background below
#   it and in the columns on the right becomes object, until the next such border turns it back: 100 pixels become 8770.
#   Nothing warns; area and decode agree with each other. Objects that do not touch, or touch only side by side, come
#   out right. faster-coco-eval does the same. (mask > 0) is what both need.
# Packages: pycocotools 2.0.11, faster-coco-eval 1.8.0, numpy 2.4.6
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq pycocotools==2.0.11 faster-coco-eval==1.8.0 numpy==2.4.6
"$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import numpy as np
import pycocotools.mask
from faster_coco_eval import mask as faster_mask

apart = np.zeros((100, 100), np.uint8)
apart[20:30, 10:20], apart[20:30, 40:50] = 1, 2
touching = np.zeros((100, 100), np.uint8)
touching[20:30, 10:15], touching[30:40, 10:15] = 1, 2
beside = np.zeros((100, 100), np.uint8)
beside[20:30, 10:15], beside[20:40, 15:20] = 1, 255
masks = {"0 and 255": (apart > 0) * np.uint8(255), "1 and 2 apart": apart, "1 beside 255": beside,
         "1 above 2": touching, "(1 above 2) > 0": (touching > 0).astype(np.uint8)}
same = True
for name, mask in masks.items():
    pixels = int((mask > 0).sum())
    for coder, module in (("pycocotools", pycocotools.mask), ("faster-coco-eval", faster_mask)):
        code = module.encode(np.asfortranarray(mask))
        decoded, area = module.decode(code), int(module.area(code))
        kept = bool(((decoded > 0) == (mask > 0)).all())
        print(f"{name:15} {coder:16}: {pixels} pixels are not 0, {area} in the code; rows 15, 25, 35, 45 of a column: "
              f"{decoded[15:46:10, 12].tolist()}")
        same &= (area, kept) == ((8770, False) if name == "1 above 2" else (pixels, True))
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
