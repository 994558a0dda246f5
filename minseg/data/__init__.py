"""Slides, their masks, and the tiles that training reads.

| file | what it does |
|---|---|
| `minseg.data.slides` | reads windows of images of any size; lists which image files are accepted |
| `minseg.data.formats` | tells what other slides are, and the command that makes a TIFF of them |
| `minseg.data.tiff` | chooses the image in a TIFF that is the slide, and reads windows of it |
| `minseg.data.pixel_size` | reads what a TIFF says of the size of its pixels |
| `minseg.data.datasets` | finds the images, masks and groups in a folder; lists what is accepted |
| `minseg.data.layouts` | tells layouts apart, matches files by name, says how to mend the rest |
| `minseg.data.tables` | reads the names and tables that people typed |
| `minseg.data.masks` | reads masks, whether stored as images, run-length code or polygons |
| `minseg.data.rle` | encodes and decodes run-length code |
| `minseg.data.polygons` | reads and writes polygons as QuPath does |
| `minseg.data.objects` | outlines and counts the connected objects of a mask |
| `minseg.data.tiles` | cuts each slide once into training tiles on disk |
| `minseg.data.augment` | rotates, flips, stretches and re-stains tiles |
| `minseg.data.synthetic` | draws slides from a seed |
| `minseg.data.weights` | opens published weights: downloads, packages, files |
| `minseg.data.memory` | gives freed memory back to the system |
| `minseg.data.files` | writes files that are either complete or absent |
| `minseg.data.kept` | keeps what was parsed once in scratch files |
"""
