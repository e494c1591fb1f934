"""Read trained runs: settings, records, curves, test results and training times."""

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from skyformer.exceptions import CheckpointError, RunError
from skyformer.model.checkpoint_io import LAST, read_checkpoint
from skyformer.model.earlier_versions import upgrade_config
from skyformer.report.curves import EMPTY_CURVE, TABLE, Curve, Curves, read_curves
from skyformer.training.events import EVENTS
from skyformer.training.result import reason_not_counted
from skyformer.training.run_folder import backend_name, is_pretraining, task_name
from skyformer.yaml_text import load_dumped


@dataclass(frozen=True, eq=False)
class Run:
    """One run's folder.

    Attributes:
        folder: where it is.
        config: `config.yaml`.
        curves: what was logged, by name.
        records: `record.json`, one for each start and resume; empty without the file.
        result: `result.json`; None for a run that was not tested.
        problems: what of it could not be read.
    """

    folder: Path
    config: dict[str, Any]
    curves: Curves
    records: list[dict[str, Any]]
    result: dict[str, Any] | None
    problems: tuple[str, ...]

    @property
    def task(self) -> str:
        return task_name(self.config)

    @property
    def backend(self) -> str:
        return backend_name(self.config)

    @property
    def seed(self) -> Any:
        return self.config.get("seed_everything")

    @property
    def record(self) -> dict[str, Any]:
        """The record of the last start; empty without one."""
        return self.records[-1] if self.records else {}

    @property
    def stopped_early(self) -> dict[str, Any]:
        """The step and the reason of an end before `max_steps`; empty where it took all steps, or was interrupted."""
        return self.record.get("stopped_early") or {}

    @property
    def num_processes(self) -> int:
        return self.record.get("num_processes") or 1

    @property
    def examples_per_step(self) -> int:
        """Examples of a step of one process; 0 for a data module without `batch_size`."""
        batch_size = (self.config["data"].get("init_args") or {}).get("batch_size") or 0
        return batch_size * (self.config["trainer"].get("accumulate_grad_batches") or 1)

    @property
    def max_steps(self) -> int:
        """That it was to take; -1 without such a limit."""
        return int(self.record.get("max_steps") or self.config["trainer"].get("max_steps") or -1)

    @property
    def log_every(self) -> int:
        return int(self.config["trainer"].get("log_every_n_steps") or 1)

    @cached_property
    def steps(self) -> int:
        """Optimiser steps that were taken, as far as it is known."""
        if self.stopped_early:
            return int(self.stopped_early["step"])
        during = [self.curves[name].step for name in self.curves if name.startswith(("train/", "val/", "speed/"))]
        at_end = [self.curves[name].step for name in self.curves if name.startswith("result/")]
        logged = max([int(step.max()) + 1 for step in during if len(step)] + [int(step.max()) for step in at_end] + [0])
        # Those after the last that is a multiple of `log_every` are in no log; the last checkpoint counts them.
        if self.max_steps - self.max_steps % self.log_every <= logged < self.max_steps:
            return max(logged, _steps_in(self.folder / LAST))
        return logged

    @property
    def is_finished(self) -> bool:
        return self.steps >= self.max_steps or bool(self.stopped_early)

    @property
    def accuracy(self) -> float | None:
        """On the test set, from 0 to 1, in float32 as it was computed: it rounds as `test` printed it."""
        return None if self.result is None else float(np.float32(self.result["test/accuracy"]))

    @property
    def accuracy_by_case(self) -> dict[str, float]:
        """On each kind of test examples, from 0 to 1; empty for a task without kinds."""
        return (self.result or {}).get("test/accuracy_by_case", {})

    @property
    def device(self) -> str:
        """The name of the GPU or processor that it ran on; of several, by its starts, `A, then B`."""
        return ", then ".join(dict.fromkeys(map(self._device_of, self.records or [{}])))

    def _device_of(self, record: dict[str, Any]) -> str:
        hardware = record.get("hardware") or {}
        gpus = hardware.get("gpus") or []
        if gpus and self.config["trainer"].get("accelerator") != "cpu":
            return str(gpus[0])
        return str(hardware.get("processor") or "unknown processor")

    @property
    def hours(self) -> float:
        """Hours of training without evaluation; NaN if no speed was logged."""
        seconds = training_seconds(self).value
        return float(seconds[-1]) / 3600 if len(seconds) else float("nan")

    @property
    def peak_memory_gb(self) -> float:
        """The highest that was logged, over resumes too; NaN where nothing was."""
        return self.curve("speed/peak_memory_mb").highest / 1000

    @property
    def best_validation(self) -> float:
        """The highest validation accuracy, from 0 to 1; NaN where nothing was logged."""
        return self.curve("val/accuracy").highest

    def curve(self, name: str) -> Curve:
        """The curve of this name, such as `train/loss`; empty where nothing was logged."""
        return self.curves.get(name, EMPTY_CURVE)


