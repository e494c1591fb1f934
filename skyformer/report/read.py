"""What the folders of runs hold: configurations, curves, records, results."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from skyformer.earlier_versions import in_todays_settings
from skyformer.report.logs import EVENTS, TABLE, read_curves
from skyformer.report.run import Run
from skyformer.result import why_not_counted
from skyformer.runs import RunError
from skyformer.yaml_text import load_yaml


def find_runs(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """The runs in and below these folders, by path, and what could not be read, each with its file.

    A run's folder holds `config.yaml` and one of: event files, `metrics.csv`, `record.json`, `result.json`.

    Raises:
        RunError: when there is none.
    """
    below = {folder: _run_folders(folder) for folder in (named.expanduser() for named in folders)}
    empty = [f"no run in {_named(folder)}" for folder, paths in below.items() if not paths]
    found = {path.resolve(): path for paths in below.values() for path in paths}
    runs, problems = [], []
    for folder in sorted(found.values()):
        try:
            runs.append(_read_run(folder))
            problems += [f"{folder}: {problem}" for problem in runs[-1].problems]
        except _DamagedConfigError as error:
            problems.append(f"{folder}/config.yaml is not the configuration of a run ({error}); left out")
    if not runs:
        what = "a run's folder holds config.yaml and what it logged"
        raise RunError("; ".join([f"no run in {', '.join(map(_named, below))}: {what}", *problems]))
    return runs, [*empty, *problems]


def _run_folders(folder: Path) -> list[Path]:
    logged = (EVENTS, TABLE, "record.json", "result.json")
    holding = (path.parent for path in folder.rglob("config.yaml"))
    return [path for path in holding if any(any(path.glob(name)) for name in logged)]


def _named(folder: Path) -> str:
    return str(folder) if folder.is_dir() else f"{folder}, which is no folder"


class _DamagedConfigError(ValueError):
    pass


def _read_run(folder: Path) -> Run:
    config = _read_config(folder / "config.yaml")
    curves, problems = read_curves(folder)
    records = _read_json(folder / "record.json", problems)
    if not isinstance(records, list) or not all(map(_is_record, records)):
        problems.append("record.json holds no list of records")
        records = []
    result = _read_json(folder / "result.json", problems) or None
    if result is not None and not _is_result(result):
        problems.append("result.json holds no test/accuracy from 0 to 1; counted as not tested")
        result = None
    if result is not None and (why := why_not_counted(result, folder / "result.json", records)):
        problems.append(f"result.json is {why}; counted as not tested, test it again")
        result = None
    return Run(folder, config, curves, records, result, tuple(problems))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = in_todays_settings(load_yaml(path.read_text(encoding="utf-8")))
        run = Run(path.parent, config, {}, [], None, ())
        _ = run.task, run.backend, run.max_steps % run.log_every, run.examples_per_step + 0
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _DamagedConfigError(" ".join(str(error).split())) from error
    return config


def _read_json(path: Path, problems: list[str]) -> Any:
    """Its value; an empty list for a file that is not there, or, with a line in `problems`, is damaged."""
    if not path.exists():
        if path.name == "record.json":
            problems.append("no record.json: what it was made with is not known")
        return []
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} is damaged ({error})")
        return []


def _is_record(record: Any) -> bool:
    kinds = {"hardware": dict, "code": dict, "versions": dict, "command": list, "num_processes": int}
    if not (isinstance(record, dict) and all(isinstance(record.get(key, kind()), kind) for key, kind in kinds.items())):
        return False
    end = record.get("stopped_early")
    return end is None or (isinstance(end, dict) and isinstance(end.get("step"), int))


def _is_result(result: Any) -> bool:
    accuracy = result.get("test/accuracy") if isinstance(result, dict) else None
    return isinstance(accuracy, int | float) and not isinstance(accuracy, bool) and 0 <= accuracy <= 1  # no NaN either
