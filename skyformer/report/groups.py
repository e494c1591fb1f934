"""Group runs that differ only in their seed, and name the groups by the settings in which they differ."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from skyformer.report.published import task_place
from skyformer.report.runs import Run
from skyformer.report.settings import (
    Settings,
    differing,
    format_value,
    most_frequent,
    order,
    settings_of,
    short_names,
    unequal,
)
from skyformer.report.style import place, style_of


@dataclass(frozen=True)
class Group:
    """The seeds of one configuration.

    Attributes:
        task, backend: those of all its runs.
        settings: those that its runs share.
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
        named = [f"{name}={format_value(value)}" for name, value in self.variant.items()]
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
        """The seeds of all its runs, each once."""
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
        """The mean accuracy, in %; NaN without one."""
        return float(self.accuracies.mean()) if self.counted else float("nan")

    @property
    def deviation(self) -> float:
        """Their sample standard deviation (n − 1), in %; NaN below two."""
        return float(self.accuracies.std(ddof=1)) if len(self.counted) > 1 else float("nan")


def latest_of_seeds(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Return one run for each seed, in their order: the one that was started last."""
    latest = {run.seed: run for run in sorted(runs, key=lambda run: str(run.record.get("started", "")))}
    return tuple(latest[seed] for seed in sorted(latest, key=order))


def unnamed_groups(runs: Sequence[Run]) -> list[Group]:
    """Group runs of equal settings, in the order of the runs; `group_runs` names the groups."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        # Treat a missing setting, and an empty list, as None: configurations of an earlier version lack newer keys.
        present = {name: value for name, value in settings_of(run).items() if value not in (None, [])}
        settings = sorted((name, format_value(value)) for name, value in present.items())
        found.setdefault(str((run.task, run.backend, settings)), []).append(run)
    return [Group(of[0].task, of[0].backend, settings_of(of[0]), tuple(of)) for of in found.values()]


def in_rows(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups of one label, over tasks; in the order of the methods.

    Raises:
        ValueError: for two groups of one label on a task: a table would show one only.
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


_ATTENTION = "model.attention."
# Of keys that tell groups apart as well, the first of these is named.
_PREFERRED = (_ATTENTION, "batch", "trainer.max_steps", "model.optimizer", "model.", "data.")


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """The seeds of each configuration, by task, then in the order of the methods.

    The `variant` of a group has the fewest settings that distinguish the groups of a method on a task.

    It names a setting of the attention on all tasks. It names other settings, such as the rate, where they distinguish
    groups and differ from most groups of other methods. Further differences are in `others`.
    """
    groups = unnamed_groups(runs)
    chosen = {(group.task, group.backend): _distinguishing_keys(_of_same_cell(group, groups)) for group in groups}
    named = [_named(group, groups, chosen) for group in groups]
    return sorted(named, key=lambda group: (task_place(group.task), group.place))


def _of_same_cell(group: Group, groups: Sequence[Group]) -> list[Group]:
    return [other for other in groups if (other.task, other.backend) == (group.task, group.backend)]


def _distinguishing_keys(groups: Sequence[Group]) -> list[str]:
    """Keys, as few as a greedy search finds, whose values are together different in each group."""
    settings = [group.settings for group in groups]
    found: list[str] = []
    # Arguments of different classes say little, unless two groups have the same class.
    for keys in (differing(settings), unequal(settings)):
        left = sorted(set(keys) - set(found), key=_preference)
        while left and _kinds(groups, found) < len(groups):
            best = max(left, key=lambda key: _kinds(groups, [*found, key]))
            left.remove(best)
            found.append(best)
    return sorted(found, key=_preference)


def _preference(key: str) -> tuple[int, str]:
    return next((place for place, start in enumerate(_PREFERRED) if key.startswith(start)), len(_PREFERRED)), key


def _kinds(groups: Sequence[Group], keys: Sequence[str]) -> int:
    return len({tuple(format_value(group.settings.get(key)) for key in keys) for group in groups})


def _named(group: Group, groups: Sequence[Group], chosen: dict[tuple[str, str], list[str]]) -> Group:
    own = chosen[group.task, group.backend]
    elsewhere = [key for (_, backend), keys in chosen.items() if backend == group.backend for key in keys]
    keys = list(dict.fromkeys([*own, *(key for key in elsewhere if key.startswith(_ATTENTION))]))
    names = short_names(keys)
    # One that the group lacks tells it apart from those that have it; on other tasks it says nothing.
    known = [key for key in keys if key in own or key in group.settings]
    shown = [key for key in known if key.startswith(_ATTENTION) or not _is_usual(key, group, groups)]
    differ = differing([other.settings for other in _of_same_cell(group, groups)])
    rest = short_names([key for key in differ if key not in keys])
    return replace(
        group,
        variant={names[key]: group.settings.get(key) for key in shown},
        others={name: group.settings.get(key) for key, name in rest.items()},
    )


def _is_usual(key: str, group: Group, groups: Sequence[Group]) -> bool:
    """Return whether most other methods have the same value on this task."""
    others = [other for other in groups if other.task == group.task and other.backend != group.backend]
    return bool(others) and format_value(group.settings.get(key)) == format_value(
        most_frequent([other.settings.get(key) for other in others])
    )
