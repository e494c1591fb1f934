"""Jobs for submitit."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from skyformer.installation import IS_CHECKOUT, ROOT, python_arguments
from skyformer.sweep.grid import Cell
from skyformer.sweep.job import Job, threads_of
from skyformer.training.memory import GPU_SHARE

PYTHON = sys.executable
_ALLOCATED = 0.9  # of a GPU's memory, where runs share it: CUDA itself takes some for each process


def job_of(cell: Cell, max_steps: int, threads: int, gpus: Sequence[str] = (), runs_per_gpu: int = 1) -> Job:
    """Make the job of a run.

    Args:
        cell: the run.
        max_steps: number of steps of the run.
        threads: threads of each process, for a run that has not begun.
        gpus: those that it sees; empty to leave that as it is.
        runs_per_gpu: how many runs share the memory of a GPU.
    """
    threads = threads_of(cell.folder, threads)
    environment = {"OMP_NUM_THREADS": str(threads)}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    if runs_per_gpu > 1:
        environment[GPU_SHARE] = f"{_ALLOCATED / runs_per_gpu:.4f}"
    command = (PYTHON, *python_arguments())
    return Job(
        folder=str(cell.folder.absolute()),
        commands=((*command, *cell.fit), (*command, *cell.test)),
        environment=environment,
        threads=threads,
        max_steps=max_steps,
    )


def new_folder(runs: Path) -> Path:
    """Make a new folder for submitit's jobs of this sweep, because process ids repeat."""
    return runs / ".submitit" / f"{time.strftime('%Y-%m-%d-%H-%M-%S')}-{os.getpid()}"


@contextmanager
def inherited() -> Iterator[None]:
    """Let jobs inherit the path of the code, and ignore Ctrl-C and the closing of the terminal.

    These signals reach all processes of the terminal. The sweep itself then stops its jobs.
    """
    path = os.environ.get("PYTHONPATH")
    if IS_CHECKOUT:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([path] if path else [])])
    former = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        os.environ.pop("PYTHONPATH", None)
        if path is not None:
            os.environ["PYTHONPATH"] = path
