#!/usr/bin/env bash
# Expected: reading an OME-TIFF with BioIO and saving it again keeps the size of its pixels, in whatever unit it is stated.
# Really: BioIO reads the number and leaves out the unit, and its writer takes the number for micrometres: a slide of 250
#   nm per pixel comes out with 250 micrometres, one of 0.00025 mm with a quarter of a nanometre, without a warning. The
#   property for units (dimension_properties) says None for these files. Only the note in the documentation, to look into
#   the file's metadata, and ome_metadata itself help. large-image reads the unit and agrees on all three originals.
# Packages: bioio 3.6.0, bioio-ome-tiff 1.4.0, large-image-source-ometiff 1.35.6, tifffile 2026.3.3, zarr 3.1.6,
#   numpy 2.4.6
# Date: 2026-11-30
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/python" -m pip install -qq bioio==3.6.0 bioio-ome-tiff==1.4.0 large-image-source-ometiff==1.35.6 \
    tifffile==2026.3.3 zarr==3.1.6 numpy==2.4.6
cd "$dir"
"$dir/venv/bin/python" -W ignore - <<'PY' 2>/dev/null
import sys

import large_image_source_ometiff
import numpy as np
import tifffile
from bioio import BioImage

slide = np.random.default_rng(0).integers(0, 256, (512, 768, 3), dtype=np.uint8)
same = True
for unit, size, saved in (("nm", 250.0, 250.0), ("mm", 0.00025, 0.00025), ("µm", 0.25, 0.25)):
    name = {"nm": "nano", "mm": "milli", "µm": "micro"}[unit]
    tifffile.imwrite(f"{name}.ome.tif", slide, photometric="rgb", tile=(256, 256), metadata={
        "axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeXUnit": unit, "PhysicalSizeY": size,
        "PhysicalSizeYUnit": unit})
    image = BioImage(f"{name}.ome.tif")
    image.save(f"{name}-saved.ome.tif")
    micrometres = [1000 * large_image_source_ometiff.open(f"{name}{state}.ome.tif").getMetadata()["mm_x"]
                   for state in ("", "-saved")]
    again = BioImage(f"{name}-saved.ome.tif").ome_metadata.images[0].pixels
    print(f"{size} {unit}: BioIO says {image.physical_pixel_sizes.X}, unit {image.dimension_properties.X.unit}; saved again "
          f"{again.physical_size_x} {again.physical_size_x_unit.value}; large-image: {micrometres[0]:g} and, "
          f"saved again, {micrometres[1]:g} micrometres")
    same &= image.dimension_properties.X.unit is None and image.physical_pixel_sizes.X == size
    same &= again.physical_size_x == saved and again.physical_size_x_unit.value == "µm"
    same &= abs(micrometres[0] - 0.25) < 1e-9 and abs(micrometres[1] - saved) < 1e-9
print("as described" if same else "CHANGED")
sys.exit(not same)
PY
