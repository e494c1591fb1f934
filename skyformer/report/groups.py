"""Runs of one configuration that differ in their seed only, and what to call them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from skyformer.report.published import task_place
from skyformer.report.run import Run
from skyformer.report.settings import Settings, order, say, settings_of
from skyformer.report.style import place, style_of


@dataclass(frozen=True)
class Group:
    """The seeds of one configuration.

    Attributes:
        task, backend: of all its runs.
        settings: what its runs have in common.
        runs: all of them, finished or not, by folder.
        variant: settings that name it among other groups of its backend, by their short names; often none.
        others: settings in which it differs from those as well.
    """

    task: str
    backend: str
    settings: Settings
    runs: tuple[Run, ...]
    variant: Settings = field(default_factory=dict)
    others: Settings = field(default_factory=dict)

    @property
    def label(self) -> str:
        """`Skyformer`, or `Skyformer, num_landmarks=64`; with `…` where more differs."""
        named = [f"{name}={say(value)}" for name, value in self.variant.items()]
        return ", ".join([style_of(self.backend).label, *named, *(["…"] if self.others else [])])

    @property
    def place(self) -> Any:
        """To sort by: methods in their order, numbers by size."""
        return place(self.backend), [(key, order(value)) for key, value in self.variant.items()]

    @cached_property
    def counted(self) -> tuple[Run, ...]:
        """The tested runs, by seed; of several with one seed the one that was started last."""
        return latest_of_seeds(self._tested)

    @property
    def _tested(self) -> list[Run]:
        return [run for run in self.runs if run.accuracy is not None]

    @property
    def seeds(self) -> list[Any]:
        """Of all its runs, each once."""
        return list(dict.fromkeys(run.seed for run in self.runs))

    @property
    def repeated_seeds(self) -> list[Any]:
        """Seeds with more than one tested run."""
        counts = Counter(run.seed for run in self._tested)
        return [seed for seed, count in counts.items() if count > 1]

    @property
    def accuracies(self) -> np.ndarray:
        """`(n,)`: test accuracies of the counted runs, in %."""
        return np.array([100 * float(run.accuracy or 0) for run in self.counted])

    @property
    def mean(self) -> float:
        """Of the accuracies, in %; NaN where there is none."""
        return float(self.accuracies.mean()) if self.counted else float("nan")

    @property
    def deviation(self) -> float:
        """Their sample standard deviation (n − 1), in %; NaN below two."""
        return float(self.accuracies.std(ddof=1)) if len(self.counted) > 1 else float("nan")


def latest_of_seeds(runs: Sequence[Run]) -> tuple[Run, ...]:
    """By seed; of several with one seed the one that was started last."""
    latest = {run.seed: run for run in sorted(runs, key=lambda run: str(run.record.get("started", "")))}
    return tuple(latest[seed] for seed in sorted(latest, key=order))


def unnamed_groups(runs: Sequence[Run]) -> list[Group]:
    """In the order of the runs; `report.naming` names them."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        # A setting that is missing is none: configurations of an earlier version lack what was added since.
        settings = sorted((name, say(value)) for name, value in settings_of(run).items() if value is not None)
        found.setdefault(str((run.task, run.backend, settings)), []).append(run)
    return [Group(of[0].task, of[0].backend, settings_of(of[0]), tuple(of)) for of in found.values()]


def in_rows(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of one label, over tasks; in the order of the methods.

    Raises:
        ValueError: for two groups of one label on a task, of which a table would show one only.
    """
    rows: dict[str, dict[str, Group]] = {}
    for group in sorted(groups, key=lambda group: group.place):
        row = rows.setdefault(group.label, {})
        if group.task in row:
            raise ValueError(f"two groups of runs on {group.task} are called {group.label!r}")
        row[group.task] = group
    return [list(row.values()) for row in rows.values()]


def tasks_of(groups: Sequence[Group]) -> list[str]:
    """The tasks, in the order of the published tables."""
    return sorted({group.task for group in groups}, key=task_place)
