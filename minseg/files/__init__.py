"""Files: what other programs wrote, and what we write.

| file | what it does |
|---|---|
| `minseg.files.slides` | reads windows of images of any size; lists which files are accepted |
| `minseg.files.formats` | tells what other slides are, and the command that makes a TIFF of them |
| `minseg.files.tiff` | chooses the image in a TIFF that is the slide, and reads windows of it |
| `minseg.files.resample` | brings slides of any magnification to one size of pixel |
| `minseg.files.pixel_size` | reads what a TIFF says of the size of its pixels |
| `minseg.files.masks` | reads masks, whether stored as images, run-length code or polygons |
| `minseg.files.rle` | encodes and decodes run-length code |
| `minseg.files.polygons` | reads and writes polygons as QuPath does |
| `minseg.files.objects` | outlines and counts the connected objects of a mask |
| `minseg.files.datasets` | finds the images, masks and groups in a folder; lists what is accepted |
| `minseg.files.layouts` | tells layouts apart, matches files by name, says how to mend the rest |
| `minseg.files.tables` | reads the names and tables that people typed |
| `minseg.files.atomic` | writes files that are either complete or absent |
| `minseg.files.kept` | keeps what was parsed once in scratch files |
"""
