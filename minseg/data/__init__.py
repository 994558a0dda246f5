"""The old names of what has moved, for programs that were written with minseg 0.1: there,
`minseg.files.slides` was `minseg.data.slides`. Nothing in minseg imports this."""

import sys
from importlib import import_module

MOVED = {"data.files": "files.atomic", "data.augment": "augment", "data.synthetic": "synthetic",
         "data.weights": "weights", "data.tiles": "run.tiles", "data.memory": "run.memory",
         **{f"data.{name}": f"files.{name}" for name in (
             "slides", "formats", "tiff", "pixel_size", "masks", "rle", "polygons", "objects",
             "datasets", "layouts", "tables", "kept")}}

for _old, _new in MOVED.items():
    sys.modules[f"minseg.{_old}"] = import_module(f"minseg.{_new}")
