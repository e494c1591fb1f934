"""Compare the settings of runs with each other and with the paper, in remarks and notes."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from skyformer.report import published
from skyformer.report.groups import Group, tasks_of
from skyformer.report.published import LEVELS, SOURCE, departures
from skyformer.report.runs import Run
from skyformer.report.settings import format_value, most_frequent, short_names, without_arguments

# The method's own, and what may be tuned for each: said where it differs, but no reason against a comparison.
_ATTENTION = "model.attention."
_HYPERPARAMETERS = ("model.optimizer.", "model.lr_scheduler", "model.positions_lr_factor")
_STEPS, _DATA, _EXAMPLES, _SEEDS = "steps", "data", "tested examples", "seeds"
_UNKNOWN = ("None",)  # data of runs that recorded no hash
# What a step's time and memory do not depend on.
_NO_COST = (
    *_HYPERPARAMETERS,
    "best_checkpoint",
    "data.init_args.val_size",
    "data.init_args.protocol.val_is_test",
    "data.init_args.protocol.drop_last_test",
    "data.init_args.protocol.published_val_size",
    "data.init_args.test_size",
    "data.init_args.train_size",
    "model.attention.init_args.eval_landmarks",
    "trainer.check_val_every_n_epoch",
    "trainer.limit_val_batches",
    "trainer.max_",
    "trainer.val_check_",
)
_FASTER = ("gradient_checkpointing", "compile", "cuda_graph")  # free between seeds: weights do not depend on them
Facts = dict[str, Any]
_LONGEST = 3  # differences in a cell; the rest are counted


@dataclass(frozen=True)
class Remarks:
    """`words`: the text of a cell. `is_comparable`: whether its number is comparable with the column's."""

    words: tuple[str, ...]
    is_comparable: bool


def remarks(group: Group, column: Sequence[Group]) -> Remarks:
    """Describe how a group differs from most groups of its task, and its missing runs.

    Args:
        group: with or without tested runs.
        column: all groups of the task, this one among them.
    """
    left_out = _left_out(group)
    if not group.counted:
        return Remarks(tuple(left_out), False)
    facts, most = _facts(group), _majority([_facts(other) for other in column if other.counted])
    unlike = _differing_keys(facts, most)
    if _SEEDS in unlike and facts[_SEEDS] > most[_SEEDS]:
        unlike.remove(_SEEDS)
    words = _words(unlike, facts, most)
    stopped = [run for run in group.counted if not run.is_finished]
    if stopped:
        words.append(f"{len(stopped)} stopped before step {stopped[0].max_steps:,}")
    early = [run for run in group.counted if run.stopped_early]
    if early:
        words.append(f"{len(early)} stopped early, the first at step {min(run.steps for run in early):,}")
    matters = [key for key in unlike if not key.startswith(_HYPERPARAMETERS)]
    return Remarks((*words, *left_out), not matters and not stopped and not early)


def cost_remarks(group: Group, column: Sequence[Group]) -> tuple[str, ...]:
    """Describe how a group differs from most groups of its task in settings that affect time and memory."""
    facts, most = _cost_facts(group), _majority([_cost_facts(other) for other in column])
    return tuple(_words(_differing_keys(facts, most), facts, most))


def _majority(facts: Sequence[Facts]) -> Facts:
    most = {key: most_frequent([one.get(key) for one in facts]) for key in dict.fromkeys(chain(*facts))}
    known = [one[_DATA] for one in facts if one[_DATA] != _UNKNOWN]
    return most | {_DATA: most_frequent(known)} if known else most


def _differing_keys(facts: Facts, most: Facts) -> list[str]:
    return without_arguments([key for key in most if format_value(facts.get(key)) != format_value(most[key])])


def _words(unlike: Sequence[str], facts: Facts, most: Facts) -> list[str]:
    names = short_names(unlike)
    words = [_say(key, names[key], facts.get(key), most[key]) for key in unlike]
    if len(words) > _LONGEST:
        more = len(words) - _LONGEST
        words = [*words[:_LONGEST], f"{more} more settings differ" if more > 1 else "1 more setting differs"]
    # What all of a column share is no difference, but no mean over one thing either.
    several = [key for key, value in facts.items() if _is_several(value) and key not in unlike]
    return words + [_say_several(key, facts[key]) for key in several]


