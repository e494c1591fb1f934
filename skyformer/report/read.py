"""What the folders of runs hold: configurations and curves."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from skyformer.runs import RunError, backend_name, task_name
from skyformer.yaml_text import load_yaml


@dataclass(frozen=True)
class Curve:
    """A logged number. `step` and `value`: `(points,)`, in the order of writing."""

    step: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class Run:
    """One run's folder."""

    folder: Path
    config: dict[str, Any]

    @property
    def task(self) -> str:
        return task_name(self.config)

    @property
    def backend(self) -> str:
        return backend_name(self.config)

    @property
    def examples_per_step(self) -> int:
        """Of one process."""
        return self.config["data"]["init_args"]["batch_size"] * self.config["trainer"]["accumulate_grad_batches"]

    def curve(self, name: str) -> Curve:
        """The curve of this name, such as `train/loss`; empty where nothing was logged."""
        known = self._events.Tags()["scalars"]
        points = self._events.Scalars(name) if name in known else []
        return Curve(np.array([p.step for p in points], dtype=np.int64), np.array([p.value for p in points]))

    @cached_property
    def _events(self) -> EventAccumulator:
        events = EventAccumulator(str(self.folder), size_guidance={"scalars": 0})  # 0: all points
        events.Reload()
        return events


def find_runs(folders: Iterable[Path]) -> list[Run]:
    """The runs in and below these folders, by path.

    Raises:
        RunError: when there is none, or a configuration cannot be read.
    """
    folders = list(folders)
    paths = sorted({path for folder in folders for path in folder.rglob("config.yaml")})
    runs = [Run(path.parent, _read_config(path)) for path in paths if any(path.parent.glob("events.out.tfevents.*"))]
    if not runs:
        named = ", ".join(map(str, folders))
        raise RunError(f"no run in {named}: a run's folder holds config.yaml and events.out.tfevents.*")
    return runs


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = load_yaml(path.read_text(encoding="utf-8"))
        task_name(config), backend_name(config)
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise RunError(f"{path} is not the configuration of a run ({error}); leave its folder out") from error
    return config
