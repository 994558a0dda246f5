#!/usr/bin/env bash
# Expected: in a tile without objects a segmentation loss is smallest where the network finds nothing, and the more it
#   finds the larger, as MONAI's FocalLoss is; a "generalized" Dice does what Dice does, and a little better.
# Really: three of its neighbours in MONAI do otherwise, each in its own way. GeneralizedDiceLoss is exactly 0, without a
#   gradient, whatever the network finds: the weight 1 / area² is infinite, infinite weights are replaced by the largest
#   finite one, and there is none. DiceLoss is 1 whatever it finds, also for the right answer (at a certainty of 0.9999),
#   with a gradient of next to nothing. HausdorffDTLoss rises with the false object until that fills the tile: then it is
#   0, as for the right answer. Most tiles of a slide are empty.
# Packages: monai 1.6.1, torch 2.13.0, scipy 1.17.1, numpy 2.4.6
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq torch==2.13.0 numpy==2.4.6 monai==1.6.1 scipy==1.17.1
"$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
from monai.losses import DiceLoss, FocalLoss, GeneralizedDiceLoss, HausdorffDTLoss

nothing = torch.zeros(1, 1, 64, 64)
sides = (0, 16, 32, 48, 64)  # of the square that the network finds, though there is nothing
losses = {"FocalLoss": FocalLoss(), "DiceLoss": DiceLoss(sigmoid=True),
          "GeneralizedDiceLoss": GeneralizedDiceLoss(sigmoid=True), "HausdorffDTLoss": HausdorffDTLoss(sigmoid=True)}
values, slopes = {}, {}
for name, loss in losses.items():
    values[name], slopes[name] = [], []
    for side in sides:
        logits = torch.full_like(nothing, -9)
        logits[..., :side, :side] = 3
        logits.requires_grad_()
        value = loss(logits, nothing)
        value.backward()
        values[name].append(round(value.item(), 3))
        slopes[name].append(logits.grad.abs().sum().item())
    print(f"{name:19}: " + ", ".join(f"{side}² {value}" for side, value in zip(sides, values[name]))
          + f"; gradient at most {max(slopes[name]):.2g}")
focal, dice, generalized, hausdorff = values.values()
same = focal == sorted(set(focal)) and min(dice) > 0.99 and max(slopes["DiceLoss"]) < 1e-3
same &= generalized == [0] * 5 and max(slopes["GeneralizedDiceLoss"]) == 0
same &= hausdorff[:4] == sorted(set(hausdorff[:4])) and hausdorff[0] == hausdorff[4] == 0
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
