#!/usr/bin/env bash
# Expected: a network that computes a size with Python's floor division, such as -(-height // 32) for "how many blocks
#   of 32 rows", computes the same in the ONNX file that torch.onnx.export writes of it, for every height.
# Really: both exporters write ONNX's integer Div, which rounds towards 0, and Python rounds down. Without an error,
#   heights that are no multiple of 32 get one block too few: 0 instead of 1 for 31 rows, 1 instead of 2 for 33.
#   (height + 31) // 32, which has no negative number in it, comes out right in both.
# Packages: torch 2.13.0, onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0, numpy 2.4.6
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PY'
import contextlib
import io
import sys

import onnxruntime
import torch
from torch import nn


class Rounded(nn.Module):
    def forward(self, x):
        return x.new_zeros(-(-x.shape[2] // 32))


class Positive(nn.Module):
    def forward(self, x):
        return x.new_zeros((x.shape[2] + 31) // 32)


heights, same = (31, 32, 33, 64, 65), True
for net in (Rounded(), Positive()):
    right = [len(net(torch.zeros(1, 1, height, 4))) for height in heights]
    print(f"{type(net).__name__}: PyTorch {right}")
    for dynamo in (False, True):
        example, file = torch.zeros(1, 1, 40, 4), f"{type(net).__name__}-{dynamo}.onnx"
        how = ({"dynamic_shapes": {"x": {2: torch.export.Dim.DYNAMIC}}} if dynamo
               else {"dynamic_axes": {"x": {2: "height"}}})
        with contextlib.redirect_stdout(io.StringIO()):  # the exporter's progress
            torch.onnx.export(net, (example,), file, input_names=["x"], dynamo=dynamo, **how)
        session = onnxruntime.InferenceSession(file)
        found = [len(session.run(None, {"x": torch.zeros(1, 1, height, 4).numpy()})[0])
                 for height in heights]
        print(f"    dynamo={dynamo}: onnxruntime {found}")
        same &= found == ([0, 1, 1, 2, 2] if isinstance(net, Rounded) else right)
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
