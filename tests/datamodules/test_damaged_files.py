"""Every kind of file that is read, damaged: refused with a message that names file and fix, or read as what it is.

Never an error of somebody else's, code that runs, a file read or written elsewhere, or something half-made.
"""

import os
import pickle
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from damage import damages
from damaged_kinds import KINDS, agree, build
from damaged_specials import specials
from trials import ACCEPTED, FOREIGN, REFUSED, Outcome, Trials, trials

from datamodules import ListOps
from datamodules.files import PreparedDataError
from datamodules.prepared.format import data_hash

SEED = 0
SAMPLE = 20  # of the damages of each kind; all of them with `-m long`
LONG_SEEDS = range(1, 6)
CHECKED = [title for title, kind in KINDS.items() if kind.is_prepared and not kind.agreeing and "meta" not in title]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    with trials(tmp_path_factory.mktemp("trials")) as made:
        yield made


def damaged(run: Trials, title: str, names: list[str], seed: int) -> dict[str, Outcome]:
    """What comes of each damage that changes anything."""
    outcomes = {name: run.damage(KINDS[title], damages(seed)[name]) for name in names}
    return {name: outcome for name, outcome in outcomes.items() if outcome is not None}


def foreign(outcomes: dict[str, Outcome]) -> dict[str, str]:
    return {name: outcome.said for name, outcome in outcomes.items() if outcome.verdict == FOREIGN}


@pytest.mark.long
@pytest.mark.parametrize("title", KINDS)
def test_a_sample_of_damages(title, run):
    names = random.Random(f"{SEED} {title}").sample(sorted(damages()), SAMPLE)
    assert foreign(damaged(run, title, names, SEED)) == {}


@pytest.mark.long
@pytest.mark.parametrize("seed", LONG_SEEDS)
@pytest.mark.parametrize("title", KINDS)
def test_all_damages(title, seed, run):
    assert foreign(damaged(run, title, list(damages()), seed)) == {}


@pytest.mark.parametrize("title", CHECKED)
def test_no_change_of_a_prepared_file_is_accepted(title, run):
    """A bit of `tokens.bin` would else be trained on."""
    flips = [name for name in damages() if "bit flipped" in name]
    outcomes = damaged(run, title, flips, SEED)
    assert outcomes
    assert {outcome.verdict for outcome in outcomes.values()} == {REFUSED}


@pytest.mark.parametrize(
    "title", [pytest.param(title, marks=() if number % 2 else pytest.mark.long) for number, title in enumerate(KINDS)]
)
def test_what_goes_wrong_with_one_kind(title, run):
    wrong = {}
    for name, (change, expected) in specials(title).items():
        outcome = run(KINDS[title], change)
        if outcome.verdict != expected:
            wrong[name] = outcome
    assert wrong == {}


@pytest.mark.parametrize("title", KINDS)
def test_what_is_whole_is_accepted(title, run):
    assert run(KINDS[title], lambda path: None) == Outcome(ACCEPTED)


def test_there_are_enough_damages():
    """Pure functions that give the same twice, and that cope with any bytes."""
    for data in (b"", b"\xff", b"a line\tof text\r\nand another\n" * 30, random.Random(SEED).randbytes(1_000)):
        first, again = ({name: damage(data) for name, damage in damages(SEED).items()} for _ in range(2))
        assert first == again
    assert len({content for content in first.values() if content != data}) >= 40


def leave_partial(place: Path) -> None:
    (place / "data/left.partial").mkdir()


def read_elsewhere(place: Path) -> None:
    next(place.parent.glob("pristine/listops/source/*.tsv")).read_bytes()


def write_in_the_source(place: Path) -> None:
    (place / "source/new").touch()


def change_the_source(place: Path) -> None:
    os.truncate(place / "source/basic_val.tsv", 3)


def unpickle(place: Path) -> None:
    pickle.loads(pickle.dumps(place))


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (leave_partial, "left.partial"),
        (read_elsewhere, "open"),
        (write_in_the_source, "source/new"),
        (change_the_source, "basic_val.tsv was changed"),
        (unpickle, "find_class"),
    ],
)
def test_a_trial_sees_what_must_not_happen(act, said, tmp_path):
    with trials(tmp_path) as run:
        run.pristine("listops")
        run.patch.setattr(ListOps, "expected_bytes", lambda data: act(run.place) or 1)
        outcome = run(KINDS["ListOps, TSV"], lambda path: None)
    assert outcome.verdict == FOREIGN
    assert said in outcome.said


def test_hash_of_the_data(run):
    """The same wherever the folder lies and however it is named; another for another content."""
    run.lay_out(KINDS["prepared tokens.bin"])
    data = build(ListOps, run.place)
    first = data.data_hash
    assert re.fullmatch("[0-9a-f]{16}", first)
    moved = data.folder.rename(run.place / "moved")
    assert data_hash(moved) == first
    (moved / "train/labels.bin").write_bytes(bytes(40))
    assert data_hash(moved) == first, "of what was made, which verifying compares with what is there"
    agree(moved)
    assert data_hash(moved) != first
    with pytest.raises(PreparedDataError, match=r"meta\.json cannot be read"):
        data.data_hash  # noqa: B018  a property
