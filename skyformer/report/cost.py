"""Table 2: hours of training and peak memory, beside the paper's."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from skyformer.report import published
from skyformer.report.clock import training_seconds
from skyformer.report.comparison import cost_not_as_paper, cost_remarks
from skyformer.report.groups import Group, in_rows, tasks_of
from skyformer.report.notes import PaperNotes, code_notes
from skyformer.report.run import Run
from skyformer.report.table import EMPTY, Cell, Table

_RULES = (
    "Hours of training without evaluation: steps by their logged examples a second, so that the time in which a run "
    "stood still does not count. Mean ± sample standard deviation (n − 1) over the n runs of the most steps, finished "
    "or not. Runs that go on beside each other share the machine, and take longer for it.",
    f"≈: the same speed for {published.STEPS:,} steps, extrapolated. GB of a billion bytes: peak memory, of the "
    "process on a CPU, allocated on a GPU.",
    f"Paper: Chen et al., NeurIPS 2021, Table 2: hours of {published.STEPS:,} steps and memory on one V100 GPU. Its "
    "released code computes the attention anew in the backward pass (gradient checkpointing) for softmax alone, which "
    "saves memory and costs time.",
)


def cost_table(groups: Sequence[Group]) -> Table:
    """Methods by tasks."""
    tasks, notes = tasks_of(groups), PaperNotes(groups, cost_not_as_paper)
    usual = Counter(run.device for group in groups for run in group.runs).most_common(1)[0][0]
    rows = []
    for row in in_rows(groups):
        of_task = {group.task: group for group in row}
        cells = [_cell(of_task[task], groups, usual, notes) if task in of_task else EMPTY for task in tasks]
        rows.append((row[0].label, tuple(cells)))
    where = f"Ran on: {usual}, unless the cell says otherwise."
    columns = ("Method", *map(published.task_name_of, tasks))
    under = (where, *_RULES, *code_notes(groups), *notes.texts())
    return Table("Time and memory", columns, tuple(rows), under)


def _cell(group: Group, groups: Sequence[Group], usual: str, notes: PaperNotes) -> Cell:
    costs = cost_of(group)
    if not costs:
        return Cell("–", ("no speed logged",))
    lines = [
        f"{costs['steps']:,} steps (n={costs['n']})",
        f"≈ {_duration(costs['hours_50k'])} for {published.STEPS:,}",
        f"{costs['peak_gb']:.2f} GB" if np.isfinite(costs["peak_gb"]) else "memory not logged",
    ]
    if costs["left_out"]:
        lines.insert(1, f"{costs['left_out']} shorter left out")
    if (devices := _devices(group)) != [usual]:
        lines.append("on " + "; ".join(devices))
    lines += cost_remarks(group, [other for other in groups if other.task == group.task])
    theirs = published.hours_and_gb(group.backend, group.task)
    if theirs is not None:
        lines.append(f"paper {theirs[0]:.2f} h, {theirs[1]:.2f} GB{notes.mark([group])}")
    return Cell(_duration(costs["hours"], costs["hours_std"]), tuple(lines))


def cost_of(group: Group) -> dict[str, Any]:
    """Hours, peak GB and steps of the runs of the most steps, of those that logged their speed; empty where none did.

    The hours of runs that went on for longer and for less long have no mean worth showing.
    """
    timed = [(run, clock.value[-1]) for run in group.runs if len((clock := training_seconds(run)).value)]
    steps = max((run.steps for run, _ in timed), default=0)
    kept = [(run, taken) for run, taken in timed if run.steps == steps]
    if not kept:
        return {}
    hours = np.array([taken for _, taken in kept]) / 3600
    return {
        "n": len(kept),
        "steps": steps,
        "left_out": len(timed) - len(kept),
        "hours": float(hours.mean()),
        "hours_std": float(hours.std(ddof=1)) if len(kept) > 1 else float("nan"),
        "hours_50k": float(hours.mean()) / steps * published.STEPS,
        "peak_gb": float(np.mean([peak_memory_gb(run) for run, _ in kept])),  # NaN if one of them is
    }


def _devices(group: Group) -> list[str]:
    return sorted({run.device for run in group.runs})


def peak_memory_gb(run: Run) -> float:
    """The highest that was logged, over resumes too; NaN where nothing was."""
    values = run.curve("speed/peak_memory_mb").value
    return float(np.nanmax(values)) / 1000 if np.isfinite(values).any() else float("nan")


def cost_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One row a cell, for CSV."""
    rows = []
    for group in groups:
        costs = cost_of(group)
        names = ("n", "steps", "left_out", "hours", "hours_std", "hours_50k", "peak_gb")
        theirs = published.hours_and_gb(group.backend, group.task) or ("", "")
        rows.append(
            {
                "task": group.task,
                "method": group.label,
                **{name: _plain(costs.get(name, "")) for name in names},
                "paper_hours": theirs[0],
                "paper_gb": theirs[1],
                "device": "; ".join(_devices(group)),
                "remarks": "; ".join(cost_remarks(group, [other for other in groups if other.task == group.task])),
                "not_as_paper": "; ".join(cost_not_as_paper(group).values()),
            }
        )
    return rows


def _plain(number: Any) -> Any:
    if not isinstance(number, float):
        return number
    return float(f"{number:.6g}") if np.isfinite(number) else ""


def _duration(hours: float, deviation: float = float("nan")) -> str:
    """In the unit that suits it, `2.1 ± 0.3 min`; the paper's numbers are hours."""
    size, unit, digits = (1, "h", 2) if hours >= 0.1 else (60, "min", 1) if hours >= 1 / 60 else (3600, "s", 1)
    spread = f" ± {size * deviation:.{digits}f}" if np.isfinite(deviation) else ""
    return f"{size * hours:.{digits}f}{spread} {unit}"
