"""Open untrusted files (regular files only, with a limit of their size), and lock files."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

REMAKE = "Fix: remove the folder; the next run makes it again."
PERMIT = "Fix: change its permissions, or set data.data_dir to a folder that you may read."
_NO_FOLDER = "a folder; a part of this path is a file, or a link to nothing"
_FORBIDDEN = "a folder that you may read and write, or change its permissions"
# What to name in place of a path that failed, by the number of the error.
BETTER_PLACES = {
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: "a folder that can be written to",
    errno.ENAMETOOLONG: "a shorter path",
    errno.ELOOP: _NO_FOLDER,
    errno.EEXIST: _NO_FOLDER,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EISDIR: "a file; this is a folder",
}
# What a file system without locks answers: NFS without its lock daemon, some FUSE and parallel file systems.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class PreparedDataError(RuntimeError):
    """Data cannot be prepared or used. The message names the file and the fix."""


def printable(text: str) -> str:
    """Return the text as one line, without control characters of a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: if it is missing or not readable, and for a pipe or a device, which would never end.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path.open("rb")


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        OSError: as `open_regular`, and for a larger file, before reading it.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"{size:,} bytes, expected at most {limit:,}", str(path))
        return file.read()


def unreadable(path: Path, error: Exception) -> PreparedDataError:
    """Return the error that explains why a prepared file cannot be read."""
    forbidden = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM)
    return PreparedDataError(f"{path} cannot be read ({error}). {PERMIT if forbidden else REMAKE}")


def usable_folder(data_dir: str) -> Path:
    """Return the path that `data.data_dir` names.

    Raises:
        ValueError: for an invalid path name.
    """
    try:
        path = Path(data_dir).expanduser()
        if b"\0" in os.fsencode(path):
            raise ValueError("a NUL in it")
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"data.data_dir={data_dir!r} cannot be a folder ({error}). Fix: name another one") from error
    return path


def acquire_lock(path: Path, seconds: float = 0.0) -> FileLock | None:
    """Return the held lock of this file, or None on a file system without locks.

    Args:
        path: the lock file.
        seconds: to wait for another process; -1 for any time.

    Raises:
        Timeout: if another process holds it for longer.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=seconds)
    except (NotImplementedError, OSError) as error:  # a Timeout is an OSError without errno
        if not (isinstance(error, NotImplementedError) or error.errno in _NO_LOCKS):
            raise
        return None
    return lock


@contextmanager
def waiting_lock(path: Path, work: str = "prepares the same data") -> Iterator[None]:
    """Hold a lock file. Print a line if another process has it, or if the file system has no locks.

    Args:
        path: the lock file.
        work: what a process does that holds it.
    """
    try:
        lock = acquire_lock(path)
    except Timeout:
        print(f"Waiting for another process that {work} ({path}) ...", flush=True)
        lock = acquire_lock(path, -1)
    if lock is None:
        print(f"{path.parent} is on a file system without file locks. Make sure that no other process {work}.")
    try:
        yield
    finally:
        if lock:
            lock.release()
