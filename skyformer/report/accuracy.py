"""Table 1: test accuracy, mean and standard deviation over seeds, beside the paper's."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from skyformer.report import published
from skyformer.report.comparison import not_as_paper, remarks
from skyformer.report.groups import Group, in_rows, tasks_of
from skyformer.report.table import EMPTY, Cell, Table

_RULES = (
    "Test accuracy of the best dev checkpoint in %: mean ± sample standard deviation (n − 1) over n seeds.",
    "Bold: the best mean of a column, among cells that are as most of the column: seeds, steps, data, tested examples, "
    "batch size, protocol, sizes of the model. What differs is said in the cell; only the optimiser's settings may.",
    "Paper: Chen et al., NeurIPS 2021, Table 1, three seeds; after it ours less the paper's, in points.",
)

_MORE = "A name with … : more settings differ; runs.csv has all of them."


class _Notes:
    """Footnotes on what is not the paper's setting: one for what a whole column shares, one for what is a cell's own.

    Args:
        groups: of all columns.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.shared: dict[str, set[str]] = {}
        for task in tasks_of(groups):
            apart = [not_as_paper(g) for g in groups if g.task == task and published.accuracy(g.backend, task)]
            texts = [set(one.values()) for one in apart]
            self.shared[task] = set.intersection(*texts) if texts else set()
        self.letters: dict[tuple[str, ...], str] = {}

    def mark(self, group: Group) -> str:
        """` (a, c)`; empty for a group in the paper's setting."""
        words, shared = not_as_paper(group).values(), self.shared[group.task]
        parts = [tuple(word for word in words if word in shared), tuple(word for word in words if word not in shared)]
        letters = [self.letters.setdefault(part, _letter(len(self.letters))) for part in parts if part]
        return f" ({', '.join(sorted(letters))})" if letters else ""

    def texts(self) -> list[str]:
        """The footnotes that were marked."""
        return [f"({letter}) Not as in the paper: {', '.join(words)}." for words, letter in self.letters.items()]


def accuracy_table(groups: Sequence[Group]) -> Table:
    """Methods by tasks; the average for those that have all tasks, where there are several."""
    tasks = tasks_of(groups)
    best = {task: _best([group for group in groups if group.task == task]) for task in tasks}
    notes = _Notes(groups)
    rows = []
    for row in in_rows(groups):
        of_task = {group.task: group for group in row}
        cells = [_cell(of_task[task], groups, best[task], notes) if task in of_task else EMPTY for task in tasks]
        rows.append((row[0].label, row, cells))
    averages = [_average(row, groups, tasks) for _, row, _ in rows]
    has_average = len(tasks) > 1 and any(np.isfinite(mean) for mean, _ in averages)
    if has_average:
        top = max((mean for mean, fair in averages if fair), default=None)
        for (_, row, cells), (mean, fair) in zip(rows, averages, strict=True):
            cells.append(_average_cell(row[0].backend, mean, fair and _shown(mean) == _shown(top), tasks))
    columns = ("Method", *map(published.task_name_of, tasks), *(["Average"] if has_average else []))
    return Table(
        "Accuracy", columns, tuple((label, tuple(cells)) for label, _, cells in rows),
        (*_RULES, *([_MORE] if any(group.others for group in groups) else []), *notes.texts()),
    )  # fmt: skip


def _cell(group: Group, groups: Sequence[Group], best: str | None, notes: _Notes) -> Cell:
    said = remarks(group, [other for other in groups if other.task == group.task])
    lines = list(said.words)
    if not group.counted:
        return Cell("–", tuple(lines))
    theirs = published.accuracy(group.backend, group.task)
    if theirs is not None:
        lines.append(f"paper {theirs:.2f}, {_signed(group.mean - theirs)}{notes.mark(group)}")
    n = len(group.counted)
    value = f"{group.mean:.2f} ± {group.deviation:.2f} (n={n})" if n > 1 else f"{group.mean:.2f} (n=1)"
    return Cell(value, tuple(lines), said.is_comparable and _shown(group.mean) == best)


def _best(column: Sequence[Group]) -> str | None:
    """The best mean, as it is shown, of the comparable ones; None where there are not two of them."""
    means = [group.mean for group in column if group.counted and remarks(group, column).is_comparable]
    return _shown(max(means)) if len(means) > 1 else None


def _average(row: Sequence[Group], groups: Sequence[Group], tasks: Sequence[str]) -> tuple[float, bool]:
    """The mean over all tasks, NaN where one is missing; whether each of them may be held against its column."""
    means = [group.mean for group in row]
    if len(row) < len(tasks) or not np.isfinite(means).all():
        return float("nan"), False
    fair = [remarks(group, [other for other in groups if other.task == group.task]).is_comparable for group in row]
    return float(np.mean(means)), all(fair)


def _average_cell(backend: str, mean: float, is_best: bool, tasks: Sequence[str]) -> Cell:
    if not np.isfinite(mean):
        return EMPTY
    lines = []
    if set(tasks) == set(published.TASKS) and backend in published.AVERAGE:
        theirs = published.AVERAGE[backend]
        lines = [f"paper {theirs:.2f}, {_signed(mean - theirs)}"]
    return Cell(_shown(mean) or "", tuple(lines), is_best)


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


def _letter(number: int) -> str:
    """a, b, …, z, aa, ab, …"""
    return (_letter(number // 26 - 1) if number > 25 else "") + "abcdefghijklmnopqrstuvwxyz"[number % 26]
