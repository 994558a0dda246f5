#!/usr/bin/env bash
# Expected: GDAL leaves out tiles that hold nothing (SPARSE_OK) and says in the file what they stand for (NODATA, else 0);
#   readers show that value, or refuse the file as OpenCV, SimpleITK and slideio's GDAL driver do.
# Really: for a slide whose missing tiles are white (NODATA 255), tifffile, tiffslide and rasterio show white, libvips and
#   large-image black, OpenSlide transparent black. In a mask whose missing tiles are 0, slideio's SVS driver shows 255:
#   all of them object. And Pillow, where the tiles are not compressed, takes the missing tile's place in the file, which
#   is 0, for an address: the tile shows the file's own first bytes as colours, "II*" and all, then part of another tile.
# Packages: rasterio 1.4.4 (GDAL 3.10.3), tifffile 2026.3.3, imagecodecs 2026.3.6, tiffslide 3.0.1, zarr 3.1.6,
#   pyvips 3.2.0 with pyvips-binary 8.18.7, large-image-source-tiff 1.35.6, openslide-python 1.4.7 with openslide-bin
#   4.0.1.2, slideio 2.10.0, pillow 13.0.0, opencv-python-headless 5.0.0.93, SimpleITK 2.5.7, numpy 2.4.6
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq rasterio==1.4.4 tifffile==2026.3.3 imagecodecs==2026.3.6 tiffslide==3.0.1 \
    zarr==3.1.6 pyvips==3.2.0 pyvips-binary==8.18.7 large-image-source-tiff==1.35.6 openslide-python==1.4.7 \
    openslide-bin==4.0.1.2 slideio==2.10.0 pillow==13.0.0 opencv-python-headless==5.0.0.93 simpleitk==2.5.7 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PY' 2>/dev/null
import sys
from pathlib import Path

import cv2
import large_image_source_tiff
import numpy as np
import openslide
import pyvips
import rasterio
import SimpleITK as sitk
import slideio
import tifffile
import tiffslide
from PIL import Image


def write(path, channels, value, **options):
    """Four tiles, of which only the first is written."""
    with rasterio.open(path, "w", driver="GTiff", width=512, height=512, count=channels, dtype="uint8", tiled=True,
                       blockxsize=256, blockysize=256, SPARSE_OK=True, **options) as file:
        file.write(np.full((channels, 256, 256), value, np.uint8), window=((0, 256), (0, 256)))


write("slide.tif", 3, 120, photometric="rgb", interleave="pixel", nodata=255)
write("mask.tif", 1, 1, compress="deflate")
readers = {
    "tifffile": tifffile.imread,
    "tiffslide": lambda path: tiffslide.TiffSlide(path).read_region((0, 0), 0, (512, 512), as_array=True),
    "rasterio": lambda path: np.moveaxis(rasterio.open(path).read(), 0, -1),
    "libvips": lambda path: pyvips.Image.new_from_file(path).numpy(),
    "large-image": lambda path: large_image_source_tiff.open(path).getRegion(format="numpy")[0],
    "OpenSlide": lambda path: np.array(openslide.OpenSlide(path).read_region((0, 0), 0, (512, 512))),
    "slideio, SVS": lambda path: slideio.open_slide(path, "SVS").get_scene(0).read_block(),
    "slideio, GDAL": lambda path: slideio.open_slide(path, "GDAL").get_scene(0).read_block(),
    "Pillow": lambda path: np.array(Image.open(path)),
    "OpenCV": lambda path: cv2.imread(path, cv2.IMREAD_UNCHANGED),
    "SimpleITK": lambda path: sitk.GetArrayFromImage(sitk.ReadImage(path)),
}
black, white, refused = [[0] * 3, [0]], [[255] * 3, [255]], [None, None]
expected = {"tifffile": [[255] * 3, [0]], "tiffslide": [[255] * 3, [0]], "rasterio": [[255] * 3, [0]], "libvips": black,
            "large-image": black, "OpenSlide": [[0] * 4, [0] * 4], "slideio, SVS": white, "slideio, GDAL": refused,
            "Pillow": [list(b"II*"), None], "OpenCV": refused, "SimpleITK": refused}
same = True
for name, read in readers.items():
    found = []
    for path in ("slide.tif", "mask.tif"):
        try:
            found.append(read(path)[256, 256].ravel().tolist())  # the first pixel of the last tile
        except Exception:  # each reader has its own kinds of errors
            found.append(None)
    print(f"{name:13}: first pixel of a missing tile: slide {found[0]}, mask {found[1]}")
    same &= found == expected[name]

tile = np.array(Image.open("slide.tif"))[256:, 256:]
start = np.frombuffer(Path("slide.tif").read_bytes()[: tile.size], np.uint8).reshape(tile.shape)
print("the missing tile in Pillow is the first bytes of the file:", bool((tile == start).all()))
same &= bool((tile == start).all())
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
