"""Slides and what is made of them.

| file | |
|---|---|
| `minseg.data.slides` | windows of images of any size |
| `minseg.data.rle` | the run-length code of masks |
| `minseg.data.datasets` | images, masks and groups in a folder |
| `minseg.data.tiles` | slides, cut once into tiles on disk |
| `minseg.data.augment` | tiles, turned and stained anew |
| `minseg.data.synthetic` | slides drawn from a seed |
| `minseg.data.files` | files that are complete or not there at all |
"""
