"""Training side by side: loss curves in a picture, and what a step took."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skyformer.report.groups import Group, tasks_of
from skyformer.report.looks import add_legend, figure_size, in_order, looks_of
from skyformer.report.published import task_name_of
from skyformer.report.run import Run
from skyformer.report.style import PANELS_IN_ROW, new_figure, save_picture

BEGINNING, WINDOW = 10, 30  # steps


def draw_loss_curves(groups: Sequence[Group], path: Path) -> None:
    """One panel a task, one line a run: training loss against step, the mean of those logged in the last `WINDOW`."""
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


def running_mean(steps: np.ndarray, values: np.ndarray, window: int) -> np.ndarray:
    """`(points,)`: at each step the mean of what was logged in the `window` steps that end there. Steps ascend."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    start = np.searchsorted(steps, steps - window, side="right")
    return (sums[end] - sums[start]) / (end - start)


def training_table(groups: Sequence[Group], task: str) -> list[dict[str, str]]:
    """A row a run of a task: losses at both ends, dev accuracy, seconds a step, peak memory."""
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
        "best dev": f"{accuracy.value.max():.1%}" if len(accuracy.value) else "-",
        "last dev": f"{accuracy.value[-1]:.1%}" if len(accuracy.value) else "-",
        "s/step": _mean(run.examples_per_step / rates, ".3g"),
        "peak MB": f"{memory.value.max():,.0f}" if len(memory.value) else "-",
    }


def _mean(values: np.ndarray, form: str = ".3f") -> str:
    return format(float(values.mean()), form) if len(values) else "-"
