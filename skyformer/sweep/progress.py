"""State and progress of a sweep's runs, and the time left."""

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from pathlib import Path
from statistics import mean
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import ScalarEvent

from skyformer.model.checkpoint_io import LAST, PREVIOUS
from skyformer.sweep.grid import Cell
from skyformer.sweep.job import STOPS, Attempt, is_finished, is_running, read_attempts
from skyformer.training.events import read_scalars
from skyformer.training.result import read_test_accuracy


class State(StrEnum):
    """The state of a run."""

    WAITING = "waiting"
    QUEUED = "queued"
    RUNNING = "running"
    STOPPED = "stopped"  # was begun, and continues when it is started again
    FAILED = "failed"
    FINISHED = "finished"


@dataclass(frozen=True)
class Progress:
    """One run.

    Attributes:
        state: its state.
        step, max_steps: optimiser steps logged so far, and in total; step is None if none was logged.
        validation_accuracy: the best so far, 0 to 1; None before the first evaluation.
        test_accuracy: accuracy of the best checkpoint; None before its test.
        seconds: time that its jobs have taken.
        left: seconds to its end at its own pace; None if unknown or not training.
        status: exit status of the last job; None without one.
        stopped_early: whether it finished before `max_steps`, by early stopping or another callback.
    """

    state: State
    step: int | None
    max_steps: int
    validation_accuracy: float | None
    test_accuracy: float | None
    seconds: float
    left: float | None
    status: int | None
    stopped_early: bool = False


def state_of(folder: Path, max_steps: int, queue: Mapping[str, str]) -> State:
    """The state of a run.

    Args:
        folder: folder of the run.
        max_steps: number of steps that the grid asks for.
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
    """Return the id of the last SLURM job of the run; empty without one."""
    with suppress(OSError, UnicodeDecodeError):
        return (folder / "slurm_job.txt").read_text(encoding="utf-8").strip()
    return ""


def progress_of(cell: Cell, config: Mapping[str, Any], queue: Mapping[str, str]) -> Progress:
    """Read the progress of a run from its folder."""
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
        validation_accuracy=max(accuracies, default=None),
        test_accuracy=read_test_accuracy(cell.folder) if finished else None,
        seconds=sum(max(0.0, end - attempt.started) for attempt, end in zip(attempts, ends, strict=True)),
        left=left,
        status=attempts[-1].status if attempts else None,
        stopped_early=end is not None,
    )


def _ends(attempts: Sequence[Attempt], logged: Sequence[float]) -> list[float]:
    """Return when each attempt ended, in seconds since 1970. A killed attempt ends with its last log entry."""
    following = [*(attempt.started for attempt in attempts[1:]), inf]
    return [
        attempt.ended or max((at for at in logged if attempt.started <= at < end), default=attempt.started)
        for attempt, end in zip(attempts, following, strict=False)  # of none, none follows
    ]


def _left(folder: Path, started: float, points: Sequence[ScalarEvent], max_steps: int) -> float | None:
    """Return the seconds to the end of a run at the pace of its current attempt; None before its first log entry."""
    if not points or points[-1].wall_time <= started or max_steps <= 0:
        return None
    step, logged_at = points[-1].step + 1, points[-1].wall_time
    new = step - _from_step(folder, started)
    return max(0.0, (logged_at - started) / new * (max_steps - step) - (time.time() - logged_at)) if new > 0 else None


def _curves(folder: Path) -> tuple[list[ScalarEvent], list[float]]:
    """Return the logged times of training and evaluations, by step, and the validation accuracies."""
    scalars, _ = read_scalars(folder)
    losses, accuracies = (scalars.get(name, []) for name in ("train/loss", "val/accuracy"))
    return sorted([*losses, *accuracies], key=lambda point: point.step), [point.value for point in accuracies]


def _early_end(folder: Path) -> int | None:
    """The step at which a finished run stopped early; None where it took all of its steps."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        return int(json.loads((folder / "record.json").read_text(encoding="utf-8"))[-1]["stopped_early"]["step"])
    return None


def _from_step(folder: Path, started: float) -> int:
    """Return the first step of the current attempt."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        path = folder / "record.json"
        if path.stat().st_mtime >= started:
            return int(json.loads(path.read_text(encoding="utf-8"))[-1]["from_step"])
    return 0


Seen = Mapping[Cell, Progress]


def time_left(seen: Seen) -> dict[Cell, float | None]:
    """Estimate the remaining seconds of each run; None if nothing is known.

    For a running run, its own pace counts. For others, the estimate is the time of other seeds of the same
    configuration, times the fraction of remaining steps.
    """
    known = defaultdict(list)
    for cell, progress in seen.items():
        if (seconds := _whole(progress)) is not None:
            known[cell.kind].append(seconds)
    return {
        cell: _left_of_whole(progress, mean(known[cell.kind])) if cell.kind in known else None
        for cell, progress in seen.items()
    }


def _whole(progress: Progress) -> float | None:
    """Seconds from a run's beginning to its end."""
    if progress.state == State.FINISHED:
        return progress.seconds
    return None if progress.left is None else progress.seconds + progress.left


def _left_of_whole(progress: Progress, whole: float) -> float:
    """Estimate the remaining seconds of a run, if similar runs take `whole` seconds."""
    if progress.state == State.FINISHED:
        return 0.0
    if progress.left is not None:
        return progress.left
    return whole * (1 - (progress.step or 0) / progress.max_steps if progress.max_steps > 0 else 1)


def whole_time_left(seen: Seen, at_once: int | None) -> str:
    """Describe the time left of all runs except failed ones: `about 25 min left`.

    It says `roughly` if nothing is known of some methods, which then count as the mean of the others. `at_once` is the
    number of simultaneous runs; None for the current number.
    """
    times = time_left(seen)
    wholes = [seconds for progress in seen.values() if (seconds := _whole(progress)) is not None]
    to_do = {cell: run for cell, run in seen.items() if run.state not in (State.FINISHED, State.FAILED)}
    if not to_do:
        return "none left"
    if not wholes:
        return "time left not known yet"
    at_once = at_once or max(1, sum(run.state == State.RUNNING for run in seen.values()))
    guessed = any(times[cell] is None for cell in to_do)
    left = []
    for cell, run in to_do.items():
        own = times[cell]
        left.append(_left_of_whole(run, mean(wholes)) if own is None else own)
    seconds = max(max(left), sum(left) / at_once)
    return f"{'roughly' if guessed else 'about'} {duration(seconds)} left" if seconds >= 1 else "nearly done"


def duration(seconds: float | None) -> str:
    """`45 s`, `12 min`, `3.5 h`, `2.1 d`; `-` where it is not known."""
    if seconds is None:
        return "-"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} d"
