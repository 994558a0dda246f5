#!/usr/bin/env bash
# Expected: monai.losses.MaskedLoss, which takes a loss and a mask of the pixels that count, leaves the others out: a
#   perfect network has a loss of 0, however many pixels nobody labelled, as with MONAI's own MaskedDiceLoss.
# Really: it multiplies the network's output by the mask and then calls the loss. For losses that take logits (DiceLoss
#   with sigmoid=True, FocalLoss, PyTorch's BCEWithLogitsLoss) a masked pixel becomes the logit 0, that is, a probability
#   of one half where nothing is: a perfect network gets a Dice loss of 0.6 with three quarters masked, and a binary
#   cross-entropy of log 2 for each masked pixel. The masked pixels also stay in the mean's divisor. MaskedDiceLoss, which
#   applies the sigmoid first, gives 0.
# Packages: monai 1.6.1, torch 2.13.0, numpy 2.4.6
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq torch==2.13.0 numpy==2.4.6 monai==1.6.1
"$dir/venv/bin/python" -W ignore - <<'PY'
import math
import sys

import torch
from monai.losses import DiceLoss, FocalLoss, MaskedDiceLoss, MaskedLoss
from torch.nn import BCEWithLogitsLoss

target = torch.zeros(1, 1, 64, 64)
target[..., 4:12] = 1
logits = 40 * target - 20  # certain, and right everywhere
counts = torch.zeros_like(target)
counts[..., :16] = 1  # a quarter is labelled

losses = {"DiceLoss(sigmoid=True)": DiceLoss(sigmoid=True), "FocalLoss()": FocalLoss(),
          "BCEWithLogitsLoss()": BCEWithLogitsLoss()}
found = {}
for name, loss in losses.items():
    labelled = loss(logits[..., :16], target[..., :16]).item()
    found[name] = MaskedLoss(loss)(logits, target, counts).item()
    print(f"{name:22}: {labelled:.4f} for the labelled quarter, {found[name]:.4f} in MaskedLoss")
    found[name, "labelled"] = labelled
right = MaskedDiceLoss(sigmoid=True)(logits, target, counts).item()
print(f"MaskedDiceLoss        : {right:.4f}")

dice, focal, entropy = (found[name] for name in losses)
same = max(found[name, "labelled"] for name in losses) < 1e-4 and right < 1e-4
same &= abs(dice - (1 - 2 * 512 / (2 * 512 + 0.5 * 3072))) < 1e-4  # 512 of object, 3072 masked at one half
same &= abs(entropy - 0.75 * math.log(2)) < 1e-4 and abs(focal - 0.75 * 0.25 * math.log(2)) < 1e-4
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
