"""Training side by side: loss curves in a picture, and what a step took."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skyformer.report.groups import Group
from skyformer.report.published import task_name_of, task_place
from skyformer.report.read import Run
from skyformer.report.style import PANELS_IN_ROW, new_figure, place, save_picture, style_of

BEGINNING, WINDOW = 10, 30  # steps


def draw_loss_curves(runs: Sequence[Run], path: Path) -> None:
    """One panel a task, one line a run: training loss against step, the mean of those logged in the last `WINDOW`."""
    tasks = sorted({run.task for run in runs}, key=task_place)
    columns = min(PANELS_IN_ROW, len(tasks))
    figure, panels = new_figure(len(tasks), 4.2 * columns + 2.0, 3.5 * -(-len(tasks) // columns), columns)
    handles: dict[str, Any] = {}
    for panel, task in zip(panels, tasks, strict=True):
        for run in _in_order(runs, task):
            curve, look = run.curve("train/loss"), style_of(run.backend)
            if len(curve.value):
                values = running_mean(curve.step, curve.value, WINDOW)
                (handle,) = panel.plot(curve.step, values, color=look.color, linestyle=look.linestyle, lw=1.2)
                handles.setdefault(run.backend, handle)
        panel.set(title=task_name_of(task), xlabel="step", ylabel=f"training loss (nats), mean of {WINDOW} steps")
    shown = sorted(handles, key=place)
    labels = [style_of(backend).label for backend in shown]
    figure.legend([handles[backend] for backend in shown], labels, loc="outside right center", frameon=False)
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
    accuracy, memory = run.curve("val/accuracy"), run.curve("speed/peak_memory_mb")
    return {
        "method": group.label,
        "seed": str(run.seed),
        "steps": f"{run.steps:,}",
        "first loss": _mean(loss.value[loss.step < BEGINNING]),
        "last loss": _mean(loss.value[loss.step > loss.step.max(initial=0) - WINDOW]),
        "best dev": f"{accuracy.value.max():.1%}" if len(accuracy.value) else "-",
        "last dev": f"{accuracy.value[-1]:.1%}" if len(accuracy.value) else "-",
        "s/step": _mean(run.examples_per_step / speed.value, ".2f"),
        "peak MB": f"{memory.value.max():,.0f}" if len(memory.value) else "-",
    }


def _in_order(runs: Sequence[Run], task: str) -> list[Run]:
    return sorted((run for run in runs if run.task == task), key=lambda run: (place(run.backend), str(run.folder)))


def _mean(values: np.ndarray, form: str = ".3f") -> str:
    return format(float(values.mean()), form) if len(values) else "-"
