"""Loggers that write into the run's folder and continue there after a resume.

The command line fills in `save_dir`; any other Lightning logger works too.
"""

import csv
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import loggers
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from skyformer.files import name_in_errors, next_free_path, write_atomically, write_table


class TensorBoardLogger(loggers.TensorBoardLogger):
    """TensorBoard event files in the run's folder.

    Args:
        save_dir: the run's folder.
    """

    def __init__(self, save_dir: str = ".") -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log without the epoch, which Lightning adds: runs count steps."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    def start_at(self, step: int) -> None:
        """Hide the points from this step on, because a resumed run logs them again and a new run starts empty."""
        self._kwargs["purge_step"] = step


class CSVLogger(loggers.CSVLogger):
    """`metrics.csv` in the run's folder, appended to; Lightning's own deletes it on a resume.

    Args:
        save_dir: the run's folder.
    """

    def __init__(self, save_dir: str = ".") -> None:
        super().__init__(save_dir, name="", version="")
        self._experiment: ExperimentWriter | None = None

    def start_at(self, step: int, evaluates_first: bool = False) -> None:
        """Drop the rows that a run resumed at this step logs again, and a truncated row.

        A new run renames the rows of an earlier run without a checkpoint to `metrics.<k>.csv`.

        Args:
            step: optimiser steps that are done.
            evaluates_first: whether the validation after the last of them is repeated.
        """
        path = Path(self.log_dir, "metrics.csv")
        self._experiment = None  # it remembers the columns
        if not path.exists():
            return
        if step == 0:
            path.rename(next_free_path(path.parent, "metrics", ".csv"))
            return
        header, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) or [""]
        if not header.endswith("\n"):  # killed while it was written
            path.unlink()
            return
        names = next(csv.reader([header]), [])
        kept = [line for line in lines if _stays(line, names, step, evaluates_first)]
        write_atomically(path, "".join([header, *kept]))

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = _AppendingWriter(self.log_dir)
        return self._experiment


class WandbLogger(loggers.WandbLogger):
    """Curves to Weights & Biases; a resumed run and its evaluations continue one W&B run.

    The W&B run's id is kept in `wandb_id.txt` of the run's folder. Points that a killed run logged after its last
    checkpoint appear twice, with equal values.

    Args:
        project: of W&B.
        save_dir: the run's folder.
        offline: write to `save_dir/wandb` only. `wandb sync --append` uploads its folders into one W&B run.
        name: of the W&B run; W&B invents one by default.
        log_model: see Lightning's logger.
    """

    def __init__(
        self,
        project: str = "skyformer",
        save_dir: str = ".",
        offline: bool = False,
        name: str | None = None,
        log_model: Literal["all"] | bool = False,
    ) -> None:
        super().__init__(
            name=name, project=project, save_dir=save_dir, offline=offline, log_model=log_model, resume="allow"
        )
        self.id_path = Path(save_dir, "wandb_id.txt")

    def start_at(self, step: int) -> None:
        """Give a new run its own id, whatever an earlier run left in the folder."""
        if step == 0:
            self.id_path.unlink(missing_ok=True)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            if not self.id_path.exists():
                write_atomically(self.id_path, secrets.token_hex(4))
            self._wandb_init["id"] = self.id_path.read_text(encoding="utf-8")
        return super().experiment


def _stays(line: str, names: list[str], step: int, evaluates_first: bool) -> bool:
    row = dict(zip(names, next(csv.reader([line]), []), strict=False))
    if not line.endswith("\n") or len(row) != len(names) or not row.get("step", "").isdigit():
        return False
    if int(row["step"]) == step - 1:  # the step's own row is in the checkpoint
        return not row.get("train/loss") and not (evaluates_first and row.get("val/loss"))
    return int(row["step"]) < step


class _AppendingWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Keep what is there, and its columns."""
        path = Path(self.metrics_file_path)
        if path.exists():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def save(self) -> None:
        with name_in_errors(Path(self.metrics_file_path)):
            super().save()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Rewrite atomically. Lightning's own method would lose the log if killed here."""
        path = Path(self.metrics_file_path)
        with path.open(newline="") as file:
            write_table(path, fieldnames, csv.DictReader(file))
