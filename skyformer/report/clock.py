"""How long a run has trained, from its own log."""

from collections.abc import Sequence

import numpy as np

from skyformer.report.logs import Curve
from skyformer.report.run import Run


def training_seconds(run: Run) -> Curve:
    """Steps taken and the seconds of training behind them, evaluation left out; empty where no speed was logged.

    The logged examples a second give the seconds of each step since the point before. The clock of the event files
    would count the time in which a run stood still. Steps after the last point take their mean.
    """
    speed = run.curve("speed/examples_per_second")
    usable = np.isfinite(speed.value) & (speed.value > 0)
    if not run.examples_per_step or not usable.any():
        return Curve(np.array([], dtype=np.int64), np.array([]))
    steps = speed.step[usable] + 1
    seconds = np.cumsum(np.diff(steps, prepend=0) * run.examples_per_step / speed.value[usable])
    if run.steps > steps[-1]:
        seconds = np.append(seconds, seconds[-1] * run.steps / steps[-1])
        steps = np.append(steps, run.steps)
    return Curve(steps, seconds)


def seconds_at(run: Run, steps: np.ndarray) -> np.ndarray:
    """Seconds of training behind so many steps; NaN where no speed was logged."""
    clock = training_seconds(run)
    if not len(clock.step):
        return np.full(len(steps), np.nan)
    return np.interp(steps, np.concatenate([[0], clock.step]), np.concatenate([[0.0], clock.value]))


def unit_of(seconds: float) -> tuple[float, str]:
    """What to divide by, and its name, for an axis that ends at so many seconds."""
    return next((size, name) for size, name, below in _UNITS if seconds < below)


_UNITS: Sequence[tuple[float, str, float]] = ((1, "s", 180), (60, "min", 180 * 60), (3600, "h", float("inf")))
