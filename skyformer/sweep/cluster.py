"""A sweep on a cluster: an array of SLURM's jobs."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import submitit

from skyformer.exceptions import RunError
from skyformer.files import write_atomically
from skyformer.sweep.display import Events
from skyformer.sweep.grid import Cell
from skyformer.sweep.job import Job, run_job
from skyformer.sweep.progress import State
from skyformer.sweep.resources import read_queue
from skyformer.sweep.submission import inherited, new_folder

_POLL_SECONDS = 30
_PATIENCE = 20  # times in a row that squeue may not answer, as when SLURM's controller is restarted
# SLURM's own default is minutes; a run that meets its limit is queued again and continues.
_DEFAULTS = {"time": 240, "signal_delay_s": 90}


def submit(jobs: Mapping[Cell, Job], runs: Path, parallel: int | None, slurm: Mapping[str, Any]) -> str:
    """Submit runs as one array. Each gets SIGUSR1 before its time limit and can be queued again.

    Args:
        jobs: one per run.
        runs: the sweep's folder, on a disk that the nodes see.
        parallel: how many run at once; None for as many as SLURM lets.
        slurm: parameters of submitit's SlurmExecutor, such as partition, time, cpus_per_task, gpus_per_node.

    Returns:
        The id of the array.

    Raises:
        RunError: for parameters that submitit or SLURM refuse.
    """
    threads = max(job.threads for job in jobs.values())
    given = {**_DEFAULTS, "job_name": f"sweep-{runs.name}", "cpus_per_task": threads, **slurm}
    given["array_parallelism"] = given.get("array_parallelism", parallel or len(jobs))
    # submitit would send SIGUSR2, and its own requeue ignores checkpoints.
    signal = {"signal": f"USR1@{given['signal_delay_s']}", "requeue": True}
    given["additional_parameters"] = {**signal, **given.get("additional_parameters", {})}
    try:
        executor = submitit.SlurmExecutor(new_folder(runs))
        executor.update_parameters(**given)
        with inherited():
            submitted = executor.map_array(run_job, list(jobs.values()))
    except (ValueError, TypeError) as error:
        raise RunError(f"--slurm: {' '.join(str(error).split())}") from error
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:
        said = " ".join(str(error).split())[-500:]
        raise RunError(f"SLURM took no jobs ({said}). See --slurm, or --executor local for this machine.") from error
    for cell, job in zip(jobs, submitted, strict=True):
        write_atomically(cell.folder / "slurm_job.txt", f"{job.job_id}\n")
    return submitted[0].job_id.partition("_")[0]


def wait(cells: Sequence[Cell], events: Events) -> dict[str, str]:
    """Report how these runs end, until none is queued or running.

    Returns:
        The last states of SLURM's jobs by their ids.

    Raises:
        RunError: when SLURM does not answer for ten minutes.
    """
    watched, queue = list(cells), dict[str, str]()
    while watched:
        queue = _next_queue()
        going = [cell for cell in watched if events.state(cell, queue) in (State.QUEUED, State.RUNNING)]
        if len(going) < len(watched):
            events.look(queue)
            for cell in watched:
                if cell not in going:
                    events.ended(cell)
        watched = going
    return queue


def _next_queue() -> dict[str, str]:
    """Return the queue after a pause. A few missing answers are tolerated."""
    for _ in range(_PATIENCE - 1):
        time.sleep(_POLL_SECONDS)
        with suppress(RunError):
            return read_queue()
    time.sleep(_POLL_SECONDS)
    return read_queue()
