"""The report's tables: accuracy (Table 1), cost (Table 2), and one row for each run."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from skyformer.installation import command_line
from skyformer.report import published
from skyformer.report.comparison import PaperNotes, code_notes, cost_not_as_paper, cost_remarks, not_as_paper, remarks
from skyformer.report.groups import Group, in_rows, tasks_of
from skyformer.report.runs import Run
from skyformer.report.settings import format_value
from skyformer.report.table import EMPTY, Cell, Table

_ACCURACY_RULES = (
    "Test accuracy of the best validation checkpoint in %: mean ± sample standard deviation (n − 1) over n seeds.",
    "Bold: the best mean of a column, among cells that are as most of the column: seeds, steps, data, tested examples, "
    "batch size, protocol, sizes of the model. The cell notes what differs; only the optimiser's settings may.",
    "Paper: Chen et al., NeurIPS 2021, Table 1, three seeds; after it ours less the paper's, in points.",
)

_MORE = "A name with … : more settings differ; runs.csv has all of them."


def accuracy_table(groups: Sequence[Group]) -> Table:
    """Methods by tasks; the average for those that have all tasks, where there are several."""
    tasks, rows, notes = tasks_of(groups), in_rows(groups), PaperNotes(groups, not_as_paper)
    best = {task: best_mean([group for group in groups if group.task == task]) for task in tasks}
    cells = []
    for row in rows:
        of_task = {group.task: group for group in row}
        cells.append(
            [_accuracy_cell(of_task[task], groups, best[task], notes) if task in of_task else EMPTY for task in tasks]
        )
    averaged = [task for task in tasks if task not in published.OTHER_TASKS]
    averaged_rows = [[group for group in row if group.task in averaged] for row in rows]
    averages = _average_cells(averaged_rows, groups, averaged, notes) if len(averaged) > 1 else []
    has_average = any(average != EMPTY for average in averages)
    if has_average:
        cells = [[*row, average] for row, average in zip(cells, averages, strict=True)]
    columns = ("Method", *map(published.task_name_of, tasks), *(["Average"] if has_average else []))
    more = [_MORE] if any(group.others for group in groups) else []
    return Table(
        "Accuracy", columns, tuple((row[0].label, tuple(own)) for row, own in zip(rows, cells, strict=True)),
        (*_ACCURACY_RULES, *more, *code_notes(groups), *notes.texts()),
    )  # fmt: skip


def _accuracy_cell(group: Group, groups: Sequence[Group], best: str | None, notes: PaperNotes) -> Cell:
    said = remarks(group, [other for other in groups if other.task == group.task])
    lines = list(said.words)
    if not group.counted:
        return Cell("–", tuple(lines))
    theirs = published.accuracy(group.backend, group.task)
    if theirs is not None:
        lines.append(f"paper {theirs:.2f}, {_signed(group.mean - theirs)}{notes.mark([group])}")
    n = len(group.counted)
    value = f"{group.mean:.2f} ± {group.deviation:.2f} (n={n})" if n > 1 else f"{group.mean:.2f} (n=1)"
    return Cell(value, tuple(lines), said.is_comparable and shown(group.mean) == best)


def best_mean(column: Sequence[Group]) -> str | None:
    """The best mean, as it is shown, of the comparable ones; None where there are not two of them."""
    means = [group.mean for group in column if group.counted and remarks(group, column).is_comparable]
    return shown(max(means)) if len(means) > 1 else None


def _average_cells(
    rows: Sequence[Sequence[Group]], groups: Sequence[Group], tasks: Sequence[str], notes: PaperNotes
) -> list[Cell]:
    averages = [_average(row, groups, tasks) for row in rows]
    fair = [mean for mean, is_fair in averages if is_fair]
    best = shown(max(fair)) if len(fair) > 1 else None
    return [
        _average_cell(row, mean, is_fair, best, notes) if np.isfinite(mean) else EMPTY
        for row, (mean, is_fair) in zip(rows, averages, strict=True)
    ]


def _average(row: Sequence[Group], groups: Sequence[Group], tasks: Sequence[str]) -> tuple[float, bool]:
    """The mean over all tasks, NaN where one is missing; whether each of them may be held against its column."""
    means = [group.mean for group in row]
    if len(row) < len(tasks) or not np.isfinite(means).all():
        return float("nan"), False
    fair = [remarks(group, [other for other in groups if other.task == group.task]).is_comparable for group in row]
    return float(np.mean(means)), all(fair)


def _average_cell(row: Sequence[Group], mean: float, is_fair: bool, best: str | None, notes: PaperNotes) -> Cell:
    lines = [] if is_fair else ["from unlike cells"]
    backend = row[0].backend
    if {group.task for group in row} == set(published.TASKS) and backend in published.AVERAGE:
        theirs = published.AVERAGE[backend]
        lines.append(f"paper {theirs:.2f}, {_signed(mean - theirs)}{notes.mark(row)}")
    return Cell(f"{mean:.2f}", tuple(lines), is_fair and shown(mean) == best)


def accuracy_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One row a cell, numbers in %, for CSV."""
    rows = []
    for group in groups:
        said = remarks(group, [other for other in groups if other.task == group.task])
        theirs = published.accuracy(group.backend, group.task)
        n = len(group.counted)
        rows.append(
            {
                "task": group.task,
                "method": group.label,
                "accuracy_mean": round(group.mean, 4) if n else "",
                "accuracy_std": round(group.deviation, 4) if n > 1 else "",
                "n": n,
                "seeds": " ".join(str(run.seed) for run in group.counted),
                "steps": min((run.steps for run in group.counted), default=""),
                "paper": "" if theirs is None else theirs,
                "difference": "" if theirs is None or not n else round(group.mean - theirs, 4),
                "comparable": said.is_comparable,
                "remarks": "; ".join(said.words),
                "not_as_paper": "; ".join(not_as_paper(group).values()),
            }
        )
    return rows


