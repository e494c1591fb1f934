"""Loggers that write into the run's folder and continue there after a resume.

The command line fills in `save_dir`; any other Lightning logger works too.
"""

import csv
import os
import secrets
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import loggers
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from skyformer.files import name_in_errors, next_free_path, write_atomically, write_table

_PLAIN = (bool, int, float, str, type(None))


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


class ContinuedLogger:
    """A logger whose run in a tracking service is continued by a resume and by evaluations.

    Points that a run logged after its last checkpoint appear twice after a resume, with equal values.

    Attributes:
        id_path: file in the run's folder that names the service's run.
    """

    id_path: Path

    def start_at(self, step: int) -> None:
        """Give a new run its own id, whatever an earlier run left in the folder."""
        if step == 0:
            self.id_path.unlink(missing_ok=True)

    def kept_id(self, prefix: str = "") -> str:
        """Return the id in the file. If it is missing, write a random one after this prefix."""
        if not self.id_path.exists():
            write_atomically(self.id_path, prefix + secrets.token_hex(4))
        return self.id_path.read_text(encoding="utf-8")


class WandbLogger(ContinuedLogger, loggers.WandbLogger):
    """Curves to Weights & Biases; a resumed run and its evaluations continue one W&B run.

    The W&B run's id is kept in `wandb_id.txt` of the run's folder.

    Args:
        project: the W&B project.
        save_dir: the run's folder.
        offline: write to `save_dir/wandb` only. `wandb sync --append` uploads its folders into one W&B run.
        name: name of the W&B run; W&B invents one by default.
    """

    def __init__(
        self, project: str = "skyformer", save_dir: str = ".", offline: bool = False, name: str | None = None
    ) -> None:
        super().__init__(name=name, project=project, save_dir=save_dir, offline=offline, resume="allow")
        self.id_path = Path(save_dir, "wandb_id.txt")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._wandb_init["id"] = self.kept_id()
        return super().experiment


class MLflowLogger(ContinuedLogger, loggers.MLFlowLogger):
    """Curves to MLflow; a resumed run and its evaluations continue one MLflow run.

    The MLflow run's id is kept in `mlflow_id.txt` of the run's folder. MLflow refuses another value of a parameter, so
    the parameters are those of the first start.

    Args:
        experiment_name: the MLflow experiment; made if missing.
        save_dir: the run's folder.
        tracking_uri: URI of the server; default: the variable MLFLOW_TRACKING_URI, or else `file:<save_dir>/mlruns`.
        run_name: name of the MLflow run; MLflow invents one by default.
    """

    def __init__(
        self,
        experiment_name: str = "skyformer",
        save_dir: str = ".",
        tracking_uri: str | None = None,
        run_name: str | None = None,
    ) -> None:
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"file:{Path(save_dir).absolute()}/mlruns"
        if uri.startswith("file:"):
            # MLflow 3 asks for this. Its databases need more packages.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        super().__init__(experiment_name, run_name=run_name, tracking_uri=uri)
        self.id_path = Path(save_dir, "mlflow_id.txt")
        self.continues = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._initialized:
            return super().experiment
        self.continues = self.id_path.exists()
        if self.continues:
            self._run_id = self.kept_id()
        client = super().experiment
        if self.continues:
            client.update_run(self._run_id, status="RUNNING")
        else:
            write_atomically(self.id_path, str(self._run_id))
        return client

    def log_hyperparams(self, params: Any) -> None:
        """Log the parameters of a new run."""
        _ = self.experiment
        if not self.continues:
            super().log_hyperparams(params)


class TrackioLogger(ContinuedLogger, loggers.Logger):
    """Curves to trackio, in its folder on this machine or in a Hugging Face Space.

    A resumed run and its evaluations continue one run of trackio. Its name is kept in `trackio_id.txt` of the run's
    folder: the last three parts of the folder's path and a random number.

    Args:
        project: the trackio project.
        save_dir: the run's folder.
        space_id: id of a Hugging Face Space, such as `name/space`; None keeps all on this machine.

    Raises:
        ModuleNotFoundError: if trackio is not installed.
    """

    def __init__(self, project: str = "skyformer", save_dir: str = ".", space_id: str | None = None) -> None:
        super().__init__()
        if find_spec("trackio") is None:
            raise ModuleNotFoundError("trackio is not installed. Fix: pip install -e '.[trackio]'")
        self.project, self.space_id = project, space_id
        self.folder = Path(save_dir)
        self.id_path = self.folder / "trackio_id.txt"
        self.run: Any = None

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str:
        return self.kept_id("".join(f"{part}-" for part in self.folder.absolute().parts[-3:]))

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self.run is None:
            import trackio

            self.run = trackio.init(self.project, self.version, space_id=self.space_id, resume="allow", embed=False)
        return self.run

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Set the parameters, which trackio stores with the next metrics."""
        plain = {name: value for name, value in dict(params).items() if isinstance(value, _PLAIN)}
        self.experiment.config.update(plain)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Wait until all metrics are stored."""
        if self.run is not None:
            self.run.finish()
            self.run = None


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