def _steps_in(checkpoint: Path) -> int:
    """That were taken before it was written; 0 where it is missing or damaged."""
    with suppress(OSError, CheckpointError):
        return int(read_checkpoint(checkpoint)["global_step"])
    return 0


def training_seconds(run: Run) -> Curve:
    """Return steps and their seconds of training, without evaluation; empty if no speed was logged.

    The logged examples per second give the seconds of each step since the previous point. Steps after the last
    point take the mean. The clock of the event files would include the time in which a run was stopped.
    """
    speed = run.curve("speed/examples_per_second")
    usable = np.isfinite(speed.value) & (speed.value > 0)
    if not run.examples_per_step or not usable.any():
        return Curve(np.array([], dtype=np.int64), np.array([]))
    steps = speed.step[usable] + 1
    seconds = np.cumsum(np.diff(steps, prepend=0) * run.examples_per_step / speed.value[usable])
    if run.steps > steps[-1]:
        seconds = np.append(seconds, seconds[-1] * run.steps / steps[-1])
        steps = np.append(steps, run.steps)
    return Curve(steps, seconds)


def seconds_at(run: Run, steps: np.ndarray) -> np.ndarray:
    """Seconds of training behind this many steps; NaN where no speed was logged."""
    clock = training_seconds(run)
    if not len(clock.step):
        return np.full(len(steps), np.nan)
    return np.interp(steps, np.concatenate([[0], clock.step]), np.concatenate([[0.0], clock.value]))


def unit_of(seconds: float) -> tuple[float, str]:
    """Return the unit of an axis that ends at these seconds: its length in seconds, and its name."""
    return next((size, name) for size, name, below in _UNITS if seconds < below)


_UNITS: Sequence[tuple[float, str, float]] = ((1, "s", 180), (60, "min", 180 * 60), (3600, "h", float("inf")))


def find_runs(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs below these folders by path, without pretraining, and messages about unreadable files.

    A run's folder holds `config.yaml` and one of: event files, `metrics.csv`, `record.json`, `result.json`.

    Raises:
        RunError: when there is no run.
    """
    below = {folder: _run_folders(folder) for folder in (named.expanduser() for named in folders)}
    empty = [f"no run in {_named(folder)}" for folder, paths in below.items() if not paths]
    found = {path.resolve(): path for paths in below.values() for path in paths}
    runs, problems = [], []
    for folder in sorted(found.values()):
        try:
            run = _read_run(folder)
            if is_pretraining(run.config):
                problems.append(f"{folder}: pretraining, which has no accuracy on the task; left out")
                continue
            runs.append(run)
            problems += [f"{folder}: {problem}" for problem in runs[-1].problems]
        except DamagedConfigError as error:
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


class DamagedConfigError(ValueError):
    """A configuration is not that of a run."""


def _read_run(folder: Path) -> Run:
    config = _read_config(folder / "config.yaml")
    curves, problems = read_curves(folder)
    records = _read_json(folder / "record.json", problems)
    if not isinstance(records, list) or not all(map(_is_record, records)):
        problems.append("record.json holds no list of records")
        records = []
    result = _read_json(folder / "result.json", problems) or None
    if result is not None and not _is_result(result):
        problems.append("result.json holds no accuracies from 0 to 1; counted as not tested")
        result = None
    if result is not None and (why := reason_not_counted(result, folder / "result.json", records)):
        problems.append(f"result.json is {why}; counted as not tested, test it again")
        result = None
    return Run(folder, config, curves, records, result, tuple(problems))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return usable_config(load_dumped(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise DamagedConfigError(" ".join(str(error).split())) from error


def usable_config(config: Any) -> dict[str, Any]:
    """Return a run's nested configuration as this version would write it.

    Raises:
        DamagedConfigError: for anything else.
    """
    try:
        config = upgrade_config(config)
        run = Run(Path(), config, {}, [], None, ())
        _ = run.task, run.backend, run.max_steps % run.log_every, run.examples_per_step + 0
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedConfigError(" ".join(str(error).split())) from error
    return config


def _read_json(path: Path, problems: list[str]) -> Any:
    """Return the file's value; an empty list for a missing file, or for a corrupt one, which adds to `problems`."""
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
    by_case = result.get("test/accuracy_by_case", {}) if isinstance(result, dict) else None
    return isinstance(by_case, dict) and all(map(_is_accuracy, [accuracy, *by_case.values()]))


def _is_accuracy(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1  # no NaN either
