"""What makes a cell of a table unlike its neighbours, in a few words."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from skyformer.report.groups import Group
from skyformer.report.published import LEVELS, SOURCE, departures
from skyformer.report.run import Run
from skyformer.report.settings import say, short_names, usual

# The method's own, and what may be tuned for each: said where it differs, but no reason against a comparison.
_OWN = "model.attention."
_TUNED = ("model.optimizer.", "model.lr_scheduler", "model.positions_lr_factor")
_STEPS, _DATA, _EXAMPLES, _SEEDS = "steps", "data", "tested examples", "seeds"
_SEVERAL = "seeds of several data sets"
# What a step's time and memory do not depend on.
_NO_COST = (
    *_TUNED,
    "best_checkpoint",
    "data.init_args.dev_size",
    "data.init_args.protocol.dev_is_test",
    "data.init_args.protocol.drop_last_test",
    "data.init_args.protocol.published_dev_size",
    "data.init_args.test_size",
    "data.init_args.train_size",
    "model.attention.init_args.eval_landmarks",
    "trainer.limit_val_batches",
    "trainer.max_",
    "trainer.val_check_",
)
Facts = dict[str, Any]
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
    facts, most = _facts(group), _most([_facts(other) for other in column if other.counted])
    unlike = _unlike(facts, most)
    if _SEEDS in unlike and facts[_SEEDS] > most[_SEEDS]:
        unlike.remove(_SEEDS)
    words = _words(unlike, facts, most)
    stopped = [run for run in group.counted if not run.is_finished]
    if stopped:
        words.append(f"{len(stopped)} stopped before step {stopped[0].max_steps:,}")
    early = [run for run in group.counted if run.stopped_early]
    if early:
        words.append(f"{len(early)} stopped early, the first at step {min(run.steps for run in early):,}")
    matters = [key for key in unlike if not key.startswith(_TUNED)]
    return Remarks((*words, *left_out), not matters and not stopped and not early)


def cost_remarks(group: Group, column: Sequence[Group]) -> tuple[str, ...]:
    """How a group differs from most groups of its task in what bears on time and memory."""
    facts, most = _cost_facts(group), _most([_cost_facts(other) for other in column])
    return tuple(_words(_unlike(facts, most), facts, most))


def _most(facts: Sequence[Facts]) -> Facts:
    return {key: usual([one.get(key) for one in facts]) for key in dict.fromkeys(chain(*facts))}


def _unlike(facts: Facts, most: Facts) -> list[str]:
    return [key for key in most if say(facts.get(key)) != say(most[key])]


def _words(unlike: Sequence[str], facts: Facts, most: Facts) -> list[str]:
    names = short_names(unlike)
    words = [_say(key, names[key], facts.get(key), most[key]) for key in unlike]
    if len(words) > _LONGEST:
        words = [*words[:_LONGEST], f"{len(words) - _LONGEST} more settings differ"]
    # What all of a column share is no difference, but no mean over one thing either.
    return words + [_SEVERAL] * (len(facts[_DATA]) > 1 and _DATA not in unlike)


def _facts(group: Group) -> Facts:
    """What the cells of a column should have in common."""
    facts: Facts = {
        _SEEDS: len(group.counted),
        _STEPS: min(run.steps for run in group.counted),
        _EXAMPLES: min((run.result or {}).get("test/examples", 0) for run in group.counted),
        _DATA: _data_of(group.counted),
    }
    shared = {key: value for key, value in group.settings.items() if not key.startswith((_OWN, "trainer.max_"))}
    return facts | shared


def _cost_facts(group: Group) -> Facts:
    """What a step's time and memory depend on beside the method and the machine."""
    facts: Facts = {
        _DATA: _data_of(group.runs),
        "processes": sorted({run.num_processes for run in group.runs}),
        "model.gradient_checkpointing": sorted(
            {bool(run.config["model"].get("gradient_checkpointing")) for run in group.runs}
        ),
        "model.compile": sorted({say(run.config["model"].get("compile")) for run in group.runs}),
    }
    shared = {key: value for key, value in group.settings.items() if not key.startswith((_OWN, *_NO_COST))}
    return facts | shared


def _data_of(runs: Sequence[Run]) -> tuple[str, ...]:
    return tuple(sorted({str(run.record.get("data_hash")) for run in runs}))


def _say(key: str, name: str, value: Any, most: Any) -> str:
    if key == _DATA:
        return "other data" if len(value) == 1 else _SEVERAL
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
    sources = [(run.config["data"].get("init_args") or {}).get("source") for run in group.runs]
    read_from = {SOURCE: None if None in sources else sources[0]}
    apart = departures(group.backend, group.task, group.settings | read_from)
    names = short_names(apart)
    words = {key: f"{names[key]} {say(ours)} (paper: {say(theirs)})" for key, (ours, theirs) in apart.items()}
    return words | {
        key: f"{names[key]} images first, {say(steps)} steps (paper: none)"
        for key, (steps, _) in apart.items()
        if key.startswith(LEVELS)
    }


def cost_not_as_paper(group: Group) -> dict[str, str]:
    """The same, in what bears on time and memory."""
    return {key: words for key, words in not_as_paper(group).items() if not key.startswith(_NO_COST)}
