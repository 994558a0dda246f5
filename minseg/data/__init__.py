"""Slides and what is made of them, each in a file of its own.

`slides` reads windows of images of any size; `rle` the run-length code of masks; `datasets` finds
images, masks and groups in a folder; `tiles` cuts slides once into tiles on disk; `augment` turns
and stains them anew; `synthetic` draws slides from a seed; `files` writes what is complete or not
there at all.
"""
