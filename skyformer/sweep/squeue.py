"""What SLURM says of its jobs."""

import shutil
import subprocess

from skyformer.runs import RunError

_COMMAND = ["squeue", "--me", "--array", "--noheader", "--format=%i %T"]


def has_slurm() -> bool:
    """Whether jobs can be submitted to SLURM from here."""
    return shutil.which("sbatch") is not None


def read_queue() -> dict[str, str]:
    """States of the user's jobs that wait or run, by their ids (`7`, `8_0` for a task of an array).

    Raises:
        RunError: when SLURM does not answer.
    """
    try:
        done = subprocess.run(_COMMAND, check=True, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        reason = " ".join(str(getattr(error, "stderr", None) or error).split())
        raise RunError(f"squeue did not answer ({reason}); is SLURM up? --executor local trains here.") from error
    pairs = (line.split() for line in done.stdout.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
