"""How far a run is, from its folder."""

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator, ScalarEvent

from skyformer.checkpoint_io import LAST, PREVIOUS
from skyformer.result import read_test_accuracy
from skyformer.sweep.attempts import STOPS, Attempt, is_finished, is_running, read_attempts
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
        stopped_early: whether it finished before `max_steps`, by early stopping or another callback.
    """

    state: State
    step: int | None
    max_steps: int
    dev_accuracy: float | None
    test_accuracy: float | None
    seconds: float
    left: float | None
    status: int | None
    stopped_early: bool = False


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
    points, accuracies = _curves(cell.folder)
    step = points[-1].step + 1 if points else None
    ends = _ends(attempts, [point.wall_time for point in points])
    left = None
    # Else somebody trains by hand, or its job is back from the queue and has not written its attempt yet.
    if state == State.RUNNING and attempts and attempts[-1].ended is None:
        ends[-1] = time.time()
        left = _left(cell.folder, attempts[-1].started, points, max_steps)
    finished = state == State.FINISHED
    end = _early_end(cell.folder) if finished else None
    return Progress(
        state=state,
        step=(max_steps if end is None else end) if finished else step,
        max_steps=max_steps,
        dev_accuracy=max(accuracies, default=None),
        test_accuracy=read_test_accuracy(cell.folder) if finished else None,
        seconds=sum(max(0.0, end - attempt.started) for attempt, end in zip(attempts, ends, strict=True)),
        left=left,
        status=attempts[-1].status if attempts else None,
        stopped_early=end is not None,
    )


def _ends(attempts: Sequence[Attempt], logged: Sequence[float]) -> list[float]:
    """When each attempt ended, in seconds since 1970; one that was killed, with its last log before the next one."""
    following = [*(attempt.started for attempt in attempts[1:]), inf]
    return [
        attempt.ended or max((at for at in logged if attempt.started <= at < end), default=attempt.started)
        for attempt, end in zip(attempts, following, strict=False)  # of none, none follows
    ]


def _left(folder: Path, started: float, points: Sequence[ScalarEvent], max_steps: int) -> float | None:
    """Seconds to the end of a run at the pace of its present attempt; None before that has logged anything."""
    if not points or points[-1].wall_time <= started or max_steps <= 0:
        return None
    step, logged_at = points[-1].step + 1, points[-1].wall_time
    new = step - _from_step(folder, started)
    return max(0.0, (logged_at - started) / new * (max_steps - step) - (time.time() - logged_at)) if new > 0 else None


def _curves(folder: Path) -> tuple[list[ScalarEvent], list[float]]:
    """What was logged of training and evaluations, by step, and the dev accuracies."""
    if not any(folder.glob("events.out.tfevents.*")):
        return [], []
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # 0: all points
    events.Reload()
    curves = {name: events.Scalars(name) for name in events.Tags()["scalars"] if name in ("train/loss", "val/accuracy")}
    points = sorted(itertools.chain(*curves.values()), key=lambda point: point.step)
    return points, [point.value for point in curves.get("val/accuracy", [])]


def _early_end(folder: Path) -> int | None:
    """The step at which a finished run stopped early; None where it took all of its steps."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        return int(json.loads((folder / "record.json").read_text(encoding="utf-8"))[-1]["stopped_early"]["step"])
    return None


def _from_step(folder: Path, started: float) -> int:
    """The step that the present attempt began with."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        path = folder / "record.json"
        if path.stat().st_mtime >= started:
            return int(json.loads(path.read_text(encoding="utf-8"))[-1]["from_step"])
    return 0
