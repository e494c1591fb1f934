"""The report's pictures: loss curves, and validation accuracy over steps and time."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill, wrap
from typing import Any, Literal

import numpy as np

from skyformer.report.groups import Group, latest_of_seeds, tasks_of
from skyformer.report.published import task_name_of
from skyformer.report.runs import Run, seconds_at, training_seconds, unit_of
from skyformer.report.style import PANELS_IN_ROW, new_figure, save_picture, style_of

_DASHES = ((0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))  # of a method's further settings
_WIDTH, _BROADER = 1.3, 0.8  # points
_LEGEND = 30  # characters in a line


def looks_of(groups: Sequence[Group]) -> dict[str, dict[str, Any]]:
    """Return the matplotlib style of each label, in its method's colour and marker.

    The setting on most tasks has filled markers and the method's line. Further settings are hollow with another dash,
    and then also broader.
    """
    by_frequency = Counter(group.label for group in sorted(groups, key=lambda group: group.place))
    backends = {group.label: group.backend for group in groups}
    looks: dict[str, dict[str, Any]] = {}
    met: Counter[str] = Counter()
    for label, _ in by_frequency.most_common():
        style, number = style_of(backends[label]), met[backends[label]]
        met[backends[label]] += 1
        times, dashes = divmod(number - 1, len(_DASHES))
        looks[label] = {
            "color": style.color,
            "marker": style.marker,
            "linestyle": _DASHES[dashes] if number else style.linestyle,
            "linewidth": _WIDTH + _BROADER * max(0, times),
            "markerfacecolor": "white" if number else style.color,
        }
    return looks


def in_order(groups: Sequence[Group], labels: Iterable[str]) -> list[str]:
    """Those labels, each once, in the order of the methods."""
    places = {group.label: group.place for group in groups}
    return sorted(set(labels), key=lambda label: places[label])


def add_legend(figure: Any, handles: Mapping[str, Any]) -> None:
    """Next to the panels: lines by their texts, long ones broken."""
    texts = [fill(text, _LEGEND) for text in handles]
    place = {"loc": "outside right center", "frameon": False, "handlelength": 3}  # long enough for dashes
    figure.legend(list(handles.values()), texts, **place)


def figure_size(panels: int, columns: int, texts: Sequence[str]) -> tuple[float, float]:
    """Width and height in inches of this many panels in rows of `columns`, and of a legend of these texts."""
    legend = [wrap(text, _LEGEND) for text in texts]
    width = 0.85 + 0.085 * max((len(line) for lines in legend for line in lines), default=0)
    return 4.2 * columns + width, max(3.5 * -(-panels // columns), 0.3 + 0.24 * sum(map(len, legend)))


BEGINNING, WINDOW = 10, 30  # steps


def draw_loss_curves(groups: Sequence[Group], path: Path) -> bool:
    """One panel a task, one line a run: training loss against step, the mean of those logged in the last `WINDOW`.

    Returns:
        Whether there was anything to draw.
    """
    groups = [group for group in groups if any(len(run.curve("train/loss").value) for run in group.runs)]
    if not groups:
        return False
    tasks, looks = tasks_of(groups), looks_of(groups)
    columns = min(PANELS_IN_ROW, len(tasks))
    figure, panels = new_figure(len(tasks), *figure_size(len(tasks), columns, list(looks)), columns)
    handles: dict[str, Any] = {}
    for panel, task in zip(panels, tasks, strict=True):
        for group in (group for group in groups if group.task == task):
            look = {name: looks[group.label][name] for name in ("color", "linestyle", "linewidth")}
            for curve in (run.curve("train/loss") for run in group.runs):
                if len(curve.value):
                    values = running_mean(curve.step, curve.value, WINDOW)
                    handles.setdefault(group.label, *panel.plot(curve.step, values, **look))
        panel.set(title=task_name_of(task), xlabel="step", ylabel=f"training loss (nats), mean of {WINDOW} steps")
    add_legend(figure, {label: handles[label] for label in in_order(groups, handles)})
    save_picture(figure, path)
    return True


def running_mean(steps: np.ndarray, values: np.ndarray, window: int) -> np.ndarray:
    """`(points,)`: at each step the mean of what was logged in the `window` steps that end there. Steps ascend."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.searchsorted(steps, steps - window, side="right")
    return (sums[end] - sums[start]) / (end - start)


def training_table(groups: Sequence[Group], task: str) -> list[dict[str, str]]:
    """A row a run of a task: losses at both ends, validation accuracy, seconds a step, peak memory."""
    return [_training_row(group, run) for group in groups if group.task == task for run in group.runs]


def _training_row(group: Group, run: Run) -> dict[str, str]:
    loss, speed = run.curve("train/loss"), run.curve("speed/examples_per_second")
    rates = speed.value[np.isfinite(speed.value) & (speed.value > 0)]
    accuracy, memory = run.curve("val/accuracy"), run.curve("speed/peak_memory_mb")
    return {
        "method": group.label,
        "seed": str(run.seed),
        "steps": f"{run.steps:,}",
        "first loss": _mean(loss.value[loss.step < BEGINNING]),
        "last loss": _mean(loss.value[loss.step > loss.step.max(initial=0) - WINDOW]),
        "best val": f"{accuracy.value.max():.1%}" if len(accuracy.value) else "-",
        "last val": f"{accuracy.value[-1]:.1%}" if len(accuracy.value) else "-",
        "s/step": _mean(run.examples_per_step / rates, ".3g"),
        "peak MB": f"{memory.value.max():,.0f}" if len(memory.value) else "-",
    }


def _mean(values: np.ndarray, form: str = ".3f") -> str:
    return format(float(values.mean()), form) if len(values) else "-"


Axis = Literal["steps", "time"]
QUANTITIES = {  # curve, factor, label
    "accuracy": ("val/accuracy", 100.0, "validation accuracy (%)"),
    "loss": ("val/loss", 1.0, "validation loss (nats)"),
}
# Points of a line that has many would hide it; some of them still tell the lines apart in grey.
_MARKERS = 8


@dataclass(frozen=True)
class Line:
    """The curve of a group over its seeds: `x`, `mean`, `low`, `high` (the extremes), all `(points,)`; x in steps or s.

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
    """Return a line's legend: `Skyformer (3 seeds)`; with the task if some seeds are excluded."""
    counts = [(group, line.num_seeds, len(group.seeds)) for group, line in drawn if group.label == label]
    has_several_tasks = len({group.task for group, _ in drawn}) > 1
    fewer = [
        f"{count} of {total} seeds" + (f" on {task_name_of(group.task)}" if has_several_tasks else "")
        for group, count, total in counts
        if count < total
    ]
    if fewer:
        return f"{label} ({', '.join(fewer)})"
    low, high = (extreme(count for _, count, _ in counts) for extreme in (min, max))
    if high == 1:
        return label
    return f"{label} ({high} seeds)" if low == high else f"{label} ({low} to {high} seeds)"


def _lines(groups: Sequence[Group], task: str, quantity: str, axis: Axis) -> list[tuple[Group, Line]]:
    found = [(group, mean_line(group, quantity, axis)) for group in groups if group.task == task]
    return [(group, line) for group, line in found if line is not None]


def mean_line(group: Group, quantity: str, axis: Axis) -> Line | None:
    """Return the mean over the group's seeds at the steps that all of them evaluated; None without logs.

    Runs shorter than the longest are excluded, because they would cut the line short. Against time, runs without logged
    speed are excluded too.
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
