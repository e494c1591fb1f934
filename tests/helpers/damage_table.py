"""Prints what comes of damaged data files: `PYTHONPATH=.:tests/helpers python tests/helpers/damage_table.py`."""

import tempfile
from collections import Counter
from pathlib import Path

from damage import damages
from damaged_kinds import KINDS
from damaged_specials import specials
from trials import ACCEPTED, FOREIGN, REFUSED, Trials, trials

HEADING = ("kind of file", "ways tried", "refused with a typed error", "accepted (content still valid)", FOREIGN)


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder, trials(Path(folder)) as run:
        for title in KINDS:
            found = count(run, title)
            rows.append((title, found.total(), found[REFUSED], found[ACCEPTED], found[FOREIGN]))
    rows.append(("all", *(sum(column) for column in zip(*(row[1:] for row in rows), strict=True))))
    print(f"| {' | '.join(HEADING)} |\n|---|{'---:|' * 4}")
    for title, *numbers in rows:
        print(f"| {title} | {' | '.join(f'{number:,}' for number in numbers)} |")


def count(run: Trials, title: str) -> Counter[str]:
    """How often each verdict was given on a kind of file; those that none may be are said."""
    damaged = {name: run.damage(KINDS[title], damage) for name, damage in damages().items()}
    changed = {name: run(KINDS[title], change) for name, (change, _) in specials(title).items()}
    outcomes = {**damaged, **{f"special: {name}": outcome for name, outcome in changed.items()}}
    for name, outcome in outcomes.items():
        if outcome and outcome.verdict == FOREIGN:
            print(f"{title}, {name}: {outcome.said}")
    return Counter(outcome.verdict for outcome in outcomes.values() if outcome)


if __name__ == "__main__":
    main()
