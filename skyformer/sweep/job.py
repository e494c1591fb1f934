"""Attempts of a run, and the job that makes one: `fit`, then `test`. Imports little, since each job does it."""

import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from filelock import Timeout

from datamodules.files import acquire_lock
from skyformer.files import write_atomically
from skyformer.training.result import read_test_accuracy

LOG = "log.txt"
_FILE = "attempts.json"
_LOCK = ".sweep.lock"
_LOCK_OF_FIT = ".lock"  # see skyformer.training.run_folder.lock_run
# Ctrl-C, the terminal closed, SIGTERM, SLURM's signal before the end of a job: no failures.
_ASK = ("SIGINT", "SIGHUP", "SIGTERM", "SIGUSR1")
STOPS = {128 + signal.Signals[name] for name in _ASK if hasattr(signal, name)}


@dataclass
class Attempt:
    """One attempt of a job at a run.

    Attributes:
        started, ended: seconds since 1970; `ended` is None while it runs and if it was killed.
        status: exit status of its last command, 128 + n for signal n; None like `ended`.
        max_steps: optimiser steps of the whole run.
        threads: threads of each process.
        host: the machine.
    """

    started: float
    max_steps: int
    threads: int
    host: str
    ended: float | None = None
    status: int | None = None


def read_attempts(folder: Path) -> list[Attempt]:
    """Return the attempts in order; empty for a missing or corrupt file: the run then continues from its checkpoint."""
    with suppress(OSError, ValueError, TypeError):
        return [Attempt(**attempt) for attempt in json.loads((folder / _FILE).read_text(encoding="utf-8"))]
    return []


def write_attempts(folder: Path, attempts: list[Attempt]) -> None:
    write_atomically(folder / _FILE, json.dumps([asdict(attempt) for attempt in attempts], indent=2) + "\n")


def threads_of(folder: Path, threads: int) -> int:
    """Return the threads of each process. A started run keeps its number, which affects the last bits of sums."""
    attempts = read_attempts(folder)
    return attempts[0].threads if attempts else threads


def is_finished(folder: Path, max_steps: int) -> bool:
    """Return whether the last attempt trained at least this many steps and tested the best checkpoint."""
    last = read_attempts(folder)[-1:]
    return any(a.status == 0 and a.max_steps >= max_steps for a in last) and read_test_accuracy(folder) is not None


@contextmanager
def hold(folder: Path, seconds: float) -> Iterator[bool]:
    """Lock the run against other jobs until the end of the context; yield whether this succeeded within the wait."""
    with _held(folder / _LOCK, seconds) as free:
        yield free


def is_running(folder: Path) -> bool:
    """Return whether a job has this run, or another process trains in its folder.

    A check holds a lock for an instant only, and a job waits longer than that for its own lock. `fit` does not wait for
    its lock, so nobody checks that one while a job holds the run.
    """
    return not _is_free(folder / _LOCK) or is_trained(folder)


def is_trained(folder: Path, seconds: float = 0.0) -> bool:
    """Return whether a process still trains in the folder after the wait. Call it only if no other job has the run."""
    return not _is_free(folder / _LOCK_OF_FIT, seconds)


def _is_free(path: Path, seconds: float = 0.0) -> bool:
    if not path.exists():
        return True
    with _held(path, seconds) as free:
        return free


@contextmanager
def _held(path: Path, seconds: float) -> Iterator[bool]:
    """Take this lock until the end of the context; yield whether this succeeded within the wait."""
    try:
        lock = acquire_lock(path, seconds)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        if lock:
            lock.release()


# Longer than a check by another process holds a lock.
_PROBE_SECONDS, _PROBE_TRAINING_SECONDS = 10.0, 1.0
_TOO_SHORT = 124  # exit status of timeout(1)
_UNKNOWN_SIGNAL = -signal.SIGUSR1  # kills a command that has not installed its handler yet, or has removed it


@dataclass(frozen=True)
class Job:
    """One run's work.

    Attributes:
        folder: folder of the run.
        commands: argument vectors, one after the other.
        environment: variables to set for them.
        threads: number of threads of each process, as in `environment`.
        max_steps: optimiser steps of the whole run.
    """

    folder: str
    commands: tuple[tuple[str, ...], ...]
    environment: dict[str, str]
    threads: int
    max_steps: int


class _Commands:
    """Run commands, and forward SIGTERM and SLURM's SIGUSR1 to them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.received: int | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def listen(self) -> None:
        """Replace submitit's handlers, whose requeue would end the training without a checkpoint."""
        signal.signal(signal.SIGTERM, self._receive)
        signal.signal(signal.SIGUSR1, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if self.process is not None:
            self.process.send_signal(number)

    def run(self) -> int:
        """Run until a command fails; return the last return code, negative for a signal."""
        code = 0
        for command in self.job.commands:
            if self.received is not None:
                return -self.received
            code = self._run(command)
            if code:
                return code
        return code

    def _run(self, command: tuple[str, ...]) -> int:
        environment = {**os.environ, **self.job.environment}
        # The run is one SLURM task, whatever trainer.devices is: Lightning starts the other processes itself.
        environment.pop("SLURM_NTASKS", None)
        with Path(self.job.folder, LOG).open("ab") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(command)}\n".encode())
            log.flush()
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            if self.received is not None:  # between the look above and now
                self.process.send_signal(self.received)
            return self.process.wait()


def run_job(job: Job) -> None:
    """Train and test, unless another job does or did. Record the outcome in the run's folder.

    A SLURM job that gets SIGUSR1 is queued again: by `fit` after its checkpoint, and by this function outside of
    training.
    """
    folder = Path(job.folder)
    commands = _Commands(job)
    commands.listen()
    with hold(folder, _PROBE_SECONDS) as free:
        if not free or is_trained(folder, _PROBE_TRAINING_SECONDS) or is_finished(folder, job.max_steps):
            print(f"{folder} is finished, or another process has it")
            return
        attempt = Attempt(time.time(), job.max_steps, job.threads, socket.gethostname())
        attempts = [*read_attempts(folder), attempt]
        write_attempts(folder, attempts)
        code = commands.run()
        attempt.ended, attempt.status = time.time(), 128 - code if code < 0 else code
        again = code == _UNKNOWN_SIGNAL and "SLURM_JOB_ID" in os.environ
        if again and not _made_progress(folder, attempt):
            attempt.status = _TOO_SHORT
            _say(folder, "The job's time ended before a new checkpoint. Fix: a longer --slurm.time.")
        write_attempts(folder, attempts)
    if again and attempt.status != _TOO_SHORT:
        from skyformer.training.slurm import requeue  # imports Lightning: seconds, which only this case needs

        _say(folder, requeue())


def _made_progress(folder: Path, attempt: Attempt) -> bool:
    checkpoint = folder / "checkpoints/last.ckpt"
    return checkpoint.exists() and checkpoint.stat().st_mtime >= attempt.started


def _say(folder: Path, text: str) -> None:
    with (folder / LOG).open("a", encoding="utf-8") as log:
        log.write(f"{text}\n")