def shown(mean: float | None) -> str | None:
    """A mean as the tables show it."""
    return None if mean is None else f"{mean:.2f}"


def _signed(difference: float) -> str:
    return f"{difference:+.2f}".replace("-", "−")


_COST_RULES = (
    "Hours of training without evaluation: steps by their logged examples a second, so that the time in which a run "
    "stood still does not count. Mean ± sample standard deviation (n − 1) over the n runs of the most steps, finished "
    "or not. Runs at the same time share the machine, and take longer for it.",
    f"≈: the same speed for {published.STEPS:,} steps, extrapolated. GB of a billion bytes: peak memory, of the "
    "process on a CPU, allocated on a GPU.",
    f"Paper: Chen et al., NeurIPS 2021, Table 2: hours of {published.STEPS:,} steps and memory on one V100 GPU. Its "
    "released code recomputes the attention in the backward pass (gradient checkpointing) for softmax alone, which "
    "saves memory and costs time.",
)


def cost_table(groups: Sequence[Group]) -> Table:
    """Methods by tasks."""
    tasks, notes = tasks_of(groups), PaperNotes(groups, cost_not_as_paper)
    usual = Counter(run.device for group in groups for run in group.runs).most_common(1)[0][0]
    rows = []
    for row in in_rows(groups):
        of_task = {group.task: group for group in row}
        cells = [_cost_cell(of_task[task], groups, usual, notes) if task in of_task else EMPTY for task in tasks]
        rows.append((row[0].label, tuple(cells)))
    where = f"Ran on: {usual}, unless the cell says otherwise."
    columns = ("Method", *map(published.task_name_of, tasks))
    under = (where, *_COST_RULES, *code_notes(groups), *notes.texts())
    return Table("Time and memory", columns, tuple(rows), under)


