"""Read the curves that a run logged."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skyformer.training.events import EVENTS, read_scalars

TABLE = "metrics.csv"


@dataclass(frozen=True)
class Curve:
    """A logged number. `step` and `value`: `(points,)`, in the order of writing."""

    step: np.ndarray
    value: np.ndarray

    @property
    def highest(self) -> float:
        """The highest value; NaN where nothing was logged."""
        return float(np.nanmax(self.value)) if np.isfinite(self.value).any() else float("nan")


Curves = dict[str, Curve]


def read_curves(folder: Path) -> tuple[Curves, list[str]]:
    """The curves of a run's folder by name, and what is damaged; both may be empty.

    `metrics.csv` counts where there is no event file.
    """
    if any(folder.glob(EVENTS)):
        return _read_events(folder)
    if (folder / TABLE).exists():
        return _read_table(folder / TABLE)
    return {}, []


def _read_events(folder: Path) -> tuple[Curves, list[str]]:
    scalars, is_damaged = read_scalars(folder)
    curves = {
        name: Curve(np.array([p.step for p in points], dtype=np.int64), np.array([p.value for p in points]))
        for name, points in scalars.items()
    }
    return curves, ["an event file is damaged, or still being written: read up to there"] if is_damaged else []


def _read_table(path: Path) -> tuple[Curves, list[str]]:
    points: dict[str, list[tuple[int, float]]] = {}
    damaged = 0
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(line.replace("\0", "") for line in file):
            try:
                step = int(row.pop("step"))
                numbers = {name: float(text) for name, text in row.items() if text}
            except (KeyError, TypeError, ValueError):  # cut short while it was written
                damaged += 1
                continue
            for name, number in numbers.items():
                points.setdefault(name, []).append((step, number))
    curves = {
        name: Curve(np.array([step for step, _ in pairs]), np.array([value for _, value in pairs]))
        for name, pairs in points.items()
    }
    return curves, [f"{path.name}: {damaged} damaged line(s) left out"] if damaged else []


EMPTY_CURVE = Curve(np.array([], dtype=np.int64), np.array([]))
