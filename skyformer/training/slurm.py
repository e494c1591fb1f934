"""SLURM jobs: their number of processes, and their requeue before their time is over."""

import os
import signal
import subprocess

from lightning import Trainer
from lightning.pytorch.plugins.environments import SLURMEnvironment

from skyformer.exceptions import RunError
from skyformer.internals import cluster_environment


def leave_requeue_to_us(trainer: Trainer) -> None:
    """Turn off Lightning's own requeue: it saves inside the signal handler, and resumes from other runs' files."""
    environment = cluster_environment(trainer)
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False


def check_processes(trainer: Trainer) -> None:
    """Refuse a run that SLURM, torchrun or MPI started with other than `devices` × `num_nodes` processes.

    Raises:
        RunError: with both numbers.
        ValueError: by Lightning, when the product is right and a factor is wrong.
    """
    environment = cluster_environment(trainer)
    devices, nodes, started = trainer.num_devices, trainer.num_nodes, environment.world_size()
    if not environment.creates_processes_externally:
        return
    if started != devices * nodes:
        launcher = type(environment).__name__.removesuffix("Environment")
        fix = {
            "SLURM": f"start it with srun --nodes={nodes} --ntasks-per-node={devices}",
            "TorchElastic": f"start it with torchrun --nnodes {nodes} --nproc-per-node {devices}",
        }.get(launcher, f"start {devices * nodes} process(es)")
        raise RunError(
            f"trainer.devices={devices} × trainer.num_nodes={nodes} is not the number of processes (got {started} from "
            f"{launcher}). Fix: {fix}, or change trainer.devices and trainer.num_nodes"
        )
    environment.validate_settings(devices, nodes)


def requeue_signals() -> list[signal.Signals]:
    """Return the signals that SLURM sends before the end of a job submitted with `--signal=SIGUSR1@<seconds>`."""
    return [signal.SIGUSR1] if hasattr(signal, "SIGUSR1") and SLURMEnvironment.job_id() is not None else []


def requeue() -> str:
    """Queue this job or array task again, and return a message about the result."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]
    command = ["scontrol", "requeue", job]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        reason = " ".join(str(getattr(error, "stderr", None) or error).split())
        return f"SLURM did not queue job {job} again ({reason}). Fix: submit it again, with --ckpt_path last."
    return f"SLURM has queued job {job} again."
