"""Keep the C library from handing large blocks back to the system at every step, and let it do so now and then."""

import ctypes
import sys
from typing import Any

from lightning import Callback, LightningModule, Trainer

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # names of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let freed memory stay with the process, for the next step to use again; True where that could be set.

    By default glibc maps every large temporary anew, and the page faults take up to two thirds of a training step on a
    CPU. Only glibc has this setting; elsewhere nothing happens.
    """
    library = _glibc()
    if library is None:
        return False
    return bool(library.mallopt(_M_MMAP_MAX, 0) and library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


class ReturnFreedMemory(Callback):
    """Hands what is free back to the system every `STEPS` steps.

    Batches of ever other lengths leave ever other gaps among the kept blocks: without this a run on Text grows from 3
    to 6 GB within 800 steps.
    """

    STEPS = 20

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        library = _glibc()
        if library is not None and batch_idx % self.STEPS == 0:
            library.malloc_trim(0)


def _glibc() -> Any:
    """The C library where it is glibc, else None."""
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return library if hasattr(library, "malloc_trim") else None
