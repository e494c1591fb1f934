"""Memory of a process: keep freed memory, and limit GPU memory."""

import ctypes
import os
import sys

import torch

GPU_SHARE = "SKYFORMER_GPU_SHARE"  # `sweep --runs_per_gpu` sets it for its runs
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # names of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Keep freed memory in the process for the next step; return whether this could be set.

    By default glibc maps every large temporary again, and the page faults take up to two thirds of a training step on a
    CPU. Only glibc has this setting; elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    return bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def limit_gpu_memory(device: torch.device) -> None:
    """Limit torch to the fraction of a GPU's memory that the environment sets, at most 1."""
    share = os.environ.get(GPU_SHARE)
    if share is not None and device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(float(share), device)
