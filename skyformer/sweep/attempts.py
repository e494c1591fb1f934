"""What a run's folder tells of its jobs; imports little, since each job reads it."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from skyformer.files import lacks_locks, write_whole
from skyformer.result import read_test_accuracy

LOG = "log.txt"
_FILE = "attempts.json"
_LOCK = ".sweep.lock"
_LOCK_OF_FIT = ".lock"  # see skyformer.runs.lock_run
# Ctrl-C, the terminal closed, SIGTERM, SLURM's signal before the end of a job: no failures.
_ASK = ("SIGINT", "SIGHUP", "SIGTERM", "SIGUSR1")
STOPS = {128 + signal.Signals[name] for name in _ASK if hasattr(signal, name)}


@dataclass
class Attempt:
    """One time that a job worked on a run.

    Attributes:
        started, ended: seconds since 1970; `ended` is None while it runs, and for ever if it was killed.
        status: exit status of its last command, 128 + n for signal n; None likewise.
        max_steps: optimiser steps that the run was to have.
        threads: of each process.
        host: the machine.
    """

    started: float
    max_steps: int
    threads: int
    host: str
    ended: float | None = None
    status: int | None = None


def read_attempts(folder: Path) -> list[Attempt]:
    """In their order; none where there is no file, or a damaged one, after which a run goes on from its checkpoint."""
    with suppress(OSError, ValueError, TypeError):
        return [Attempt(**attempt) for attempt in json.loads((folder / _FILE).read_text(encoding="utf-8"))]
    return []


def write_attempts(folder: Path, attempts: list[Attempt]) -> None:
    write_whole(folder / _FILE, json.dumps([asdict(attempt) for attempt in attempts], indent=2) + "\n")


def threads_of(folder: Path, threads: int) -> int:
    """Those of each process: a run that has begun keeps its own, since sums in another order differ in their last bits;
    `threads` for another.
    """
    attempts = read_attempts(folder)
    return attempts[0].threads if attempts else threads


def is_finished(folder: Path, max_steps: int) -> bool:
    """Whether the last attempt trained this many steps, or more, and tested the best checkpoint."""
    last = read_attempts(folder)[-1:]
    return any(a.status == 0 and a.max_steps >= max_steps for a in last) and read_test_accuracy(folder) is not None


@contextmanager
def hold(folder: Path, seconds: float) -> Iterator[bool]:
    """Whether no other job has this run, for which one waits so long; then none has until the end of the context."""
    with _held(folder / _LOCK, seconds) as free:
        yield free


def is_running(folder: Path) -> bool:
    """Whether a job has this run, or something else trains in its folder.

    To ask is to hold a lock for an instant. A job waits longer than that for its own, and keeps others from asking for
    that of its training, which does not wait.
    """
    return not _is_free(folder / _LOCK) or is_trained(folder)


def is_trained(folder: Path, seconds: float = 0.0) -> bool:
    """Whether a process trains in the folder, and does so for so long; for one that holds the run, or knows that no job
    does.
    """
    return not _is_free(folder / _LOCK_OF_FIT, seconds)


def _is_free(path: Path, seconds: float = 0.0) -> bool:
    if not path.exists():
        return True
    with _held(path, seconds) as free:
        return free


@contextmanager
def _held(path: Path, seconds: float) -> Iterator[bool]:
    """Whether nobody else has this lock, for which one waits so long; held until the end of the context."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        yield False
        return
    except (NotImplementedError, OSError) as error:
        if not lacks_locks(error):
            raise
        yield True
        return
    try:
        yield True
    finally:
        lock.release()
