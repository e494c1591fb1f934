"""Table 2: hours of training and peak memory, beside the paper's."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from skyformer.report import published
from skyformer.report.clock import training_seconds
from skyformer.report.groups import Group, in_rows, tasks_of
from skyformer.report.read import Run
from skyformer.report.table import EMPTY, Cell, Table

_RULES = (
    "Hours of training without evaluation, mean over the runs: steps by their logged examples a second, so that the "
    "time in which a run stood still does not count. The number in brackets is of the runs, finished or not.",
    f"≈: the same speed for {published.STEPS:,} steps, extrapolated. GB of a billion bytes: peak memory, of the "
    "process on a CPU, allocated on a GPU.",
    f"Paper: Chen et al., NeurIPS 2021, Table 2: hours of {published.STEPS:,} steps and memory on one V100 GPU.",
)


def cost_table(groups: Sequence[Group]) -> Table:
    """Methods by tasks."""
    tasks = tasks_of(groups)
    usual = Counter(run.device for group in groups for run in group.runs).most_common(1)[0][0]
    rows = []
    for row in in_rows(groups):
        of_task = {group.task: group for group in row}
        cells = [_cell(of_task[task], usual) if task in of_task else EMPTY for task in tasks]
        rows.append((row[0].label, tuple(cells)))
    where = f"Ran on: {usual}, unless the cell says otherwise."
    columns = ("Method", *map(published.task_name_of, tasks))
    return Table("Time and memory", columns, tuple(rows), (where, *_RULES))


def _cell(group: Group, usual: str) -> Cell:
    costs = cost_of(group)
    if not costs:
        return Cell("–", ("no speed logged",))
    low, high = costs["steps_min"], costs["steps_max"]
    steps = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    lines = [
        f"{steps} steps (n={costs['n']})",
        f"≈ {_duration(costs['hours_50k'])} for {published.STEPS:,}",
        f"{costs['peak_gb']:.2f} GB" if np.isfinite(costs["peak_gb"]) else "memory not logged",
    ]
    if other := sorted({run.device for run in group.runs} - {usual}):
        lines.append("on " + ", ".join(other))
    theirs = published.hours_and_gb(group.backend, group.task)
    if theirs is not None:
        lines.append(f"paper {theirs[0]:.2f} h, {theirs[1]:.2f} GB")
    return Cell(_duration(costs["hours"]), tuple(lines))


def cost_of(group: Group) -> dict[str, Any]:
    """Hours, peak GB and steps, means over the runs that logged their speed; empty where none did."""
    timed = [(run, training_seconds(run).value[-1]) for run in group.runs if len(training_seconds(run).value)]
    if not timed:
        return {}
    seconds = np.array([taken for _, taken in timed])
    steps = np.array([run.steps for run, _ in timed])
    return {
        "n": len(timed),
        "steps_min": int(steps.min()),
        "steps_max": int(steps.max()),
        "hours": float(seconds.mean()) / 3600,
        "hours_50k": float((seconds / steps).mean()) * published.STEPS / 3600,
        "peak_gb": float(np.mean([peak_memory_gb(run) for run, _ in timed])),  # NaN if one of them is
    }


def peak_memory_gb(run: Run) -> float:
    """The highest that was logged, over resumes too; NaN where nothing was."""
    values = run.curve("speed/peak_memory_mb").value
    return float(np.nanmax(values)) / 1000 if np.isfinite(values).any() else float("nan")


def cost_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One row a cell, for CSV."""
    rows = []
    for group in groups:
        costs = cost_of(group)
        names = ("n", "steps_min", "steps_max", "hours", "hours_50k", "peak_gb")
        theirs = published.hours_and_gb(group.backend, group.task) or ("", "")
        rows.append(
            {
                "task": group.task,
                "method": group.label,
                **{name: _plain(costs.get(name, "")) for name in names},
                "paper_hours": theirs[0],
                "paper_gb": theirs[1],
                "device": "; ".join(sorted({run.device for run in group.runs})),
            }
        )
    return rows


def _plain(number: Any) -> Any:
    return float(f"{number:.6g}") if isinstance(number, float) else number


def _duration(hours: float) -> str:
    """In the unit that suits it; the paper's numbers are hours."""
    if hours >= 0.1:
        return f"{hours:.2f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"
