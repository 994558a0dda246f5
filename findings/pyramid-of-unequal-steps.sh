#!/usr/bin/env bash
# Expected: a tiled TIFF whose levels are 4, 16 and 32 times smaller than the slide is a pyramid of four levels,
#   whoever reads it. Scanners and converters make such steps, because they stop at a size that suits a screen.
# Really: tifffile takes the first step as the rule, and drops all levels from the first on that breaks it: of 1, 4, 16, 32
#   it keeps 1, 4, 16, and of 1, 3, 6, 12 only 1 and 3. What it drops becomes a series of its own, as if it were another
#   image. tiffslide, which is built on it, has the same levels; OpenSlide has all of them. (tifffile's readers of SVS and
#   OME-TIFF are others, and keep such levels.) Whoever asks for the level that fits a magnification gets a finer one, and
#   decodes up to four times the pixels.
# Packages: tifffile 2026.3.3, tiffslide 3.0.1, openslide-python 1.4.7 with openslide-bin 4.0.1.2, zarr 3.1.6, numpy 2.4.6
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq tifffile==2026.3.3 tiffslide==3.0.1 openslide-python==1.4.7 \
    openslide-bin==4.0.1.2 zarr==3.1.6 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PY'
import sys

import numpy as np
import openslide
import tifffile
import tiffslide

HEIGHT, WIDTH = 2304, 3072
found = {}
for factors in ((1, 4, 16, 32), (1, 3, 6, 12), (1, 2, 4, 8)):
    for where in ("pages", "SubIFDs"):
        with tifffile.TiffWriter("slide.tif") as file:
            for factor in factors:
                level = np.full((HEIGHT // factor, WIDTH // factor, 3), 10 * factor % 256, np.uint8)
                options = {"subfiletype": 1} if factor > 1 else {}
                if where == "SubIFDs" and factor == 1:
                    options = {"subifds": len(factors) - 1}
                file.write(level, tile=(128, 128), photometric="rgb", metadata=None, **options)
        with tifffile.TiffFile("slide.tif") as file:
            levels = [round(WIDTH / level.shape[1]) for level in file.series[0].levels]
            series = len(file.series)
        row = {"tifffile": levels, "series": series}
        if where == "pages":  # where both look for levels
            row["tiffslide"] = [round(x) for x in tiffslide.TiffSlide("slide.tif").level_downsamples]
            row["OpenSlide"] = [round(x) for x in openslide.OpenSlide("slide.tif").level_downsamples]
        found[factors, where] = row
        print(f"levels {factors} as {where}: {row}")

even = found[(1, 2, 4, 8), "pages"]
uneven = found[(1, 4, 16, 32), "pages"]
sys.exit(not (
    even["tifffile"] == even["tiffslide"] == even["OpenSlide"] == [1, 2, 4, 8]
    and uneven["OpenSlide"] == [1, 4, 16, 32]
    and uneven["tifffile"] == [1, 4, 16] == uneven["tiffslide"]
    and found[(1, 3, 6, 12), "SubIFDs"]["tifffile"] == [1, 3]
    and found[(1, 3, 6, 12), "SubIFDs"]["series"] == 3))
PY
