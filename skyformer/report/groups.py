"""Runs of one configuration that differ in their seed only, and what to call them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from skyformer.report.published import task_place
from skyformer.report.read import Run
from skyformer.report.settings import Settings, differing, order, say, settings_of, short_names, usual
from skyformer.report.style import place, style_of


@dataclass(frozen=True)
class Group:
    """The seeds of one configuration.

    Attributes:
        task, backend: of all its runs.
        variant: settings by which it differs from other groups of its backend, by their short names; often none.
        settings: what its runs have in common.
        runs: all of them, finished or not, by folder.
    """

    task: str
    backend: str
    variant: Settings
    settings: Settings
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        """`Skyformer`, or `Skyformer, num_landmarks=64`."""
        return ", ".join([style_of(self.backend).label, *(f"{key}={say(self.variant[key])}" for key in self.variant)])

    @property
    def place(self) -> Any:
        """To sort by: methods in their order, numbers by size."""
        return place(self.backend), [(key, order(value)) for key, value in self.variant.items()]

    @cached_property
    def counted(self) -> tuple[Run, ...]:
        """The tested runs, by seed; of several with one seed the one that was started last."""
        latest = {run.seed: run for run in sorted(self._tested, key=lambda run: str(run.record.get("started", "")))}
        return tuple(latest[seed] for seed in sorted(latest, key=order))

    @property
    def _tested(self) -> list[Run]:
        return [run for run in self.runs if run.accuracy is not None]

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


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups by task, then in the order of the methods."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        settings = sorted((name, say(value)) for name, value in settings_of(run).items())
        found.setdefault(str((run.task, run.backend, settings)), []).append(run)
    plain = [Group(of[0].task, of[0].backend, {}, settings_of(of[0]), tuple(of)) for of in found.values()]
    groups = [replace(group, variant=_variant(group, plain)) for group in plain]
    return sorted(groups, key=lambda group: (task_place(group.task), group.place))


def _variant(group: Group, groups: Sequence[Group]) -> Settings:
    """What to name a group by: settings in which its backend's groups differ on some task.

    Those that belong to the task rather than to the attention, such as the rate, are not named where they are as in
    most groups of other backends.
    """
    keys = set()
    for task in {other.task for other in groups}:
        keys |= set(differing([g.settings for g in groups if (g.task, g.backend) == (task, group.backend)]))
    others = [other.settings for other in groups if other.task == group.task and other.backend != group.backend]
    variant = {}
    for key, name in short_names(sorted(keys)).items():
        value = group.settings.get(key)
        is_usual = bool(others) and say(value) == say(usual([settings.get(key) for settings in others]))
        if key in group.settings and (key.startswith("model.attention.") or not is_usual):
            variant[name] = value
    return variant


def in_rows(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of one label, over tasks; in the order of the methods."""
    rows: dict[str, list[Group]] = {}
    for group in sorted(groups, key=lambda group: group.place):
        rows.setdefault(group.label, []).append(group)
    return list(rows.values())


def tasks_of(groups: Sequence[Group]) -> list[str]:
    """The tasks, in the order of the published tables."""
    return sorted({group.task for group in groups}, key=task_place)
