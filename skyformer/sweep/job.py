"""What submitit runs: one run's `fit`, then `test`, as processes; imports little, so that a job starts quickly."""

import os
import shlex
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from skyformer.sweep.attempts import LOG, Attempt, hold, is_finished, is_trained, read_attempts, write_attempts

# Others hold a lock for an instant to see whether it is held; that of the training, only before a job has the other.
_PROBE_SECONDS, _PROBE_TRAINING_SECONDS = 10.0, 1.0
_TOO_SHORT = 124  # as timeout(1) says it
_UNKNOWN_SIGNAL = -signal.SIGUSR1  # a command that does not know SLURM's signal yet, or any more, dies of it


@dataclass(frozen=True)
class Job:
    """One run's work.

    Attributes:
        folder: of the run.
        commands: argument vectors, one after the other.
        environment: variables to set for them.
        threads: of each process, as in `environment`.
        max_steps: optimiser steps of the whole run.
    """

    folder: str
    commands: tuple[tuple[str, ...], ...]
    environment: dict[str, str]
    threads: int
    max_steps: int


class _Commands:
    """Runs commands, and passes on to them the signals that ask for an end: SIGTERM, and SLURM's SIGUSR1."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.received: int | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def listen(self) -> None:
        """In place of submitit's handlers, whose own way to queue a job again would end the training unsaved."""
        signal.signal(signal.SIGTERM, self._receive)
        signal.signal(signal.SIGUSR1, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if self.process is not None:
            self.process.send_signal(number)

    def run(self) -> int:
        """The return code of the last one, which is the first that fails; negative for a signal."""
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
        # The run is one task of SLURM's, whatever trainer.devices says: Lightning starts the others itself.
        environment.pop("SLURM_NTASKS", None)
        with Path(self.job.folder, LOG).open("ab") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {shlex.join(command)}\n".encode())
            log.flush()
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            if self.received is not None:  # between the look above and now
                self.process.send_signal(self.received)
            return self.process.wait()


def run_job(job: Job) -> None:
    """Train and test, unless another job does, or did; says in the run's folder how it ended.

    A job of SLURM's that is told its end is queued again: by `fit` itself after its checkpoint, and from here where
    that was not training.
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
        if again and not _came_further(folder, attempt):
            attempt.status = _TOO_SHORT
            _say(folder, "The job's time was over before it came any further; give it more (--slurm.time).")
        write_attempts(folder, attempts)
    if again and attempt.status != _TOO_SHORT:
        from skyformer.slurm import requeue  # imports Lightning: seconds, which only this case needs

        _say(folder, requeue())


def _came_further(folder: Path, attempt: Attempt) -> bool:
    checkpoint = folder / "checkpoints/last.ckpt"
    return checkpoint.exists() and checkpoint.stat().st_mtime >= attempt.started


def _say(folder: Path, text: str) -> None:
    with (folder / LOG).open("a", encoding="utf-8") as log:
        log.write(f"{text}\n")
