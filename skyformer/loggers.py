"""Loggers that write into the run's folder and go on there after a resume.

The command line fills in `save_dir`; any other Lightning logger works too.
"""

import csv
from collections.abc import Mapping
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import loggers
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class TensorBoardLogger(loggers.TensorBoardLogger):
    """TensorBoard event files in the run's folder.

    Args:
        save_dir: the run's folder.
    """

    def __init__(self, save_dir: str = ".") -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Without the epoch, which Lightning adds to everything: runs are counted in steps."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    def start_at(self, step: int) -> None:
        """Hide what was logged from this step on: a resumed run logs it anew, a new run starts from nothing."""
        self._kwargs["purge_step"] = step


class CSVLogger(loggers.CSVLogger):
    """`metrics.csv` in the run's folder, appended to; Lightning's own deletes it on a resume.

    Args:
        save_dir: the run's folder.
    """

    def __init__(self, save_dir: str = ".") -> None:
        super().__init__(save_dir, name="", version="")
        self._experiment: ExperimentWriter | None = None

    def start_at(self, step: int) -> None:
        """Set aside, as `metrics.<k>.csv`, what a run without a checkpoint logged, if this one starts from nothing."""
        path = Path(self.log_dir, "metrics.csv")
        if step == 0 and path.exists():
            path.rename(path.with_name(f"metrics.{1 + len(list(path.parent.glob('metrics.*.csv')))}.csv"))

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = _AppendingWriter(self.log_dir)
        return self._experiment


class _AppendingWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Keep what is there, and its columns."""
        path = Path(self.metrics_file_path)
        if path.exists():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])
