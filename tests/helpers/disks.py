"""Real disks in trouble: small ones in memory, read-only ones, folders of another user."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NOBODY = 65534


@contextmanager
def mounted(folder: Path, kilobytes: int, read_only: bool = False) -> Iterator[Path]:
    """A disk of this size at `folder`; skips the test where the machine does not allow it."""
    folder.mkdir(parents=True)
    options = f"size={kilobytes}k{',ro' if read_only else ''}"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def as_nobody() -> Iterator[None]:
    """For the time of the block this process may read and write as little as a stranger."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def fill(folder: Path, leave: int) -> Path:
    """A file that takes all of a disk but so many bytes."""
    ballast = folder / "ballast"
    state = os.statvfs(folder)
    ballast.write_bytes(bytes(max(state.f_bavail * state.f_frsize - leave, 0)))
    return ballast
