import ctypes

import numpy as np
import pytest

from minseg.data.memory import trim_memory


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
