"""What to call groups of one method that differ in more than the seed."""

from collections.abc import Sequence
from dataclasses import replace

from skyformer.report.groups import Group, unnamed_groups
from skyformer.report.published import task_place
from skyformer.report.run import Run
from skyformer.report.settings import differing, say, short_names, unequal, usual

_ATTENTION = "model.attention."
# Of keys that tell groups apart as well, the first of these is named.
_PREFERRED = (_ATTENTION, "batch", "trainer.max_steps", "model.optimizer", "model.", "data.")


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """The seeds of each configuration, by task, then in the order of the methods.

    Each is named by its `variant`: as few settings as tell the groups of a method on a task apart.

    A setting of the attention is then named on all tasks. Others, such as the rate, belong to the task: they are named
    where they tell apart, unless they are as in most groups of other methods. What else differs is in `others`.
    """
    groups = unnamed_groups(runs)
    chosen = {(group.task, group.backend): _telling(_alike(group, groups)) for group in groups}
    named = [_named(group, groups, chosen) for group in groups]
    return sorted(named, key=lambda group: (task_place(group.task), group.place))


def _alike(group: Group, groups: Sequence[Group]) -> list[Group]:
    return [other for other in groups if (other.task, other.backend) == (group.task, group.backend)]


def _telling(groups: Sequence[Group]) -> list[str]:
    """Keys, as few as a greedy search finds, whose values are together different in each group."""
    settings = [group.settings for group in groups]
    found: list[str] = []
    # Arguments of differing classes say little, unless two groups have the same class.
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
    return len({tuple(say(group.settings.get(key)) for key in keys) for group in groups})


def _named(group: Group, groups: Sequence[Group], chosen: dict[tuple[str, str], list[str]]) -> Group:
    own = chosen[group.task, group.backend]
    elsewhere = [key for (_, backend), keys in chosen.items() if backend == group.backend for key in keys]
    keys = list(dict.fromkeys([*own, *(key for key in elsewhere if key.startswith(_ATTENTION))]))
    names = short_names(keys)
    # One that the group lacks tells it apart from those that have it; on other tasks it says nothing.
    known = [key for key in keys if key in own or key in group.settings]
    shown = [key for key in known if key.startswith(_ATTENTION) or not _is_usual(key, group, groups)]
    differ = differing([other.settings for other in _alike(group, groups)])
    rest = short_names([key for key in differ if key not in keys])
    return replace(
        group,
        variant={names[key]: group.settings.get(key) for key in shown},
        others={name: group.settings.get(key) for key, name in rest.items()},
    )


def _is_usual(key: str, group: Group, groups: Sequence[Group]) -> bool:
    """Whether other methods mostly have the same on this task."""
    others = [other for other in groups if other.task == group.task and other.backend != group.backend]
    return bool(others) and say(group.settings.get(key)) == say(usual([other.settings.get(key) for other in others]))
