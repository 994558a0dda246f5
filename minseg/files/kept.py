"""# What took long to make, kept in a scratch file

A file of polygons takes seconds to parse, and a run needs it several times: it counts the classes,
cuts the slide, scores every fold. Likewise the held-out slides are read after every epoch. Kept in
memory, all that would add up. So what `make` returned is pickled into one scratch file, which has
no name and vanishes with the process; memory only holds where each value lies.

>>> once(("double", 21), lambda: print("made") or 2 * 21)
made
42
>>> once(("double", 21), lambda: print("made") or 2 * 21)
42
"""

import gc
import math
import os
import pickle
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import TypeVar

from .tiff import scratch_file

T = TypeVar("T")


class Kept:
    """The scratch file of one process: a forked one would move the place where its parent reads,
    so it starts its own."""

    def __init__(self) -> None:
        self.process, self.lock = os.getpid(), Lock()
        self.places: dict[Hashable, tuple[int, int]] = {}  # where values begin, and their bytes
        self.file = scratch_file(buffering=0)

    def load(self, key: Hashable) -> bytes | None:
        """The pickled value of a key; None if it is not kept."""
        with self.lock:
            if key not in self.places:
                return None
            start, size = self.places[key]
            self.file.seek(start)
            return self.file.read(size)

    def save(self, key: Hashable, value: bytes, limit: float) -> None:
        """Keeps a pickled value, unless it does not fit on the disk, or the file would exceed
        `limit` bytes. OSError if it fails."""
        with self.lock:
            start = self.file.seek(0, os.SEEK_END)
            if start + len(value) <= limit and self.file.write(value) == len(value):
                self.places[key] = start, len(value)


_kept: Kept | None = None


@contextmanager
def no_collector() -> Iterator[None]:
    """Python searches for circles of unused objects whenever many objects were made. What is parsed
    here has none, and searching takes six times as long as reading the JSON."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@no_collector()
def once(key: Hashable, make: Callable[[], T], limit: float = math.inf) -> T:
    """What `make()` returns; it is called once for each key, or each time if the disk is full or
    the scratch file would exceed `limit` bytes. Each call returns an object of its own. `key` says
    what is made, and all that it depends on."""
    global _kept
    try:
        if _kept is None or _kept.process != os.getpid():
            _kept = Kept()
        kept, data = _kept, _kept.load(key)
    except OSError:  # there is no folder for scratch files
        return make()
    if data is not None:
        return pickle.loads(data)
    value = make()
    with suppress(OSError):  # the disk is full
        kept.save(key, pickle.dumps(value, pickle.HIGHEST_PROTOCOL), limit)
    return value
