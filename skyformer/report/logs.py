"""The curves that a run logged: TensorBoard's event files, or `metrics.csv`."""

import csv
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EVENTS, TABLE = "events.out.tfevents.*", "metrics.csv"


@dataclass(frozen=True)
class Curve:
    """A logged number. `step` and `value`: `(points,)`, in the order of writing."""

    step: np.ndarray
    value: np.ndarray


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
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})  # 0: all points
    with _hear_of_damage() as heard:
        events.Reload()
    curves = {}
    for name in events.Tags()["scalars"]:
        points = events.Scalars(name)
        curves[name] = Curve(np.array([p.step for p in points], dtype=np.int64), np.array([p.value for p in points]))
    return curves, ["an event file is damaged, or still being written: read up to there"] if heard else []


@contextmanager
def _hear_of_damage() -> Iterator[list[str]]:
    """TensorBoard leaves out the rest of a damaged file, and says so to its log only, where nobody sees it."""
    heard: list[str] = []
    logger = logging.getLogger("tensorboard")
    former = logger.level, logger.propagate
    listener = logging.Handler()
    listener.emit = lambda record: heard.append(str(record.msg)) if "Truncated" in str(record.msg) else None  # type: ignore[method-assign]
    logger.addHandler(listener)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    try:
        yield heard
    finally:
        logger.removeHandler(listener)
        logger.setLevel(former[0])
        logger.propagate = former[1]


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
