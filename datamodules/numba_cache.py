"""A folder for what numba compiles, where the user can write neither to the package nor to a home (a container's)."""

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
