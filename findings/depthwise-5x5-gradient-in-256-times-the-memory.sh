#!/usr/bin/env bash
# Expected: on a CPU, PyTorch trains a depthwise 5 x 5 convolution (EfficientNet and MobileNetV3 are full of them) with
#   the kernels that it uses for depthwise 3 x 3, at 25/9 of the work.
# Really: oneDNN has a depthwise kernel for the weight gradient of 3 x 3 (jit_dw), but not for 5 x 5. That one goes to
#   the kernel of dense grouped convolutions, which pads each channel's 1 x 1 block of weights to 16 x 16
#   (aBCde16c16b): 256 times the memory, 29 MB for 1152 channels. Forward and the gradient of the input keep
#   depthwise kernels. (A step of a whole network gains some 2 % if the gradient is put together from four of 3 x 3.)
# Needs an x86 CPU with AVX-512; elsewhere oneDNN has other kernels, and nothing is compared.
# Packages: torch 2.13.0, numpy 2.4.6
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq torch==2.13.0 numpy==2.4.6
cat > "$dir/step.py" <<'PY'
import torch

x = torch.randn(8, 1152, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
for kernel in (3, 5):
    conv = torch.nn.Conv2d(1152, 1152, kernel, padding=kernel // 2, groups=1152, bias=False)
    conv.to(memory_format=torch.channels_last)(x).square().mean().backward()
PY
ONEDNN_VERBOSE=1 "$dir/venv/bin/python" -W ignore "$dir/step.py" > "$dir/log"
"$dir/venv/bin/python" - "$dir/log" <<'PY'
import re
import sys

import torch

if not torch.cpu._is_avx512_supported():
    print("no AVX-512 here: nothing to compare")
    sys.exit(0)
used = {}
for line in open(sys.argv[1]):
    fields = line.split(",")
    if ",exec," in line and "g1152" in line:
        size = re.search(r"kh(\d)", line)[1]
        used[size, fields[7]] = fields[6], re.search(r"wei:\S+", line)[0]
for (size, pass_), (kernel, weights) in sorted(used.items()):
    print(f"{size} x {size} {pass_}: {kernel} {weights}")
gradient = {size: used[size, "backward_weights"] for size in "35"}
same = gradient["3"][0].startswith("jit_dw:") and gradient["5"][0].startswith("jit:")
same &= "16c16b" in gradient["5"][1] and "16c16b" not in gradient["3"][1]
same &= all(used["5", each][0].split(":")[0].endswith("_dw")
            for each in ("forward_training", "backward_data"))
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
