"""# Returning freed memory to the operating system

The GNU C library keeps freed memory in a heap of its own for each thread. While a slide is decoded
in one thread, predicted in a second and compressed in a third, the process then holds much more
than is in use. Whoever consumes a slide band by band calls `trim_memory` after each band.
"""

import ctypes
import sys


def trim_memory() -> None:
    """Returns freed memory to the operating system; does nothing where the C library cannot."""
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
