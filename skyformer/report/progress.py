"""Dev accuracy and loss against steps and against time (Figure 2 and Appendix A of the paper)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from skyformer.report.clock import seconds_at, training_seconds, unit_of
from skyformer.report.groups import Group, latest_of_seeds, tasks_of
from skyformer.report.looks import add_legend, figure_size, in_order, looks_of
from skyformer.report.published import task_name_of
from skyformer.report.run import Run
from skyformer.report.style import PANELS_IN_ROW, new_figure, save_picture

Axis = Literal["steps", "time"]
QUANTITIES = {  # curve, factor, label
    "accuracy": ("val/accuracy", 100.0, "dev accuracy (%)"),
    "loss": ("val/loss", 1.0, "dev loss (nats)"),
}
# Points of a line that has many would hide it; some of them still tell the lines apart in grey.
_MARKERS = 8


@dataclass(frozen=True)
class Line:
    """What the seeds of a group did: `x`, `mean`, `low` and `high` (the extremes), all `(points,)`; x in steps or s.

    `num_seeds` is how many of them the mean is over.
    """

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    num_seeds: int


def draw_progress(groups: Sequence[Group], quantity: str, axis: Axis, path: Path) -> bool:
    """One panel a task, one line a group: the mean over its seeds, from the lowest to the highest shaded.

    Returns:
        Whether there was anything to draw.
    """
    tasks = [task for task in tasks_of(groups) if _lines(groups, task, quantity, axis)]
    if not tasks:
        return False
    columns, looks = min(PANELS_IN_ROW, len(tasks)), looks_of(groups)
    drawn = [(group, line) for task in tasks for group, line in _lines(groups, task, quantity, axis)]
    texts = {label: _text(label, drawn) for label in in_order(groups, (group.label for group, _ in drawn))}
    size = figure_size(len(tasks), columns, list(texts.values()))
    figure, panels = new_figure(len(tasks), *size, columns)
    handles: dict[str, Any] = {}
    for panel, task in zip(panels, tasks, strict=True):
        _draw_panel(panel, [(group, line) for group, line in drawn if group.task == task], axis, looks, handles)
        panel.set(title=task_name_of(task), ylabel=QUANTITIES[quantity][2])
    add_legend(figure, {text: handles[label] for label, text in texts.items()})
    save_picture(figure, path)
    return True


def _text(label: str, drawn: Sequence[tuple[Group, Line]]) -> str:
    """What the legend says of a line: `Skyformer (3 seeds)`; where some of them are left out, of which task."""
    counts = [(group, line.num_seeds, len(group.seeds)) for group, line in drawn if group.label == label]
    has_several_tasks = len({group.task for group, _ in drawn}) > 1
    fewer = [
        f"{count} of {total} seeds{f' on {task_name_of(group.task)}' * has_several_tasks}"
        for group, count, total in counts
        if count < total
    ]
    if fewer:
        return f"{label} ({', '.join(fewer)})"
    low, high = (extreme(count for _, count, _ in counts) for extreme in (min, max))
    return label if high == 1 else f"{label} ({f'{low} to ' * (low < high)}{high} seeds)"


def _lines(groups: Sequence[Group], task: str, quantity: str, axis: Axis) -> list[tuple[Group, Line]]:
    found = [(group, mean_line(group, quantity, axis)) for group in groups if group.task == task]
    return [(group, line) for group, line in found if line is not None]


def mean_line(group: Group, quantity: str, axis: Axis) -> Line | None:
    """The mean over the group's seeds at the steps that all of them evaluated; None where nothing was logged.

    Runs that have not come as far as the farthest are left out, lest they cut the line short; against time those too
    that logged no speed.
    """
    name, factor, _ = QUANTITIES[quantity]
    usable = [run for run in group.runs if axis == "steps" or len(training_seconds(run).step)]
    curves = {run: curve for run in usable if (curve := _by_step(run, name))}
    farthest = max(map(max, curves.values()), default=None)
    if farthest is None:
        return None
    kept = latest_of_seeds([run for run, curve in curves.items() if max(curve) == farthest])
    steps = np.array(sorted(set.intersection(*(set(curves[run]) for run in kept))))
    values = factor * np.array([[curves[run][step] for step in steps] for run in kept])
    x = steps if axis == "steps" else np.mean([seconds_at(run, steps) for run in kept], axis=0)
    return Line(x, values.mean(axis=0), values.min(axis=0), values.max(axis=0), len(kept))


def _by_step(run: Run, name: str) -> dict[int, float]:
    """Values by the number of steps taken."""
    curve = run.curve(name)
    return {int(step) + 1: float(value) for step, value in zip(curve.step, curve.value, strict=True)}


def _draw_panel(
    panel: Any, lines: Sequence[tuple[Group, Line]], axis: Axis, looks: dict[str, Any], handles: dict[str, Any]
) -> None:
    size, unit = unit_of(max(line.x[-1] for _, line in lines)) if axis == "time" else (1.0, "")
    for group, line in lines:
        look = looks[group.label]
        every = max(1, len(line.x) // _MARKERS)
        (handle,) = panel.plot(line.x / size, line.mean, markersize=5, markevery=every, **look)
        handles.setdefault(group.label, handle)
        panel.fill_between(line.x / size, line.low, line.high, color=look["color"], alpha=0.12, lw=0)
    panel.set_xlabel("step" if axis == "steps" else f"training time ({unit}), without evaluation")
    panel.grid(axis="y", color="0.9", lw=0.6)
    panel.set_axisbelow(True)
