"""A job that SLURM is about to end asks to be queued again."""

import os
import signal
import subprocess

from lightning.pytorch.plugins.environments import SLURMEnvironment


def requeue_signals() -> list[signal.Signals]:
    """What SLURM sends a while before the end of a job that was submitted with `--signal=SIGUSR1@<seconds>`; none
    outside of a job.
    """
    return [signal.SIGUSR1] if hasattr(signal, "SIGUSR1") and SLURMEnvironment.job_id() is not None else []


def requeue() -> str:
    """Queue this job, or this task of an array of jobs, again; says what came of it."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
    command = ["scontrol", "requeue", job]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or error
        return f"SLURM did not queue job {job} again ({reason}); submit it anew, with --ckpt_path last."
    return f"SLURM has queued job {job} again."
