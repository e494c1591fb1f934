"""Table 1: test accuracy, mean and standard deviation over seeds, beside the paper's."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skyformer.report import published
from skyformer.report.comparison import not_as_paper, remarks
from skyformer.report.groups import Group, in_rows, tasks_of
from skyformer.report.notes import PaperNotes, code_notes
from skyformer.report.table import EMPTY, Cell, Table

_RULES = (
    "Test accuracy of the best dev checkpoint in %: mean ± sample standard deviation (n − 1) over n seeds.",
    "Bold: the best mean of a column, among cells that are as most of the column: seeds, steps, data, tested examples, "
    "batch size, protocol, sizes of the model. What differs is said in the cell; only the optimiser's settings may.",
    "Paper: Chen et al., NeurIPS 2021, Table 1, three seeds; after it ours less the paper's, in points.",
)

_MORE = "A name with … : more settings differ; runs.csv has all of them."


def accuracy_table(groups: Sequence[Group]) -> Table:
    """Methods by tasks; the average for those that have all tasks, where there are several."""
    tasks, rows, notes = tasks_of(groups), in_rows(groups), PaperNotes(groups, not_as_paper)
    best = {task: _best([group for group in groups if group.task == task]) for task in tasks}
    cells = []
    for row in rows:
        of_task = {group.task: group for group in row}
        cells.append([_cell(of_task[task], groups, best[task], notes) if task in of_task else EMPTY for task in tasks])
    averages = _average_cells(rows, groups, tasks, notes) if len(tasks) > 1 else []
    has_average = any(average != EMPTY for average in averages)
    if has_average:
        cells = [[*row, average] for row, average in zip(cells, averages, strict=True)]
    columns = ("Method", *map(published.task_name_of, tasks), *(["Average"] if has_average else []))
    more = [_MORE] if any(group.others for group in groups) else []
    return Table(
        "Accuracy", columns, tuple((row[0].label, tuple(own)) for row, own in zip(rows, cells, strict=True)),
        (*_RULES, *more, *code_notes(groups), *notes.texts()),
    )  # fmt: skip


def _cell(group: Group, groups: Sequence[Group], best: str | None, notes: PaperNotes) -> Cell:
    said = remarks(group, [other for other in groups if other.task == group.task])
    lines = list(said.words)
    if not group.counted:
        return Cell("–", tuple(lines))
    theirs = published.accuracy(group.backend, group.task)
    if theirs is not None:
        lines.append(f"paper {theirs:.2f}, {_signed(group.mean - theirs)}{notes.mark([group])}")
    n = len(group.counted)
    value = f"{group.mean:.2f} ± {group.deviation:.2f} (n={n})" if n > 1 else f"{group.mean:.2f} (n=1)"
    return Cell(value, tuple(lines), said.is_comparable and _shown(group.mean) == best)


def _best(column: Sequence[Group]) -> str | None:
    """The best mean, as it is shown, of the comparable ones; None where there are not two of them."""
    means = [group.mean for group in column if group.counted and remarks(group, column).is_comparable]
    return _shown(max(means)) if len(means) > 1 else None


def _average_cells(
    rows: Sequence[Sequence[Group]], groups: Sequence[Group], tasks: Sequence[str], notes: PaperNotes
) -> list[Cell]:
    averages = [_average(row, groups, tasks) for row in rows]
    fair = [mean for mean, is_fair in averages if is_fair]
    best = _shown(max(fair)) if len(fair) > 1 else None
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
    return Cell(f"{mean:.2f}", tuple(lines), is_fair and _shown(mean) == best)


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


def _shown(mean: float | None) -> str | None:
    return None if mean is None else f"{mean:.2f}"


def _signed(difference: float) -> str:
    return f"{difference:+.2f}".replace("-", "−")
