"""A cache folder for numba if neither the package nor a home folder is writable, as in some containers."""

import os
from tempfile import TemporaryDirectory

import numba


def _has_folder() -> bool:
    try:
        numba.njit(cache=True)(_has_folder)  # looks for a folder; compiles nothing yet
    except RuntimeError:
        return False
    return True


if not _has_folder():
    _folder = TemporaryDirectory(prefix="numba_")  # private, and gone with the process: cached code is executed
    os.environ["NUMBA_CACHE_DIR"] = _folder.name  # also for the processes that this one starts
    numba.config.reload_config()
