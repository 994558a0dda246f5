import ctypes
import subprocess
import sys

import numpy as np
import pytest

from minseg.data.memory import c_library, keep_memory, trim_memory

PAGE_FAULTS = """
import resource, sys, numpy
from minseg.data.memory import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    numpy.ones(2**26, numpy.uint8).sum()  # 64 MiB: 16,384 pages, or fewer if they are large
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not c_library(), reason="needs the GNU C library")
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


def test_trimming_does_nothing_where_the_c_library_cannot(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    trim_memory()
    keep_memory()
