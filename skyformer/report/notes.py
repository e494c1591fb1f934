"""What stands under a table: where a column or a cell is not in the paper's setting, and what code the runs are of."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from skyformer.report import published
from skyformer.report.groups import Group, tasks_of

_MOST_COMMITS = 4  # named; the rest are counted


class PaperNotes:
    """Footnotes on what is not the paper's setting: one for what a whole column shares, one for what is a cell's own.

    Args:
        groups: of all columns.
        not_as_paper: a group's departures, each in words, by their keys.
    """

    def __init__(self, groups: Sequence[Group], not_as_paper: Callable[[Group], Mapping[str, str]]) -> None:
        self.not_as_paper = not_as_paper
        self.shared: dict[str, set[str]] = {}
        for task in tasks_of(groups):
            apart = [not_as_paper(g) for g in groups if g.task == task and published.accuracy(g.backend, task)]
            texts = [set(one.values()) for one in apart]
            self.shared[task] = set.intersection(*texts) if texts else set()
        self.letters: dict[tuple[str, ...], str] = {}

    def mark(self, groups: Sequence[Group]) -> str:
        """` (a,c)`, all letters of these groups; empty where they are in the paper's setting."""
        letters = {letter for group in groups for letter in self._letters_of(group)}
        return f" ({','.join(sorted(letters))})" if letters else ""

    def _letters_of(self, group: Group) -> list[str]:
        words, shared = self.not_as_paper(group).values(), self.shared[group.task]
        parts = [tuple(word for word in words if word in shared), tuple(word for word in words if word not in shared)]
        return [self.letters.setdefault(part, _letter(len(self.letters))) for part in parts if part]

    def texts(self) -> list[str]:
        """The footnotes that were marked."""
        return [f"({letter}) Not as in the paper: {', '.join(words)}." for words, letter in self.letters.items()]


def _letter(number: int) -> str:
    """a, b, …, z, aa, ab, …"""
    return (_letter(number // 26 - 1) if number > 25 else "") + "abcdefghijklmnopqrstuvwxyz"[number % 26]


def code_notes(groups: Sequence[Group]) -> list[str]:
    """That the runs are of several commits, or of code that was not committed; empty where all are of one commit."""
    states = [[record.get("code") or {} for record in run.records] for group in groups for run in group.runs]
    commits = Counter(name for codes in states for name in {str(code.get("commit") or "not known") for code in codes})
    changed = sum(any(code.get("dirty") for code in codes) for codes in states)
    notes = []
    if len(commits) > 1:
        named = [f"{commit[:9]} ({count})" for commit, count in commits.most_common(_MOST_COMMITS)]
        more = [f"{len(commits) - _MOST_COMMITS} more"] if len(commits) > _MOST_COMMITS else []
        notes.append(f"Runs are of several commits, with the number of runs: {', '.join([*named, *more])}.")
    if changed:
        notes.append(f"{changed} of {len(states)} runs were made by code with changes that were not committed.")
    return notes
