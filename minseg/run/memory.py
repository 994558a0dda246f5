"""# Freed memory: keep it between steps, return it between bands

**Kept** (`keep_memory`). The GNU C library gives large blocks back to the operating system when
they are freed, and the system clears each page before it hands it out again. A training step on a
CPU allocates and frees some hundred large blocks, always of the same sizes, and waits for pages to
be cleared. (Up to 32 MiB the library learns to keep blocks of sizes that it has seen freed, but not
the end of its heap.) Kept blocks are used again as they are: a step of B0 on 8 images of 256 x 256
is 1.5 times as fast. It costs about a tenth more memory, because blocks of other sizes do not
always fit into the gaps ([measured](../../docs/measured.md#a-training-step)).

**Returned** (`trim_memory`). The library also keeps a heap of its own for each thread. While a
slide is decoded in one thread, predicted in a second and compressed in a third, the process holds
much more than is in use. Whoever consumes a slide band by band calls `trim_memory` after each band.
It returns memory every two seconds at most, because a page that is needed again at once has to be
cleared again.

Both do nothing where the C library is another one (musl, macOS, Windows).

**Source.** The GNU C Library manual, section *Malloc Tunable Parameters*; malloc_trim(3).
"""

import ctypes
import math
import sys
import time

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt, from malloc.h


def c_library() -> ctypes.CDLL | None:
    """The GNU C library of this process, or None."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None


def keep_memory() -> None:
    """From now on freed memory stays in the process, until `trim_memory` is called."""
    if library := c_library():
        # Large blocks come from the heap, too, and the heap is not cut off at its end.
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)


_trimmed = -math.inf  # when memory was returned last


def trim_memory(seconds: float = 0) -> None:
    """Returns freed memory to the operating system, unless that is less than `seconds` ago."""
    global _trimmed
    if time.monotonic() - _trimmed >= seconds and (library := c_library()):
        library.malloc_trim(0)
        _trimmed = time.monotonic()
