"""Keep the C library from handing large blocks back to the system between steps."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # names of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let freed memory stay with the process, for the next step to use again; True where that could be set.

    By default glibc maps every large temporary again, and the page faults take up to two thirds of a training step on a
    CPU. Only glibc has this setting; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    return bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
