"""Each run by itself: what it reached, what it took, how it was made."""

import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from skyformer.installation import program
from skyformer.report.clock import training_seconds
from skyformer.report.cost import peak_memory_gb
from skyformer.report.groups import Group
from skyformer.report.run import Run
from skyformer.report.settings import say


def run_rows(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """One row a run, plain numbers, for CSV; empty where something is not known."""
    return [_row(group, run) for group in groups for run in group.runs]


def _row(group: Group, run: Run) -> dict[str, Any]:
    return {
        "task": group.task,
        "method": group.label,
        "settings": "; ".join(f"{name}={say(value)}" for name, value in (group.variant | group.others).items()),
        "seed": run.seed,
        "steps": run.steps,
        "max_steps": run.max_steps,
        "stopped_early": run.stopped_early.get("reason", ""),
        "batch": run.examples_per_step * run.num_processes or "",
        **_result(run),
        **_made_with(run),
        "folder": str(run.folder),
        "problems": "; ".join(run.problems),
    }


def _result(run: Run) -> dict[str, Any]:
    """What it reached, and what that took."""
    dev, clock, result = run.curve("val/accuracy"), training_seconds(run), run.result or {}
    return {
        "test_accuracy": result.get("test/accuracy", ""),
        "test_loss": result.get("test/loss", ""),
        "test_examples": result.get("test/examples", ""),
        "best_dev_accuracy": _round(np.nanmax(dev.value)) if np.isfinite(dev.value).any() else "",
        "hours": _round(clock.value[-1] / 3600) if len(clock.value) else "",
        "peak_gb": _round(peak_memory_gb(run)),
    }


def _made_with(run: Run) -> dict[str, Any]:
    """Machine, code, data and command; of the last start, where they are not of all."""
    code, versions = run.record.get("code") or {}, run.record.get("versions") or {}
    return {
        "device": run.device,
        "commit": code.get("commit") or "",
        "dirty": "" if code.get("dirty") is None else code["dirty"],
        "data_hash": run.record.get("data_hash") or "",
        "torch": versions.get("torch") or "",
        "started": (run.records[0] if run.records else {}).get("started", ""),
        "starts": len(run.records),
        "command": command_of(run.record),
    }


def command_of(record: dict[str, Any]) -> str:
    """The command line of a start, to be typed again."""
    words = [str(word) for word in record.get("command") or []]
    return shlex.join([*program(words[0]), *words[1:]]) if words else ""


def _round(number: float) -> Any:
    return float(f"{number:.6g}") if np.isfinite(number) else ""
