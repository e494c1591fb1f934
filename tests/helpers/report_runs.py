"""Runs as they lie on a disk, written by hand: what a report should make of them is known beforehand."""

import csv
import io
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml

from skyformer.model.checkpoint_io import LAST
from skyformer.report.groups import Group, group_runs
from skyformer.report.runs import find_runs
from skyformer.report.table import Cell
from skyformer.report.tables import accuracy_table

ROOT = Path(__file__).parents[2]
MODULES = {"listops": "ListOps", "text": "Text", "image": "Image", "retrieval": "Retrieval", "pathfinder": "Pathfinder"}


def configuration(task: str, *overlays: str) -> dict[str, Any]:
    """A shipped task's configuration with overlays such as `attention/softmax`, as the command line adds them up."""
    config: dict[str, Any] = {}
    for name in (task, *overlays):
        text = Path(ROOT, "configs", f"{name}.yaml").read_text(encoding="utf-8")
        config = _merge(config, yaml.safe_load(text))
    return config


def _merge(former: dict[str, Any], latter: dict[str, Any]) -> dict[str, Any]:
    merged = {**former, **latter}
    if former.get("class_path") == latter.get("class_path", former.get("class_path")):
        both = [key for key in former if isinstance(former[key], dict) and isinstance(latter.get(key), dict)]
        merged |= {key: _merge(former[key], latter[key]) for key in both}
    return merged


def write_run(folder: Path, task: str = "listops", attention: str = "skyformer", seed: int = 0,
              accuracy: float | None = 0.5, steps: int = 100, max_steps: int = 100, record: Any = None,
              by_case: dict[str, Any] | None = None,
              **changes: Any) -> Path:  # fmt: skip
    """A run of one example a second for each of its batch, evaluated every 20 steps.

    Args:
        folder: where to; made here.
        accuracy: on the test set; None for a run that was not tested.
        steps: that it took, of `max_steps`.
        record: fields of `record.json` beside those that are always there.
        by_case: test accuracy of each kind of examples.
        changes: keys of the configuration, `__` between their parts.
    """
    config = configuration(task, f"attention/{attention}")
    config["seed_everything"] = seed
    config["trainer"]["max_steps"] = max_steps
    config["trainer"]["log_every_n_steps"] = 10
    for name, value in changes.items():
        _set(config, name.split("__"), value)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "metrics.csv").write_text(_metrics(config, steps), encoding="utf-8")
    made: dict[str, Any] = {
        "started": f"2026-01-0{seed + 1}T00:00:00",
        "command": ["run.py", "fit"],
        "from_step": 0,
        "data_hash": "d",
    }
    made |= {"num_processes": 1, "hardware": {"processor": "A CPU", "gpus": []}, "versions": {"torch": "2.9"}}
    records = [{**made, **(record or {})}]
    (folder / "record.json").write_text(json.dumps(records), encoding="utf-8")
    if accuracy is not None:
        result = {"test/accuracy": accuracy, "test/loss": 1.0, "test/examples": 200, "checkpoint": None}
        result |= {"test/accuracy_by_case": by_case} if by_case else {}
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def groups_in(folder: Path) -> list[Group]:
    """The groups of all runs in a folder."""
    return group_runs(find_runs([folder])[0])


def cells_in(folder: Path) -> dict[tuple[str, str], Cell]:
    """The table of accuracies of all runs in a folder, `{(method, task): cell}`."""
    table = accuracy_table(groups_in(folder))
    return {
        (label, column): cell
        for label, cells in table.rows
        for column, cell in zip(table.columns[1:], cells, strict=True)
    }


def write_checkpoint(folder: Path, steps: int) -> None:
    """The last one of a run, after so many steps; without weights."""
    state = {"LastCheckpoint": {"evaluation_is_due": False, "to_log": {}}}
    content = {"config": "{}", "global_step": steps, "state_dict": {}, "loops": {}, "callbacks": state}
    (folder / LAST).parent.mkdir()
    torch.save(content, folder / LAST)


def _set(config: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        config = config.setdefault(key, {})
    config[keys[-1]] = deepcopy(value)


def _metrics(config: dict[str, Any], steps: int) -> str:
    names = ["step", "train/loss", "speed/examples_per_second", "speed/peak_memory_mb", "val/accuracy", "val/loss"]
    text = io.StringIO()
    rows = csv.DictWriter(text, names)
    rows.writeheader()
    rate = float(config["data"]["init_args"]["batch_size"])
    for step in range(9, steps, 10):
        speed = {"speed/examples_per_second": rate, "speed/peak_memory_mb": 1000.0 + step}
        rows.writerow({"step": step, "train/loss": 2.0, **speed})
        if (step + 1) % 20 == 0:
            rows.writerow({"step": step, "val/accuracy": (step + 1) / 200, "val/loss": 3.0 - (step + 1) / 100})
    return text.getvalue()
