import ctypes
import gc
import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from lab import measure
from minseg.files import tiff
from minseg.files.masks import Item, Mask
from minseg.files.slides import Slide
from minseg.run.memory import c_library, keep_memory, trim_memory
from minseg.run.tiles import cut

PAGE_FAULTS = """
import resource, sys, numpy
from minseg.run.memory import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(2**26, numpy.uint8).sum()  # 64 MiB: 16,384 pages, or fewer if they are large
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not c_library(), reason="needs the GNU C library")
@pytest.mark.slow
def test_kept_memory_is_used_again_without_asking_the_system():
    def faults(how):
        return int(subprocess.run([sys.executable, "-c", PAGE_FAULTS, how], check=True,
                                  capture_output=True, text=True).stdout)

    assert faults("kept") < 4 <= faults("returned")


def test_trimming_gives_freed_memory_back():
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("needs the GNU C library")

    def resident():  # pages
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1])

    arrays = [np.ones(2_000) for _ in range(8_000)]  # small ones come from the heap
    last = np.ones(2_000)  # lies above them, so that the heap cannot shrink by itself
    full = resident()
    arrays.clear()
    trim_memory()
    assert resident() < full - 15_000 and last.sum() == 2_000


def test_trimming_can_wait(monkeypatch):
    calls = []
    library = type("Library", (), {"malloc_trim": calls.append})
    monkeypatch.setattr("minseg.run.memory.c_library", lambda: library)
    monkeypatch.setattr("minseg.run.memory._trimmed", 0.0)
    for now, trims in ((1, 0), (2, 1), (3.5, 1), (4, 2)):
        monkeypatch.setattr("minseg.run.memory.time.monotonic", lambda now=now: now)
        trim_memory(seconds=2)
        assert len(calls) == trims
    trim_memory()
    assert len(calls) == 3


def test_trimming_does_nothing_where_the_c_library_cannot(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    trim_memory()
    keep_memory()


# Nothing of a slide stays once it is done


def write_pair(folder, kind, number):
    """An image and its mask, in the kinds that keep something: decoded tiles, scratch files."""
    image = np.random.default_rng(number).integers(0, 256, (110, 99, 3), np.uint8)
    mask = np.zeros((110, 99), np.uint8)
    mask[50:90, 60:90] = 255
    path = folder / f"{number}.{'png' if kind == 'png' else 'tif'}"
    mask_path = folder / f"{number}-mask.{'tif' if kind == 'tiles' else 'png'}"
    if kind == "png":
        Image.fromarray(image).save(path)
    else:
        turned = [(274, 3, 1, 6, True)] if kind == "turned" else []
        layout = {"rowsperstrip": 110} if kind == "strips" else {"tile": (64, 64)}
        tifffile.imwrite(path, image, photometric="rgb", compression="zlib", metadata=None,
                         extratags=turned, **layout)
    mask = np.rot90(mask, -1) if kind == "turned" else mask
    if kind == "tiles":
        tifffile.imwrite(mask_path, mask, tile=(32, 32), compression="zlib", metadata=None)
    else:
        Image.fromarray(mask).save(mask_path)
    return Item(str(number), path, mask_path, "a")


def held():
    """How many objects of slides and masks live, and how many files are open."""
    kinds = Slide, Mask, tiff.Source, tiff.Segments, tiff.Mapped, tiff.Turned, tiff.Decoded
    files = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    return sum(type(each) in kinds for each in gc.get_objects()), files


@pytest.fixture
def no_collector(monkeypatch):
    """Without the search for cycles: only what has no reference left is freed."""
    monkeypatch.setattr(tiff, "HELD", 2**13)  # whatever is larger goes to a scratch file
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("work", ["cut", "infer"])
def test_thirty_slides_leave_no_object_and_no_open_file(tmp_path, work, no_collector):
    before = held()
    for number, kind in enumerate(["tiles", "strips", "png", "turned", "tiles"] * 6):
        item = write_pair(tmp_path, kind, number)
        if work == "cut":
            cut(item, tmp_path, scale=2, tile=32, stride=32, margin=8)
        else:
            measure.segment_slide(item.image, tmp_path / "out", lambda tiles: torch.zeros(
                len(tiles), 1, *tiles.shape[2:]), 2, 32, 0.5, "--geojson")
        if number in (4, 29):  # counting takes a while
            assert held() == before, (number, kind)


def test_slides_that_cannot_be_read_leave_nothing_either(tmp_path, no_collector):
    before = held()
    for number in range(4):
        item = write_pair(tmp_path, "tiles", number)
        with tifffile.TiffFile(item.image) as file:
            offset = file.pages[0].dataoffsets[3]
        with open(item.image, "r+b") as file:
            file.seek(offset)
            file.write(bytes(200))
        with pytest.raises(ValueError, match="replace it or remove it"):
            cut(item, tmp_path, scale=2, tile=32, stride=32, margin=8)
        assert held() == before


def test_freed_blocks_of_any_size_stay_in_a_heap_that_is_not_cut_off(monkeypatch):
    calls = []

    class Library:
        def mallopt(self, option, value):
            calls.append((option, value))

    monkeypatch.setattr("minseg.run.memory.c_library", Library)
    keep_memory()
    assert calls == [(-4, 0), (-1, -1)]  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