def _facts(group: Group) -> Facts:
    """Return the settings that all cells of a column should share."""
    facts: Facts = {
        _SEEDS: len(group.counted),
        _STEPS: min(run.steps for run in group.counted),
        _EXAMPLES: _one_or_all((run.result or {}).get("test/examples", 0) for run in group.counted),
        _DATA: _data_of(group.counted),
    }
    shared = {key: value for key, value in group.settings.items() if not key.startswith((_ATTENTION, "trainer.max_"))}
    return facts | shared


def _cost_facts(group: Group) -> Facts:
    """Return the settings that affect a step's time and memory, apart from method and machine."""
    facts: Facts = {
        _DATA: _data_of(group.runs),
        "processes": _one_or_all(run.num_processes for run in group.runs),
        **{f"model.{name}": _one_or_all(bool(run.config["model"].get(name)) for run in group.runs) for name in _FASTER},
    }
    shared = {key: value for key, value in group.settings.items() if not key.startswith((_ATTENTION, *_NO_COST))}
    return facts | shared


def _one_or_all(values: Iterable[int]) -> int | tuple[int, ...]:
    """Return the value that all share, or else each value once, in order."""
    found = sorted(set(values))
    return found[0] if len(found) == 1 else tuple(found)


def _data_of(runs: Sequence[Run]) -> tuple[str, ...]:
    return tuple(sorted({str(run.record.get("data_hash")) for run in runs}))


def _say(key: str, name: str, value: Any, most: Any) -> str:
    if key == _DATA and value == _UNKNOWN:
        return "data not known"
    if _is_several(value):
        return _say_several(key, value)
    if key == _DATA:
        return "other data"
    if key in (_SEEDS, _STEPS, _EXAMPLES) and not _is_several(most) and value < most:
        return f"{value:,} of {most:,} {key}"
    return f"{name} {format_value(value)}, not {format_value(most)}"


def _is_several(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 1


def _say_several(key: str, values: Sequence[Any]) -> str:
    """`seeds with compile false and true`."""
    if key == _DATA:
        return "seeds of several data sets"
    (name,) = short_names([key]).values()
    return f"seeds with {name} {' and '.join(map(format_value, values))}"


def _left_out(group: Group) -> list[str]:
    untested = [run for run in group.runs if run.accuracy is None]
    unfinished = sum(not run.is_finished for run in untested)
    words = [f"{unfinished} unfinished"] if unfinished else []
    words += [f"{len(untested) - unfinished} not tested"] if len(untested) > unfinished else []
    return words + [f"seed {seed} more than once, the latest counts" for seed in group.repeated_seeds]


def not_as_paper(group: Group) -> dict[str, str]:
    """Describe how a group departs from the paper's setting, by key: `batch 16 (paper: 32)`."""
    sources = [(run.config["data"].get("init_args") or {}).get("source") for run in group.runs]
    read_from = {SOURCE: None if None in sources else sources[0]}
    apart = departures(group.backend, group.task, group.settings | read_from)
    names = short_names(apart)
    words = {
        key: f"{names[key]} {format_value(ours)} (paper: {format_value(theirs)})"
        for key, (ours, theirs) in apart.items()
    }
    return words | {
        key: f"{names[key]} images first, {format_value(steps)} steps (paper: none)"
        for key, (steps, _) in apart.items()
        if key.startswith(LEVELS)
    }


def cost_not_as_paper(group: Group) -> dict[str, str]:
    """Do the same for settings that affect time and memory."""
    return {key: words for key, words in not_as_paper(group).items() if not key.startswith(_NO_COST)}


_MAX_COMMITS = 4  # named; the rest are counted


class PaperNotes:
    """Footnotes on departures from the paper: one for those of a whole column, and one for those of a cell.

    Args:
        groups: groups of all columns.
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
        named = [f"{commit[:9]} ({count})" for commit, count in commits.most_common(_MAX_COMMITS)]
        more = [f"{len(commits) - _MAX_COMMITS} more"] if len(commits) > _MAX_COMMITS else []
        notes.append(f"Runs are of several commits, with the number of runs: {', '.join([*named, *more])}.")
    if changed:
        notes.append(f"{changed} of {len(states)} runs were made by code with changes that were not committed.")
    return notes
