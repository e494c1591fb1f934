"""The test of a run's best checkpoint; imports little, since each job reads it."""

import json
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

_BEST = "best.ckpt"  # skyformer.checkpoint_io.BEST, which imports torch
_ERRORS = (OSError, ValueError, LookupError, TypeError, AttributeError)  # of a file that is not there, or damaged


def read_test_accuracy(folder: Path) -> float | None:
    """From 0 to 1; None for a run that was not tested.

    As in the report, a result of another checkpoint, or from before the run was last started, does not count.
    """
    path = folder / "result.json"
    with suppress(*_ERRORS):
        result = _read(path)
        named = result.get("checkpoint")
        if (named is None or Path(named).name == _BEST) and path.stat().st_mtime >= _last_start(folder):
            return float(result["test/accuracy"])
    return None


def _last_start(folder: Path) -> float:
    """Seconds since 1970; 0 where there is no record."""
    with suppress(*_ERRORS):
        return datetime.fromisoformat(_read(folder / "record.json")[-1]["started"]).timestamp()
    return 0.0


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
