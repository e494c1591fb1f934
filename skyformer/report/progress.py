"""Dev accuracy and loss against steps and against time (Figure 2 and Appendix A of the paper)."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

import numpy as np

from skyformer.report.clock import seconds_at, unit_of
from skyformer.report.groups import Group, tasks_of
from skyformer.report.published import task_name_of
from skyformer.report.read import Run
from skyformer.report.style import PANELS_IN_ROW, new_figure, save_picture, style_of

Axis = Literal["steps", "time"]
QUANTITIES = {  # curve, factor, label
    "accuracy": ("val/accuracy", 100.0, "dev accuracy (%)"),
    "loss": ("val/loss", 1.0, "dev loss (nats)"),
}
_DASHES = ((0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))  # of a method's further settings
# Points of a line that has many would hide it; some of them still tell the lines apart in grey.
_MARKERS = 8
_LEGEND = 30  # characters in a line


@dataclass(frozen=True)
class Line:
    """What the seeds of a group did: `x`, `mean`, `low` and `high` (the extremes), all `(points,)`; x in steps or s."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def draw_progress(groups: Sequence[Group], quantity: str, axis: Axis, path: Path) -> bool:
    """One panel a task, one line a group: the mean over its seeds, from the lowest to the highest shaded.

    Returns:
        Whether there was anything to draw.
    """
    tasks = [task for task in tasks_of(groups) if _lines(groups, task, quantity, axis)]
    if not tasks:
        return False
    columns = min(PANELS_IN_ROW, len(tasks))
    rows = -(-len(tasks) // columns)
    looks = looks_of(groups)
    figure, panels = new_figure(len(tasks), 4.2 * columns + _legend_width(looks), 3.5 * rows, columns)
    handles: dict[str, Any] = {}
    for panel, task in zip(panels, tasks, strict=True):
        _draw_panel(panel, _lines(groups, task, quantity, axis), axis, looks, handles)
        panel.set(title=task_name_of(task), ylabel=QUANTITIES[quantity][2])
    labels = [group.label for group in sorted(groups, key=lambda group: group.place) if group.label in handles]
    labels = list(dict.fromkeys(labels))
    wrapped = [fill(label, _LEGEND) for label in labels]
    figure.legend([handles[label] for label in labels], wrapped, loc="outside right center", frameon=False)
    save_picture(figure, path)
    return True


def _legend_width(labels: Iterable[str]) -> float:
    """Inches that the legend needs."""
    return 0.7 + 0.085 * min(_LEGEND, max(map(len, labels)))


def _lines(groups: Sequence[Group], task: str, quantity: str, axis: Axis) -> list[tuple[Group, Line]]:
    found = [(group, mean_line(group, quantity, axis)) for group in groups if group.task == task]
    return [(group, line) for group, line in found if line is not None]


def mean_line(group: Group, quantity: str, axis: Axis) -> Line | None:
    """The mean over the group's runs at the steps that all of them evaluated; None where nothing was logged.

    Runs that have not come as far as the farthest are left out, lest they cut the line short.
    """
    name, factor, _ = QUANTITIES[quantity]
    curves = {run: _by_step(run, name) for run in group.runs}
    farthest = max((max(curve) for curve in curves.values() if curve), default=None)
    if farthest is None:
        return None
    kept = {run: curve for run, curve in curves.items() if curve and max(curve) == farthest}
    steps = np.array(sorted(set.intersection(*(set(curve) for curve in kept.values()))))
    values = factor * np.array([[curve[step] for step in steps] for curve in kept.values()])
    x = steps if axis == "steps" else np.mean([seconds_at(run, steps) for run in kept], axis=0)
    if not np.isfinite(x).all():
        return None
    return Line(x, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def _by_step(run: Run, name: str) -> dict[int, float]:
    """Values by the number of steps taken."""
    curve = run.curve(name)
    return {int(step) + 1: float(value) for step, value in zip(curve.step, curve.value, strict=True)}


def looks_of(groups: Sequence[Group]) -> dict[str, dict[str, Any]]:
    """How each label is drawn, as matplotlib takes it: in its method's colour and marker; filled and in the method's
    line for the setting that is on most tasks, hollow and dashed otherwise for its further ones.
    """
    by_frequency = Counter(group.label for group in sorted(groups, key=lambda group: group.place))
    backends = {group.label: group.backend for group in groups}
    looks: dict[str, dict[str, Any]] = {}
    met: Counter[str] = Counter()
    for label, _ in by_frequency.most_common():
        style, number = style_of(backends[label]), met[backends[label]]
        met[backends[label]] += 1
        looks[label] = {
            "color": style.color,
            "marker": style.marker,
            "linestyle": _DASHES[(number - 1) % len(_DASHES)] if number else style.linestyle,
            "markerfacecolor": "white" if number else style.color,
        }
    return looks


def _draw_panel(
    panel: Any, lines: Sequence[tuple[Group, Line]], axis: Axis, looks: dict[str, Any], handles: dict[str, Any]
) -> None:
    size, unit = unit_of(max(line.x[-1] for _, line in lines)) if axis == "time" else (1.0, "")
    for group, line in lines:
        look = looks[group.label]
        every = max(1, len(line.x) // _MARKERS)
        (handle,) = panel.plot(line.x / size, line.mean, lw=1.4, markersize=5, markevery=every, **look)
        handles.setdefault(group.label, handle)
        panel.fill_between(line.x / size, line.low, line.high, color=look["color"], alpha=0.12, lw=0)
    panel.set_xlabel("step" if axis == "steps" else f"training time ({unit}), without evaluation")
    panel.grid(axis="y", color="0.9", lw=0.6)
    panel.set_axisbelow(True)
