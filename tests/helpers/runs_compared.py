"""Whether two runs are the same run: every row of their logs and everything in their checkpoints."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

# The first three hold the run's folder and its loaders; the loops count what was begun, not only what was done.
NOT_OF_THE_RUN = ("config", "hyper_parameters", "datamodule_hyper_parameters", "loops")

NOT_READ = ("Checkpoint.current_score", "Checkpoints.current_score")  # set by an evaluation before it is read


def rows(folder: Path) -> list[str]:
    """The log by step, but for speeds, as text: equal text is equal to the last bit that is printed."""
    with (folder / "metrics.csv").open(newline="") as file:
        numbers = [
            {key: value for key, value in row.items() if value and not key.startswith(("speed/", "epoch"))}
            for row in csv.DictReader(file)
        ]
    return [
        f"{int(row['step']):4} {key}={value}"
        for row in sorted(numbers, key=lambda row: int(row["step"]))
        for key, value in sorted(row.items())
        if key != "step"
    ]


def contents(folder: Path, name: str) -> dict[str, Any]:
    """Every number and text in a checkpoint, by its place; paths count below the run's folder."""
    checkpoint = torch.load(folder / "checkpoints" / name, weights_only=True)
    for key in NOT_OF_THE_RUN:
        checkpoint.pop(key, None)
    to_log = checkpoint["callbacks"]["LastCheckpoint"]["to_log"]
    checkpoint["callbacks"]["LastCheckpoint"]["to_log"] = sorted(key for key in to_log if not key.startswith("speed/"))
    leaves = {place.replace(str(folder), ""): leaf for place, leaf in _leaves(checkpoint, "", str(folder))}
    return {place: leaf for place, leaf in leaves.items() if not any(text in place for text in NOT_READ)}


def _leaves(value: Any, place: str, folder: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _leaves(entry, f"{place}.{key}", folder)
    elif isinstance(value, list | tuple):
        for number, entry in enumerate(value):
            yield from _leaves(entry, f"{place}[{number}]", folder)
    else:
        yield place, value.replace(folder, "") if isinstance(value, str) else value


def assert_same_run(one: Path, other: Path) -> None:
    """Logs, last and best checkpoint."""
    assert rows(one) == rows(other), sorted(set(rows(one)) ^ set(rows(other)))
    for name in ("last.ckpt", "best.ckpt"):
        mine, theirs = contents(one, name), contents(other, name)
        assert mine.keys() == theirs.keys()
        differing = [place for place in mine if not _same(mine[place], theirs[place])]
        assert not differing, f"{name}: " + ", ".join(f"{p}: {mine[p]!r}, {theirs[p]!r}" for p in differing)


def _same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