def _cost_cell(group: Group, groups: Sequence[Group], usual: str, notes: PaperNotes) -> Cell:
    costs = cost_of(group)
    if not costs:
        return Cell("–", ("no speed logged",))
    lines = [
        f"{costs['steps']:,} steps (n={costs['n']})",
        f"≈ {duration(costs['hours_50k'])} for {published.STEPS:,}",
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
    return Cell(duration(costs["hours"], costs["hours_std"]), tuple(lines))


def cost_of(group: Group) -> dict[str, Any]:
    """Return hours, peak GB and steps of the longest runs with logged speed; empty without any.

    A mean over runs of different lengths would be meaningless.
    """
    timed = [run for run in group.runs if np.isfinite(run.hours)]
    steps = max((run.steps for run in timed), default=0)
    kept = [run for run in timed if run.steps == steps]
    if not kept:
        return {}
    hours = np.array([run.hours for run in kept])
    return {
        "n": len(kept),
        "steps": steps,
        "left_out": len(timed) - len(kept),
        "hours": float(hours.mean()),
        "hours_std": float(hours.std(ddof=1)) if len(kept) > 1 else float("nan"),
        "hours_50k": float(hours.mean()) / steps * published.STEPS,
        "peak_gb": float(np.mean([run.peak_memory_gb for run in kept])),  # NaN if one of them is
    }


def _devices(group: Group) -> list[str]:
    return sorted({run.device for run in group.runs})


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


def duration(hours: float, deviation: float = float("nan")) -> str:
    """Format hours in a suitable unit, `2.1 ± 0.3 min`."""
    size, unit, digits = (1, "h", 2) if hours >= 0.1 else (60, "min", 1) if hours >= 1 / 60 else (3600, "s", 1)
    spread = f" ± {size * deviation:.{digits}f}" if np.isfinite(deviation) else ""
    return f"{size * hours:.{digits}f}{spread} {unit}"


def run_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One row a run, plain numbers, for CSV; empty where something is not known."""
    return [_row(group, run) for group in groups for run in group.runs]


def _row(group: Group, run: Run) -> dict[str, Any]:
    return {
        "task": group.task,
        "method": group.label,
        "settings": "; ".join(
            f"{name}={format_value(value)}" for name, value in (group.variant | group.others).items()
        ),
        "seed": run.seed,
        "steps": run.steps,
        "max_steps": run.max_steps,
        "stopped_early": run.stopped_early.get("reason", ""),
        "batch": run.examples_per_step * run.num_processes or "",
        **_result(run),
        **_made_with(run),
        "folder": str(run.folder),
        "problems": "; ".join(run.problems),
    }


def _result(run: Run) -> dict[str, Any]:
    """Return a run's accuracy, loss, time and memory as cells."""
    result = run.result or {}
    return {
        "test_accuracy": result.get("test/accuracy", ""),
        "test_loss": result.get("test/loss", ""),
        "test_examples": result.get("test/examples", ""),
        "best_validation_accuracy": _round(run.best_validation),
        "hours": _round(run.hours),
        "peak_gb": _round(run.peak_memory_gb),
    }


def _made_with(run: Run) -> dict[str, Any]:
    """Machine, code, data and command; of the last start, where they are not of all."""
    code, versions = run.record.get("code") or {}, run.record.get("versions") or {}
    return {
        "device": run.device,
        "commit": code.get("commit") or "",
        "dirty": "" if code.get("dirty") is None else code["dirty"],
        "data_hash": run.record.get("data_hash") or "",
        "torch": versions.get("torch") or "",
        "started": (run.records[0] if run.records else {}).get("started", ""),
        "starts": len(run.records),
        "command": command_of(run.record),
    }


def command_of(record: dict[str, Any]) -> str:
    """The command line of a start, to be typed again."""
    return command_line([str(word) for word in record.get("command") or []])


def _round(number: float) -> Any:
    return float(f"{number:.6g}") if np.isfinite(number) else ""
