"""What makes a cell of a table unlike its neighbours, in a few words."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from skyformer.report.groups import Group
from skyformer.report.published import departures
from skyformer.report.settings import say, short_names, usual

# The method's own, and what may be tuned for each: said where it differs, but no reason against a comparison.
_OWN = "model.attention."
_TUNED = ("model.optimizer.", "model.lr_scheduler")
_STEPS, _DATA, _EXAMPLES, _SEEDS = "steps", "data", "tested examples", "seeds"
_LONGEST = 3  # differences in a cell; the rest are counted


@dataclass(frozen=True)
class Remarks:
    """`words`: what to write into a cell. `is_comparable`: whether its number may be held against the column's."""

    words: tuple[str, ...]
    is_comparable: bool


def remarks(group: Group, column: Sequence[Group]) -> Remarks:
    """How a group differs from most groups of its task, and what of it is missing.

    Args:
        group: with or without tested runs.
        column: all groups of the task, this one among them.
    """
    left_out = _left_out(group)
    if not group.counted:
        return Remarks(tuple(left_out), False)
    facts, neighbours = _facts(group), [_facts(other) for other in column if other.counted]
    most = {key: usual([other.get(key) for other in neighbours]) for key in dict.fromkeys(chain(*neighbours))}
    unlike = [key for key in most if say(facts.get(key)) != say(most[key])]
    if _SEEDS in unlike and facts[_SEEDS] > most[_SEEDS]:
        unlike.remove(_SEEDS)
    names = short_names(unlike)
    words = [_say(key, names[key], facts.get(key), most[key]) for key in unlike]
    if len(words) > _LONGEST:
        words = [*words[:_LONGEST], f"{len(words) - _LONGEST} more settings differ"]
    stopped = [run for run in group.counted if not run.is_finished]
    if stopped:
        words.append(f"{len(stopped)} stopped before step {stopped[0].max_steps:,}")
    matters = [key for key in unlike if not key.startswith(_TUNED)]
    return Remarks((*words, *left_out), not matters and not stopped)


def _facts(group: Group) -> dict[str, Any]:
    """What the cells of a column should have in common."""
    facts: dict[str, Any] = {
        _SEEDS: len(group.counted),
        _STEPS: min(run.steps for run in group.counted),
        _EXAMPLES: min((run.result or {}).get("test/examples", 0) for run in group.counted),
        _DATA: tuple(sorted({str(run.record.get("data_hash")) for run in group.counted})),
    }
    shared = {key: value for key, value in group.settings.items() if not key.startswith((_OWN, "trainer.max_"))}
    return facts | shared


def _say(key: str, name: str, value: Any, most: Any) -> str:
    if key == _DATA:
        return "other data" if len(value) == 1 else "seeds of several data sets"
    if key in (_SEEDS, _STEPS, _EXAMPLES) and value < most:
        return f"{value:,} of {most:,} {key}"
    return f"{name} {say(value)}, not {say(most)}"


def _left_out(group: Group) -> list[str]:
    untested = [run for run in group.runs if run.accuracy is None]
    unfinished = sum(not run.is_finished for run in untested)
    words = [f"{unfinished} unfinished"] if unfinished else []
    words += [f"{len(untested) - unfinished} not tested"] if len(untested) > unfinished else []
    return words + [f"seed {seed} more than once, the latest counts" for seed in group.repeated_seeds]


def not_as_paper(group: Group) -> dict[str, str]:
    """In what a group departs from the paper's setting: each key in words, `batch 16 (paper: 32)`."""
    apart = departures(group.backend, group.task, group.settings)
    names = short_names(apart)
    return {key: f"{names[key]} {say(ours)} (paper: {say(theirs)})" for key, (ours, theirs) in apart.items()}
