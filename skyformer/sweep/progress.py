"""How far a run is, from its folder."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from skyformer.checkpoint_io import LAST, PREVIOUS
from skyformer.sweep.attempts import STOPS, is_finished, is_running, read_attempts
from skyformer.sweep.cells import Cell


class State(StrEnum):
    """Where a run stands."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    STOPPED = "stopped"  # was begun, and goes on when it is started again
    FAILED = "failed"
    FINISHED = "finished"


@dataclass(frozen=True)
class Progress:
    """One run.

    Attributes:
        state: where it stands.
        step, max_steps: optimiser steps done as far as they were logged, and to do; step is None where none was.
        dev_accuracy: the best so far, 0 to 1; None where there was no evaluation.
        test_accuracy: of the best checkpoint; None before.
        seconds: that its jobs have taken.
        left: seconds to its end by its own pace; None where that is not known, or nobody trains.
        status: exit status of the last job; None where there is none.
    """

    state: State
    step: int | None
    max_steps: int
    dev_accuracy: float | None
    test_accuracy: float | None
    seconds: float
    left: float | None
    status: int | None


def state_of(folder: Path, max_steps: int, queue: Mapping[str, str]) -> State:
    """The state of a run.

    Args:
        folder: of the run.
        max_steps: that the grid asks for.
        queue: states of SLURM's jobs by their ids.
    """
    if is_running(folder):
        return State.RUNNING
    if (job := queue.get(read_slurm_job(folder))) is not None:
        return State.RUNNING if job in ("RUNNING", "COMPLETING") else State.QUEUED
    if is_finished(folder, max_steps):
        return State.FINISHED
    attempts = read_attempts(folder)
    if attempts and attempts[-1].status is not None and attempts[-1].status not in {0, *STOPS}:
        return State.FAILED
    begun = attempts or any((folder / name).exists() for name in (LAST, PREVIOUS))
    return State.STOPPED if begun else State.WAITING


def read_slurm_job(folder: Path) -> str:
    """The id of the last job of SLURM's that was given the run; empty where there was none."""
    with suppress(OSError, UnicodeDecodeError):
        return (folder / "slurm_job.txt").read_text(encoding="utf-8").strip()
    return ""


def progress_of(cell: Cell, config: Mapping[str, Any], queue: Mapping[str, str]) -> Progress:
    """Read all of a run's folder that tells of its progress."""
    max_steps = config["trainer"]["max_steps"]
    state = state_of(cell.folder, max_steps, queue)
    attempts = read_attempts(cell.folder)
    step, logged_at, dev_accuracy = _curves(cell.folder)
    running = state == State.RUNNING and attempts
    seconds = sum((a.ended or logged_at or a.started) - a.started for a in attempts[: -1 if running else None])
    left = None
    if running:
        started = attempts[-1].started
        seconds += time.time() - started
        new = (step or 0) - _from_step(cell.folder, started)
        if step is not None and logged_at is not None and logged_at > started and new > 0 and max_steps > 0:
            left = max(0.0, (logged_at - started) / new * (max_steps - step) - (time.time() - logged_at))
    finished = state == State.FINISHED
    return Progress(
        state=state,
        step=max_steps if finished else step,
        max_steps=max_steps,
        dev_accuracy=dev_accuracy,
        test_accuracy=_test_accuracy(cell.folder) if finished else None,
        seconds=max(0.0, seconds),
        left=left,
        status=attempts[-1].status if attempts else None,
    )


def _curves(folder: Path) -> tuple[int | None, float | None, float | None]:
    """The last step logged, when, in seconds since 1970, and the best dev accuracy."""
    if not any(folder.glob("events.out.tfevents.*")):
        return None, None, None
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # 0: all points
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if name in ("train/loss", "val/accuracy")]
    last = max((events.Scalars(name)[-1] for name in names), key=lambda point: point.step, default=None)
    accuracies = [point.value for point in events.Scalars("val/accuracy")] if "val/accuracy" in names else []
    return last and last.step + 1, last and last.wall_time, max(accuracies, default=None)


def _from_step(folder: Path, started: float) -> int:
    """The step that the present attempt began with."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        path = folder / "record.json"
        if path.stat().st_mtime >= started:
            return int(json.loads(path.read_text(encoding="utf-8"))[-1]["from_step"])
    return 0


def _test_accuracy(folder: Path) -> float | None:
    with suppress(OSError, ValueError, LookupError, TypeError):
        return float(json.loads((folder / "result.json").read_text(encoding="utf-8"))["test/accuracy"])
    return None
