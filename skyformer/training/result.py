"""Check that a run's `result.json` is the test of its best checkpoint. Imports are few, because each job reads it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

_BEST = "best.ckpt"  # skyformer.model.checkpoint_io.BEST, which imports torch
_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError)  # of a file that is not there, or damaged


def reason_not_counted(result: Mapping[str, Any], path: Path, records: Sequence[Mapping[str, Any]]) -> str:
    """Return why a result is not that of the run's best checkpoint; empty if it is.

    Args:
        result: the contents of `path`.
        records: contents of `record.json`, one record for each start.
    """
    checkpoint = result.get("checkpoint")
    if checkpoint is not None and Path(str(checkpoint)).name != _BEST:
        return f"of {Path(str(checkpoint)).name}, not of the best checkpoint"
    with suppress(*_ERRORS):
        trained = str(records[-1]["data_hash"]).partition("+")[0]  # without what training began with
        if result.get("data_hash") not in (None, trained):
            return "of other data than the run's"
    with suppress(*_ERRORS):
        if path.stat().st_mtime < datetime.fromisoformat(records[-1]["started"]).timestamp():
            return "older than the run's last start"
    with suppress(*_ERRORS):  # a copied result may be younger than the last start and still of earlier weights
        tested, best = result.get("checkpoint_sha256"), path.parent / "checkpoints" / _BEST
        if tested is not None and tested != _sha256_since(best, best.stat().st_mtime_ns):
            return f"of other weights than those in {_BEST}"
    return ""


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a checkpoint, as `result.json` has it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache  # a sweep asks for each of its runs again and again
def _sha256_since(path: Path, modified: int) -> str:
    """Hash a file that was last written at this time."""
    return sha256_of(path)


def read_test_accuracy(folder: Path) -> float | None:
    """Return the test accuracy, from 0 to 1; None for an untested run or a result that does not count."""
    path = folder / "result.json"
    records: Any = []
    with suppress(*_ERRORS):
        records = _read(folder / "record.json")
    with suppress(*_ERRORS):
        result = _read(path)
        return None if reason_not_counted(result, path, records) else float(result["test/accuracy"])
    return None


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
