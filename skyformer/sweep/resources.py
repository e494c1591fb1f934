"""Resources of a sweep: GPUs and cores of this machine, SLURM's queue."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from datamodules.examples import available_cores
from skyformer.exceptions import RunError
from skyformer.sweep.grid import Cell


def visible_gpus() -> list[str]:
    """Return the visible GPUs as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def processes_of(config: Mapping[str, Any]) -> int:
    """Return the processes of a run: `trainer.devices`, or one if that is automatic."""
    devices = config["trainer"]["devices"]
    return max(1, int(devices)) if str(devices).lstrip("-").isdigit() else 1


def choose_parallel(
    plans: Mapping[Cell, Mapping[str, Any]], gpus: list[str], threads: int, asked: int | None, runs_per_gpu: int | None
) -> int:
    """Return the number of simultaneous runs: `asked`, or as many as the GPUs or else the cores allow.

    Raises:
        RunError: if a run needs more GPUs than there are, if no run uses a GPU with `runs_per_gpu`, or for more runs
            than it allows.
    """
    on_gpus = any(uses_gpu(config, gpus) for config in plans.values())
    if runs_per_gpu and not on_gpus:
        raise RunError(f"--runs_per_gpu {runs_per_gpu}: no run trains on a GPU here. Fix: set --parallel instead")
    if asked and not runs_per_gpu:
        return asked
    cell, config = max(plans.items(), key=lambda item: processes_of(item[1]))
    most = processes_of(config)
    if not on_gpus:
        return max(1, available_cores() // (most * threads))
    if most > len(gpus):
        raise RunError(f"{cell.name}: trainer.devices={most}, but this machine has {len(gpus)} GPU(s). Fix: lower it")
    places = len(gpus) // most * (runs_per_gpu or 1)
    if asked and asked > places:
        raise RunError(
            f"--runs_per_gpu {runs_per_gpu} allows {places} run(s) at once on {len(gpus)} GPU(s) (got --parallel "
            f"{asked}). Fix: lower one, or raise the other"
        )
    return asked or places


def uses_gpu(config: Mapping[str, Any], gpus: list[str]) -> bool:
    """Return whether a run with this configuration trains on one of these GPUs."""
    return bool(gpus) and config["trainer"]["accelerator"] in ("auto", "gpu", "cuda")


def least_used(gpus: Iterable[str], in_use: Iterable[str], count: int) -> list[str]:
    """Return this many GPUs, those with the fewest runs first."""
    used = Counter(in_use)
    return sorted(gpus, key=lambda gpu: used[gpu])[:count]


_COMMAND = ["squeue", "--me", "--array", "--noheader", "--format=%i %T"]


def has_slurm() -> bool:
    """Return whether jobs can be submitted to SLURM from here."""
    return shutil.which("sbatch") is not None


def read_queue() -> dict[str, str]:
    """Return the states of the user's queued and running jobs by id (`7`, `8_0` for a task of an array).

    Raises:
        RunError: when SLURM does not answer.
    """
    try:
        done = subprocess.run(_COMMAND, check=True, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        reason = " ".join(str(getattr(error, "stderr", None) or error).split())
        raise RunError(
            f"squeue did not answer ({reason}). Fix: start SLURM, or train here with --executor local"
        ) from error
    pairs = (line.split() for line in done.stdout.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
