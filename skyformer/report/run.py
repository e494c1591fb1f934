"""One run, as its folder holds it."""

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from skyformer.checkpoint_io import LAST, CheckpointError, read_checkpoint
from skyformer.report.logs import Curve, Curves
from skyformer.runs import backend_name, task_name

_EMPTY = Curve(np.array([], dtype=np.int64), np.array([]))


@dataclass(frozen=True, eq=False)
class Run:
    """One run's folder.

    Attributes:
        folder: where it is.
        config: `config.yaml`.
        curves: what was logged, by name.
        records: `record.json`, one for each start and resume; empty where there is none.
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
        """Of the last start; empty where there is none."""
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
        """Of one process; 0 for a data module that has no `batch_size`."""
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
        """On the test set, from 0 to 1."""
        return None if self.result is None else float(self.result["test/accuracy"])

    @property
    def device(self) -> str:
        """The name of the GPU or processor that it ran on; of several, by its starts, `A, then B`."""
        return ", then ".join(dict.fromkeys(map(self._device_of, self.records or [{}])))

    def _device_of(self, record: dict[str, Any]) -> str:
        hardware = record.get("hardware", {})
        gpus = hardware.get("gpus") or []
        if gpus and self.config["trainer"].get("accelerator") != "cpu":
            return str(gpus[0])
        return str(hardware.get("processor") or "unknown processor")

    def curve(self, name: str) -> Curve:
        """The curve of this name, such as `train/loss`; empty where nothing was logged."""
        return self.curves.get(name, _EMPTY)


def _steps_in(checkpoint: Path) -> int:
    """That were taken before it was written; 0 where there is none, or it is damaged."""
    with suppress(OSError, CheckpointError):
        return int(read_checkpoint(checkpoint)["global_step"])
    return 0
