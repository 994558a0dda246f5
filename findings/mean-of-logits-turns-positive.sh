#!/usr/bin/env bash
# Expected: ttach averages the predictions for flipped and turned copies of a tile; where all eight views say the same,
#   every way of averaging answers just that, or refuses what it cannot average.
# Really: with merge_mode="gmean" it takes the eighth root of the product of whatever the network puts out. For logits,
#   which segmentation networks put out and "mean" handles, eight views of -4 (surely background) become +4 (surely
#   object), without a warning; with two or four views too. "tsharpen" takes square roots and gives NaN. Only
#   probabilities come out as they went in, and tsharpen turns even these, 0.25 in all views, into 0.5.
# Packages: ttach 0.0.3, torch 2.13.0, numpy 2.4.6
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq ttach==0.0.3 torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" -W ignore - <<'PY'
import math
import sys

import torch
import ttach
from torch import nn


class Says(nn.Module):
    """A network that answers the same number at each pixel of each view."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return torch.full_like(x, self.value)


views = {2: ttach.aliases.hflip_transform(), 4: ttach.aliases.flip_transform(), 8: ttach.aliases.d4_transform()}
tile, found = torch.zeros(1, 1, 8, 8), {}
for mode in ("mean", "gmean", "tsharpen"):
    for count, transforms in views.items():
        for value in (-4.0, 4.0, 0.25):
            merged = ttach.SegmentationTTAWrapper(Says(value), transforms, merge_mode=mode)(tile)
            found[mode, count, value] = round(merged[0, 0, 0, 0].item(), 4)
        print(f"{mode:8} of {count} views: " + ", ".join(f"{value} gives {found[mode, count, value]}"
                                                         for value in (-4.0, 4.0, 0.25)))
same = True
for (mode, count, value), result in found.items():
    if mode == "tsharpen":
        same &= math.isnan(result) if value < 0 else result == math.sqrt(value)
    else:
        same &= result == (abs(value) if mode == "gmean" else value)
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
