"""How long a sweep will take yet."""

from collections import defaultdict
from collections.abc import Mapping
from statistics import mean

from skyformer.sweep.cells import Cell
from skyformer.sweep.progress import Progress, State

Seen = Mapping[Cell, Progress]


def time_left(seen: Seen) -> dict[Cell, float | None]:
    """Seconds of work that each run needs yet; None where nothing is known.

    A running one by its own pace. Another by what runs of the same configuration with other seeds took, or are going
    to take; of that, the part of the steps that it has not done.
    """
    known = defaultdict(list)
    for cell, progress in seen.items():
        if (seconds := _whole(progress)) is not None:
            known[cell.kind].append(seconds)
    return {
        cell: _left(progress, mean(known[cell.kind])) if cell.kind in known else None for cell, progress in seen.items()
    }


def _whole(progress: Progress) -> float | None:
    """Seconds from a run's beginning to its end."""
    if progress.state == State.FINISHED:
        return progress.seconds
    return None if progress.left is None else progress.seconds + progress.left


def _left(progress: Progress, whole: float) -> float:
    """Seconds that a run needs yet, where runs like it take `whole` seconds."""
    if progress.state == State.FINISHED:
        return 0.0
    if progress.left is not None:
        return progress.left
    return whole * (1 - (progress.step or 0) / progress.max_steps if progress.max_steps > 0 else 1)


def whole_time_left(seen: Seen, at_once: int | None) -> str:
    """In words, for all runs but the failed ones: `about 25 min left`; `roughly`, where methods count of which nothing
    is known yet, each taken for the mean of the others. `at_once`: runs at the same time; None for as many as now.
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
        left.append(_left(run, mean(wholes)) if own is None else own)
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
