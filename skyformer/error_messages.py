"""Print an error in one line and exit with a status."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules.files import BETTER_PLACES
from skyformer.exceptions import CheckpointError, RunError
from skyformer.training.callbacks.non_finite import NonFiniteLossError

RESUME_HINT = "Resume a run with --ckpt_path last."
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Messages of gloo and NCCL for a process that is unreachable or gone.
_UNREACHABLE = ("connectFullMesh", "timed out connecting", "Connection refused")
# Messages of torch if a loader process cannot pass on a batch.
_LOST_WORKERS = ("DataLoader timed out", "DataLoader worker (pid", "Communication with the workers")
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Timed out waiting")


@contextmanager
def exit_on_error(*errors: type[Exception]) -> Iterator[None]:
    """Turn an error into a message and an exit status.

    Args:
        errors: types of error, apart from this package's, that a user can fix.

    Raises:
        SystemExit: 2 for a wrong argument, 130 and 143 after Ctrl-C and SIGTERM, 1 for any other error. Messages go to
            stderr. An unexpected error also prints its traceback.
    """
    expected = (RunError, CheckpointError, NonFiniteLossError, MisconfigurationException, *errors)
    try:
        yield
    except expected as error:
        _exit(str(error), error)
    except SIGTERMException as error:  # outside training, where LastCheckpoint handles it
        raise SystemExit(128 + signal.SIGTERM) from error
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise SystemExit(128 + signal.SIGINT) from error
        raise
    except KeyboardInterrupt as error:
        raise SystemExit(128 + signal.SIGINT) from error
    except OSError as error:
        _exit(_system_error_message(error), error)
    except yaml.YAMLError as error:
        _exit(f"not valid YAML: {' '.join(str(error).split())}. Fix: correct the file that --config names.", error)
    except UnicodeError as error:
        _exit(_encoding_error_message(error), error)
    except Exception as error:
        _exit(_unknown_error_message(error), error)


def _exit(message: str, error: Exception) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(1) from error


def _system_error_message(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    if error.filename is None:
        traceback.print_exc()  # the only way to tell where
    fix = "check that it exists and that you have permission"
    if error.errno in _FULL:
        fix = "free some space, or name a folder on another disk"
    elif error.errno in BETTER_PLACES:
        fix = f"name {BETTER_PLACES[error.errno]}"
    return f"{where}{error.strerror or error}. Fix: {fix}. {RESUME_HINT}"


def _encoding_error_message(error: UnicodeError) -> str:
    encoding = getattr(error, "encoding", "utf-8")
    if encoding == "utf-8":
        return _unknown_error_message(error)
    return f"this locale's encoding cannot hold all text (got {encoding}). Fix: export PYTHONUTF8=1"


def _unknown_error_message(error: Exception) -> str:
    said = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and "EADDRINUSE" in said:
        port = os.environ.get("MASTER_PORT")
        return (
            f"the port on which the processes of this run meet is in use (got MASTER_PORT={port}). Fix: set another "
            "MASTER_PORT for each run on this machine, or none, so that a free one is taken"
        )
    if isinstance(error, RuntimeError) and any(text in said for text in _UNREACHABLE):
        return (
            f"the processes of this run do not reach each other ({said[:200]}). Fix: between machines, set "
            "GLOO_SOCKET_IFNAME, or NCCL_SOCKET_IFNAME for GPUs, to the network interface that joins them."
        )
    if isinstance(error, RuntimeError) and any(text in said for text in _LOST_PEER):
        return f"another process of this run ended ({said[:200]}). Fix: read its error message. {RESUME_HINT}"
    if isinstance(error, RuntimeError) and any(text in said for text in _LOST_WORKERS):
        return (
            f"the DataLoader's worker processes stopped responding ({said[:200]}). Fix: --data.num_workers 0, or more "
            f"shared memory (docker run --shm-size 2g) and open files (ulimit -n). {RESUME_HINT}"
        )
    if isinstance(error, TypeError) and "use_distributed_sampler" in said:
        return (
            "trainer.use_distributed_sampler: the data module's batch sampler shares batches between processes itself "
            "(got true). Fix: --trainer.use_distributed_sampler false"
        )
    if isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said:
        fix = "lower data.init_args.batch_size, the length, or a size of the model"
        return f"not enough memory ({said[:200]}). Fix: {fix}. {RESUME_HINT}"
    traceback.print_exc()
    return f"{type(error).__name__}: {said[:500]}. This error is unexpected; its traceback is above. {RESUME_HINT}"
