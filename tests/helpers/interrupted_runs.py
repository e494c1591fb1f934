"""Runs that are killed in a process of their own, and how they compare with a run that was not."""

import csv
import os
from pathlib import Path

import torch
from processes import run_to_its_end

STOP = "--trainer.callbacks=stop_at.StopAt"


def curves(folder: Path) -> dict[int, dict[str, str]]:
    """What was logged in training, by step, as text: equal text is equal to the last bit that is printed."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    kept = ("train/loss", "train/accuracy", "train/grad_norm")
    return {int(row["step"]): {key: row[key] for key in kept} for row in rows}


def evaluations(folder: Path) -> dict[int, tuple[str, str]]:
    """Validation loss and accuracy by step; one that was repeated must have come out the same."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val/loss"]]
    found: dict[int, tuple[str, str]] = {}
    for row in rows:
        values = row["val/loss"], row["val/accuracy"]
        assert found.setdefault(int(row["step"]), values) == values
    return found


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def assert_same_training(ours: Path, theirs: Path, from_step: int) -> None:
    mine, other = final_weights(ours), final_weights(theirs)
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    mine_curves, other_curves = curves(ours), curves(theirs)
    steps = [step for step in other_curves if step >= from_step]
    assert len(steps) > 2
    assert {step: mine_curves[step] for step in steps} == {step: other_curves[step] for step in steps}
    assert evaluations(ours) == evaluations(theirs)
    best = [torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["global_step"] for folder in (ours, theirs)]
    assert best[0] == best[1]


def run_process(arguments: list[str]) -> int:
    """`fit` in a process of its own; its exit status, negative for a signal."""
    return run_to_its_end(["fit", *arguments], Path(os.devnull))
