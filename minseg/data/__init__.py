"""Slides and what is made of them.

| file | |
|---|---|
| `minseg.data.slides` | windows of images of any size; what a file may mean |
| `minseg.data.tiff` | which image in a TIFF is meant, and windows of it |
| `minseg.data.datasets` | images, masks and groups in a folder; what a data set may hold |
| `minseg.data.tables` | names and tables that people typed |
| `minseg.data.masks` | what is to be found: pictures, run-length code, polygons |
| `minseg.data.rle` | the run-length code of masks |
| `minseg.data.polygons` | polygons of QuPath, read and written |
| `minseg.data.objects` | connected objects: outlined and counted |
| `minseg.data.tiles` | slides, cut once into tiles on disk |
| `minseg.data.augment` | tiles, turned and stained anew |
| `minseg.data.synthetic` | slides drawn from a seed |
| `minseg.data.files` | files that are complete or not there at all |
"""
