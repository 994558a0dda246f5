#!/usr/bin/env bash
# Expected: a histogram of a slide's probabilities counts pixels, however many there are; or it overflows with an error.
# Really: torch.histc and torch.histogram count in the tensor's type. In float32, adding 1 to 16777216 changes nothing, so
#   a bin that should hold 20 million pixels (the empty part of a slide) holds 16777216, without a
#   warning. It depends on the threads: each counts for itself, so with two the same call can be right. bincount of
#   whole numbers with float32 weights stops there, too. In float64, or torch.bincount without weights, all is counted,
#   and numpy's histogram counts in int64 whatever the input.
# Packages: torch 2.13.0, numpy 2.4.6 (one thread on the CPU)
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq torch==2.13.0 numpy==2.4.6
"$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import numpy as np
import torch

torch.set_num_threads(1)
empty, object_ = 20_000_000, 1_000_000
probability = torch.zeros(empty + object_)
probability[empty:] = 0.9
bins = (probability > 0.5).long()
counts = {
    "histc": torch.histc(probability, bins=2, min=0, max=1),
    "histogram": torch.histogram(probability, bins=2, range=(0, 1)).hist,
    "bincount, float32 weights": torch.bincount(bins, weights=torch.ones_like(probability)),
    "histc, float64": torch.histc(probability.double(), bins=2, min=0, max=1),
    "bincount": torch.bincount(bins),
    "numpy": torch.from_numpy(np.histogram(probability.numpy(), bins=2, range=(0, 1))[0]),
}
same = True
for name, count in counts.items():
    count = [int(each) for each in count]
    print(f"{name:26}: {count}, share of object {count[1] / sum(count):.5f}")
    short = name in ("histc", "histogram", "bincount, float32 weights")
    same &= count == [2**24 if short else empty, object_]
print(f"right: {[empty, object_]}, {object_ / (empty + object_):.5f}")
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
