"""The report's picture and rows of the accuracy on each kind of test examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skyformer.report.groups import Group, tasks_of
from skyformer.report.pictures import add_legend, figure_size, in_order, looks_of
from skyformer.report.published import task_name_of
from skyformer.report.style import PANELS_IN_ROW, new_figure, save_picture


def case_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One row a group and kind of test examples, numbers in %, over the seeds that have this kind."""
    return [
        {
            "task": group.task,
            "method": group.label,
            "case": case,
            "accuracy_mean": round(float(values.mean()), 4),
            "accuracy_std": round(float(values.std(ddof=1)), 4) if len(values) > 1 else "",
            "n": len(values),
        }
        for group in groups
        for case, values in _accuracies(group).items()
    ]


def _accuracies(group: Group) -> dict[str, np.ndarray]:
    """`(n,)` test accuracies of the counted runs by kind, in %, in the order of the task."""
    cases = dict.fromkeys(case for run in group.counted for case in run.accuracy_by_case)
    by_run = [run.accuracy_by_case for run in group.counted]
    return {case: np.array([100 * found[case] for found in by_run if case in found]) for case in cases}


def draw_cases(groups: Sequence[Group], path: Path) -> bool:
    """One panel a task, one line a group: the mean accuracy on each kind, from the lowest to the highest seed shaded.

    Returns:
        Whether there was anything to draw.
    """
    drawn = [(group, accuracies) for group in groups if (accuracies := _accuracies(group))]
    if not drawn:
        return False
    tasks, looks = tasks_of([group for group, _ in drawn]), looks_of(groups)
    labels = in_order(groups, (group.label for group, _ in drawn))
    columns = min(PANELS_IN_ROW, len(tasks))
    figure, panels = new_figure(len(tasks), *figure_size(len(tasks), columns, labels), columns)
    handles: dict[str, Any] = {}
    for panel, task in zip(panels, tasks, strict=True):
        of_task = [(group, accuracies) for group, accuracies in drawn if group.task == task]
        cases = list(dict.fromkeys(case for _, accuracies in of_task for case in accuracies))
        for group, accuracies in of_task:
            look, x = looks[group.label], [cases.index(case) for case in accuracies]
            low, mean, high = ([extreme(v) for v in accuracies.values()] for extreme in (np.min, np.mean, np.max))
            handles.setdefault(group.label, *panel.plot(x, mean, markersize=5, **look))
            panel.fill_between(x, low, high, color=look["color"], alpha=0.12, lw=0)
        panel.set(title=task_name_of(task), ylabel="test accuracy (%)")
        panel.set_xticks(range(len(cases)), [case.replace(", ", "\n") for case in cases])
        panel.grid(axis="y", color="0.9", lw=0.6)
    add_legend(figure, {label: handles[label] for label in labels})
    save_picture(figure, path)
    return True
